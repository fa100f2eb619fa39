"""Referrals: given out in any way, and anybody tries any step of them. What may be is written here by hand, from the specifications."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination.acting import act
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.validation import check_tree
from fhircm.operations.acting import VERBS
from fhircm.store.operations import Put

from .hub import ENDED, PERFORMERS, PLACES, REASON, TYPE, Hub, code_of, extension, id_of, is_open, reference, system

DISTRIBUTION = "https://fhircm.example/StructureDefinition/distribution"
AT_WORK = {"accepted", "in-progress", "on-hold", "completed"}
WAYS = ("direct", "first-accept", "offers", "open")

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
STEPS = ("accepted", "rejected", "in-progress", "on-hold", "completed", "failed", "cancelled", "requested")
OPERATIONS = {"accepted": "task-accept", "rejected": "task-decline"}
NEEDS_REASON = {"rejected", "cancelled", "failed", "on-hold"}

PICK = st.integers(0, 11)


class Referrals(Hub):
    """Orders, their referrals, and what both sides do with them."""

    def __init__(self):
        self.orders, self.ordered, self.bsers = [], 0, 0
        super().__init__()

    # --- what anybody may try ----------------------------------------------------------------------------------------------------

    @initialize(how=st.sampled_from(WAYS))
    def first(self, how):
        self.make(how, ["south", "east"], "routine")
        self.ask_by_bser("east")
        self.run(self.settle())

    @precondition(lambda self: self.ordered < 5)
    @rule(
        how=st.sampled_from(WAYS),
        to=st.lists(st.sampled_from(PERFORMERS), min_size=1, max_size=3, unique=True),
        priority=st.sampled_from(["routine", "urgent"]),
        seen=st.sampled_from([True, True, True, False]),
    )
    def order(self, how, to, priority, seen):
        """An order is written; mostly the worker sees it before anything else happens."""
        self.make(how, to, priority)
        if seen:
            self.run(self.react())

    def make(self, how, to, priority):
        id = f"order-{self.ordered}"
        self.ordered += 1
        self.orders.append(id)
        tree = {
            "resourceType": "ServiceRequest",
            "id": id,
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
        self.create("north", tree)

    @rule(
        tries=st.lists(
            st.tuples(
                PICK,
                st.sampled_from(["open", "open", "open", "all"]),
                st.sampled_from(["P", "P", "P", "P", "P", "R", "R", *PLACES]),
                st.integers(0, 11),
                st.booleans(),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def steps(self, tries):
        """Some try steps of referrals, one after the other, while the worker sees nothing of it."""
        for one in tries:
            self.step(*one)

    def step(self, pick, among, who, wish, by_operation):
        """Somebody tries a step of a referral: what goes through is legal, and what is legal goes through where one is asked alone."""
        task = self.referral(pick, among)
        if task is None:
            return
        before, tree = task.tree["status"], task.tree
        way = how(tree)
        sides = {"R": reference(tree, "requester"), "P": reference(tree, "owner")}
        place = (sides[who] or "Organization/south").partition("/")[2] if who in sides else who
        place = place if place in PLACES else "north"
        ways = [end for start, end in LEGAL if start == before]
        status = ways[wish % len(ways)] if ways and wish < 8 else STEPS[wish % len(STEPS)]  # mostly what could be done
        me = f"Organization/{place}"
        taking = way == "open" and "owner" not in tree and status == "accepted"
        allowed = before == status or any(sides[side] == me for side in LEGAL.get((before, status), ""))
        if taking and before == "requested":
            allowed = place in ("south", "east")
        try:
            self.run(self.attempt(place, task, status, taking, by_operation and status in OPERATIONS))
        except FhirError as error:
            self.caught[f"refused: {type(error).__name__}"] += 1
            assert not (allowed and way == "direct" and before != status), (before, status, place, str(error), self.tried[-3:])
            self.tried.append((before, status, place, str(error)))
            return
        assert allowed, f"{place} may not take Task {tree['id']} ({way}) from {before} to {status}"
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

    @rule(pick=PICK)
    def choose(self, pick):
        """The requester chooses an offer; where there is none, somebody makes one or takes a request."""
        task = self.referral(pick, "offers")
        if task is None:
            return self.step(pick, "open", "P", 0, True)
        said = {
            "url": DISTRIBUTION,
            "extension": [{"url": "how", "valueCode": "offers"}, {"url": "chosen", "valueBoolean": True}],
        }
        others = [one for one in task.tree.get("extension", []) if one["url"] != DISTRIBUTION]
        if self.update(id_of(task.tree, "requester"), task, extension=[*others, said]):
            assert task.tree["status"] == "accepted" or is_chosen(task.tree), "only an offer that stands can be chosen"
            self.caught["chosen"] += 1

    @rule(
        pick=PICK,
        who=st.sampled_from(["R", "south"]),
        status=st.sampled_from(["revoked", "on-hold", "active", "completed"]),
    )
    def decide(self, pick, who, status):
        """The order is the requester's."""
        there = self.get("ServiceRequest", self.orders[pick % len(self.orders)])
        theirs = id_of(there.tree, "requester")
        place = theirs if who == "R" else who
        if self.update(place, there, status=status):
            assert place == theirs or there.tree["status"] == status, "the order is the requester's"
            self.caught[f"order {status}"] += 1

    @rule(pick=PICK, places=st.permutations(PERFORMERS))
    def rush(self, pick, places):
        """All who are asked accept at the same moment."""
        one = self.referral(pick, "requested")
        if one is None:
            return
        tasks, way = self.run(self.referrals(id_of(one.tree, "focus"))), how(one.tree)

        async def together():
            tries = [
                self.attempt(place, task, "accepted", way == "open", False)
                for place in places
                for task in tasks
                if task.tree["status"] == "requested" and id_of(task.tree, "owner") in ("", place)
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

    # --- what must hold ----------------------------------------------------------------------------------------------------------

    async def referrals(self, order):
        found = await self.found("Task", ("focus", f"ServiceRequest/{order}"))
        return [one for one in found if code_of(one) == "fulfill"]

    def referral(self, pick, among):
        """One of the referrals: of those that are `open`, that are `requested`, that are `offers`, or of all."""
        found = [one for order in self.orders for one in self.run(self.referrals(order))]
        fits = {"open": is_open, "all": bool, "offers": lambda one: how(one.tree) == "offers"}
        found = [one for one in found if fits.get(among, lambda one: one.tree["status"] == among)(one)]
        return found[pick % len(found)] if found else None

    async def check(self, tasks):
        await super().check(tasks)
        for one in tasks:
            self.legal(one)
        for order in self.orders:
            await self.one_winner(order)
            await self.somebody_has(order, tasks)

    def legal(self, task):
        """Every step of its history is in the table; the hub itself takes none that is not."""
        referral = code_of(task) == "fulfill" and not task.id.startswith("bser-")
        for before, after in pairwise(self.versions[task.id]):
            step = before.tree["status"], after.tree["status"]
            if step[0] != step[1]:
                taken_back = step == ("completed", "entered-in-error") and code_of(task) == "arrival"  # the stay was no arrival
                assert step[0] not in ENDED or taken_back, (task.id, step)
                assert not referral or step in LEGAL, (task.id, step)

    async def one_winner(self, order):
        holders = [one.id for one in await self.referrals(order) if has_it(one.tree)]
        assert len(holders) <= 1, f"{order} is with {holders}"

    async def somebody_has(self, order, tasks):
        """An order that is active has a referral that is open, or a human who must do something about it; or it was fulfilled, or is
        asked for in another way."""
        tree = (await self.context.get("ServiceRequest", order)).tree
        if tree["status"] != "active":
            return
        own = await self.referrals(order)
        about = {f"ServiceRequest/{order}", *(f"Task/{one.id}" for one in own)}
        if any(one.tree["status"] == "completed" and "partOf" in one.tree for one in own):  # its result is looked at above
            return
        here = [one for one in tasks if reference(one.tree, "focus") in about]
        if any(code_of(one) == "acknowledge-report" and one.tree["status"] == "cancelled" for one in here):
            return  # it was done, and its requester said that it will not look at what came of it
        for one in await self.context.find("ServiceRequest", ("based-on", f"ServiceRequest/{order}")):
            done = any(each.tree["status"] == "completed" for each in await self.referrals(one.id))
            if one.tree["status"] in ("active", "on-hold") or (one.tree["status"] == "completed" and done):
                return
        states = [one.tree["status"] for one in own]
        assert any(is_open(one) for one in here), f"{order} ({how(tree)}) is active and out of sight: {states}"


def how(tree):
    return extension(tree, "distribution").get("how", {}).get("valueCode")


def is_offer(tree):
    """Whether a Task is one of several offers of which its requester has not chosen it."""
    return how(tree) == "offers" and not is_chosen(tree)


def is_chosen(tree):
    return extension(tree, "distribution").get("chosen", {}).get("valueBoolean") is True


def has_it(tree):
    """Whether its owner has the request: nobody else may."""
    return tree["status"] in AT_WORK and not is_offer(tree)
