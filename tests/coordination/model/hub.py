"""The hub that a model drives: its store, whose process may die at any commit, its worker, and who acts there."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import FeatureFlags, RuleBasedStateMachine

from fhircm import wiring
from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scopes
from fhircm.coordination.acting import act
from fhircm.coordination.build import coordinating_organization
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.protocol import load_pathways
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.validation import check_tree
from fhircm.operations.acting import VERBS
from fhircm.reactions import reactions, timer_handlers
from fhircm.store.database import open_database
from fhircm.store.operations import Put
from fhircm.store.resources import Store
from fhircm.worker import Worker

NPI = "http://hl7.org/fhir/sid/us-npi"
OWN = "https://fhircm.example/CodeSystem/coordination"
BASE = "https://fhircm.example/StructureDefinition"
PLACES = ("north", "south", "east", "west", "middle")  # the middle one passes on what it is asked for
PERFORMERS = PLACES[1:]
STAFF = ("ann", "bob")
TYPE = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/service-type", "code": "124"}]}
REASON = {"coding": [{"system": OWN, "code": "no-capacity"}], "text": "No capacity"}
WHOLES = {"discharge-planning", "emergency-follow-up", "hospital-admission", "transition-of-care"}  # watched by their steps
ENDED = {"rejected", "cancelled", "failed", "completed", "entered-in-error"}


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


class Hub(RuleBasedStateMachine):
    """An empty hub with five organisations and a patient; `lend` gives a context manager of the URL of an empty database."""

    lend = None
    caught: ClassVar[Counter] = Counter()  # what was done and refused, over all examples

    def __init__(self):
        super().__init__()
        # Left alone, hypothesis switches most rules off in most lives, and little happens in those.
        self._rules_strategy.enabled_rules_strategy = st.just(FeatureFlags())
        self.loop = asyncio.new_event_loop()
        self.now = self.furthest = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
        self.lent = type(self).lend()
        self.tried = []  # what was refused, to be told when something fails
        self.tasks = []  # those that there were when the worker had last nothing to do
        self.idle = False  # whether nobody did anything since a clock was moved
        self.places, self.read_to = {}, (0, 0)  # of each resource in the order in which they were made, and how far that is known
        self.run(self.begin())

    def run(self, work):
        self.idle = False
        return self.loop.run_until_complete(work)

    async def begin(self):
        self.store = MortalStore(await open_database(await self.lent.__aenter__()), clock=lambda: self.now, rules=wiring.RULES)
        organization = coordinating_organization("The coordinators")
        await self.store.transact([Put(organization, 0)], origin="hub")
        for number, place in enumerate(PLACES):
            npi = [{"system": NPI, "value": f"123456789{number}"}]
            kind = {"type": [{"coding": [{"system": OWN, "code": "intermediary"}]}]} if place == "middle" else {}
            await self.put(
                {"resourceType": "Organization", "id": place, "identifier": npi, "active": True, "name": place.title(), **kind}
            )
        for place in ("south", "east"):
            by = {"reference": f"Organization/{place}"}
            await self.put(
                {"resourceType": "HealthcareService", "id": f"service-{place}", "active": True, "providedBy": by, "type": [TYPE]}
            )
        for name in STAFF:
            await self.put({"resourceType": "Practitioner", "id": name, "name": [{"text": name.title()}]})
        patient = {"resourceType": "Patient", "id": "p", "managingOrganization": {"reference": "Organization/north"}}
        await self.put({**patient, "generalPractitioner": [{"reference": "Organization/west"}]})
        self.context = Context(
            self.store, organization.id, "The coordinators", BusinessCalendar("America/Chicago", "US"), (), load_pathways()
        )
        self.hired()

    def hired(self):
        """A worker of another process."""
        park, unpark = partial(wiring._parked, self.context), partial(wiring._unparked, self.context)
        self.worker = Worker(self.store, reactions(self.context), timer_handlers(self.context), park, unpark, lease=timedelta(0))

    def teardown(self):
        try:
            self.run(self.settle())
        finally:
            self.run(self.store.close())
            self.run(self.lent.__aexit__(None, None, None))
            self.loop.close()

    async def react(self):
        await self.worker.run_until_idle()
        self.tasks = await self.context.find("Task", ("_lastUpdated", "ge2000"))

    async def settle(self):
        await self.react()
        self.versions = {one.id: list(reversed(await self.store.history("Task", one.id))) for one in self.tasks}
        await self.check(self.tasks)

    async def check(self, tasks):
        """What must hold when the worker has nothing left to do; each kind of rules adds its own."""

    # --- what is done ----------------------------------------------------------------------------------------------------------

    async def put(self, tree, version=0):
        await self.store.transact([Put(check_tree(tree), version)], origin="client:loader")

    def seen_by(self, place):
        return GuardedStore(self.store, system(place))

    def create(self, place, tree):
        self.run(self.seen_by(place).transact([Put(check_tree(tree), 0)], [("c", tree["resourceType"])]))

    def made(self, place, tree):
        """An organisation writes something new. Returns whether it went through."""
        work = self.seen_by(place).transact([Put(check_tree(tree), 0)], [("c", tree["resourceType"])])
        return self.allowed(work, (place, "new", tree["resourceType"], tree["id"]))

    def get(self, type, id):
        return self.run(self.context.get(type, id))

    def find(self, type, *parameters):
        return self.run(self.found(type, *parameters))

    async def found(self, type, *parameters):
        """What there is, in the order in which it was made: ids are drawn anew in each life, and a life must be told again alike."""
        while changes := (await self.store.changes(self.read_to, types=frozenset({"Task", "Appointment"}), limit=500)).changes:
            for one in changes:
                self.places.setdefault((one.type, one.id), len(self.places))
            self.read_to = changes[-1].position
        found = await self.context.find(type, *parameters)
        return sorted(found, key=lambda one: self.places.get((one.type, one.id), 0))

    def update(self, place, stored, **members):
        """An organisation writes something with other members (None: without). Returns whether it went through."""
        tree = {name: value for name, value in {**stored.tree, **members}.items() if value is not None}
        put = Put(check_tree(tree), stored.version)
        return self.allowed(self.seen_by(place).transact([put], [("u", stored.type)]), (place, stored.type, stored.id, members))

    def act(self, place, verb, stored, **said):
        """An organisation calls an operation. Returns whether it went through."""
        listed = {name: value if isinstance(value, list) else [value] for name, value in said.items()}
        return self.allowed(act(self.seen_by(place), VERBS[verb], stored.type, stored.id, listed), (place, verb, stored.id, said))

    def allowed(self, work, what):
        try:
            self.run(work)
        except FhirError as error:
            self.caught[f"refused: {type(error).__name__}"] += 1
            self.tried.append((*what, str(error)))
            return False
        return True


def reference(tree, name):
    return tree.get(name, {}).get("reference", "")


def id_of(tree, name):
    """The id behind a reference: of the organisation on a side of a Task (`owner`, `requester`), or of its `focus`."""
    return reference(tree, name).partition("/")[2]


def code_of(task):
    return task.tree.get("code", {}).get("coding", [{}])[0].get("code")


def is_open(task):
    return task.tree["status"] not in ENDED


def extension(tree, name):
    """An extension of the hub's own by the end of its name: its parts by theirs."""
    found = next((one for one in tree.get("extension", []) if one["url"] == f"{BASE}/{name}"), {})
    return {one["url"]: one for one in found.get("extension", [])}
