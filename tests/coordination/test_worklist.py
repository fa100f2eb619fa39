"""Task/$worklist over HTTP on both databases: what it tells, and whom."""

from datetime import timedelta

import pytest

from fhircm.coordination.codes import BASE as HUB
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Put
from tests.access.conftest import opened  # noqa: F401 a fixture
from tests.access.world import Someone, admitted

NURSE = Someone("nurse", "user/*.cruds", "Organization/clinic", "Practitioner/nora", ("nurse",))
OTHER = Someone("other-nurse", "user/*.cruds", "Organization/elsewhere", "Practitioner/olga", ("nurse",))
SYSTEM = Someone("system", "system/*.cruds", roles=("custodian",))
PROBABILITY = "http://terminology.hl7.org/CodeSystem/risk-probability"


def ref(to):
    return {"reference": to}


def task(id, due=None, owner="Practitioner/nora", patient="ada", status="requested", **more):
    tree = {
        "resourceType": "Task",
        "id": id,
        "status": status,
        "intent": "order",
        "code": {"text": f"Task {id}"},
        "for": ref(f"Patient/{patient}") if patient else None,
        "owner": ref(owner) if owner else None,
        "restriction": {"period": {"end": due}} if due else None,
        **more,
    }
    return {name: value for name, value in tree.items() if value is not None}


def role(code):
    return [{"coding": [{"system": f"{HUB}/role", "code": code}]}]


def extension(name, **parts):
    return [{"url": f"{HUB}/StructureDefinition/{name}", "extension": [{"url": url, **value} for url, value in parts.items()]}]


def risk(id, patient, level, on, status="final", **more):
    return {
        "resourceType": "RiskAssessment",
        "id": id,
        "status": status,
        "subject": ref(f"Patient/{patient}"),
        "occurrenceDateTime": on,
        "prediction": [{"qualitativeRisk": {"coding": [{"system": PROBABILITY, "code": level}]}}],
        **more,
    }


async def put(store, *trees):
    await store.transact([Put(check_tree(tree)) for tree in trees], origin="load")


