"""Who is away gets nothing new: it goes to their deputy or back to the queue, and they read of it when they are back."""

import pytest

from tests.access.world import ref, write
from tests.coordination.desk import fence, opened

DEPUTY = "https://fhircm.example/StructureDefinition/deputy"


@pytest.fixture
async def desk(database_url, clock, tmp_path):
    async with opened(database_url, clock, tmp_path) as one:
        yield one


def works(name, *, at="clinic", away=None, deputy=None):
    return {
        "resourceType": "PractitionerRole",
        "id": f"{name}-{at}",
        "practitioner": ref(f"Practitioner/{name}"),
        "organization": ref(f"Organization/{at}"),
        **({"notAvailable": [{"description": "Leave", "during": away}]} if away else {}),
        **({"extension": [{"url": DEPUTY, "valueReference": ref(deputy)}]} if deputy else {}),
    }


LEAVE = {"start": "2026-03-01", "end": "2026-03-06"}


@pytest.mark.parametrize(
    ("people", "owner"),
    [
        ([works("bob", away=LEAVE, deputy="Practitioner/ned")], "Practitioner/ned"),
        ([works("bob", away={"start": "2026-03-01"}, deputy="PractitionerRole/lea-clinic"), works("lea")], "PractitionerRole/lea-clinic"),
        ([works("bob", away=LEAVE)], "Organization/clinic"),
        ([works("bob", away={"start": "2026-03-03", "end": "2026-03-06"})], "Practitioner/bob"),
        ([works("bob", away={"end": "2026-03-02"})], "Organization/clinic"),
        ([works("bob", away={"end": "2026-03-01"})], "Practitioner/bob"),
        ([works("bob", away=LEAVE, at="hospital"), works("bob")], "Practitioner/bob"),
        ([works("bob", away=LEAVE, deputy="Practitioner/ned"), works("ned", away=LEAVE, deputy="Practitioner/lea")], "Practitioner/lea"),
        ([works("bob", away=LEAVE, deputy="Practitioner/ned"), works("ned", away=LEAVE, deputy="Practitioner/bob")], "Organization/clinic"),
    ],
    ids=["deputy", "deputy's role", "queue", "not yet", "last day", "is back", "away elsewhere", "deputy's deputy", "in a circle"],
)  # fmt: skip
async def test_what_is_passed_to_somebody_away_goes_to_who_is_there(desk, people, owner):
    await write(desk.store, sorted(people, key=lambda one: one["practitioner"]["reference"], reverse=True))
    await desk.task()
    await desk.ann.call("Task/t1/$claim")
    await desk.ann.call("Task/t1/$hand-over", to=ref("Practitioner/bob"), note="Please go on")
    for _ in range(2):
        await desk.react()
    task = await desk.now()
    assert task["owner"]["reference"] == owner
    messages = [one.tree for one in await desk.context.find("Communication")]
    assert ref("Practitioner/bob") in [to for one in messages for to in one["recipient"]], "who is back reads what came"
    if owner != "Practitioner/bob":
        assert fence(task) == 3
        assert "Its owner is away until" in task["note"][-1]["text"]
        assert (await desk.bob.put({**task, "priority": "stat"})).status_code == (409 if owner.startswith("P") else 200)


async def test_what_somebody_had_before_stays_theirs_while_they_are_away(desk):
    await desk.task()
    await desk.bob.call("Task/t1/$claim")
    await desk.react()
    await write(desk.store, [works("bob", away=LEAVE, deputy="Practitioner/ned")])
    await desk.lea.put({**await desk.now(), "priority": "urgent"})
    await desk.react()
    assert (await desk.now())["owner"] == ref("Practitioner/bob")
