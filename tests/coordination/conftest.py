"""A hospital and a clinic whose records are mirrored at a hub, and a hub that reacts until nothing is left to do."""

import json
from datetime import datetime, timedelta
from uuid import NAMESPACE_URL, uuid5

import pytest

from fhircm.coordination import escalation, provenance, referral
from fhircm.coordination.build import coordinating_organization
from fhircm.coordination.context import Context, Neighbour
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.protocol import load_pathways
from fhircm.coordination.rules import RULES
from fhircm.coordination.transition import flags, notices, receiving
from fhircm.coordination.transition import follow as transition
from fhircm.fhir.outcome import VersionConflict
from fhircm.fhir.validation import check
from fhircm.store.database import open_database
from fhircm.store.operations import FinishTimer, MoveCursor, Put
from fhircm.store.resources import Store

SCT, NPI = "http://snomed.info/sct", "http://hl7.org/fhir/sid/us-npi"
REACTIONS = [
    (
        "transition",
        {"Communication", "DeviceRequest", "Encounter", "Patient", "Person", "ServiceRequest", "Task"},
        transition.follow,
    ),
    ("flags", {"Encounter", "Patient", "Person"}, flags.follow),
    ("transition-document", {"Bundle", "Task"}, receiving.follow),
    ("notices", {"CareTeam", "Encounter", "EpisodeOfCare", "Patient", "Person"}, notices.follow),
    ("referral", set(referral.TYPES), referral.follow),
    ("deadlines", {"Task"}, escalation.watch),
    (
        "provenance",
        {
            "Task",
            "ServiceRequest",
            "Appointment",
            "CarePlan",
            "Goal",
            "CareTeam",
            "Communication",
            "Encounter",
            "DocumentReference",
            "Person",
        },
        provenance.record,
    ),
]

TIMERS = {escalation.KIND: escalation.overdue}


class Place:
    """A partner: what is put here arrives at the hub as a mirror."""

    def __init__(self, world, name, npi, zone):
        self.world, self.name, self.npi = world, name, npi
        self.base = f"https://{name}.test/r4"
        self.calendar = BusinessCalendar(zone, "US")

    def id(self, reference):
        return str(uuid5(uuid5(NAMESPACE_URL, self.base), reference))

    def ref(self, reference):
        return {"reference": f"{reference.split('/')[0]}/{self.id(reference)}"}

    async def put(self, reference, **members):
        """Write a mirror of `Type/id`; references in `members` are made with `ref`. Returns its id at the hub."""
        type = reference.split("/")[0]
        meta = {"source": f"{self.base}/{reference}"}
        tree = {"resourceType": type, "id": self.id(reference), "meta": meta, **members}
        await self.world.store.transact([Put(check(json.dumps(tree).encode()))], origin=f"partner:{self.name}")
        return tree["id"]

    async def organization(self):
        await self.put(
            f"Organization/{self.name}", name=self.name.title(), identifier=[{"system": NPI, "value": self.npi}], active=True
        )

    async def patient(self, id="p1", **members):
        return await self.put(f"Patient/{id}", name=[{"family": "Okafor", "given": ["Ada"]}], **members)

    async def stay(self, id="e1", *, start, end=None, home=True, status=None, cls="IMP", **members):
        hospitalization = {}
        if end and home is not None:
            code = {"system": "http://www.nubc.org/patient-discharge", "code": "01" if home else "02"}
            hospitalization = {"hospitalization": {"dischargeDisposition": {"coding": [code]}}}
        return await self.put(
            f"Encounter/{id}",
            status=status or ("finished" if end else "in-progress"),
            **{"class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": cls}},
            serviceProvider=self.ref(f"Organization/{self.name}"),
            period={"start": start, **({"end": end} if end else {})},
            **{"subject": self.ref("Patient/p1"), **hospitalization, **members},
        )


class World:
    """The hub, its neighbours, and its reactions."""

    reactions = REACTIONS
    timer_handlers = TIMERS

    def __init__(self, store, clock):
        self.store, self.clock = store, clock
        self.lakeside = Place(self, "lakeside", "1234567893", "America/Chicago")
        self.riverbend = Place(self, "riverbend", "1982736453", "America/New_York")
        organization = coordinating_organization("Lakeside care coordination")
        self.organization = organization
        self.context = Context(
            store,
            organization.id,
            "Lakeside care coordination",
            BusinessCalendar("America/Chicago", "US"),
            tuple(Neighbour(one.name, one.npi, one.base, one.calendar) for one in (self.lakeside, self.riverbend)),
            load_pathways(),
        )

    async def begin(self):
        await self.store.transact([Put(self.organization, 0)], origin="hub")
        for place in (self.lakeside, self.riverbend):
            await place.organization()

    async def react(self, name=None):
        """React until nothing is left to do; with a name, only that reaction, once over what is there."""
        while True:
            done = 0
            for reaction, types, function in self.reactions:
                if name in (None, reaction):
                    done += await self._react(reaction, frozenset(types), function)
            if not done or name:
                return

    async def _react(self, name, types, function):
        done = 0
        while True:
            before = await self.store.cursor(name)
            batch = await self.store.changes(before, types=types, limit=100)
            if not batch.changes:
                return done
            for change in batch.changes:
                for _ in range(5):
                    try:
                        operations = await function(self.context, change)
                        if not operations and change is not batch.changes[-1]:
                            break  # the cursor moves with the next
                        await self.store.transact([*operations, MoveCursor(name, before, change.position)], origin="hub")
                    except VersionConflict:
                        continue
                    before = change.position
                    done += bool(operations)
                    break
                else:
                    raise AssertionError(f"{name} conflicts with itself")

    async def again(self):
        """Take every change through every reaction once more, as after a crash; returns the operations that came of it."""
        found = []
        for _, types, function in self.reactions:
            for change in (await self.store.changes((0, 0), types=frozenset(types), limit=1000)).changes:
                found += [one for one in await function(self.context, change) if isinstance(one, Put)]
        return found

    async def timers(self):
        """Handle what is due; returns how many."""
        claimed = await self.store.claim_timers(set(self.timer_handlers), limit=50, lease=timedelta(seconds=30))
        for timer in claimed:
            operations = await self.timer_handlers[timer.kind](self.context, timer)
            await self.store.transact([FinishTimer(timer), *operations], origin="hub")
        return len(claimed)

    async def find(self, type, **parameters):
        return [one.tree for one in await self.context.find(type, *((k.replace("_", "-"), v) for k, v in parameters.items()))]

    async def edit(self, type, id, client="client:clinic-app", **members):
        stored = await self.store.read(type, id)
        tree = {**stored.tree, **members}
        await self.store.transact([Put(check(json.dumps(tree).encode()), stored.version)], origin=client)

    async def link(self, *patients):
        id = str(uuid5(NAMESPACE_URL, "/".join(patients)))
        person = {"resourceType": "Person", "id": id, "active": True}
        person["link"] = [{"target": {"reference": f"Patient/{one}"}} for one in patients]
        await self.store.transact([Put(check(json.dumps(person).encode()))], origin="hub")

    async def versions(self, type, id):
        return [one.tree for one in reversed(await self.store.history(type, id))]

    async def counts(self):
        return {type: len(await self.find(type)) for type in ("Task", "Communication", "Provenance", "RiskAssessment")}


def at(text):
    return datetime.fromisoformat(text)


@pytest.fixture
async def world(database_url, clock):
    store = Store(await open_database(database_url), clock=clock, rules=RULES)
    made = World(store, clock)
    await made.begin()
    yield made
    await store.close()
