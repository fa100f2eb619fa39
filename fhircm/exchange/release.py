"""Try again what is in quarantine: through the same door as if the partner had sent it now.

docs/how-to/look-into-quarantine.md. What is refused again stays, with the reason of today.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from fhircm.exchange.mapping import Source
from fhircm.exchange.mirror import Batch, Mirror, Row
from fhircm.exchange.pages import cut
from fhircm.exchange.partners import Partner
from fhircm.fhir.outcome import Conflict, NotFound
from fhircm.store.resources import Held, Store

LEASE = 60.0  # seconds; longer than one resource takes


class PartnerBusy(Conflict):
    """A pull of this partner is at work."""


@dataclass(frozen=True, slots=True)
class Released:
    """What became of one thing: None as `reason` when it is at the hub now."""

    name: str
    reason: str | None


async def release(store: Store, partner: Partner, names: Sequence[str], *, trusted: bool = False) -> list[Released]:
    """Try each again; `trusted`: versions that went back and times in the future are taken as they are.

    Raises NotFound for a name that nothing is held under, and PartnerBusy. Interrupted, it can be asked again.
    """
    held = await store.held(partner.name, names)
    if missing := sorted(set(names) - held.keys()):
        raise NotFound(f"Nothing of {partner.name} is in quarantine under {missing[0]}")
    lease, holder = f"pull:{partner.name}", uuid4().hex
    released = []
    try:
        for name in names:
            if not await store.lease(lease, holder, LEASE):
                raise PartnerBusy(f"{partner.name} is being pulled at this moment; try again when that is done")
            released.append(await _release(store, partner, held[name], trusted=trusted))
    finally:
        await store.release(lease, holder)
    return released


async def _release(store: Store, partner: Partner, held: Held, *, trusted: bool) -> Released:
    received = cut(await store.held_body(partner.name, held.name) or b"{}")
    if received.type is None or not received.id:
        return Released(held.name, held.reason)
    mirror, one = Mirror(store, partner), Source(received.type, received.id)
    batch = Batch(held.batch, await mirror.row(held.batch) if held.batch else Row(), trusted=trusted)
    (batch.own if held.batch else batch.shared)[one] = received
    await mirror.write(batch)
    still = await store.held(partner.name, [held.name])
    return Released(held.name, still[held.name].reason if held.name in still else None)
