"""A small population with random care relationships, consents and labels, and those who look at it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from unittest.mock import patch

from fhircm.access.bearer import Bearer
from fhircm.fhir.validation import check_tree
from fhircm.store import transaction
from fhircm.store.credentials import Credentials
from fhircm.store.principals import Principals
from fhircm.store.resources import Put

ORGANIZATIONS = ("hospital", "clinic", "payer")
PEOPLE = ("dr-hospital", "dr-clinic")
PATIENTS = tuple(f"p{number}" for number in range(4))
SENSITIVE = ("ETHUD", "PSY", "HIV", "V")
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
COORDINATION = "https://fhircm.example/CodeSystem/coordination"
LOINC = "http://loinc.org"
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"


def ref(text):
    return {"reference": text}


def concept(code, system="http://example.org/codes"):
    return {"coding": [{"system": system, "code": code}]}


@dataclass
class World:
    """The resources in the order in which they are written; `now` is the frozen time."""

    now: object
    random: Random
    resources: list = field(default_factory=list)
    count: int = 0

    def add(self, kind, id=None, /, *, plain=False, **members):
        self.count += 1
        tree = {"resourceType": kind, "id": id or f"{kind.lower()}-{self.count}", **members}
        if not plain and not members.get("meta") and self.random.random() < 0.12:
            tree["meta"] = {"security": [{"system": ACT, "code": self.random.choice(SENSITIVE)}]}
        self.resources.append(tree)
        return f"{kind}/{tree['id']}"

    def some(self, *choices):
        return self.random.choice(choices)

    def sometimes(self, chance=0.5):
        return self.random.random() < chance

    def day(self, days):
        return (self.now + timedelta(days=days)).date().isoformat()

    def period(self):
        """Open, over long ago, over a moment ago, still to come, or running."""
        return self.some(
            {},
            {"start": self.day(-400), "end": self.day(-300)},
            {"start": self.day(-30), "end": self.day(-2)},
            {"start": self.day(20)},
            {"start": self.day(-10), "end": self.day(10)},
        )


def world(seed, now):
    """A population made from a seed."""
    one = World(now, Random(seed))
    for name in ORGANIZATIONS:
        one.add("Organization", name, name=name, plain=True)
    one.add("Organization", "ward", name="ward", partOf=ref("Organization/hospital"), plain=True)
    for name in PEOPLE:
        one.add("Practitioner", name, name=[{"family": name}], plain=True)
    one.add(
        "PractitionerRole",
        "role",
        practitioner=ref("Practitioner/dr-clinic"),
        organization=ref("Organization/clinic"),
        plain=True,
    )
    for id in PATIENTS:
        _patient(one, id)
    one.add("Group", "nobody", type="person", actual=True, name="empty")
    one.add("List", "unowned", status="current", mode="working", title="of nobody")
    return one


def _patient(one, id):
    more = {}
    if one.sometimes(0.3):
        more["managingOrganization"] = ref("Organization/hospital")
    if one.sometimes(0.2):
        more["generalPractitioner"] = [ref("Practitioner/dr-clinic")]
    me = one.add(
        "Patient",
        id,
        active=one.some(True, True, False),
        gender=one.some("male", "female"),
        birthDate=one.some("1950-01-01", "1960-06-06"),
        name=[{"family": one.some("Adams", "Brown"), "given": [id]}],
        identifier=[{"system": "urn:mrn", "value": id}],
        **more,
    )
    if one.sometimes(0.5):
        one.add(
            "RelatedPerson", f"kin-{id}", patient=ref(me), active=one.some(True, False), period=one.period() or {"start": "2020"}
        )
    encounter = _relations(one, me)
    _record(one, me, encounter)
    for _ in range(one.some(0, 1, 1, 2)):
        _consent(one, me)


def _relations(one, me):
    visit = {}
    if one.sometimes(0.5):
        visit["serviceProvider"] = ref(one.some("Organization/hospital", "Organization/ward", "Organization/clinic"))
    if one.sometimes(0.3):
        visit["participant"] = [{"individual": ref(one.some("Practitioner/dr-hospital", "PractitionerRole/role"))}]
    if one.sometimes(0.2):
        visit["hospitalization"] = {"destination": ref("Organization/clinic")}
    encounter = one.add(
        "Encounter",
        status=one.some("in-progress", "finished", "cancelled", "planned"),
        subject=ref(me),
        **{"class": {"system": ACT, "code": "IMP"}},
        period=one.period() or {"start": one.day(-3)},
        **visit,
    )
    if one.sometimes(0.6):
        member = {"member": ref(one.some("Organization/clinic", "Practitioner/dr-clinic", "Practitioner/dr-hospital"))}
        if one.sometimes(0.4) and (period := one.period()):
            member["period"] = period
        more = {"period": period} if one.sometimes(0.3) and (period := one.period()) else {}
        one.add(
            "CareTeam", status=one.some("active", "active", "inactive", "proposed"), subject=ref(me), participant=[member], **more
        )
    if one.sometimes(0.4):
        more = {"period": period} if (period := one.period()) else {}
        one.add(
            "Coverage", status=one.some("active", "cancelled"), beneficiary=ref(me), payor=[ref("Organization/payer")], **more
        )
    if one.sometimes(0.2):
        one.add(
            "Group",
            type="person",
            actual=True,
            managingEntity=ref("Organization/payer"),
            member=[{"entity": ref(me), "inactive": one.some(True, False)}],
        )
    return encounter


def _record(one, me, encounter):
    observations = [
        one.add(
            "Observation",
            status="final",
            subject=ref(me),
            encounter=ref(encounter),
            category=[concept(one.some("laboratory", "vital-signs"), CATEGORY)],
            code=concept(one.some("1", "2"), LOINC),
            effectiveDateTime=one.some("2024-05-01", "2025-05-01"),
            valueQuantity={"value": one.some(1, 2, 3), "unit": "g", "system": "http://unitsofmeasure.org", "code": "g"},
            **({"performer": [ref("Organization/clinic")]} if one.sometimes(0.2) else {}),
        )
        for _ in range(one.some(1, 2))
    ]
    condition = one.add("Condition", subject=ref(me), code=concept(one.some("a", "b")), recordedDate="2025-01-01")
    one.add("MedicationRequest", status="active", intent="order", subject=ref(me), medicationCodeableConcept=concept("m"))
    plan = one.add("CarePlan", status="active", intent="plan", subject=ref(me), addresses=[ref(condition)])
    if one.sometimes(0.6):
        order = one.add(
            "ServiceRequest",
            status=one.some("active", "completed", "draft"),
            intent="order",
            subject=ref(me),
            requester=ref("Organization/hospital"),
            performer=[ref(one.some("Organization/clinic", "PractitionerRole/role"))],
            reasonReference=[ref(condition)],
            supportingInfo=[ref(one.random.choice(observations))],
        )
        task = one.add(
            "Task",
            status=one.some("requested", "accepted", "draft", "completed"),
            intent="order",
            focus=ref(order),
            **{"for": ref(me)},
            owner=ref(one.some("Organization/clinic", "Practitioner/dr-clinic")),
            requester=ref("Organization/hospital"),
            code=concept(one.some("fulfill", "transition-of-care"), COORDINATION),
        )
        one.add("Communication", status="completed", about=[ref(task)], subject=ref(me), topic=concept("news"))
    if one.sometimes(0.3):
        one.add("Communication", status="completed", subject=ref(me), recipient=[ref("Organization/clinic")], about=[ref(plan)])
    one.add("Provenance", target=[ref(condition)], recorded="2025-01-01T00:00:00Z", agent=[{"who": ref("Organization/hospital")}])
    one.add("List", status="current", mode="working", subject=ref(me), entry=[{"item": ref(condition)}])


def _consent(one, me):
    provision = {"type": one.some("deny", "deny", "permit"), **_limits(one)}
    if one.sometimes(0.4):
        other = "permit" if provision["type"] == "deny" else "deny"
        provision["provision"] = [{"type": other, **_limits(one)}]
    one.add(
        "Consent",
        status=one.some("active", "active", "active", "inactive"),
        scope=concept("patient-privacy", "http://terminology.hl7.org/CodeSystem/consentscope"),
        category=[concept("59284-0", LOINC)],
        patient=ref(me),
        dateTime="2025-01-01",
        policyRule=concept("OPTIN", ACT),
        provision=provision,
        plain=True,
    )


def _limits(one):
    limits = {}
    if one.sometimes(0.5):
        actors = one.random.sample(
            ["Organization/hospital", "Organization/clinic", "Organization/payer", "Practitioner/dr-clinic"], 2
        )
        limits["actor"] = [{"role": concept("IRCP"), "reference": ref(actor)} for actor in actors]
    if one.sometimes(0.3):
        limits["class"] = [
            {
                "system": "http://hl7.org/fhir/resource-types",
                "code": one.some("Observation", "Condition", "CareTeam", "Encounter"),
            }
        ]
    if one.sometimes(0.3):
        limits["securityLabel"] = [{"system": ACT, "code": one.random.choice(SENSITIVE)}]
    if one.sometimes(0.2):
        limits["purpose"] = [
            {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": one.some("TREAT", "HPAYMT")}
        ]
    if one.sometimes(0.2):
        limits["period"] = one.period() or {"start": "2020"}
    if one.sometimes(0.15):
        limits["dataPeriod"] = {"start": "2024-01-01", "end": "2024-12-31"}
    if one.sometimes(0.15):
        limits["code"] = [concept("a")]
    return limits


async def write(store, trees, *, checked=True):
    """Store resources in their order, one change each; not `checked`: with references to what is not there, as somebody sees them."""
    with nullcontext() if checked else patch.object(transaction, "_check_references"):
        for tree in trees:
            await store.transact([Put(check_tree(json.loads(json.dumps(tree))))], origin="load")


@dataclass(frozen=True)
class Someone:
    """Who looks: `known_as` and the like are what the oracle goes by."""

    name: str
    scope: str
    organization: str | None = None
    user: str | None = None
    roles: tuple[str, ...] = ("system",)
    context: dict = field(default_factory=dict, hash=False)
    known_as: frozenset = frozenset()


SOMEBODY = (
    Someone(
        "hospital-system",
        "system/*.rs",
        "Organization/hospital",
        known_as=frozenset({"Organization/hospital", "Organization/ward"}),
    ),
    Someone("clinic-system", "system/*.rs", "Organization/clinic", known_as=frozenset({"Organization/clinic"})),
    Someone("payer-system", "system/*.rs", "Organization/payer", known_as=frozenset({"Organization/payer"})),
    Someone(
        "labs-only",
        "system/Observation.rs?category=laboratory system/Patient.rs",
        "Organization/hospital",
        known_as=frozenset({"Organization/hospital", "Organization/ward"}),
    ),
    Someone(
        "physician",
        "user/*.rs",
        "Organization/clinic",
        "Practitioner/dr-clinic",
        ("clinician",),
        known_as=frozenset({"Organization/clinic", "Practitioner/dr-clinic", "PractitionerRole/role"}),
    ),
    Someone(
        "app-of-physician",
        "patient/*.rs",
        "Organization/clinic",
        "Practitioner/dr-clinic",
        ("clinician",),
        {"patient": "p1"},
        known_as=frozenset({"Organization/clinic", "Practitioner/dr-clinic", "PractitionerRole/role"}),
    ),
    Someone("patient", "patient/*.rs", None, "Patient/p0", ("patient",), {"patient": "p0"}, known_as=frozenset({"Patient/p0"})),
    Someone("kin", "user/*.rs", None, "RelatedPerson/kin-p2", ("related-person",), known_as=frozenset({"RelatedPerson/kin-p2"})),
)


async def admitted(database, someone):
    """A token for somebody, as the authorization server gives it out."""
    credentials = Credentials(database)
    registration = {"scope": someone.scope, "organization": someone.organization, "roles": list(someone.roles)}
    await credentials.add_client(someone.name, registration)
    grant = None
    if someone.user:
        grant = f"grant-{someone.name}"
        async with database.writing() as connection:
            await connection.execute(
                "INSERT INTO login (id, name, fhir_user, organization, roles, disabled, created) VALUES ($1, $2, $3, $4, $5, false, 0)"
                " ON CONFLICT DO NOTHING",
                someone.name,
                someone.name,
                someone.user,
                someone.organization or "",
                json.dumps(list(someone.roles)),
            )
            await connection.execute(
                "INSERT INTO authorization_grant (id, client_id, login_id, scope, context, created, expires)"
                " VALUES ($1, $2, $3, $4, '{}', 0, 9999999999) ON CONFLICT DO NOTHING",
                grant,
                someone.name,
                someone.name,
                someone.scope,
            )
    bearer = Bearer(credentials, Principals(database))
    return await bearer.issue(someone.name, someone.scope, grant_id=grant, context=someone.context)
