"""Two coordinators, a moving clock, and any order of what they do: the Task is whose a small model says it is, and the fence only grows."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scopes
from fhircm.coordination import changing_hands, claiming
from fhircm.coordination.acting import act
from fhircm.coordination.build import coordinating_organization
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.rules import RULES
from fhircm.fhir.outcome import Conflict, FhirError
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import FinishTimer, MoveCursor, Put
from tests.access.world import ref, write
from tests.coordination.desk import QUEUE, fence

LEASE = {"value": 30, "unit": "min", "system": "http://unitsofmeasure.org", "code": "min"}
WHO = st.sampled_from(["ann", "bob"])
STEP = st.one_of(
    st.tuples(st.sampled_from(["claim", "claim", "release", "hand_over", "write"]), WHO),
    st.tuples(st.just("pass"), st.sampled_from([10, 31])),
    st.tuples(st.just("ring"), st.none()),
)


@dataclass
class Model:
    """Whose a Task is; `knows` is the fence under which each last had it, or gave it away."""

    owner: str | None = None
    until: datetime | None = None
    fence: int = 0
    knows: dict = field(default_factory=dict)

    def holder(self, now):
        return None if self.until is not None and self.until <= now else self.owner

    def step(self, what, who, now):
        """The model after a step, or None when it must be refused."""
        holder, other = self.holder(now), "bob" if who == "ann" else "ann"
        if what == "claim":
            if holder not in (None, who):
                return None
            grown = self.fence if holder == who else self.fence + 1
            return Model(who, now + timedelta(minutes=30), grown, {**self.knows, who: grown})
        if what == "write":
            mine = self.knows.get(who) == self.fence and holder in (None, who)
            return self if mine else None
        if holder not in (None, who) or (what == "release" and self.owner is None):
            return None
        to = None if what == "release" else other
        grown = self.fence + 1
        return Model(to, None, grown, {**self.knows, who: grown})


class Play:
    """One Task, and the two who want it."""

    def __init__(self, store, clock, id):
        self.store, self.clock, self.id = store, clock, id
        self.context = Context(store, coordinating_organization("Clinic").id, "Clinic", BusinessCalendar("UTC", "US"))
        self.copies, self.model = {}, Model()
        self.stores = {name: GuardedStore(store, _person(name)) for name in ("ann", "bob")}

    async def step(self, what, who):
        if what == "pass":
            self.clock.advance(timedelta(minutes=who))
        elif what == "ring":
            await self._ring()
            if self.model.until is not None and self.model.until <= self.clock.now:
                self.model = replace(self.model, owner=None, until=None, fence=self.model.fence + 1)
        else:
            expected = self.model.step(what, who, self.clock.now)
            try:
                self.copies[who] = await self._do(what, who)
            except FhirError as error:
                assert expected is None, (what, who, self.model, error)
                assert isinstance(error, Conflict) or what == "release", error
            else:
                assert expected is not None, (what, who, self.model)
                self.model = expected

    async def _do(self, what, who):
        if what == "write":
            if who not in self.copies:
                raise Conflict("never had it")
            copy = {name: one for name, one in self.copies[who].items() if name != "meta"} | {"priority": "urgent"}
            return (await self.stores[who].transact([Put(check_tree(copy))], [("u", "Task")]))[0].tree
        other = "bob" if who == "ann" else "ann"
        said = {"claim": {"lease": [LEASE]}, "hand_over": {"to": [ref(f"Practitioner/{other}")], "note": ["Go on"]}}
        return (await act(self.stores[who], getattr(claiming, what), "Task", self.id, said.get(what, {}))).tree

    async def _ring(self):
        while batch := (await self.store.changes(before := await self.store.cursor("claims"), types=frozenset({"Task"}))).changes:
            for change in batch:
                operations = await changing_hands.follow(self.context, change)
                await self.store.transact([*operations, MoveCursor("claims", before, change.position)], origin="hub")
                before = change.position
        for timer in await self.store.claim_timers({changing_hands.KIND}, limit=50, lease=timedelta(seconds=30)):
            await self.store.transact([*await changing_hands.over(self.context, timer), FinishTimer(timer)], origin="hub")

    async def agrees(self):
        """The Task is as the model says, and so it came about."""
        versions = [one.tree for one in reversed(await self.store.history("Task", self.id))]
        owner = f"Practitioner/{self.model.owner}" if self.model.owner else "Organization/clinic"
        assert (versions[-1]["owner"]["reference"], fence(versions[-1])) == (owner, self.model.fence)
        for before, after in pairwise(versions):
            changed = before["owner"]["reference"] != after["owner"]["reference"]
            assert fence(after) - fence(before) in ((1,) if changed else (0, 1)), "each change of hands counts one"


def _person(name):
    known = frozenset({f"Practitioner/{name}", "Organization/clinic"})
    scopes, roles = parse_scopes("user/*.cruds"), frozenset({"care-coordinator"})
    return Principal(name, scopes, roles, organization="Organization/clinic", user=f"Practitioner/{name}", known_as=known)


async def test_whatever_two_coordinators_do_the_task_is_in_one_pair_of_hands(store, clock):
    store.rules = RULES
    people = [{"resourceType": "Practitioner", "id": name} for name in ("ann", "bob")]
    await write(store, [{"resourceType": "Organization", "id": "clinic", "name": "Clinic"}, *people])
    await store.transact([Put(coordinating_organization("Clinic"))], origin="hub")
    sequences = []

    @settings(max_examples=18, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEP, min_size=4, max_size=16))
    def collect(steps):
        sequences.append(steps)

    collect()
    for number, steps in enumerate(sequences):
        await write(store, [{**QUEUE, "id": f"t{number}"}])
        play = Play(store, clock, f"t{number}")
        for step in steps:
            await play.step(*step)
        await play.agrees()
    assert sum(what == "ring" for steps in sequences for what, _ in steps) > 10, "time was played, too"
