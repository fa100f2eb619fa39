"""A team of coordinators at one clinic, each signed in over HTTP, and the hub that reacts to what they do."""

from contextlib import asynccontextmanager
from datetime import timedelta

import httpx

from fhircm.app import AppConfig, create_app
from fhircm.coordination import changing_hands
from fhircm.coordination.build import coordinating_organization
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.rules import RULES
from fhircm.rest.exchange import RestSettings
from fhircm.store.operations import FinishTimer, MoveCursor, Put
from tests.access.world import Someone, admitted, ref, write

BASE = "http://hub.example"
ROLE = "https://fhircm.example/role"
CLAIM = "https://fhircm.example/StructureDefinition/task-claim"
REST = RestSettings(body_limit=200_000, bundle_limit=2_000_000, update_create=True, conditional_delete_limit=1)
TEAM = {
    "ann": Someone("ann", "user/*.cruds", "Organization/clinic", "Practitioner/ann", ("care-coordinator",)),
    "bob": Someone("bob", "user/*.cruds", "Organization/clinic", "Practitioner/bob", ("care-coordinator",)),
    "lea": Someone("lea", "user/*.cruds", "Organization/clinic", "Practitioner/lea", ("lead-coordinator",)),
    "ned": Someone("ned", "user/*.cruds", "Organization/clinic", "Practitioner/ned", ("nurse",)),
    "far": Someone("far", "user/*.cruds", "Organization/hospital", "Practitioner/far", ("care-coordinator",)),
    "engine": Someone("engine", "system/*.cruds", None, None, ("custodian",)),
}
QUEUE = {
    "resourceType": "Task",
    "status": "ready",
    "intent": "order",
    "description": "Call the patient",
    "performerType": [{"coding": [{"system": ROLE, "code": "care-coordinator"}]}],
    "owner": ref("Organization/clinic"),
}


def role(code):
    return [{"coding": [{"system": ROLE, "code": code}]}]


def parameters(said):
    def value(one):
        kinds = {bool: "valueBoolean", int: "valuePositiveInt", str: "valueString"}
        if isinstance(one, dict):
            kind = "valueReference" if "reference" in one else "valueDuration" if "value" in one else "valueCodeableConcept"
            return {kind: one}
        return {kinds[type(one)]: one}

    listed = [{"name": name[0] + name[1:].replace("_", "-"), **value(one)} for name, one in said.items()]
    return {"resourceType": "Parameters", "parameter": listed}


class Person:
    """Somebody signed in; `at` chooses one of the processes of the hub."""

    def __init__(self, https, token):
        self.https, self.headers = https, {"Authorization": f"Bearer {token}", "Content-Type": "application/fhir+json"}

    async def read(self, path):
        return (await self.https[0].get(f"/fhir/{path}", headers=self.headers)).json()

    async def put(self, tree, at=0, **headers):
        path = f"/fhir/{tree['resourceType']}/{tree['id']}"
        return await self.https[at].put(path, json=tree, headers=self.headers | headers)

    async def create(self, tree):
        answer = await self.https[0].post(f"/fhir/{tree['resourceType']}", json=tree, headers=self.headers)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def call(self, path, /, at=0, **said):
        body = parameters(said) if said else None
        return await self.https[at].post(f"/fhir/{path}", json=body, headers=self.headers)


class Desk:
    """The hub as two processes on one database, and its reactions."""

    def __init__(self, apps, https, clock):
        self.apps, self.https, self.clock = apps, https, clock
        self.store = apps[0].state.store
        self.context = Context(
            self.store,
            coordinating_organization("Clinic").id,
            "Clinic",
            BusinessCalendar("America/Chicago", "US"),
        )

    async def begin(self):
        trees = [{"resourceType": "Organization", "id": name, "name": name} for name in ("clinic", "hospital")]
        people = [{"resourceType": "Practitioner", "id": name} for name in TEAM if name != "engine"]
        await self.store.transact([Put(coordinating_organization("Clinic"))], origin="hub")
        await write(self.store, [*trees, *people, {"resourceType": "Patient", "id": "p"}])
        tokens = {name: await admitted(self.store.database, someone) for name, someone in TEAM.items()}
        self.people = {name: Person(self.https, token) for name, token in tokens.items()}

    def __getattr__(self, name):
        return self.people[name]

    async def task(self, id="t1", **members):
        tree = {key: value for key, value in {**QUEUE, "id": id, **members}.items() if value is not None}
        await write(self.store, [tree])
        return id

    async def react(self, functions=(("claims", changing_hands.follow),)):
        """React to Tasks until nothing is left to do, and ring what is due."""
        done = True
        while done:
            done = False
            for name, function in functions:
                before = await self.store.cursor(name)
                batch = await self.store.changes(before, types=frozenset({"Task"}), limit=500)
                for change in batch.changes:
                    operations = await function(self.context, change)
                    await self.store.transact([*operations, MoveCursor(name, before, change.position)], origin="hub")
                    before, done = change.position, True
            for timer in await self.store.claim_timers({changing_hands.KIND}, limit=50, lease=timedelta(seconds=30)):
                operations = await changing_hands.over(self.context, timer)
                await self.store.transact([*operations, FinishTimer(timer)], origin="hub")
                done = True

    async def now(self, id="t1"):
        return (await self.store.read("Task", id)).tree

    async def owners(self, id="t1"):
        """The owners over all versions, the oldest first, each once in a row."""
        listed = [one.tree.get("owner", {}).get("reference") for one in reversed(await self.store.history("Task", id))]
        return [one for number, one in enumerate(listed) if number == 0 or listed[number - 1] != one]


@asynccontextmanager
async def opened(url, clock, folder):
    apps = [create_app(AppConfig(url, BASE, folder / "keys", REST, False, clock, RULES)) for _ in range(2)]
    async with apps[0].router.lifespan_context(apps[0]), apps[1].router.lifespan_context(apps[1]):
        https = [httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) for app in apps]
        desk = Desk(apps, https, clock)
        await desk.begin()
        yield desk
        for one in https:
            await one.aclose()


def fence(task):
    parts = next((one["extension"] for one in task.get("extension", []) if one["url"] == CLAIM), [])
    return next((one["valuePositiveInt"] for one in parts if one["url"] == "fence"), 0)


def claim(**parts):
    values = {"fence": "valuePositiveInt", "until": "valueInstant"}
    return {"url": CLAIM, "extension": [{"url": name, values.get(name, "valueReference"): one} for name, one in parts.items()]}
