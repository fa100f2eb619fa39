"""What the hub makes keeps US Core 6.1.0: the must-supports always, the guide itself where its package is (the folder that FHIRCM_DATA names)."""

import io
import json
import os
from pathlib import Path

import pytest

from fhircm.coordination.longitudinal import follow
from fhircm.fhir import profiles
from fhircm.fhir.guides import Artefact, Guide, InForce, put_in_force
from fhircm.fhir.package import read_package
from tests.coordination.test_longitudinal import SCT, Told, coded
from tests.packages import BASE, package, profile

US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core"
PACKAGE = Path(os.environ.get("FHIRCM_DATA", "/nonexistent")) / "us-core-610.tgz"
SMALL = package(
    profile("careplan", "CarePlan", ("CarePlan.text", {"min": 1}), ("CarePlan.category", {"min": 1})),
    profile("careteam", "CareTeam", ("CareTeam.participant", {"min": 1}), ("CareTeam.participant.role", {"min": 1, "max": "1"})),
    profile("goal", "Goal", ("Goal.lifecycleStatus", {"min": 1}), ("Goal.target", {"min": 1})),
).getvalue()


@pytest.fixture(params=["small", *(["us-core"] if PACKAGE.exists() else [])])
def guide(request):
    """The guide, and the URLs of its three profiles."""
    read = read_package(io.BytesIO(SMALL if request.param == "small" else PACKAGE.read_bytes()))
    artefacts = tuple(
        Artefact(one.resource.type, one.url, one.version, one.resource.body, str(one.resource.tree.get("type", "")))
        for one in read.definitions
    )
    in_force = InForce(request.param, (Guide(read.name, read.version, artefacts),))
    start = f"{BASE}/StructureDefinition/" if request.param == "small" else f"{US_CORE}-"
    yield in_force, {"CarePlan": f"{start}careplan", "CareTeam": f"{start}careteam", "Goal": f"{start}goal"}
    put_in_force(InForce())


async def test_the_plan_the_team_and_the_goals_keep_the_profiles(world, guide):
    told = Told(world)
    await told.link()
    for place in (told.a, told.b):
        await told.condition(place)
        await told.goal(place, target=[{"dueDate": "2026-09-01"}])
        await told.plan(place, activity=[{"detail": {"status": "scheduled"}}])
        await told.team(
            place,
            "ct1",
            {"member": place.ref("Patient/p1")},
            {"role": [coded("1"), coded("2", system=SCT)], "member": place.ref(f"Organization/{place.name}")},
        )
    operations = await follow.made_anew(told.context, told.pa)
    made = [json.loads(one.resource.body) for one in operations]
    assert sorted(one["resourceType"] for one in made) == ["CarePlan", "CarePlan", "CareTeam", "CareTeam", "Goal"]
    in_force, urls = guide
    put_in_force(in_force)  # now, for the store follows the guides of its database
    for tree in made:
        wrong = [one for one in profiles.broken_of(tree, urls[tree["resourceType"]]) if one.severity == "error"]
        assert not wrong, (tree["resourceType"], wrong)
