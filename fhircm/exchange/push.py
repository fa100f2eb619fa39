"""Keep one partner told: read the change log after its own cursor, and give it of every occasion as much as it can take.

https://hl7.org/fhir/R4/http.html. What a partner cannot take becomes a Task for a human. A partner that does not answer is waited for
and delays nobody else; after so many attempts what waited is parked, told to a human, and can be replayed. Every delivery is at least
once and seen as the same (fhircm/exchange/sending.py), so a round may be cut off anywhere and run again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fhircm.exchange import human
from fhircm.exchange.attachments import Fetch
from fhircm.exchange.capabilities import Capabilities
from fhircm.exchange.case import Case, Unfit, gather
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable, SignInRefused, summary
from fhircm.exchange.outbound import NOBODY, Occasion, check_deliver, fulfils, occasions, occurring
from fhircm.exchange.partners import Partner
from fhircm.exchange.patience import Patience, Waiting, words
from fhircm.exchange.sending import Sender, TakenOver, sent
from fhircm.exchange.ways import WAYS
from fhircm.fhir.outcome import Gone, NotFound, VersionConflict
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.changes import CursorMoved
from fhircm.store.database import DatabaseUnavailable
from fhircm.store.resources import Change, MoveCursor, Op, Position, Put, SetState, Store, Stored

log = logging.getLogger("fhircm.exchange.push")

BATCH = 200
AGAIN = 5  # how often what somebody else wrote meanwhile is looked at again
PARTNERS_FAULT = (PartnerUnavailable, PartnerAnswerBroken, PartnerRefused)
PASSED_ON = (Waiting, CursorMoved, TakenOver, VersionConflict, DatabaseUnavailable)  # no failure of a delivery
LACKS = {"create": "it takes no new {}", "update": "it does not let its {} be changed"}
UNDELIVERED = "undelivered"
DISPLAY = "Deliver by other means"


def parked(partner: str) -> str:
    """The namespace of what a partner could not be told: key, reason and how to find it again."""
    return f"parked:push:{partner}"


@dataclass
class PushReport:
    """What one round did."""

    partner: str
    changes: int = 0
    delivered: list[str] = field(default_factory=list)  # URLs at the partner
    undelivered: list[str] = field(default_factory=list)  # keys that a human was told of
    waiting_until: datetime | None = None  # the partner does not answer and is tried again then

    @property
    def done(self) -> int:
        """How much was done; nothing means that there is nothing to do now."""
        return self.changes + len(self.delivered)


async def push(
    store: Store,
    partner: Partner,
    client: PartnerClient,
    capabilities: Capabilities,
    clock: Callable[[], datetime],
    *,
    attempts: int = 8,
    owner: str | None = None,
    fetch: Fetch | None = None,
) -> PushReport:
    """Tell a partner all that is due, then return. One worker at a time for each partner: hold the lease "partner:<name>".

    `attempts` is how often a delivery to a partner that does not answer is tried before a human is told; `owner` is the local reference
    of the organisation that coordinates; `fetch` gets a document's bytes from another partner. Raises ValueError when `deliver` in
    partner.yaml cannot be followed.
    """
    check_deliver(partner.deliver)
    patience = Patience(store, f"push:{partner.name}", clock, attempts)
    turn = _Round(store, partner, Sender(store, client, capabilities, clock), patience, owner, fetch)
    if not await patience.must_wait():
        try:
            await turn.replay_due()
            await turn.catch_up()
        except Waiting:
            log.info("%s: the next attempt is at %s", partner.name, patience.until)
        except (CursorMoved, TakenOver):
            log.info("%s: another worker was first", partner.name)
    turn.report.waiting_until = patience.until
    return turn.report


async def replay(store: Store, partner: str, key: str) -> None:
    """Put one thing that a partner could not be told in line again. Raises NotFound for a key that nothing waits under."""
    row = await store.state(parked(partner), key)
    if row is None:
        raise NotFound(f"Nothing waits for {partner} under {key}")
    await store.transact([SetState(parked(partner), key, {**row, "replay": "asked", "attempts": 0})], origin="hub")


async def has_replays(store: Store, partner: str) -> bool:
    """Whether something was put in line again."""
    return any(row.get("replay") for row in (await store.states(parked(partner))).values())


@dataclass
class _Round:
    store: Store
    partner: Partner
    sender: Sender
    patience: Patience
    owner: str | None
    fetch: Fetch | None

    def __post_init__(self) -> None:
        name = self.partner.name
        self.report = PushReport(name)
        self.cursor, self.rows, self.parked = f"push:{name}", sent(name), parked(name)
        self.given_up: str | None = None  # why nothing is sent any more of the change at hand
        self.deliver = self.partner.deliver
        self.agent = {"reference": self.owner} if self.owner else {"display": "Care coordination"}

    # --- the change log --------------------------------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Go through the change log to its end."""
        types = frozenset(occasions()[name].resource for name in self.deliver) | {"Person"}
        before = await self.store.cursor(self.cursor)
        while True:
            batch = await self.store.changes(before, types=types, limit=BATCH)
            for change in batch.changes:
                before = await self._change(change, before)
            if batch.upto > before and (batch.changes or batch.upto.number - before.number > BATCH):
                await self.store.transact([MoveCursor(self.cursor, before, batch.upto)], origin="hub")
                before = batch.upto
            self.report.changes += len(batch.changes)
            if not batch.changes:
                return

    async def _change(self, change: Change, before: Position) -> Position:
        """One change. Returns where the cursor stands: it moves with something to commit, or at the end of the batch."""
        for attempt in range(AGAIN):
            operations = await self._meant(change)
            if not operations:
                return before
            try:
                await self.store.transact([*operations, MoveCursor(self.cursor, before, change.position)], origin="hub")
                break
            except VersionConflict:  # somebody wrote what was to be written: look at it again
                if attempt == AGAIN - 1:
                    raise
        if change.type == "Person":
            await self.replay_due()
        return change.position

    async def _meant(self, change: Change) -> list[Op]:
        """What a change means, when all goes well; when it did not so often, that nothing more is tried of it."""
        what = f"{change.type}/{change.id}/_history/{change.version}"
        try:
            return await self._means(change)
        except PASSED_ON:
            raise
        except Exception as error:
            if not await self.patience.failed(what, error):
                raise Waiting from None
            if not isinstance(error, PARTNERS_FAULT):
                return await self._park_whole(change, error)
            self.given_up = f"{self.patience.attempts} attempts failed, the last because {error}"
            try:
                return await self._means(change)
            finally:
                self.given_up = None

    async def _means(self, change: Change) -> list[Op]:
        """Tell the partner what a change means for it. Returns what is to be committed with the cursor."""
        if change.method == "delete":
            return []
        if change.type == "Person":
            return await self._now_known(change)
        if change.origin == f"partner:{self.partner.name}":
            return []
        return await self._version(await self.store.vread(change.type, change.id, change.version))

    async def _version(self, stored: Stored) -> list[Op]:
        tree = stored.tree
        if tree.get("meta", {}).get("source"):
            return []  # a mirror: the partner that it came from tells of it
        before = await self._version_before(stored)
        operations: list[Op] = []
        for occasion in occurring(tree, before, list(self.deliver)):
            operations += await self._occasion(occasion, stored)
        return operations

    async def _version_before(self, stored: Stored) -> dict[str, Any] | None:
        if stored.version == 1:
            return None
        try:
            return (await self.store.vread(stored.type, stored.id, stored.version - 1)).tree
        except Gone:
            return None

    async def _occasion(self, occasion: Occasion, stored: Stored) -> list[Op]:
        case = await gather(self.store, self.partner, occasion, stored)
        if case is None or await self._overtaken(case):
            return []
        if occasion.after:
            came, operations = await self._came_before(case)
            if not came:
                return operations
        told: list[Op] = []
        for number, ways in enumerate(self.deliver[occasion.name], 1):
            told += await self._want(case, number, ways)
        return told

    async def _overtaken(self, case: Case) -> bool:
        """Whether events have overtaken the news: the newest version is no longer as the occasion needs it."""
        if not case.occasion.still:
            return False
        key = (case.stored.type, case.stored.id)
        newest = (await self.store.read_many([key])).get(key)
        return newest is None or not fulfils(newest.tree, case.occasion.still)

    async def _came_before(self, case: Case) -> tuple[bool, list[Op]]:
        """Whether the partner heard of what this follows. What still waits to be told is withdrawn instead."""
        prefix = f"{case.about}/{case.occasion.after}"
        if any(row["state"] == "done" for row in (await self.store.states(self.rows, prefix)).values()):
            return True, []
        operations: list[Op] = []
        for key in await self.store.states(self.parked, prefix):
            if await self._human_did(key):
                return True, []
            operations += await self._withdraw(key, "It was taken back before it could be delivered")
        return False, operations

    # --- one thing wanted ------------------------------------------------------------------------------------------------------

    async def _want(self, case: Case, number: int, ways: Any) -> list[Op]:
        """Get one thing across by the first way that works. Returns what a human must be told otherwise."""
        key = f"{case.key}/{number}"
        if await self.store.state(self.rows, key):
            return []
        if self.given_up:
            return await self._park(case, number, [self.given_up], "unavailable")
        reasons: list[str] = []
        why = "refused"
        for name in ways:
            if name == NOBODY:
                if why == "no-record":  # it is still wanted, once the patient is known there
                    return await self._park(case, number, reasons, why, quiet=True)
                return [SetState(self.rows, key, {"state": "left", "way": NOBODY})]
            way = WAYS[name]
            if not self.sender.capabilities.can(way.type, way.interaction):
                reasons.append(LACKS[way.interaction].format(way.type))
                continue
            try:
                await self._go(case, name)
                return [SetState(self.rows, key, {"state": "done", "way": name}), *await self._arrived(case)]
            except Unfit as error:
                reasons.append(str(error))
                why = error.why if error.why != "unfit" else why
                if error.why == "unsure":
                    break
            except PartnerRefused as error:
                if isinstance(error, SignInRefused) or error.answered == 401:
                    raise  # it refuses the hub, not this
                reasons.append(f"it refused a {way.type} ({summary(error.told) or error.answered})")
        return await self._park(case, number, list(dict.fromkeys(reasons)), why)

    async def _go(self, case: Case, name: str) -> None:
        for shipment in await WAYS[name].build(case, self.fetch):
            self.report.delivered.append(await self.sender.send(case, shipment, self.agent))
        await self.patience.answered()

    async def _arrived(self, case: Case) -> list[Op]:
        """A message of the hub's that went to its one recipient is no longer on its way."""
        if case.occasion.resource != "Communication":
            return []
        key = (case.stored.type, case.stored.id)
        newest = (await self.store.read_many([key])).get(key)
        if newest is None or newest.tree["status"] != "in-progress" or len(newest.tree.get("recipient", [])) != 1:
            return []
        return [Put(check_tree({**newest.tree, "status": "completed"}), if_version=newest.version)]

    # --- what could not be told ------------------------------------------------------------------------------------------------

    async def _park(self, case: Case, number: int, reasons: list[str], why: str, *, quiet: bool = False) -> list[Op]:
        """Put one thing aside, to be replayed, and tell a human unless it is not worth that (`quiet`)."""
        key = f"{case.key}/{number}"
        reason = f"{self.partner.organization.name} could not be told “{case.title}”: {'; '.join(reasons)}"
        patient = f"Patient/{case.patient['id']}" if case.patient else None
        row = {
            "reason": reason,
            "why": why,
            "type": case.stored.type,
            "id": case.stored.id,
            "version": case.stored.version,
            "occasion": case.occasion.name,
            "number": number,
            "patient": patient,
        }
        if quiet:
            return [SetState(self.parked, key, row)]
        self.report.undelivered.append(key)
        told = await human.tell(
            self.store,
            (UNDELIVERED, self.partner.name, key),
            UNDELIVERED,
            DISPLAY,
            reason,
            focus=case.about,
            patient=patient,
            owner=self.owner,
        )
        return [SetState(self.parked, key, row), *told]

    async def _park_whole(self, change: Change, error: Exception) -> list[Op]:
        """Put a change aside at which the hub itself failed."""
        key = f"{change.type}/{change.id}/_history/{change.version}"
        reason = f"What {self.partner.organization.name} is to be told of this could not be found out ({words(error)})"
        self.report.undelivered.append(key)
        row = {
            "reason": reason,
            "why": "failed",
            "type": change.type,
            "id": change.id,
            "version": change.version,
            "patient": None,
        }
        parts = (UNDELIVERED, self.partner.name, key)
        focus = f"{change.type}/{change.id}"
        told = await human.tell(self.store, parts, UNDELIVERED, DISPLAY, reason, focus=focus, patient=None, owner=self.owner)
        return [SetState(self.parked, key, row), *told]

    async def _withdraw(self, key: str, why: str) -> list[Op]:
        return [SetState(self.parked, key, None), *await human.take_back(self.store, (UNDELIVERED, self.partner.name, key), why)]

    async def _human_did(self, key: str) -> bool:
        """Whether a human completed what was left to them of the occasion that this key belongs to."""
        occasion, _, _ = key.rpartition("/")
        wanted = next(
            (ways for name, ways in self.deliver.items() if occasion.endswith(f"/{name}") or f"/{name}." in occasion), []
        )
        for number in range(1, len(wanted) + 1):
            task, _ = await human.latest(self.store, UNDELIVERED, self.partner.name, f"{occasion}/{number}")
            if task is not None and task.tree["status"] == "completed":
                return True
        return False

    async def _now_known(self, change: Change) -> list[Op]:
        """A Person may tell which Patient of the partner was meant: what waits for that is in line again, and news of before is told."""
        found = (await self.store.read_many([("Person", change.id)])).get(("Person", change.id))
        members = {link["target"].get("reference") for link in found.tree.get("link", [])} if found else set()
        waited = [
            SetState(self.parked, key, {**row, "replay": "known", "attempts": 0})
            for key, row in (await self.store.states(self.parked)).items()
            if row["why"] == "no-record" and row["patient"] in members
        ]
        return [*waited, *await self._happened_elsewhere(sorted(members))]

    async def _happened_elsewhere(self, members: list[str]) -> list[Op]:
        """What happened elsewhere to patients who are now known here, as far as it goes on: when it began it concerned nobody here.

        Which of the two is seen first is chance: the link between the records, or what happened.
        """
        operations: list[Op] = []
        for occasion in (occasions()[name] for name in self.deliver):
            for member in members if occasion.to == "elsewhere" else ():
                for stored in await self._going_on(occasion, member):
                    if not await self.store.states(self.parked, f"{occasion.key(stored.type, stored.id, stored.version)}/"):
                        operations += await self._occasion(occasion, stored)
        return operations

    async def _going_on(self, occasion: Occasion, patient: str) -> list[Stored]:
        """The resources of a patient that would make the occasion, were they new."""
        query = parse_query(occasion.resource, [("patient", patient), ("code", ",".join(occasion.when["code"]))])
        page = await self.store.search(query)
        found = list(page.matches)
        while page.next:
            page = await self.store.search(replace(query, cursor=page.next))
            found += page.matches
        lasting = {**occasion.when, **occasion.still}
        return [stored for stored in found if fulfils(stored.tree, lasting) and not stored.tree.get("meta", {}).get("source")]

    async def replay_due(self) -> None:
        """Try again what was put in line again."""
        for key, row in sorted((await self.store.states(self.parked)).items()):
            if not row.get("replay"):
                continue
            try:
                operations = await self._again(key, row)
            except PASSED_ON:
                raise
            except Exception as error:
                count = row["attempts"] + 1
                left = {**row, "attempts": count, "replay": row["replay"] if count < self.patience.attempts else None}
                await self.store.transact([SetState(self.parked, key, left)], origin="hub")
                await self.patience.failed(key, error)
                raise Waiting from None
            try:
                await self.store.transact(operations, origin="hub")
            except VersionConflict:
                log.info("%s: %s was written meanwhile and is looked at in the next round", self.partner.name, key)

    async def _again(self, key: str, row: dict[str, Any]) -> list[Op]:
        if row["replay"] == "known" and await self._human_did(key):
            return [SetState(self.parked, key, None)]
        stored = await self.store.vread(row["type"], row["id"], row["version"])
        if "occasion" not in row:
            return [*await self._version(stored), *await self._withdraw(key, "It was delivered since")]
        case = await gather(self.store, self.partner, occasions()[row["occasion"]], stored)
        wanted = self.deliver.get(row["occasion"], [])
        if case is None or len(wanted) < row["number"] or await self._overtaken(case):
            return await self._withdraw(key, "It is no longer to be delivered")
        operations = await self._want(case, row["number"], wanted[row["number"] - 1])
        if any(isinstance(one, SetState) and one.namespace == self.parked for one in operations):
            return operations
        return [*operations, *await self._withdraw(key, "It was delivered since")]
