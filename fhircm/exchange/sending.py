"""Send one thing to a partner so that it is there once, whatever happens on the way.

https://hl7.org/fhir/R4/http.html#create and https://hl7.org/fhir/R4/http.html#concurrency. Before a POST goes out, a row says "sending";
a POST whose answer was lost is searched for by the identifier that it bears, and sent again only when it is not there; where the partner
honours If-None-Exist it is conditional besides. An update is made on what was just read, with If-Match.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

from fhircm.exchange.capabilities import Capabilities
from fhircm.exchange.case import Case, Unfit, sent
from fhircm.exchange.client import PartnerClient, Received
from fhircm.exchange.errors import PartnerRefused, PartnerUnavailable
from fhircm.exchange.human import concept, instant, stable_id
from fhircm.exchange.map_rules import MappingFailed, Notes
from fhircm.exchange.mapping import digest
from fhircm.exchange.native import Clash, Native
from fhircm.exchange.three_way import json_patch, merge, says
from fhircm.exchange.unmapped import OUTBOUND, Unknown
from fhircm.exchange.ways import Amend, Create, Shipment, adapt, fill, habits
from fhircm.fhir import json
from fhircm.fhir.outcome import Conflict, Invalid, Malformed
from fhircm.fhir.systems import DELIVERY
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Op, Put, SetState, Store

_UNSURE = "it may have arrived there, and the partner cannot be asked whether it did"
_FASTER = "{} at {} changes faster than it can be updated"
_FRESH = 5  # how often an update is made anew on what another one left


class TakenOver(Exception):
    """Another worker sends this very thing."""


class Sender:
    """Sends to one partner. Everything raises PartnerUnavailable, PartnerAnswerBroken, PartnerRefused or Unfit."""

    def __init__(self, store: Store, client: PartnerClient, capabilities: Capabilities, clock: Callable[[], datetime]) -> None:
        self.store, self.client, self.capabilities, self.clock = store, client, capabilities, clock
        self.partner = client.partner
        self.rows = sent(client.partner.name)
        self._unknown = Unknown(store, client.partner, OUTBOUND)

    async def send(self, case: Case, shipment: Shipment, agent: dict[str, Any]) -> str:
        """Bring it there, and note in one transaction that it is, as a row and as a Provenance. Returns the URL at the partner."""
        row = await self.store.state(self.rows, shipment.key)
        if isinstance(shipment, Native):
            return await self._keep(case, shipment, row, agent)
        if row and row["state"] == "done":
            return str(row["url"])
        if isinstance(shipment, Amend):
            reference = await self._amend(shipment)
        else:
            reference, _ = await self._create(case, shipment, in_doubt=bool(row))
        url = f"{self.partner.base_url}/{reference}"
        done = SetState(self.rows, shipment.key, {"state": "done", "url": url, "at": instant(self.clock())})
        await self.store.transact([done, self._provenance(case, shipment, url, agent)], origin="hub")
        return url

    async def _create(self, case: Case, shipment: Create, *, in_doubt: bool) -> tuple[str, Received | None]:
        """Where it is now, and as what, when the partner said so."""
        body = self._body(shipment.tree)
        if in_doubt and (found := await self._find(case, shipment)):
            return f"{found.type}/{found.id}", found
        row = {"state": "sending", "at": instant(self.clock()), "sent": body.decode() if shipment.kept else None}
        sending = SetState(self.rows, shipment.key, row, if_absent=not in_doubt)
        try:
            await self.store.transact([sending, *await self._unknown.facts()], origin="hub")
        except Conflict:
            raise TakenOver(shipment.key) from None
        unless = f"identifier={DELIVERY}|{shipment.key}" if self.capabilities.has(shipment.type, "conditionalCreate") else None
        try:
            answer = await self.client.create(shipment.type, body, if_none_exist=unless)
        except PartnerRefused:
            await self._not_sent(shipment.key)
            raise
        except PartnerUnavailable as error:
            if not error.sent:
                await self._not_sent(shipment.key)
            raise
        return (f"{shipment.type}/{answer.id}" if answer.id else shipment.type), answer.resource

    def _body(self, tree: dict[str, Any]) -> bytes:
        """The bytes that the partner is sent. Raises Unfit."""
        notes = Notes()
        try:
            body = check_tree(adapt(self.partner, tree, notes)).body
        except (Invalid, Malformed, MappingFailed) as error:
            raise Unfit(f"what would be sent is not valid: {error}", "invalid") from None
        self._unknown.note(digest(body), notes.unmapped)
        return body

    # --- kept alike on both sides ----------------------------------------------------------------------------------------------

    async def _keep(self, case: Case, shipment: Native, row: dict[str, Any] | None, agent: dict[str, Any]) -> str:
        """Make the counterpart, or bring it to what the hub has now."""
        if row is None or row["state"] != "done":
            row = await self._make(case, shipment, row)
            await self._kept(case, shipment, row, agent)
        if row["version"] != shipment.version or shipment.prefer:
            row = {**await self._bring(shipment, row), "version": shipment.version, "tried": []}
            await self._kept(case, shipment, row, agent)
        return str(row["url"])

    async def _make(self, case: Case, shipment: Native, row: dict[str, Any] | None) -> dict[str, Any]:
        reference, there = await self._create(case, Create(shipment.key, shipment.tree, kept=True), in_doubt=bool(row))
        type, _, id = reference.partition("/")
        if not id:
            raise Unfit("it was taken, and the partner did not say under which id", "unsure")
        if there is None:
            there = await self.client.read(type, id)
        ours = self._body(shipment.tree)
        # What was found may be of an attempt with an older version: then that was sent, and the newer is to follow.
        sent = row["sent"].encode() if row and row.get("sent") and not says(there.tree, json.parse(ours)) else ours
        version = shipment.version if sent == ours else 0
        return {
            "url": f"{self.partner.base_url}/{reference}",
            "version": version,
            "state": "done",
            "sent": sent.decode(),
            "had": there.body.decode(),
        }

    async def _bring(self, shipment: Native, row: dict[str, Any]) -> dict[str, Any]:
        """Set in the partner's resource what the hub changed. Raises Clash, Unfit."""
        id, ours = row["url"].rpartition("/")[2], self._body(shipment.tree)
        sent, had = json.parse(row["sent"].encode()), json.parse(row["had"].encode())
        for _ in range(_FRESH):
            try:
                there = await self.client.read(shipment.type, id)
            except PartnerRefused as error:
                if error.answered not in (404, 410):
                    raise
                raise Clash((), "the partner deleted it") from None
            tried = [json.parse(one.encode()) for one in row.get("tried", [])]
            merged = merge(sent, had, there.tree, json.parse(ours), shipment.prefer, tried)
            if merged.clashes:
                sides = f"the hub (version {shipment.version}) and the partner (version {there.version or 'not told'})"
                raise Clash(merged.clashes, f"{sides} both changed {', '.join(merged.clashes)}")
            if not merged.members:
                return {**row, "sent": ours.decode(), "had": there.body.decode()}
            # Should the answer be lost, what stands there is known to be the hub's own.
            row = {**row, "tried": [*row.get("tried", []), json.dumps(merged.members).decode()]}
            await self.store.transact([SetState(self.rows, shipment.key, row)], origin="hub")
            try:
                there = await self._write(shipment, id, there, merged.members)
                return {**row, "sent": ours.decode(), "had": there.body.decode()}
            except PartnerRefused as error:
                if error.answered not in (409, 412):
                    raise
        raise PartnerUnavailable(_FASTER.format(shipment.type, self.partner.name), sent=False, answered=409)

    async def _write(self, shipment: Native, id: str, there: Received, members: dict[str, Any]) -> Received:
        if shipment.how == "patch":
            answer = await self.client.patch(shipment.type, id, json_patch(there.tree, members), if_match=there.etag)
        else:
            whole = {name: value for name, value in {**there.tree, **members}.items() if value is not None}
            answer = await self.client.update(shipment.type, id, json.dumps(whole), if_match=there.etag)
        return answer.resource or await self.client.read(shipment.type, id)

    async def _kept(self, case: Case, shipment: Native, row: dict[str, Any], agent: dict[str, Any]) -> None:
        whole = {**row, "state": "done", "at": instant(self.clock())}
        told = self._provenance(case, shipment, row["url"], agent)
        await self.store.transact([SetState(self.rows, shipment.key, whole), told], origin="hub")

    async def _not_sent(self, key: str) -> None:
        await self.store.transact([SetState(self.rows, key, None)], origin="hub")

    async def _find(self, case: Case, shipment: Create) -> Received | None:
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
                return received
        return None

    def _search(self, case: Case, shipment: Create) -> list[tuple[str, str]] | None:
        """How this partner can be searched for it; None when it cannot."""
        patient = case.patient_there or ""
        words = {
            "{patient}": patient,
            "{identifier}": f"{DELIVERY}|{shipment.key}",
            "{organization}": self.partner.organization.id,
            "{recipient}": next((one["reference"] for one in shipment.tree.get("recipient", []) if "reference" in one), ""),
            "{day}": _day_before(shipment.tree),
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
            raise PartnerUnavailable(_FASTER.format(shipment.type, self.partner.name), sent=False, answered=409)
        return f"{shipment.type}/{shipment.id}"

    def _provenance(self, case: Case, shipment: Shipment, url: str, agent: dict[str, Any]) -> Op:
        """Who was told of which version, and what was made of it there."""
        told = f"{case.title}: {self.partner.organization.name} has it as {shipment.type}"
        patient = [{"reference": f"Patient/{case.patient['id']}"}] if case.patient else []
        tree = {
            "resourceType": "Provenance",
            "id": stable_id("Provenance", self.partner.name, shipment.key, *_of_version(shipment)),
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


def _day_before(tree: dict[str, Any]) -> str:
    """The day before something was sent: the partner's clock and time zone may be another day's."""
    at = str(tree.get("sent", tree.get("date", "")))[:10]
    return (date.fromisoformat(at) - timedelta(days=1)).isoformat() if at else ""


def _of_version(shipment: Shipment) -> list[str]:
    """What tells one delivery under a key from the next."""
    return [str(shipment.version)] if isinstance(shipment, Native) else []
