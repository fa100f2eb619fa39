"""The bytes of a document that is handed on: what one partner keeps at an address is of no use to another.

https://hl7.org/fhir/R4/datatypes.html#Attachment and https://hl7.org/fhir/R4/binary.html
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fhircm.exchange.case import Unfit
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable
from fhircm.fhir.references import parse_reference

Fetch = Callable[[str], Awaitable[bytes]]  # the bytes behind an absolute URL; raises what a client raises, or LookupError


def fetch_from(clients: Sequence[PartnerClient]) -> Fetch:
    """A fetch that reads Binary resources at whichever of these partners an address belongs to."""

    async def fetch(url: str) -> bytes:
        for client in clients:
            parsed = parse_reference(url, client.partner.base_url)
            if parsed.kind == "local" and parsed.type == "Binary" and parsed.id:
                return base64.b64decode((await client.read("Binary", parsed.id)).tree.get("data", ""))
        raise LookupError("no partner has this address")

    return fetch


async def held(attachment: dict[str, Any], fetch: Fetch | None) -> dict[str, Any]:
    """The attachment with its bytes in it, fetched where it has but an address. Raises Unfit."""
    if "data" in attachment or "url" not in attachment:
        return attachment
    if fetch is None:
        raise Unfit("the document's content is at another organisation, and the hub has no way to it")
    try:
        body = await fetch(attachment["url"])
    except (PartnerUnavailable, PartnerAnswerBroken, PartnerRefused, LookupError):
        # Whose fault this is, is not the partner's that is to be told: it must not wait for another.
        raise Unfit("the document's content could not be fetched from where it was written") from None
    kept = {name: value for name, value in attachment.items() if name != "url"}
    return {**kept, "data": base64.b64encode(body).decode(), "size": len(body)}
