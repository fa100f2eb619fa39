"""Page links: opaque, tamper-proof, and good after a restart and in every process.

https://hl7.org/fhir/R4/http.html#paging. A link carries the query and the place of the cursor, signed with a key that is kept in the store.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fhircm.fhir.outcome import Conflict, Malformed
from fhircm.store.operations import SetState

if TYPE_CHECKING:
    from fhircm.store.resources import Store

Parameters = list[tuple[str, str]]


class PageLinks:
    """Makes and reads the value of `_page`."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    async def of(cls, store: Store) -> PageLinks:
        """With the key of this installation, which is made when there is none."""
        kept = await store.state("rest", "page-links")
        if kept is None:
            with suppress(Conflict):  # another process made it just now
                made = SetState("rest", "page-links", {"key": secrets.token_hex(32)}, if_absent=True)
                await store.transact([made], origin="hub")
            kept = await store.state("rest", "page-links")
        assert kept is not None
        return cls(bytes.fromhex(kept["key"]))

    def write(self, place: str, parameters: Parameters, state: dict[str, Any]) -> str:
        """The token of a next page at a place: a resource type, or the path of a history."""
        text = json.dumps([place, parameters, state], separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._sign(text) + text).decode().rstrip("=")

    def read(self, place: str, token: str) -> tuple[Parameters, dict[str, Any]]:
        """The query and the state of a token. Raises Malformed for one that this installation did not make for this place."""
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (ValueError, binascii.Error):
            raise _foreign() from None
        signature, text = raw[:16], raw[16:]
        if not hmac.compare_digest(signature, self._sign(text)):
            raise _foreign()
        made_for, parameters, state = json.loads(text)
        if made_for != place:
            raise _foreign()
        return [(name, value) for name, value in parameters], state

    def _sign(self, text: bytes) -> bytes:
        return hmac.new(self._key, text, hashlib.sha256).digest()[:16]


def _foreign() -> Malformed:
    return Malformed("This page link is not one that this server made")
