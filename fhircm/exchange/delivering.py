"""Tell a partner of one occasion: each thing wanted by the best way that works, and to a human what none works for.

https://hl7.org/fhir/R4/task.html. What is returned commits together with the end of the row in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from fhircm.exchange import human
from fhircm.exchange.attachments import Fetch
from fhircm.exchange.breaker import Breakers
from fhircm.exchange.case import Case, Unfit, gather
from fhircm.exchange.dead_letters import UNDELIVERED, parked, withdraw, withdraw_row
from fhircm.exchange.disclosure import disclosure
from fhircm.exchange.due import Due, moment
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable, SignInRefused, summary
from fhircm.exchange.human import instant
from fhircm.exchange.native import Clash
from fhircm.exchange.noticing import Noticing
from fhircm.exchange.outbound import NOBODY, PORTAL, Occasion, fulfils, occasions
from fhircm.exchange.partners import Partner
from fhircm.exchange.sending import Sender
from fhircm.exchange.ways import WAYS, Amend, sent
from fhircm.exchange.writing import Planner
from fhircm.fhir.outcome import FhirError, Gone, NotFound
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Op, Put, SetState, Store, Stored

if TYPE_CHECKING:
    from fhircm.exchange.push import PushReport

PARTNERS_FAULT = (PartnerUnavailable, PartnerAnswerBroken, PartnerRefused)
DISPLAY = "Deliver by other means"
PORTAL_CODE, PORTAL_DISPLAY = "portal-entry", "Enter in the partner's own system"


class Waits(Exception):
    """A breaker is open for what this needs."""

    def __init__(self, until: datetime) -> None:
        super().__init__(until)
        self.until = until


@dataclass
class Delivering:
    """Delivers to one partner."""

    store: Store
    partner: Partner
    deliver: Any
    sender: Sender
    planner: Planner
    breakers: Breakers
    owner: str | None
    fetch: Fetch | None
    report: PushReport

    def __post_init__(self) -> None:
        self.rows, self.parked = sent(self.partner.name), parked(self.partner.name)
        self.agent = {"reference": self.owner} if self.owner else {"display": "Care coordination"}
        self.trying: set[str] = set()  # kinds of request by which it is tried whether they work again

    def settles(self, due: Due, behind: Sequence[Due]) -> datetime | None:
        """Until when further versions are waited for, while nothing that cannot wait is due for the same patient."""
        occasion = occasions().get(due.occasion or "")
        queued = moment(due.queued)
        if occasion is None or not occasion.settle or due.letter or queued is None:
            return None
        if any(not occasions()[one.occasion].settle for one in behind if one.occasion in occasions()):
            return None
        until = queued + timedelta(seconds=occasion.settle)
        return until if queued <= self.sender.clock() < until else None

    # --- one row of the queue --------------------------------------------------------------------------------------------------

    async def deliver_whole(self, due: Due) -> list[Op]:
        """A change whose meaning could not be found out before."""
        noticing = Noticing(self.store, self.partner, self.deliver, self.sender.clock)
        stored = await self.store.vread(due.type, due.id, due.version)
        return [*await noticing.version(stored, due.place), *await self._settled(due, "It was delivered since")]

    async def deliver_occasion(self, due: Due, occasion: Occasion) -> list[Op]:
        """Tell the partner. Returns what is to be committed."""
        stored = await self._stored(due, occasion)
        wanted = self.deliver.get(occasion.name, [])
        if stored is None or len(wanted) < (due.number or 0):
            return await self._settled(due, "It is no longer to be delivered")
        operations: list[Op] = []
        if stored.version != due.version:
            operations += self._superseded(due, stored.version)
        case = await gather(self.store, self.partner, occasion, stored)
        if case is None or await self._overtaken(case):
            return [*operations, *await self._settled(due, "It is no longer to be delivered")]
        case.prefer = due.prefer
        case.disclosure = await disclosure(self.store, self.partner, case.patient, self.sender.clock())
        if occasion.after and not due.letter:
            came, withdrawn = await self._came_before(case)
            if not came:
                return [*operations, *withdrawn]
        for number, ways in enumerate(wanted, 1):
            if due.number in (None, number):
                operations += await self._want(due, case, number, ways)
        again = {one.key for one in operations if isinstance(one, SetState) and one.namespace == self.parked and one.value}
        return [*operations, *(await self._settled(due, "It was delivered since") if due.letter not in again else [])]

    async def __call__(self, due: Due) -> list[Op]:
        """Tell the partner of what is due. Raises what the client raises, and Waits."""
        if due.occasion is None:
            return await self.deliver_whole(due)
        if due.replay == "known" and due.letter and await self._human_did(due.letter):
            return [withdraw_row(self.partner.name, due.letter)]
        return await self.deliver_occasion(due, occasions()[due.occasion]) if due.occasion in occasions() else []

    async def _stored(self, due: Due, occasion: Occasion) -> Stored | None:
        """The version to tell of: of an occasion of every change the newest."""
        try:
            if not occasion.every:
                return await self.store.vread(due.type, due.id, due.version)
            return (await self.store.read_many([(due.type, due.id)])).get((due.type, due.id))
        except (Gone, NotFound):
            return None

    def _superseded(self, due: Due, by: int) -> list[Op]:
        """Note that a newer version overtook this one before it was sent."""
        what = f"{due.about}/_history/{due.version}"
        self.report.superseded.append(what)
        row = {"state": "superseded", "by": by, "at": instant(self.sender.clock())}
        return [SetState(self.rows, f"{due.about}/{due.occasion}.{due.version}/superseded", row)]

    async def _settled(self, due: Due, why: str) -> list[Op]:
        """The end of the dead letter that was tried again."""
        return await withdraw(self.store, self.partner.name, due.letter, why) if due.letter else []

    async def _overtaken(self, case: Case) -> bool:
        """Whether events have overtaken the news: the newest version is no longer as the occasion needs it."""
        wanted = case.occasion.when if case.occasion.every else case.occasion.still
        if not wanted:
            return False
        key = (case.stored.type, case.stored.id)
        newest = (await self.store.read_many([key])).get(key)
        return newest is None or not fulfils(newest.tree, wanted)

    async def _came_before(self, case: Case) -> tuple[bool, list[Op]]:
        """Whether the partner heard of what this follows. What still waits to be told is withdrawn instead."""
        prefix = f"{case.about}/{case.occasion.after}"
        if any(row["state"] == "done" for row in (await self.store.states(self.rows, prefix)).values()):
            return True, []
        operations: list[Op] = []
        for key in await self.store.states(self.parked, prefix):
            if await self._human_did(key):
                return True, []
            operations += await withdraw(self.store, self.partner.name, key, "It was taken back before it could be delivered")
        return False, operations

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

    # --- one thing wanted ------------------------------------------------------------------------------------------------------

    async def _want(self, due: Due, case: Case, number: int, ways: Sequence[str]) -> list[Op]:
        """Get one thing across by the first way that works. Returns what a human must be told otherwise."""
        key = f"{case.key}/{number}"
        if await self.store.state(self.rows, key):
            return []
        told_of = [case.tree, *([case.order] if case.order else [])]
        if case.disclosure is not None and not all(map(case.disclosure.permits, told_of)):
            return await self._park(due, case, number, ["a consent of the patient keeps it from them"], "withheld")
        reasons: list[str] = []
        why = "refused"
        for name in ways:
            if name == NOBODY:
                if why == "no-record":  # it is still wanted, once the patient is known there
                    return await self._park(due, case, number, reasons, why, quiet=True)
                return [SetState(self.rows, key, {"state": "left", "way": NOBODY}), *await self._no_letters_before(case)]
            if name == PORTAL:
                return [*await self._portal(case, key), *await self._no_letters_before(case)]
            if against := self.planner.against(name, case.tree["resourceType"]):
                reasons.append(against)
                continue
            try:
                await self._go(case, name)
                done = {"state": "done", "way": name, **({"passed": reasons} if reasons else {})}
                return [SetState(self.rows, key, done), *await self._arrived(case), *await self._no_letters_before(case)]
            except Clash as clash:
                return await self._park(due, case, number, [str(clash)], "conflict")
            except Unfit as error:
                reasons.append(str(error))
                why = error.why if error.why != "unfit" else why
                if error.why == "unsure":
                    break
            except PartnerRefused as error:
                if isinstance(error, SignInRefused) or error.answered == 401:
                    raise  # it refuses the hub, not this
                what, _ = WAYS[name].needs(case.tree["resourceType"])
                reasons.append(f"it refused a {what} ({summary(error.told) or error.answered})")
        return await self._park(due, case, number, list(dict.fromkeys(reasons)), why)

    async def _go(self, case: Case, name: str) -> None:
        what = " ".join(WAYS[name].needs(case.tree["resourceType"]))
        if (until := self.breakers.wait() or self.breakers.wait(what)) is not None:
            raise Waits(until)
        if what in self.trying:
            raise Waits(self.sender.clock())
        shipments = await WAYS[name].build(case, self.fetch)
        if what in self.breakers.rows:
            self.trying.add(what)
        try:
            for shipment in shipments:
                try:
                    self.report.delivered.append(await self.sender.send(case, shipment, self.agent))
                except PartnerRefused:
                    if not (isinstance(shipment, Amend) and shipment.optional):
                        raise
        except (Unfit, Clash):
            await self.breakers.answered(what)
            raise
        except PARTNERS_FAULT as error:
            if isinstance(error, PartnerRefused) and not isinstance(error, SignInRefused):
                await self.breakers.answered(what)
            else:
                await self.breakers.failed(what, error)
            raise
        finally:
            self.trying.discard(what)
        await self.breakers.answered(what)

    async def _arrived(self, case: Case) -> list[Op]:
        """A message of the hub's that went to its one recipient is no longer on its way."""
        if case.occasion.resource != "Communication":
            return []
        key = (case.stored.type, case.stored.id)
        newest = (await self.store.read_many([key])).get(key)
        if newest is None or newest.tree["status"] != "in-progress" or len(newest.tree.get("recipient", [])) != 1:
            return []
        return [Put(check_tree({**newest.tree, "status": "completed"}), if_version=newest.version)]

    async def _no_letters_before(self, case: Case) -> list[Op]:
        """Dead letters of older versions, of an occasion of every change: what they were to tell has been told."""
        if not case.occasion.every:
            return []
        prefix = f"{case.about}/{case.occasion.name}."
        operations: list[Op] = []
        for key in await self.store.states(self.parked, prefix):
            if not key.startswith(f"{case.key}/"):
                operations += await withdraw(self.store, self.partner.name, key, "A newer version was delivered")
        return operations

    async def _portal(self, case: Case, key: str) -> list[Op]:
        """A Task for a human who enters it in the partner's own system; one that is open for an older version is told the newer."""
        name = self.partner.organization.name
        reason = f"Please enter “{case.title}” in the system of {name}, as of version {case.stored.version}: it takes it from no program"
        patient = f"Patient/{case.patient['id']}" if case.patient else None
        told = await human.tell(
            self.store,
            (PORTAL_CODE, self.partner.name, f"{case.about}/{case.occasion.name}"),
            PORTAL_CODE,
            PORTAL_DISPLAY,
            reason,
            focus=case.about,
            patient=patient,
            owner=self.owner,
        )
        return [SetState(self.rows, key, {"state": "left", "way": PORTAL}), *told]

    # --- what could not be told ------------------------------------------------------------------------------------------------

    async def give_up(self, due: Due, error: Exception) -> list[Op]:
        """After the last attempt: put all that is still wanted aside."""
        words = str(error) if isinstance(error, FhirError) else type(error).__name__  # other texts may quote a resource
        kind = "unavailable" if isinstance(error, PARTNERS_FAULT) else "failed"
        tried = due.attempts + 1
        due = due.again(attempts=tried)
        reasons = [f"{tried} attempts failed, the last because {words}"]
        if due.occasion is None:
            return await self._park_key(due, f"{due.about}/_history/{due.version}", "a change", None, reasons, kind)
        occasion, operations = occasions()[due.occasion], list[Op]()
        stored = await self._stored(due, occasion)
        case = await gather(self.store, self.partner, occasion, stored) if stored else None
        if case is None:
            return await self._settled(due, "It is no longer to be delivered")
        for number in range(1, len(self.deliver[occasion.name]) + 1):
            if due.number in (None, number) and not await self.store.state(self.rows, f"{case.key}/{number}"):
                operations += await self._park(due, case, number, reasons, kind)
        return operations

    async def _park(self, due: Due, case: Case, number: int, reasons: list[str], why: str, *, quiet: bool = False) -> list[Op]:
        """Put one thing aside, to be replayed, and tell a human unless it is not worth that (`quiet`)."""
        patient = f"Patient/{case.patient['id']}" if case.patient else None
        due = due.again(number=number, version=case.stored.version)
        before = [] if why in ("withheld", "conflict") else await self._no_letters_before(case)
        parked = await self._park_key(due, f"{case.key}/{number}", f"“{case.title}”", patient, reasons, why, quiet=quiet)
        return [*before, *parked]

    async def _park_key(
        self, due: Due, key: str, title: str, patient: str | None, reasons: list[str], why: str, *, quiet: bool = False
    ) -> list[Op]:
        reason = f"{self.partner.organization.name} could not be told {title}: {'; '.join(reasons)}"
        now = instant(self.sender.clock())
        known = await self.store.state(self.parked, key) or {}
        row = {
            "reason": reason,
            "why": why,
            "type": due.type,
            "id": due.id,
            "version": due.version,
            "occasion": due.occasion,
            "number": due.number,
            "patient": patient,
            "lane": due.lane,
            "place": due.place,
            "first": known.get("first") or due.first or now,
            "last": now,
            "attempts": known.get("attempts", 0) + max(due.attempts, 1),
        }
        if why == "withheld":  # the patient's will, and no failure
            self.report.withheld.append(key)
            return [
                SetState(self.parked, key, row),
                *await human.take_back(self.store, (UNDELIVERED, self.partner.name, key), reason),
            ]
        if quiet:
            return [SetState(self.parked, key, row)]
        self.report.undelivered.append(key)
        told = await human.tell(
            self.store,
            (UNDELIVERED, self.partner.name, key),
            UNDELIVERED,
            DISPLAY,
            reason,
            focus=due.about,
            patient=patient,
            owner=self.owner,
        )
        return [SetState(self.parked, key, row), *told]
