"""What went out under a link that was wrong: nothing flows on, a human gets the list, and a link that comes back doubles nothing."""

from datetime import timedelta

from fhircm.exchange import review
from fhircm.exchange.identity import link_person
from fhircm.exchange.linkage import ordered
from fhircm.exchange.matching import score
from fhircm.exchange.push import parked
from fhircm.store.resources import MoveCursor

NILS = {
    "resourceType": "Patient",
    "name": [{"family": "Lund", "given": ["Nils"]}],
    "birthDate": "1950-01-05",
    "gender": "male",
    "telecom": [{"system": "phone", "value": "312-555-0147"}],
}


async def react(world):
    """Run the reaction over what it has not read yet, until it has nothing more to do."""
    before = await world.store.cursor("identity")
    while batch := (await world.store.changes(before, types=frozenset({"Patient", "Task"}), limit=500)).changes:
        for change in batch:
            operations = await link_person(world.store, change, owner="Organization/hub")
            await world.store.transact([*operations, MoveCursor("identity", before, change.position)], origin="hub")
            before = change.position


async def say(world, act, said):
    pair = ordered(
        *(
            reference.removeprefix("Patient/")
            for reference in (act.at(world.hospital, "Patient/p2"), act.at(world.clinic, "Patient/c2"))
        )
    )
    trees = [await world.read("Patient", id) for id in pair]
    await review.decide(world.store, pair, said, score(*trees), "Organization/hub", who="steward")
    await react(world)


async def parted(world, act):
    """The Tasks about the two records that came apart."""
    mine = act.at(world.hospital, "Patient/p2"), act.at(world.clinic, "Patient/c2")
    return [task for task in await world.tasks("match-withdrawn") if task["for"]["reference"] in mine]


async def test_a_link_is_taken_back_and_comes_again(world, act):
    await world.pulled(world.hospital, {**NILS, "id": "p2"})
    await world.pulled(world.clinic, {**NILS, "id": "c2"})
    await react(world)
    await act.referral(world, patient="p2")
    await world.push(world.clinic)
    assert world.clinic.posts() == {"DocumentReference": 1, "Communication": 1}

    await say(world, act, "different")
    (withdrawn,) = await parted(world, act)
    assert "Sent while they were linked: 2" in withdrawn["reasonCode"]["text"]
    listed = {entry["valueReference"]["reference"] for entry in withdrawn["input"]}
    assert listed == {f"{world.clinic.base_url}/{one['resourceType']}/{one['id']}" for type in ("DocumentReference", "Communication") for one in world.clinic.all(type)}  # fmt: skip
    await act.referral(world, id="referral-2", patient="p2")
    await world.push(world.clinic)
    assert world.clinic.posts().total() == 2, "nothing flows on"
    assert {row["why"] for row in (await world.store.states(parked("clinic"))).values()} == {"no-record"}

    world.clock.advance(timedelta(hours=1))
    await say(world, act, "same")
    await world.push(world.clinic)
    assert world.clinic.posts() == {"DocumentReference": 2, "Communication": 2}, "the second referral, and not the first again"
    assert await world.store.states(parked("clinic")) == {}
    await say(world, act, "different")
    assert sorted(len(task.get("input", [])) for task in await parted(world, act)) == [2, 2], (
        "each list begins when the link came"
    )


async def test_who_decided_is_told(world, act):
    await world.pulled(world.hospital, {**NILS, "id": "p2"})
    await world.pulled(world.clinic, {**NILS, "id": "c2"})
    await react(world)
    await say(world, act, "different")
    told = [one for one in await world.deliveries() if one["target"][0]["reference"].startswith("Person/")]
    assert [one["activity"]["text"] for one in told] == ["A human decided that they are of two people"]
    task = await world.read("Task", told[0]["entity"][0]["what"]["reference"].removeprefix("Task/"))
    assert task["note"] == [{"text": "Decided by steward"}]