class Hub:
    """A hub, and its people."""

    def __init__(self, store, http):
        self.store, self.http, self.tokens = store, http, {}

    async def asked(self, who, query="", **options):
        if who.name not in self.tokens:
            self.tokens[who.name] = await admitted(self.store.database, who)
        url = query if query.startswith("http") else f"/fhir/Task/$worklist{'?' if query else ''}{query}"
        return await self.http.get(url, headers={"Authorization": f"Bearer {self.tokens[who.name]}"}, **options)

    async def list(self, who, query=""):
        answer = await self.asked(who, query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ids(self, who, query=""):
        return ids(await self.list(who, query))


def ids(bundle):
    return [one["resource"]["id"] for one in bundle.get("entry", []) if one["search"]["mode"] == "match"]


def told(entry):
    """The parts of the extension of a line."""
    found = {}
    for part in entry["search"]["extension"][0]["extension"]:
        (value,) = (value for name, value in part.items() if name != "url")
        found.setdefault(part["url"], []).append(value)
    return {name: values if name in ("why", "next") else values[0] for name, values in found.items()}


def facts(bundle):
    return {one["resource"]["id"]: told(one) for one in bundle["entry"] if one["search"]["mode"] == "match"}


@pytest.fixture
async def hub(opened):  # noqa: F811
    async with opened() as (store, http):
        store.rules = ()  # what a Task may become is not looked at here
        team = {"resourceType": "CareTeam", "status": "active", "participant": [{"member": ref("Organization/clinic")}]}
        await put(
            store,
            {"resourceType": "Organization", "id": "clinic", "name": "Clinic"},
            {"resourceType": "Organization", "id": "elsewhere", "name": "Elsewhere"},
            {"resourceType": "Practitioner", "id": "nora", "name": [{"family": "Nora"}]},
            {"resourceType": "Practitioner", "id": "olga", "name": [{"family": "Olga"}]},
            {"resourceType": "Patient", "id": "ada", "name": [{"given": ["Ada"], "family": "Abbott"}]},
            {"resourceType": "Patient", "id": "bo", "name": [{"given": ["Bo"], "family": "Baker"}]},
            {"resourceType": "Patient", "id": "cy", "name": [{"given": ["Cy"], "family": "Cole"}]},
        )
        await put(store, *(team | {"id": f"team-{one}", "subject": ref(f"Patient/{one}")} for one in ("ada", "bo")))
        yield Hub(store, http)


async def test_a_list_tells_what_is_due_why_it_is_here_and_what_comes_next(hub):
    claim = {"fence": {"valuePositiveInt": 2}, "by": {"valueReference": ref("Practitioner/olga")}}
    await put(
        hub.store,
        task("mine", "2026-03-05T10:00:00Z", priority="urgent"),
        task("clinic", "2026-03-03", owner="Organization/clinic"),
        task("queue", "2026-03-04T09:00:00-06:00", owner="Organization/clinic", performerType=role("nurse")),
        task("nobody", None, owner=None, performerType=role("nurse"), patient="bo"),
        task("overdue", "2026-03-01T10:00:00Z", status="accepted"),
        task("delegated", "2026-03-09", extension=extension("task-claim", **claim)),
        task(
            "escalated",
            "2026-02-01",
            extension=extension("task-escalation", level={"valueInteger": 1}, due={"valueDateTime": "2026-03-02T15:30:00Z"}),
        ),
        task("other", "2026-03-01", owner="Practitioner/olga"),
        task("other-role", "2026-03-01", owner=None, performerType=role("social-worker")),
        task(
            "snoozed",
            "2026-03-01",
            extension=extension("snoozed-until", until={"valueDateTime": "2026-03-04"}),
        ),
        *(task(status, "2026-03-01", status=status) for status in ("draft", "completed", "cancelled", "rejected", "failed")),
        risk("old", "ada", "high", "2026-01-01"),
        risk("wrong", "ada", "certain", "2026-02-09", status="entered-in-error"),
        risk("new", "ada", "moderate", "2026-02-01"),
    )
    found = await hub.list(NURSE)
    assert ids(found) == ["overdue", "escalated", "clinic", "queue", "mine", "delegated", "nobody"]
    assert found["total"] == 7
    lines = facts(found)
    assert lines["overdue"] == {
        "due": "2026-03-01T10:00:00.000Z",
        "overdue": True,
        "priority": "routine",
        "risk": "moderate",
        "risk-basis": ref("RiskAssessment/new"),
        "patient": "Ada Abbott",
        "step": "Task overdue",
        "next": lines["overdue"]["next"],
        "why": ["mine"],
        "claimed-by": ref("Practitioner/nora"),
    }
    assert {"in-progress", "cancelled"} <= set(lines["overdue"]["next"])
    assert {id: one["why"] for id, one in lines.items()} == {
        "overdue": ["mine"],
        "escalated": ["escalated", "mine"],
        "delegated": ["delegated", "mine"],
        "mine": ["mine"],
        "clinic": ["organization"],
        "queue": ["role", "organization"],
        "nobody": ["role"],
    }
    assert lines["clinic"]["due"] == "2026-03-03T23:59:59.999Z"  # a day is over with its end
    assert "risk" not in lines["nobody"]
    assert "due" not in lines["nobody"]
    included = [
        f"{one['resource']['resourceType']}/{one['resource']['id']}"
        for one in found["entry"]
        if one["search"]["mode"] == "include"
    ]
    assert sorted(included) == ["Patient/ada", "Patient/bo", "RiskAssessment/new"]
    assert "snoozed" in await hub.ids(NURSE, "hidden=true")


FILTERS = {
    "why=mine": ["now", "claimed-back", "later"],
    "why=role": ["queue"],
    "why=organization": ["queue", "clinic"],
    "overdue=true": ["now"],
    "due-before=2026-03-05": ["now", "queue", "claimed-back"],
    "due-after=2026-03-04T00:00:00Z&due-before=2026-03-31": ["claimed-back", "clinic"],
    "priority=stat,asap": ["queue", "later"],
    "_sort=priority": ["later", "queue", "now", "claimed-back", "clinic"],
    "_sort=risk": ["clinic", "now", "queue", "claimed-back", "later"],
    "risk=high": ["clinic"],
    "risk=unknown,high": ["clinic"],
    "patient=Patient/bo": ["clinic"],
    "patient=ada&status=accepted": ["now"],
    "code=http://example.org|call": ["clinic"],
    "code=nothing": [],
    "owner=Practitioner/olga": ["olga", "taken"],
    "role=nurse": ["queue"],
    "role=nurse&hidden=true": ["queue", "claimed-back", "taken"],
    f"role={HUB}/role|nurse&organization=Organization/elsewhere": [],
    "organization=Organization/clinic": ["queue", "clinic"],
}


async def test_filters_and_orders(hub):
    claim = {"fence": {"valuePositiveInt": 1}, "queue": {"valueReference": ref("Organization/clinic")}}
    until = {"until": {"valueInstant": "2026-03-02T19:00:00Z"}}
    queue = {"performerType": role("nurse")}
    await put(
        hub.store,
        task("now", "2026-03-02T15:00:00Z", status="accepted"),
        task("later", None, priority="stat"),
        task("queue", "2026-03-03", owner="Organization/clinic", priority="asap", **queue),
        task(
            "clinic",
            "2026-03-10",
            "Organization/clinic",
            "bo",
            code={"coding": [{"system": "http://example.org", "code": "call"}]},
        ),
        task("claimed-back", "2026-03-04T09:00:00Z", extension=extension("task-claim", **claim, **until), **queue),
        task(
            "taken",
            "2026-03-09",
            owner="Practitioner/olga",
            patient="bo",
            extension=extension("task-claim", **claim, **until),
            **queue,
        ),
        task("olga", "2026-03-08", owner="Practitioner/olga"),
        risk("bo", "bo", "high", "2026-02-01"),
        risk("ada", "ada", "low", "2026-02-01"),
    )
    for query, expected in FILTERS.items():
        assert await hub.ids(NURSE, query) == expected, query
    # A lease that is over gives the Task back to the queue, without anybody writing it.
    hub.store.clock.advance(timedelta(hours=5))
    assert await hub.ids(NURSE, "role=nurse") == ["queue", "claimed-back", "taken"]


async def test_a_nurse_of_another_organisation_sees_no_line_no_count_and_no_order_of_it(hub):
    queue = {"performerType": role("nurse")}
    await put(
        hub.store,
        *(task(f"n{number:02}", f"2026-03-{number + 1:02}", owner="Organization/clinic", **queue) for number in range(25)),
        task("shared", "2026-03-02", owner="Organization/elsewhere", patient="cy"),
        task("shared-too", "2026-03-03", owner="Organization/elsewhere", patient="bo"),
        risk("bo", "bo", "high", "2026-02-01"),
    )
    for query in (
        "owner=Organization/clinic",
        "organization=Organization/clinic",
        "role=nurse&organization=Organization/clinic",
        "owner=Practitioner/nora",
    ):
        for more in ("", "&_count=3", "&_sort=risk", "&_sort=priority"):
            found = await hub.list(OTHER, query + more)
            assert "entry" not in found
            assert found["total"] == 0
            assert [one["relation"] for one in found["link"]] == ["self"]
    # A Task shares itself and its patient with its owner, not what is known of the patient.
    found = await hub.list(OTHER, "_sort=risk")
    assert ids(found) == ["shared", "shared-too"]
    assert all("risk" not in one for one in facts(found).values())
    assert await hub.ids(OTHER, "risk=high") == []
    assert await hub.ids(NURSE, "organization=Organization/elsewhere&risk=high") == ["shared-too"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("owner=nora", "is not a reference such as Practitioner/123"),
        ("organization=Practitioner/nora", "is not a reference such as Organization/123"),
        ("priority=high", "'priority' does not take 'high'; it takes: stat, asap, urgent, routine"),
        ("_sort=name", "'_sort' does not take 'name'; it takes: due, priority, risk"),
        ("status=completed", "'status' does not take 'completed'"),
        ("why=because", "it takes: offered, escalated"),
        ("due-before=soon", "'due-before' takes a date or time"),
        ("_count=0", "a whole number of 1 or more"),
        ("overdue=maybe", "must be of the type boolean"),
        ("name=x", "$worklist has no parameter 'name'"),
        ("_page=abc", "This page link is not one that this server made"),
    ],
)
async def test_what_cannot_be_understood_is_refused_with_what_can(hub, query, said):
    answer = await hub.asked(NURSE, query)
    assert answer.status_code in (400, 422), answer.text
    assert said in answer.json()["issue"][0]["diagnostics"]


async def test_who_is_nobody_must_name_a_list(hub):
    await put(hub.store, task("mine"))
    answer = await hub.asked(SYSTEM)
    assert "name an owner, a role or an organization" in answer.json()["issue"][0]["diagnostics"]
    assert await hub.ids(SYSTEM, "owner=Practitioner/nora") == ["mine"]
