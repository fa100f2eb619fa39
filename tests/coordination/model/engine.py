"""A hypothesis machine that drives the coordination engine: anybody may try anything at any time, the worker dies, clocks move.

What it holds against the engine is written here once more, by hand, from the specifications: no table of the product is read.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from fhircm import wiring
from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scopes
from fhircm.coordination import open_loops
from fhircm.coordination.acting import act
from fhircm.coordination.build import coordinating_organization
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.protocol import load_pathways
from fhircm.coordination.timeline import timeline
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.operations.acting import VERBS
from fhircm.reactions import reactions, timer_handlers
from fhircm.store.database import open_database
from fhircm.store.operations import Put
from fhircm.store.resources import Store
from fhircm.worker import Worker

NPI = "http://hl7.org/fhir/sid/us-npi"
PLACES = ("north", "south", "east", "west")
PERFORMERS = PLACES[1:]
TYPE = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/service-type", "code": "124"}]}
DISTRIBUTION = "https://fhircm.example/StructureDefinition/distribution"
REASON = {"coding": [{"system": "https://fhircm.example/CodeSystem/coordination", "code": "no-capacity"}], "text": "No capacity"}
AT_WORK = {"accepted", "in-progress", "on-hold", "completed"}
ENDED = {"rejected", "cancelled", "failed", "completed", "entered-in-error"}

# http://hl7.org/fhir/us/sdoh-clinicalcare: who may take which step of a referral. R is the requester's side, P the performer's.
LEGAL = {
    ("draft", "requested"): "R", ("draft", "cancelled"): "R",
    ("requested", "accepted"): "P", ("requested", "rejected"): "P", ("requested", "cancelled"): "RP",
    ("accepted", "in-progress"): "P", ("accepted", "on-hold"): "P", ("accepted", "completed"): "P", ("accepted", "failed"): "P", ("accepted", "cancelled"): "RP",
    ("in-progress", "on-hold"): "P", ("in-progress", "completed"): "P", ("in-progress", "failed"): "P", ("in-progress", "cancelled"): "RP",
    ("on-hold", "in-progress"): "P", ("on-hold", "completed"): "P", ("on-hold", "failed"): "P", ("on-hold", "cancelled"): "RP",
}  # fmt: skip
# http://hl7.org/fhir/us/bser: the steps of businessStatus, and Task.status that goes with each.
BSER = {
    "2.0": {"3.0": "P", "4.0": "P", "5.2": "R"},
    "3.0": {"4.0": "P", "5.1": "P", "5.1.1": "P", "5.1.4": "P", "5.2": "R", "7.0": "P"},
    "5.1": {"4.0": "P", "5.1.1": "P", "5.1.4": "P", "5.2": "R", "7.0": "P"},
    "5.1.1": {"4.0": "P", "5.1.2": "P", "5.1.3": "P", "5.1.4": "P", "5.2": "R", "7.0": "P"},
    "5.1.2": {"4.0": "P", "5.1.1": "P", "5.1.3": "P", "5.2": "R"},
    "5.1.3": {"5.1.1": "P", "5.2": "R"},
    "5.1.4": {"4.0": "P", "5.1.1": "P", "5.1.3": "P", "5.2": "R", "7.0": "P"},
    "5.2": {"6.0": "P", "7.0": "P"},
}  # fmt: skip
BSER_STATUS = {"2.0": "received", "3.0": "accepted", "4.0": "rejected", "6.0": "cancelled", "7.0": "completed"}
BSER_SYSTEM = "http://hl7.org/fhir/us/bser/CodeSystem/TaskBusinessStatusCS"
BSER_PROFILE = "http://hl7.org/fhir/us/bser/StructureDefinition/BSeR-ReferralTask"
QUEUE = {"coding": [{"system": "https://fhircm.example/role", "code": "care-coordinator"}]}
CLAIM = "https://fhircm.example/StructureDefinition/task-claim"
STAFF = ("ann", "bob")
STEPS = ("accepted", "rejected", "in-progress", "on-hold", "completed", "failed", "cancelled", "requested")
OPERATIONS = {"accepted": "task-accept", "rejected": "task-decline"}
NEEDS_REASON = {"rejected", "cancelled", "failed", "on-hold"}


class Killed(BaseException):
    """The worker's process ends here."""


