"""Flags say what holds now, show why, and are lowered when it does not hold any more: by time, by corrections, by a death."""

from datetime import timedelta

from fhircm.coordination.codes import own
from fhircm.coordination.transition import flags
from fhircm.store.operations import FinishTimer

NUBC = "http://www.nubc.org/patient-discharge"
PLANNED = {"priority": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActPriority", "code": "EL"}]}}


def left(code):
    return {"home": None, "hospitalization": {"dischargeDisposition": {"coding": [{"system": NUBC, "code": code}]}}}


async def raised(world):
    """The active flags: code, and how many stays show it."""
    await world.react()
    return {own(one["code"]): len(one["extension"]) for one in await world.find("Flag") if one["status"] == "active"}


async def test_a_return_within_30_days_is_a_readmission_and_no_longer_one_after_30_more(world):
    await world.lakeside.patient()
    await world.lakeside.stay("e1", start="2026-01-28", end="2026-02-03T10:00:00-06:00")
    await world.lakeside.stay("e2", start="2026-03-01T10:00:00-06:00")
    assert await raised(world) == {"readmission": 2}  # the stay before began more than 30 days ago
    (flag,) = await world.find("Flag")
    assert flag["encounter"] == world.lakeside.ref("Encounter/e2")
    assert flag["period"] == {"start": "2026-03-01T16:00:00Z", "end": "2026-03-31T16:00:00Z"}
    world.clock.advance(timedelta(days=31))
    (timer,) = await world.store.claim_timers({flags.KIND}, limit=5, lease=timedelta(seconds=30))
    operations = await flags.look_again(world.context, timer)
    await world.store.transact([*operations, FinishTimer(timer)], origin="hub")
    (flag,) = await world.find("Flag")
    assert (flag["status"], flag["period"]["end"]) == ("inactive", "2026-04-02T15:00:00Z")


async def test_a_flag_ends_though_the_clock_was_set_back_since_it_began(world):
    await world.lakeside.patient()
    await world.lakeside.stay("e1", start="2026-01-28", end="2026-02-03T10:00:00-06:00")
    await world.lakeside.stay("e2", start=world.clock().isoformat())
    assert "readmission" in await raised(world)
    world.clock.advance(timedelta(minutes=-10))
    await world.lakeside.stay("e2", start=world.clock().isoformat(), status="cancelled")
    assert "readmission" not in await raised(world)


NONE = [
    ({"end": "2026-02-10", **left("07")}, {}),  # left against advice
    ({"end": "2026-02-10", **left("81")}, {}),  # it was said that the return is planned
    ({"end": "2026-02-10"}, PLANNED),
    ({"end": "2026-03-01T08:00:00-06:00"}, {}),  # the same house on the same day: one stay
    ({"end": "2026-03-01T02:00:00-06:00", **left("02")}, {}),  # a transfer
    ({"end": "2026-01-28"}, {}),  # too long ago
    ({"end": "2026-02-10", "cls": "OBSENC"}, {}),  # observation is no admission
    ({"end": "2026-02-10"}, {"status": "cancelled"}),
]


async def test_what_is_no_readmission(world):
    await world.lakeside.patient()
    for first, second in NONE:
        await world.lakeside.stay("e1", start="2026-01-20", **first)
        await world.lakeside.stay("e2", start="2026-03-01T10:00:00-06:00", **second)
        assert "readmission" not in await raised(world), (first, second)
        await world.lakeside.stay("e1", start="2026-01-20", end="2026-02-10")
        await world.lakeside.stay("e2", start="2026-03-01T10:00:00-06:00")
        assert "readmission" in await raised(world), "otherwise it is one"


async def test_what_follows_a_planned_return_is_ignored(world):
    await world.lakeside.patient()
    await world.lakeside.stay("e1", start="2026-02-01", end="2026-02-05")
    await world.lakeside.stay("e2", start="2026-02-10", end="2026-02-12", **PLANNED)
    await world.lakeside.stay("e3", start="2026-02-20")
    assert await raised(world) == {"recent-inpatient": 3}


async def test_who_is_in_the_emergency_department_soon_after_a_stay(world):
    await world.lakeside.patient()
    await world.lakeside.stay("e1", start="2026-02-01", end="2026-02-20")
    await world.lakeside.stay("snf", start="2026-02-20", end="2026-02-25", cls="NONAC")
    await world.lakeside.stay("ed", start="2026-03-02T08:00:00-06:00", cls="EMER")
    assert await raised(world) == {"readmission-risk": 3, "recent-snf": 2}
    await world.lakeside.stay("ed", start="2026-03-02T08:00:00-06:00", end="2026-03-02T08:30:00-06:00", cls="EMER")
    assert await raised(world) == {}, "they are gone"


async def test_observation_is_told_while_it_lasts(world):
    await world.lakeside.patient()
    await world.lakeside.stay("o", start="2026-03-01", cls="OBSENC")
    assert await raised(world) == {"observation-stay": 1}
    await world.lakeside.stay("o", start="2026-03-01", cls="IMP")
    assert await raised(world) == {}, "the patient was admitted"


USE = [((370, 200, 100, 1), 0), ((300, 200, 100, 1), 4), ((70, 30, 1), 0), ((50, 30, 1), 3)]


async def test_frequent_use_by_either_measure(world):
    await world.lakeside.patient()
    for days, number in USE:
        for place, day in enumerate(days):
            begun = (world.clock() - timedelta(days=day)).isoformat()
            await world.lakeside.stay(f"ed{place}", start=begun, end=begun, cls="EMER")
        for place in range(len(days), 4):
            await world.lakeside.stay(f"ed{place}", start=begun, end=begun, cls="EMER", status="entered-in-error")
        assert await raised(world) == ({"emergency-frequent-use": number} if number else {}), days


async def test_flags_are_of_the_human_and_a_replay_changes_nothing(world):
    other = await world.riverbend.patient("p1")
    await world.lakeside.patient()
    await world.lakeside.stay("e1", start="2026-02-01", end="2026-02-20")
    await world.riverbend.stay("e2", start="2026-03-01")
    assert await raised(world) == {}
    await world.link(world.lakeside.id("Patient/p1"), other)
    assert await raised(world) == {"readmission": 2, "recent-inpatient": 2}
    assert await world.again() == []
    await world.lakeside.patient(deceasedBoolean=True)
    assert await raised(world) == {}
