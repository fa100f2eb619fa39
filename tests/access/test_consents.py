"""What provisions of a Consent mean, one by one. https://hl7.org/fhir/R4/consent.html"""

import pytest

from .test_probes import Asked
from .world import ACT, LOINC, Someone, World, admitted, concept, ref, write

CLINIC = Someone("clinic-under-consent", "system/*.cruds", "Organization/clinic")
READS = ("Patient/p", "Condition/a", "Observation/lab", "CarePlan/plan")
TYPES = "http://hl7.org/fhir/resource-types"


def actor(reference):
    return {"role": concept("IRCP"), "reference": ref(reference)}


def typed(*codes, system=TYPES):
    return [{"system": system, "code": code} for code in codes]


def record(clock):
    one = World(clock.now, None)
    for name in ("clinic", "elsewhere"):
        one.add("Organization", name, plain=True, name=name)
    one.add("CareTeam", "before", plain=True, status="inactive")
    one.add("Patient", "p", plain=True, managingOrganization=ref("Organization/clinic"))
    one.add("Condition", "a", plain=True, subject=ref("Patient/p"), code=concept("a"))
    one.add(
        "Observation",
        "lab",
        plain=True,
        status="final",
        subject=ref("Patient/p"),
        code=concept("1", LOINC),
        effectiveDateTime="2025-05-01",
    )
    one.add(
        "CarePlan", "plan", plain=True, status="active", intent="plan", subject=ref("Patient/p"), addresses=[ref("Condition/a")]
    )
    return one.resources


@pytest.fixture
async def under(opened, clock):
    """What the clinic sees under a consent: the paths of READS that it does not."""
    async with opened() as (store, http):
        await write(store, record(clock))
        clinic = Asked(http, await admitted(store.database, CLINIC))

        async def hidden(provision, **more):
            tree = {
                "resourceType": "Consent",
                "id": "c",
                "status": "active",
                "scope": concept("patient-privacy", "http://terminology.hl7.org/CodeSystem/consentscope"),
                "category": [concept("59284-0", LOINC)],
                "patient": ref("Patient/p"),
                "policyRule": concept("OPTIN", ACT),
                **({"provision": provision} if provision else {}),
                **more,
            }
            await write(store, [tree])
            return {path for path in READS if (await clinic.get(path)).status_code == 404}

        yield hidden


@pytest.mark.parametrize(
    ("provision", "hidden"),
    [
        ({"type": "deny"}, set(READS)),
        ({"type": "permit"}, set()),
        ({"type": "deny", "actor": [actor("Organization/elsewhere")]}, set()),
        ({"type": "deny", "actor": [actor("Organization/clinic")]}, set(READS)),
        ({"type": "deny", "actor": [actor("CareTeam/before")]}, set(READS)),  # who is meant cannot be told: everybody
        ({"type": "deny", "class": typed("Condition", "CarePlan")}, {"Condition/a", "CarePlan/plan"}),
        ({"type": "deny", "class": typed("34133-9", system=LOINC)}, set(READS)),
        ({"type": "deny", "code": [concept("a")]}, {"Condition/a"}),
        ({"type": "deny", "period": {"end": "2026-03-01"}}, set()),
        ({"type": "deny", "period": {"end": "2026-03-02"}}, set(READS)),  # the whole day
        ({"type": "deny", "period": {"start": "2026-03-03"}}, set()),
        ({"type": "deny", "dataPeriod": {"start": "2025-06-01"}, "class": typed("Observation")}, set()),
        ({"type": "deny", "dataPeriod": {"end": "2025-06-01"}, "class": typed("Observation")}, {"Observation/lab"}),
        ({"type": "deny", "action": [concept("collect")]}, set()),
        ({"type": "deny", "action": [concept("disclose")]}, set(READS)),
        ({"type": "deny", "data": [{"meaning": "instance", "reference": ref("Condition/a")}]}, {"Condition/a"}),
        ({"type": "deny", "data": [{"meaning": "related", "reference": ref("Condition/a")}]}, {"Condition/a", "CarePlan/plan"}),
        ({"type": "deny", "provision": [{"type": "permit", "actor": [actor("Organization/clinic")]}]}, set()),
        ({"type": "deny", "provision": [{"type": "permit", "actor": [actor("Organization/elsewhere")]}]}, set(READS)),
        ({"type": "deny", "provision": [{"type": "permit", "class": typed("Patient")}]}, set(READS) - {"Patient/p"}),
        (
            {
                "type": "permit",
                "provision": [
                    {
                        "type": "deny",
                        "class": typed("Observation"),
                        "provision": [{"type": "permit", "code": [concept("1", LOINC)]}],
                    },
                    {"type": "deny", "actor": [actor("Organization/clinic")], "class": typed("CarePlan")},
                ],
            },
            {"CarePlan/plan"},
        ),
    ],
)
async def test_a_provision(under, provision, hidden):
    assert await under(provision) == hidden


async def test_what_is_not_in_force_or_not_about_privacy_says_nothing(under):
    deny = {"type": "deny"}
    assert await under(deny, status="draft") == set()
    assert await under(deny, scope=concept("research", "http://terminology.hl7.org/CodeSystem/consentscope")) == set()
    assert await under(deny) == set(READS)
    assert await under(deny, status="inactive") == set(), "withdrawn at once"


async def test_an_opt_out_denies_what_it_does_not_permit(under):
    assert await under(None, policyRule=concept("OPTOUT", ACT)) == set(READS)
    exception = {"provision": [{"type": "permit", "class": typed("Condition")}]}
    assert await under(exception, policyRule=concept("OPTOUT", ACT)) == set(READS) - {"Condition/a"}