class MortalStore(Store):
    """A store whose process dies at a commit: before it (`before`), or right after it, so that nobody hears of it."""

    left: int | None = None
    before = False

    async def transact(self, operations, **options):
        if self.left is None:
            return await super().transact(operations, **options)
        self.left -= 1
        if self.left < 0 and self.before:
            raise Killed
        stored = await super().transact(operations, **options)
        if self.left < 0:
            raise Killed
        return stored


def system(place):
    """The backend of an organisation."""
    name = f"Organization/{place}"
    return Principal(place, parse_scopes("system/*.cruds"), frozenset({"system"}), name, known_as=frozenset({name}))


def person(name):
    """A coordinator of north."""
    known = frozenset({f"Practitioner/{name}", "Organization/north"})
    roles = frozenset({"care-coordinator"})
    return Principal(
        "desk", parse_scopes("user/*.cruds"), roles, "Organization/north", f"Practitioner/{name}", name, known_as=known
    )


class Engine(RuleBasedStateMachine):
    """`lend` gives a context manager of the URL of an empty database."""

    lend = None
    caught: ClassVar[Counter] = Counter()  # what was done and refused, over all examples
    orders = Bundle("orders")

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
        self.lent = type(self).lend()
        self.made = self.bsers = self.queued = 0
        self.tried = []  # what was refused, to be told when something fails
        self.run(self.begin())

    def run(self, work):
        return self.loop.run_until_complete(work)

    async def begin(self):
        self.store = MortalStore(await open_database(await self.lent.__aenter__()), clock=lambda: self.now, rules=wiring.RULES)
        organization = coordinating_organization("The coordinators")
        await self.store.transact([Put(organization, 0)], origin="hub")
        for number, place in enumerate(PLACES):
            npi = [{"system": NPI, "value": f"123456789{number}"}]
            await self.put(
                {"resourceType": "Organization", "id": place, "identifier": npi, "active": True, "name": place.title()}
            )
        for place in ("south", "east"):
            by = {"reference": f"Organization/{place}"}
            await self.put(
                {"resourceType": "HealthcareService", "id": f"service-{place}", "active": True, "providedBy": by, "type": [TYPE]}
            )
        for name in STAFF:
            await self.put({"resourceType": "Practitioner", "id": name, "name": [{"text": name.title()}]})
        await self.put({"resourceType": "Patient", "id": "p", "managingOrganization": {"reference": "Organization/north"}})
        self.context = Context(
            self.store, organization.id, "The coordinators", BusinessCalendar("America/Chicago", "US"), (), load_pathways()
        )
        self.hired()

    def hired(self):
        """A worker of another process."""
        park, unpark = partial(wiring._parked, self.context), partial(wiring._unparked, self.context)
        self.worker = Worker(self.store, reactions(self.context), timer_handlers(self.context), park, unpark, lease=timedelta(0))

    async def put(self, tree, version=0):
        await self.store.transact([Put(check_tree(tree), version)], origin="client:loader")

    def teardown(self):
        try:
            self.run(self.settle())
        finally:
            self.run(self.store.close())
            self.run(self.lent.__aexit__(None, None, None))
            self.loop.close()

    # --- what anybody may try ----------------------------------------------------------------------------------------------------

    @initialize(target=orders, how=st.sampled_from(["direct", "first-accept", "offers", "open"]))
    def first(self, how):
        made = self.make(how, ["south", "east"], "routine")
        self.queue()
        self.ask_by_bser("east")
        self.run(self.settle())
        return made

    @rule(
        target=orders,
        how=st.sampled_from(["direct", "first-accept", "offers", "open"]),
        to=st.lists(st.sampled_from(PERFORMERS), min_size=1, max_size=3, unique=True),
        priority=st.sampled_from(["routine", "urgent"]),
        seen=st.sampled_from([True, True, True, False]),
    )
    def order(self, how, to, priority, seen):
        """An order is written; mostly the worker sees it before anything else happens."""
        made = self.make(how, to, priority)
        if seen:
            self.run(self.worker.run_until_idle())
        return made

    def make(self, how, to, priority):
        number = self.made
        self.made += 1
        tree = {
            "resourceType": "ServiceRequest",
            "id": f"order-{number}",
            "status": "active",
            "intent": "order",
            "priority": priority,
            "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "3457005"}]}],
            "code": {"text": "See the patient"},
            "subject": {"reference": "Patient/p"},
            "requester": {"reference": "Organization/north"},
            "authoredOn": self.now.date().isoformat(),
            "extension": [{"url": DISTRIBUTION, "extension": [{"url": "how", "valueCode": how}]}],
        }
        if how == "open":
            tree["performerType"] = TYPE
        else:
            tree["performer"] = [{"reference": f"Organization/{place}"} for place in to]
        self.run(GuardedStore(self.store, system("north")).transact([Put(check_tree(tree), 0)], [("c", "ServiceRequest")]))
        return tree["id"]

    @rule(
        order=orders,
        pick=st.integers(0, 5),
        who=st.sampled_from(["P", "P", "P", "R", *PLACES]),
        wish=st.integers(0, 11),
        by_operation=st.booleans(),
    )
    def step(self, order, pick, who, wish, by_operation):
        """Somebody tries a step of a referral: what goes through is legal, and what is legal goes through where one is asked alone."""
        tasks = self.run(self.referrals(order))
        if not tasks:
            return
        task = tasks[pick % len(tasks)]
        before, tree = task.tree["status"], task.tree
        how = self.how_of(order)
        sides = {"R": tree.get("requester", {}).get("reference"), "P": tree.get("owner", {}).get("reference")}
        place = (sides[who] or "Organization/south").partition("/")[2] if who in sides else who
        place = place if place in PLACES else "north"
        ways = [end for start, end in LEGAL if start == before]
        status = ways[wish % len(ways)] if ways and wish < 8 else STEPS[wish % len(STEPS)]  # mostly what could be done
        me = f"Organization/{place}"
        taking = how == "open" and "owner" not in tree and status == "accepted"
        allowed = before == status or any(sides[side] == me for side in LEGAL.get((before, status), ""))
        if taking and before == "requested":
            allowed = place in ("south", "east")
        try:
            self.run(self.attempt(place, task, status, taking, by_operation and status in OPERATIONS))
        except FhirError as error:
            self.caught[f"refused: {type(error).__name__}"] += 1
            assert not (allowed and how == "direct" and before != status), (before, status, place, str(error), self.tried[-3:])
            self.tried.append((before, status, place, str(error)))
            return
        assert allowed, f"{place} may not take Task {tree['id']} ({how}) from {before} to {status}"
        self.caught[f"{before} > {status}"] += 1

    async def attempt(self, place, task, status, taking, by_operation):
        store = GuardedStore(self.store, system(place))
        reason = {"reason": [REASON]} if status in NEEDS_REASON else {}
        if by_operation:
            await act(store, VERBS[OPERATIONS[status]], "Task", task.id, reason)
            return
        tree = {**(await store.read("Task", task.id)).tree, "status": status}
        tree.pop("statusReason", None)
        if status in NEEDS_REASON:
            tree["statusReason"] = REASON
        if taking:
            tree["owner"] = {"reference": f"Organization/{place}"}
        await store.transact([Put(check_tree(tree), task.version)], [("u", "Task")])

    @rule(order=orders, pick=st.integers(0, 5))
    def choose(self, order, pick):
        """The requester chooses an offer."""
        tasks = self.run(self.referrals(order))
        if not tasks or self.how_of(order) != "offers":
            return
        task = tasks[pick % len(tasks)]
        said = {
            "url": DISTRIBUTION,
            "extension": [{"url": "how", "valueCode": "offers"}, {"url": "chosen", "valueBoolean": True}],
        }
        others = [one for one in task.tree.get("extension", []) if one["url"] != DISTRIBUTION]
        tree = {**task.tree, "extension": [*others, said]}
        try:
            self.run(GuardedStore(self.store, system("north")).transact([Put(check_tree(tree), task.version)], [("u", "Task")]))
        except FhirError as error:
            self.tried.append(("choose", str(error)))
            return
        assert task.tree["status"] == "accepted" or _chosen(task.tree), "only an offer that stands can be chosen"
        self.caught["chosen"] += 1

    @rule(
        order=orders,
        place=st.sampled_from(["north", "south"]),
        status=st.sampled_from(["revoked", "on-hold", "active", "completed"]),
    )
    def decide(self, order, place, status):
        """The order is the requester's."""
        store = GuardedStore(self.store, system(place))
        try:
            there = self.run(store.read("ServiceRequest", order))
            tree = {**there.tree, "status": status}
            self.run(store.transact([Put(check_tree(tree), there.version)], [("u", "ServiceRequest")]))
        except FhirError as error:
            self.tried.append((status, place, str(error)))
            return
        assert place == "north" or there.tree["status"] == status, "the order is the requester's"

    @rule(order=orders, places=st.permutations(PERFORMERS))
    def rush(self, order, places):
        """All who are asked accept at the same moment."""
        tasks, how = self.run(self.referrals(order)), self.how_of(order)

        async def together():
            tries = [
                self.attempt(place, task, "accepted", how == "open", False)
                for place in places
                for task in tasks
                if task.tree["status"] == "requested"
                and task.tree.get("owner", {}).get("reference") in (None, f"Organization/{place}")
            ]
            return await asyncio.gather(*tries, return_exceptions=True)

        ends = self.run(together())
        wrong = [one for one in ends if isinstance(one, BaseException) and not isinstance(one, FhirError)]
        assert not wrong, wrong
        self.caught["accepted at once"] += len(ends) > 1

    # --- a protocol in which the requester may only ask to cancel ----------------------------------------------------------------

    @precondition(lambda self: self.bsers < 4)
    @rule(place=st.sampled_from(PERFORMERS))
    def ask_by_bser(self, place):
        """A referral as BSeR has it, sent by the requester itself."""
        number = self.bsers
        self.bsers += 1
        order = {
            "resourceType": "ServiceRequest", "id": f"bser-order-{number}", "status": "active", "intent": "order",
            "code": {"text": "Quit smoking"}, "subject": {"reference": "Patient/p"}, "requester": {"reference": "Organization/north"},
        }  # fmt: skip
        task = {
            "resourceType": "Task", "id": f"bser-{number}", "meta": {"profile": [BSER_PROFILE]}, "status": "received", "intent": "order",
            "businessStatus": {"coding": [{"system": BSER_SYSTEM, "code": "2.0"}]},
            "code": {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]},
            "focus": {"reference": f"ServiceRequest/bser-order-{number}"}, "for": {"reference": "Patient/p"},
            "requester": {"reference": "Organization/north"}, "owner": {"reference": f"Organization/{place}"},
            "authoredOn": self.now.isoformat(timespec="seconds"),
        }  # fmt: skip
        writes = [Put(check_tree(order), 0), Put(check_tree(task), 0)]
        needs = [("c", "ServiceRequest"), ("c", "Task")]
        self.run(GuardedStore(self.store, system("north")).transact(writes, needs))

    @precondition(lambda self: self.bsers)
    @rule(
        pick=st.integers(0, 3),
        who=st.sampled_from(["P", "P", "R", "east"]),
        code=st.sampled_from([*sorted(BSER), "4.0", "6.0", "7.0"]),
    )
    def step_by_bser(self, pick, who, code):
        """What goes through stands in the table, and is taken by the side that it names; and the other way round."""
        task = self.run(self.context.get("Task", f"bser-{pick % self.bsers}"))
        tree, before = task.tree, task.tree["businessStatus"]["coding"][0]["code"]
        sides = {"R": "north", "P": tree["owner"]["reference"].partition("/")[2]}
        place = sides.get(who, who)
        side = BSER.get(before, {}).get(code)
        allowed = code == before or (side is not None and sides[side] == place)
        status = BSER_STATUS.get(code, "in-progress")
        new = {**tree, "status": status, "businessStatus": {"coding": [{"system": BSER_SYSTEM, "code": code}]}}
        new.pop("statusReason", None)
        if status in ("rejected", "cancelled"):
            new["statusReason"] = REASON
        if status == "completed":
            new["output"] = [{"type": {"text": "feedback"}, "valueString": "He has quit"}]
        try:
            self.run(GuardedStore(self.store, system(place)).transact([Put(check_tree(new), task.version)], [("u", "Task")]))
        except FhirError as error:
            assert not (allowed and code != before), (before, code, place, str(error))
            return
        assert allowed, f"{place} may not go from {before} to {code}"
        self.caught[f"bser {before} > {code}"] += 1

    # --- a queue, and two who claim from it --------------------------------------------------------------------------------------

    @precondition(lambda self: self.queued < 4)
    @rule()
    def queue(self):
        """Work for whoever of the coordinators takes it."""
        number = self.queued
        self.queued += 1
        task = {
            "resourceType": "Task", "id": f"queued-{number}", "status": "ready", "intent": "order", "description": "Call the patient",
            "performerType": [QUEUE], "owner": {"reference": "Organization/north"}, "for": {"reference": "Patient/p"},
            "requester": {"reference": "Organization/north"}, "authoredOn": self.now.isoformat(timespec="seconds"),
        }  # fmt: skip
        self.run(self.put(task))

    @precondition(lambda self: self.queued)
    @rule(
        pick=st.integers(0, 3), who=st.sampled_from(STAFF), verb=st.sampled_from(["claim", "claim", "release", "hand-over", "start"]),
    )  # fmt: skip
    def claim(self, pick, who, verb):
        """Whoever works it is the one who has it: what somebody else has claimed, and has not lost, is nobody else's to write."""
        task = self.run(self.context.get("Task", f"queued-{pick % self.queued}"))
        holder, until, fence = self.held(task.tree)
        there = holder if until is None or until > self.now else None
        said = {"to": [{"reference": f"Practitioner/{STAFF[who == 'ann']}"}], "note": ["Please"]} if verb == "hand-over" else {}
        try:
            store = GuardedStore(self.store, person(who))
            if verb == "start":
                tree = {**task.tree, "status": "in-progress"}
                self.run(store.transact([Put(check_tree(tree), task.version)], [("u", "Task")]))
            else:
                self.run(act(store, VERBS[f"task-{verb}"], "Task", task.id, said))
        except FhirError as error:
            self.caught[f"{verb} refused: {type(error).__name__}"] += 1
            return
        assert there in (None, f"Practitioner/{who}"), f"{who} wrote what {there} has claimed until {until}: {verb}"
        after = self.held(self.run(self.context.get("Task", task.id)).tree)
        assert after[2] >= fence, "a fence only grows"
        self.caught[verb] += 1

    def held(self, tree):
        """Who has claimed a Task, until when, and under which fence."""
        found = next((one for one in tree.get("extension", []) if one["url"] == CLAIM), {})
        parts = {one["url"]: one for one in found.get("extension", [])}
        until = parts.get("until", {}).get("valueInstant")
        owner = tree.get("owner", {}).get("reference", "")
        holder = owner if owner.startswith("Practitioner/") else None
        return holder, datetime.fromisoformat(until) if until else None, parts.get("fence", {}).get("valuePositiveInt", 0)

    @rule(hours=st.sampled_from([1, 5, 30, 100, 400]))
    def wait(self, hours):
        self.now += timedelta(hours=hours)

    # --- the worker --------------------------------------------------------------------------------------------------------------

    @rule(commits=st.integers(0, 6), before=st.booleans(), times=st.integers(0, 2))
    def work(self, commits, before, times):
        """The worker works, dies `times` times, and another goes on; then everything that must hold holds."""
        for _ in range(times):
            self.store.left, self.store.before = commits, before
            try:
                self.run(self.worker.run_until_idle())
            except Killed:
                self.caught["kills"] += 1
            self.store.left = None
            self.hired()
        self.run(self.settle())

    async def settle(self):
        await self.worker.run_until_idle()
        await self.check()

    # --- what must hold ----------------------------------------------------------------------------------------------------------

    async def referrals(self, order):
        found = await self.context.find("Task", ("focus", f"ServiceRequest/{order}"))
        return sorted((one for one in found if code_of(one) == "fulfill"), key=lambda one: one.id)

    def how_of(self, order):
        tree = self.run(self.context.get("ServiceRequest", order)).tree
        return tree["extension"][0]["extension"][0]["valueCode"]

    async def check(self):
        tasks = await self.context.find("Task", ("_lastUpdated", "ge2000"))
        assert not [one for one in tasks if code_of(one) == "parked"], "nothing fails again and again"
        for one in tasks:
            await self.legal(one)
            if one.tree["status"] not in ENDED:
                self.in_sight(one)
        for number in range(self.made):
            await self.one_winner(f"order-{number}")
            await self.somebody_has(f"order-{number}", tasks)
        await self.told_once(tasks)
        await self.every_version_is_told()
        wrong = [(one.name, one.wrong) for one in await open_loops.everything(self.context) if one.wrong]
        assert not wrong, wrong

    async def legal(self, task):
        """Every step of its history is in the table; the hub itself takes none that is not."""
        versions = list(reversed(await self.store.history("Task", task.id)))
        referral = code_of(task) == "fulfill"
        for before, after in pairwise(versions):
            step = before.tree["status"], after.tree["status"]
            if step[0] != step[1]:
                assert step[0] not in ENDED, (task.id, step)
                assert not referral or task.id.startswith("bser-") or step in LEGAL, (task.id, step)

    def in_sight(self, task):
        tree = task.tree
        assert tree.get("owner") or tree.get("performerType") or tree.get("restriction", {}).get("recipient"), (
            f"nobody has {tree}"
        )
        assert tree.get("restriction", {}).get("period", {}).get("end"), f"no due time: {tree['id']}"

    async def one_winner(self, order):
        holders = [
            one.id
            for one in await self.referrals(order)
            if one.tree["status"] in AT_WORK and (not _offers(one.tree) or _chosen(one.tree))
        ]
        assert len(holders) <= 1, f"{order} is with {holders}"

    async def somebody_has(self, order, tasks):
        """An order that is active has a referral that is open, or a human who must do something about it; or it was fulfilled."""
        tree = (await self.context.get("ServiceRequest", order)).tree
        if tree["status"] != "active":
            return
        own = await self.referrals(order)
        about = {f"ServiceRequest/{order}", *(f"Task/{one.id}" for one in own)}
        open_ones = [
            one for one in tasks if one.tree["status"] not in ENDED and one.tree.get("focus", {}).get("reference") in about
        ]
        assert open_ones, f"{order} ({self_how(tree)}) is active and out of sight: {[one.tree['status'] for one in own]}"

    async def told_once(self, tasks):
        """One message for each time that a Task was passed on: a level and, of the last, which it does not leave, a due time."""
        sent = Counter()
        for one in await self.context.find("Communication", ("status", "preparation,in-progress,completed")):
            topic = one.tree.get("topic", {}).get("coding", [{}])[0].get("code")
            if topic == "escalation":
                sent[one.tree["about"][0]["reference"]] += 1
        for one in tasks:
            levels = {_level(version.tree) for version in await self.store.history("Task", one.id)} - {""}
            assert sent[f"Task/{one.id}"] <= len(levels), (
                f"Task/{one.id} was told {sent[f'Task/{one.id}']} times, at levels {levels}"
            )

    async def every_version_is_told(self):
        """The timeline of the patient equals the history: one Provenance for each version of what is coordinated."""
        told = Counter()
        for one in await self.context.find("Provenance", ("_lastUpdated", "ge2000")):
            told[one.tree["target"][0]["reference"]] += 1
        versions = Counter()
        for type in ("Task", "ServiceRequest", "Communication"):
            page = await self.store.search(parse_query(type, [("_count", "1000")]))
            for one in page.matches:
                versions.update(f"{type}/{one.id}/_history/{number}" for number in range(1, one.version + 1))
        relevant = Counter(
            {key: number for key, number in told.items() if key.split("/")[0] in ("Task", "ServiceRequest", "Communication")}
        )
        assert relevant == versions, (relevant - versions, versions - relevant)
        story = await timeline(self.store, "p")
        assert [one.at for one in story if one.at] == sorted(one.at for one in story if one.at), "in order"
        heard = Counter(one.reference for one in story if "/_history/" in one.reference)
        assert max(heard.values(), default=1) == 1, f"told twice: {heard.most_common(1)}"
        assert {key for key in versions if not key.startswith("Communication")} <= heard.keys(), "the timeline equals the history"


def code_of(task):
    return task.tree.get("code", {}).get("coding", [{}])[0].get("code")


def self_how(tree):
    return tree["extension"][0]["extension"][0]["valueCode"]


def _said(tree):
    found = next((one for one in tree.get("extension", []) if one["url"] == DISTRIBUTION), {})
    return {one["url"]: one for one in found.get("extension", [])}


def _offers(tree):
    return _said(tree).get("how", {}).get("valueCode") == "offers"


def _chosen(tree):
    return _said(tree).get("chosen", {}).get("valueBoolean") is True


def _level(tree):
    """To whom a Task was passed on, and until when they have it."""
    return str(next((one for one in tree.get("extension", []) if one["url"].endswith("/task-escalation")), ""))
