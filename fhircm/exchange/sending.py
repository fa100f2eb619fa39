"""Send one thing to a partner so that it is there once, whatever happens on the way.

https://hl7.org/fhir/R4/http.html#create and https://hl7.org/fhir/R4/http.html#concurrency. Before a POST goes out, a row says "sending";
a POST whose answer was lost is searched for by the identifier that it bears, and sent again only when it is not there. An update is made
on what was just read, with If-Match.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from fhircm.exchange.capabilities import Capabilities
from fhircm.exchange.case import Case, Unfit
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerRefused, PartnerUnavailable
from fhircm.exchange.human import concept, instant, stable_id
from fhircm.exchange.ways import Amend, Create, Shipment, adapt, fill, habits
from fhircm.fhir import json
from fhircm.fhir.outcome import Conflict, Invalid, Malformed
from fhircm.fhir.systems import DELIVERY
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Op, Put, SetState, Store

_UNSURE = "it may have arrived there, and the partner cannot be asked whether it did"
_FRESH = 5  # how often an update is made anew on what another one left


class TakenOver(Exception):
    """Another worker sends this very thing."""


def sent(partner: str) -> str:
    """The namespace of the rows that tell what was sent to a partner, by the value of its delivery identifier."""
    return f"delivery:{partner}"


class Sender:
    """Sends to one partner. Everything raises PartnerUnavailable, PartnerAnswerBroken, PartnerRefused or Unfit."""

    def __init__(self, store: Store, client: PartnerClient, capabilities: Capabilities, clock: Callable[[], datetime]) -> None:
        self.store, self.client, self.capabilities, self.clock = store, client, capabilities, clock
        self.partner = client.partner
        self.rows = sent(client.partner.name)

    async def send(self, case: Case, shipment: Shipment, agent: dict[str, Any]) -> str:
        """Bring it there, and note in one transaction that it is, as a row and as a Provenance. Returns the URL at the partner."""
        row = await self.store.state(self.rows, shipment.key)
        if row and row["state"] == "done":
            return str(row["url"])
        if isinstance(shipment, Amend):
            reference = await self._amend(shipment)
        else:
            reference = await self._create(case, shipment, in_doubt=bool(row))
        url = f"{self.partner.base_url}/{reference}"
        done = SetState(self.rows, shipment.key, {"state": "done", "url": url, "at": instant(self.clock())})
        await self.store.transact([done, self._provenance(case, shipment, url, agent)], origin="hub")
        return url

    async def _create(self, case: Case, shipment: Create, *, in_doubt: bool) -> str:
        tree = adapt(self.partner, shipment.tree)
        try:
            body = check_tree(tree).body
        except (Invalid, Malformed) as error:
            raise Unfit(f"what would be sent is not valid: {error}") from None
        if in_doubt and (found := await self._find(case, shipment)):
            return found
        sending = SetState(self.rows, shipment.key, {"state": "sending", "at": instant(self.clock())}, if_absent=not in_doubt)
        try:
            await self.store.transact([sending], origin="hub")
        except Conflict:
            raise TakenOver(shipment.key) from None
        try:
            answer = await self.client.create(shipment.type, body)
        except PartnerRefused:
            await self._not_sent(shipment.key)
            raise
        except PartnerUnavailable as error:
            if not error.sent:
                await self._not_sent(shipment.key)
            raise
        return f"{shipment.type}/{answer.id}" if answer.id else shipment.type

    async def _not_sent(self, key: str) -> None:
        await self.store.transact([SetState(self.rows, key, None)], origin="hub")

    async def _find(self, case: Case, shipment: Create) -> str | None:
        """The resource at the partner that bears this delivery's identifier."""
        parameters = self._search(case, shipment)
        if parameters is None:
            raise Unfit(_UNSURE, "unsure")
        try:
            found = await self.client.search_all(shipment.type, parameters)
        except PartnerRefused:
            raise Unfit(_UNSURE, "unsure") from None
        for received in found:
            identifiers = received.tree.get("identifier", [])
            if any(one.get("system") == DELIVERY and one.get("value") == shipment.key for one in identifiers):
                return f"{received.type}/{received.id}"
        return None

    def _search(self, case: Case, shipment: Create) -> list[tuple[str, str]] | None:
        """How this partner can be searched for it; None when it cannot."""
        patient = case.patient_there or ""
        words = {
            "{patient}": patient,
            "{identifier}": f"{DELIVERY}|{shipment.key}",
            "{organization}": self.partner.organization.id,
            "{recipient}": next((one["reference"] for one in shipment.tree.get("recipient", []) if "reference" in one), ""),
            "{day}": str(shipment.tree.get("sent", shipment.tree.get("date", "")))[:10],
        }
        if own := habits(self.partner, shipment.type).get("find"):
            return list(fill(own, words).items())
        known = self.capabilities.search_params(shipment.type)
        own_search = [("patient", patient)] if "patient" in known else [("subject", f"Patient/{patient}")]
        if "identifier" in known:
            return [("identifier", words["{identifier}"]), *(own_search if "patient" in known and patient else [])]
        return own_search if patient and known & {"patient", "subject"} else None

    async def _amend(self, shipment: Amend) -> str:
        for _ in range(_FRESH):
            received = await self.client.read(shipment.type, shipment.id)
            members = shipment.members(received.tree)
            if not members:
                break
            try:
                await self.client.update(shipment.type, shipment.id, json.splice(received.body, members), if_match=received.etag)
                break
            except PartnerRefused as error:
                if error.answered not in (409, 412):
                    raise
        else:
            raise PartnerUnavailable(f"{shipment.type} at {self.partner.name} changes faster than it can be updated", sent=False)
        return f"{shipment.type}/{shipment.id}"

    def _provenance(self, case: Case, shipment: Shipment, url: str, agent: dict[str, Any]) -> Op:
        """Who was told of which version, and what was made of it there."""
        told = f"{case.title}: {self.partner.organization.name} has it as {shipment.type}"
        patient = [{"reference": f"Patient/{case.patient['id']}"}] if case.patient else []
        tree = {
            "resourceType": "Provenance",
            "id": stable_id("Provenance", self.partner.name, shipment.key),
            "target": [{"reference": f"{case.about}/_history/{case.stored.version}"}, *patient],
            "recorded": instant(self.clock()),
            "activity": {**concept("delivered", "Delivered to a partner"), "text": told},
            "agent": [{"who": agent}],
            "entity": [
                {
                    "role": "derivation",
                    "what": {
                        "reference": url,
                        "identifier": {"system": DELIVERY, "value": shipment.key},
                        "display": f"{shipment.type} at {self.partner.organization.name}",
                    },
                }
            ],
        }
        return Put(check_tree(tree))
