"""The doors of all partners that send HL7 v2 messages, and which of them a message is for: by MSH-3 and MSH-4, or by who signed in.

https://www.hl7.org/implement/standards/product_brief.cfm?product_id=185 (chapter 2)
"""

from __future__ import annotations

from collections.abc import Sequence

from fhircm.exchange.adt import Adt
from fhircm.exchange.hl7v2 import Message, MessageWrong, refusal, whose
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.partners import Partner
from fhircm.fhir.outcome import NotFound
from fhircm.store.resources import Store


class Doors:
    """Opens each door when it is first used, so that the maps are read once."""

    def __init__(self, store: Store, partners: Sequence[Partner]) -> None:
        self.store = store
        self.partners = {one.name: one for one in partners if one.hl7v2.sending}
        self._open: dict[str, Adt] = {}

    def of(self, name: str) -> Adt:
        """The door of a partner. Raises NotFound."""
        if name not in self.partners:
            raise NotFound("No partner of this name sends HL7 v2 messages")
        if name not in self._open:
            self._open[name] = Adt(self.store, self.partners[name])
        return self._open[name]

    def organization(self, name: str) -> str:
        """The partner's Organization at the hub, to which a client must belong that sends its messages. Raises NotFound."""
        partner = self.of(name).partner
        return f"Organization/{hub_id(partner.base_url, f'Organization/{partner.organization.id}')}"

    async def receive(self, raw: bytes) -> bytes:
        """Take a message of whoever sent it; a sender that nobody knows is refused, and nothing of its message is kept."""
        now = self.store.clock()
        try:
            message = Message(raw)
        except MessageWrong as error:
            return refusal(now, error)
        name = whose(message, [(one.name, one.hl7v2) for one in self.partners.values()])
        if name is None:
            return message.ack("AR", now, MessageWrong("No partner sends with this application and facility", "MSH-3", "103"))
        return await self.of(name).receive(raw)
