"""Keep the hub's Subscriptions at a partner: made, renewed, looked after, made anew when they are lost, and taken away when nobody wants them.

https://hl7.org/fhir/uv/subscriptions-backport/errors.html. A notification that did not come is noticed by the count of events, and made up for
by $events, or by a look at all that the Subscription is about.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx

from fhircm.access.sealing import Seal
from fhircm.exchange.bulk_content import patient_of
from fhircm.exchange.client import FHIR_JSON, Got, PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable, SignInRefused, issues, summary
from fhircm.exchange.hints import ANY, hinted
from fhircm.exchange.news import due
from fhircm.exchange.notifications import (
    Status,
    digest,
    doors_at,
    hints,
    rows_at,
    statuses_in,
    told_at,
    unread_at,
)
from fhircm.exchange.subscription_rows import Row, kept, subscription
from fhircm.exchange.subscription_shape import Subscriptions, Topic
from fhircm.fhir import json as fhir_json
from fhircm.fhir.outcome import FhirError
from fhircm.store.resources import Op, SetState, Store

log = logging.getLogger("fhircm.exchange.subscriptions")

GRACE = timedelta(seconds=60)  # that notifications may overtake one another
RETRY = timedelta(minutes=1)  # after a failure; doubled with each in a row
LONGEST_RETRY = timedelta(hours=6)
KEPT = timedelta(days=8)  # the names of events that are not counted: so long they may come again
AT_ONCE = 200  # resources that are read to know whose they are, in one call


async def keep(
    store: Store, client: PartnerClient, shape: Subscriptions, notify_url: str, seal: Seal, patients: Sequence[str]
) -> int:
    """Do what is due for the Subscriptions at a partner; `patients` are the panel's, `notify_url` the hub's address for this partner.

    Returns how much was done. What fails for one does not stop the others; raises SignInRefused.
    """
    keeper = _Keeper(store, client, shape, notify_url, seal, patients)
    return await keeper.rows() + await keeper.read_unread()


class _Keeper:
    def __init__(
        self, store: Store, client: PartnerClient, shape: Subscriptions, notify_url: str, seal: Seal, patients: Sequence[str]
    ) -> None:
        self.store, self.client, self.shape, self.notify_url, self.seal = store, client, shape, notify_url, seal
        self.name, self.base, self.patients = client.partner.name, client.partner.base_url, patients
        self.now = store.clock()
        self._there: list[dict[str, Any]] | None = None

    async def rows(self) -> int:
        wanted: dict[str, tuple[Topic, str | None]] = {}
        for topic in self.shape.topics:
            for patient in self.patients if topic.by_patient else (None,):
                wanted[f"{topic.mark}/{patient}" if patient else topic.mark] = topic, patient
        present = await kept(self.store, self.name)
        told = await self.store.states(told_at(self.name))
        done = 0
        for key in sorted({*wanted, *present}):
            row = present.get(key)
            if row is not None and row.due is not None and datetime.fromisoformat(row.due) > self.now and key in wanted:
                continue
            done += 1
            try:
                if key not in wanted and row is not None:
                    await self._remove(key, row)
                elif row is None or row.id is None:
                    await self._make(key, *wanted[key], row)
                else:
                    await self._look(key, *wanted[key], row, {k: v for k, v in told.items() if k.startswith(f"{key}|")})
            except SignInRefused:
                raise
            except FhirError as error:
                row = row or (await kept(self.store, self.name)).get(key)
                if row is not None:
                    await self._failed(key, row, error)
        return done

    async def _failed(self, key: str, row: Row, error: FhirError) -> None:
        wait = min(RETRY * 2 ** min(row.failures, 10), LONGEST_RETRY)
        state = "refused" if isinstance(error, PartnerRefused) else row.state
        log.warning("%s: the Subscription %s: %s", self.name, key, error)
        await self._keep(
            key, replace(row, failures=row.failures + 1, due=(self.now + wait).isoformat(), why=str(error), state=state)
        )

    async def _keep(self, key: str, row: Row, *more: Op) -> None:
        await self.store.transact([SetState(rows_at(self.name), key, asdict(row)), *more], origin="hub")

    # --- making --------------------------------------------------------------------------------------------------------------

    async def _make(self, key: str, topic: Topic, patient: str | None, row: Row | None) -> None:
        """Make one; when the answer to the attempt before was lost, look first whether it is there."""
        if row is None:
            token, secret = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
            sealed = self.seal.seal(json.dumps({"token": token, "secret": secret}).encode()).decode()
            row = Row(topic.mark, list(topic.types), patient, sealed, digest(token))
            await self._keep(key, row, SetState(doors_at(self.name), row.door, {"key": key}))
        elif row.state == "asked" and (found := await self._find(row)) is not None:
            await self._made(key, row, found)
            return
        end = self.now + self.shape.life
        got = await self._send("POST", "Subscription", row, self._tree(topic, row, end))
        tree = _tree_of(got)
        id = tree.get("id") or got.headers.get("Location", "").partition("Subscription/")[2].partition("/")[0]
        if not id:
            raise PartnerAnswerBroken("A Subscription was created, and its id is not told")
        await self._made(key, replace(row, end=end.isoformat()), {"status": "requested", **tree, "id": id})

    async def _made(self, key: str, row: Row, tree: dict[str, Any]) -> None:
        """It is there; whatever changed before it was is looked for."""
        made = replace(
            row, id=str(tree["id"]), state=str(tree.get("status", "requested")), end=tree.get("end") or row.end, failures=0
        )
        made = replace(made, why="", heard=self.now.isoformat(), checked=self.now.isoformat(), due=(self.now + GRACE).isoformat())
        await self._keep(key, made, *self._everything(made))

    def _tree(self, topic: Topic, row: Row, end: datetime) -> dict[str, Any]:
        known = json.loads(self.seal.unseal(row.sealed.encode()))
        return subscription(self.shape, topic, row, known, self.notify_url, end)

    async def _send(self, method: str, path: str, row: Row, tree: dict[str, Any] | None = None) -> Got:
        headers = {"Accept": FHIR_JSON, "Prefer": "return=representation"}
        if tree is not None:
            headers["Content-Type"] = FHIR_JSON
            if self.shape.proof == "signature":
                headers["X-Hub-Secret"] = json.loads(self.seal.unseal(row.sealed.encode()))["secret"]
        got = await self.client.ask(
            method, f"{self.base}/{path}", headers, json.dumps(tree).encode() if tree is not None else None
        )
        _raise_for(got, self.name)
        return got

    async def _find(self, row: Row) -> dict[str, Any] | None:
        """The Subscription with this address at the partner; others with an address here that no row knows are removed."""
        if self._there is None:
            listed = await self.client.search_all("Subscription")
            self._there = [one.tree for one in listed]
        doors = {one.door for one in (await kept(self.store, self.name)).values()}
        found = None
        for tree in list(self._there):
            endpoint = str(tree.get("channel", {}).get("endpoint", ""))
            if not endpoint.startswith(f"{self.notify_url}/"):
                continue
            door = digest(endpoint.removeprefix(f"{self.notify_url}/"))
            if door == row.door:
                found = tree
            elif door not in doors:
                await self._send("DELETE", f"Subscription/{tree['id']}", row)
                self._there.remove(tree)
        return found

    async def _remove(self, key: str, row: Row) -> None:
        if row.id is not None:
            try:
                await self._send("DELETE", f"Subscription/{quote(row.id, safe='')}", row)
            except PartnerRefused as error:
                if error.answered not in (404, 410):
                    raise
        await self._forget(key, row)

    async def _forget(self, key: str, row: Row) -> None:
        told = await self.store.states(told_at(self.name), f"{key}|")
        facts = [SetState(told_at(self.name), name, None) for name in told]
        gone = [SetState(rows_at(self.name), key, None), SetState(doors_at(self.name), row.door, None)]
        await self.store.transact([*facts, *gone], origin="hub")

    # --- looking after -------------------------------------------------------------------------------------------------------

    async def _look(self, key: str, topic: Topic, patient: str | None, row: Row, told: dict[str, dict[str, Any]]) -> None:
        """Reckon what came, notice what did not, and renew it in time."""
        row, facts, missing = self._reckon(key, row, told)
        if missing is not None:
            row, more = await self._catch_up(row, missing)
            facts += more
        heard = datetime.fromisoformat(row.heard) if row.heard else self.now
        silent = self.shape.heartbeat is not None and topic.payload != "none" and self.now - heard > 2 * self.shape.heartbeat
        checked = datetime.fromisoformat(row.checked) if row.checked else None
        if silent or row.state != "active" or checked is None or self.now - checked >= self.shape.check:
            status = await self._status(row)
            if status is None:
                await self._forget(key, row)
                await self._make(key, topic, patient, None)
                return
            row = replace(row, checked=self.now.isoformat(), state=status.status or row.state, heard=self.now.isoformat())
            if self.shape.running_numbers and (status.events or 0) > row.upto and self._overdue(told, status.events or 0, key):
                row, more = await self._catch_up(row, status.events or 0)
                facts += more
        end = datetime.fromisoformat(row.end) if row.end else None
        if row.state in ("error", "off") or (end is not None and end - self.now < self.shape.life / 4):
            row, more = await self._renew(topic, row)
            facts += more
        due = (self.now + min(GRACE, self.shape.check)).isoformat()
        await self._keep(key, replace(row, due=due, failures=0, why=""), *facts)

    def _reckon(self, key: str, row: Row, told: dict[str, dict[str, Any]]) -> tuple[Row, list[Op], int | None]:
        """Count the events that came one after another; the last number of those before which some are missing for too long."""
        heard = told.get(f"{key}|heard")
        if heard is not None and heard["at"] > (row.heard or ""):
            row = replace(row, heard=heard["at"])
            if row.state in ("requested", "asked") and heard["type"] == "handshake":
                row = replace(row, state="active")
            if heard["status"] in ("error", "off"):
                row = replace(row, state=heard["status"])
        events = {name: value for name, value in told.items() if not name.endswith("|heard")}
        numbers = {int(number): name for name in events if len(number := name.rpartition("|")[2]) == 15 and number.isdigit()}
        old = [name for name in events.keys() - set(numbers.values()) if self._age(events[name]) > KEPT]
        facts: list[Op] = [SetState(told_at(self.name), name, None) for name in old]
        if not self.shape.running_numbers:
            return row, facts, None
        upto = row.upto
        while upto + 1 in numbers:
            upto += 1
        beyond = [number for number in numbers if number > upto]
        if heard is not None and heard["events"] is not None and heard["type"] != "handshake" and heard["events"] > upto:
            beyond += [heard["events"]] if self._age(heard) >= GRACE else []
        old_enough = [n for n in beyond if n not in numbers or self._age(events[numbers[n]]) >= GRACE]
        facts += [SetState(told_at(self.name), name, None) for number, name in numbers.items() if number <= upto]
        return replace(row, upto=upto), facts, max(beyond) if old_enough else None

    def _age(self, told: dict[str, Any]) -> timedelta:
        return self.now - datetime.fromisoformat(told["at"])

    def _overdue(self, told: dict[str, dict[str, Any]], events: int, key: str) -> bool:
        """Whether an event that the partner counts did not come; the very last one may be under way."""
        return f"{key}|{events:015}" not in told

    async def _catch_up(self, row: Row, upto: int) -> tuple[Row, list[Op]]:
        """Make up for the events after those that are reckoned, to this number."""
        facts: list[Op] = []
        covered: set[int] = set()
        if self.shape.events:
            asked = httpx.QueryParams({"eventsSinceNumber": row.upto + 1, "eventsUntilNumber": upto})
            try:
                got = await self._send("GET", f"Subscription/{quote(row.id or '', safe='')}/$events?{asked}", row)
                events = [one for status in statuses_in(self.base, _tree_of(got)) for one in status.event]
            except (PartnerRefused, PartnerAnswerBroken):
                events = []
            covered = {one.number for one in events if one.focus is not None}
            facts += await hints(self.store, self.name, self.base, asdict(row), [one for one in events if one.focus], self.now)
        if not covered.issuperset(range(row.upto + 1, upto + 1)):
            facts += self._everything(row)
        log.info("%s: events %d to %d did not come, and were made up for", self.name, row.upto + 1, upto)
        return replace(row, upto=upto), facts

    def _everything(self, row: Row) -> list[Op]:
        """All that a Subscription is about is to be looked at."""
        return [
            fact
            for one in ([row.patient] if row.patient else self.patients)
            for fact in hinted(self.name, one, row.types, "subscription", self.now)
        ]

    async def _status(self, row: Row) -> Status | None:
        """How the partner says that it is; None when it knows nothing of it."""
        id = quote(row.id or "", safe="")
        try:
            if self.shape.status:
                found = statuses_in(self.base, _tree_of(await self._send("GET", f"Subscription/{id}/$status", row)))
                if found:
                    return found[0]
            tree = _tree_of(await self._send("GET", f"Subscription/{id}", row))
        except PartnerRefused as error:
            if error.answered in (404, 410):
                return None
            raise
        return Status(str(tree.get("id", "")), "", str(tree.get("status", "")), None)

    async def _renew(self, topic: Topic, row: Row) -> tuple[Row, list[Op]]:
        """Prolong it, or set it going again; a partner that takes no update gets another one when this one has ended."""
        end = self.now + self.shape.life
        was = row.state
        tree = _tree_of(await self._send("PUT", f"Subscription/{quote(row.id or '', safe='')}", row, self._tree(topic, row, end)))
        row = replace(row, end=end.isoformat(), state=str(tree.get("status", "requested")))
        return row, (self._everything(row) if was in ("error", "off") and not self.shape.running_numbers else [])

    # --- whose it is ---------------------------------------------------------------------------------------------------------

    async def read_unread(self) -> int:
        """Read what changed of which it is not known whose it is, and hint at the patient."""
        waiting = await self.store.states(unread_at(self.name))
        for name, value in list(waiting.items())[:AT_ONCE]:
            facts: list[Op] = [SetState(unread_at(self.name), name, None)]
            if name == ANY:
                facts += [
                    fact for one in self.patients for fact in hinted(self.name, one, value["types"], "subscription", self.now)
                ]
            else:
                type, _, id = name.partition("/")
                try:
                    patient = patient_of(self.base, (await self.client.read(type, id)).body)
                except SignInRefused:
                    raise
                except PartnerUnavailable:
                    break  # another time
                except FhirError:
                    patient = ""  # it is gone, or not for the hub
                facts += hinted(self.name, patient, [type], "subscription", self.now) if patient in self.patients else []
            facts += [due(self.name, self.now)] if len(facts) > 1 else []
            await self.store.transact(facts, origin="hub")
        return len(waiting)


def _tree_of(got: Got) -> dict[str, Any]:
    if not got.body.strip():
        return {}
    tree = fhir_json.parse(got.body)
    return tree if tree.get("resourceType") != "OperationOutcome" else {}


def _raise_for(got: Got, name: str) -> None:
    """Raise what a status means that is no success."""
    told = issues(got.body)
    if got.status in (408, 425, 429) or got.status >= 500:
        raise PartnerUnavailable(f"{name} answered {got.status} to {got.where}")
    if got.status >= 300:
        refused = SignInRefused if got.status == 401 else PartnerRefused
        reason = summary(told) if told else "no reason given"
        raise refused(f"{name} answered {got.status} to {got.where}: {reason}", answered=got.status, told=told or ())
