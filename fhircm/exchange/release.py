"""Try again what is in quarantine: through the same door as if the partner had sent it now.

docs/how-to/look-into-quarantine.md. What is refused again stays, with the reason of today.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fhircm.exchange import quarantine
from fhircm.exchange.adt import Adt
from fhircm.exchange.holding import holding
from fhircm.exchange.mapping import Source
from fhircm.exchange.mirror import Batch, Mirror, Row
from fhircm.exchange.pages import cut
from fhircm.exchange.partners import Partner
from fhircm.fhir.outcome import NotFound
from fhircm.store.resources import Held, Store

LEASE = 15.0  # seconds after which one that fell silent is missed


@dataclass(frozen=True, slots=True)
class Released:
    """What became of one thing: None as `reason` when it is at the hub now."""

    name: str
    reason: str | None


async def release(store: Store, partner: Partner, names: Sequence[str], *, trusted: bool = False) -> list[Released]:
    """Try each again; `trusted`: versions that went back and times in the future are taken as they are.

    Raises NotFound for a name that nothing is held under, and Busy while the partner is pulled. Interrupted, it can be asked again.
    """
    held = await store.held(partner.name, names)
    if missing := sorted(set(names) - held.keys()):
        raise NotFound(f"Nothing of {partner.name} is in quarantine under {missing[0]}")
    async with holding(store, f"pull:{partner.name}", LEASE):
        return [await _release(store, partner, held[name], trusted=trusted) for name in names]


async def _release(store: Store, partner: Partner, held: Held, *, trusted: bool) -> Released:
    body = await store.held_body(partner.name, held.name) or b"{}"
    if held.kind == quarantine.MESSAGE:
        return Released(held.name, await Adt(store, partner).again(body))
    received = cut(body)
    if received.type is None or not received.id:
        return Released(held.name, held.reason)
    mirror, one = Mirror(store, partner), Source(received.type, received.id)
    batch = Batch(held.batch, await mirror.row(held.batch) if held.batch else Row(), trusted=trusted)
    (batch.own if held.batch else batch.shared)[one] = received
    await mirror.write(batch)
    still = await store.held(partner.name, [held.name])
    return Released(held.name, still[held.name].reason if held.name in still else None)
