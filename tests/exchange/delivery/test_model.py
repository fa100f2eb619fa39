"""Random changes, faults and deaths: by effect everything is delivered once, in order per patient, and both sides end alike."""

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from fhircm.exchange.dead_letters import letters
from fhircm.exchange.due import queue
from tests.exchange.delivery.mortal import Killed, Mortal

FAULTS = ["down", "late", "lost", 500, "html", "done, then html", (503, {"Retry-After": "7"}), (429, {"Retry-After": "30"})]
LONGITUDINAL = [{"coding": [{"system": "https://fhircm.example/CodeSystem/coordination", "code": "longitudinal"}]}]
STEPS = 40


@pytest.fixture
def clinic(clinic):
    deliver = {"message": [["message"]], "care-plan-changed": [["native-update", "native-create"]]}
    clinic.partner = replace(clinic.partner, deliver=deliver)
    clinic.can |= {"CarePlan": "read search-type create update"}
    return clinic


@pytest.mark.parametrize("seed", [1, 47, 62, 556])
async def test_after_quiet_both_sides_are_alike(world, act, seed):
    chance = random.Random(seed)
    sound, patients = world.store, ["h11", "h12", "h13"]
    for number in (11, 12, 13):
        await world.pulled(world.hospital, {"resourceType": "Patient", "id": f"h{number}", "name": [{"family": f"H{number}"}]})
        await world.pulled(world.clinic, {"resourceType": "Patient", "id": f"c{number}", "name": [{"family": f"H{number}"}]})
        await world.write(act.person(world, f"h{number}", f"c{number}"))
    sent = {patient: [] for patient in patients}
    titles, theirs = {}, {}
    for step in range(STEPS):
        patient, what = chance.choice(patients), chance.random()
        subject = act.ref(act.at(world.hospital, f"Patient/{patient}"))
        if what < 0.25:
            sent[patient].append(f"news {step}")
            to = [act.ref(act.at(world.clinic, "Organization/riverbend"))]
            news = {"status": "completed", "topic": {"text": f"news {step}"}, "payload": [{"contentString": "-"}]}
            await world.write({"resourceType": "Communication", "id": f"m{step}", "subject": subject, "recipient": to, **news})
        elif what < 0.5:
            titles[patient] = f"plan {step}"
            plan = {"status": "active", "intent": "plan", "category": LONGITUDINAL, "title": f"plan {step}", "subject": subject}
            await world.write({"resourceType": "CarePlan", "id": f"plan-{patient}", **plan})
        elif what < 0.55:  # somebody at the partner adds to its copy
            for there in world.clinic.all("CarePlan"):
                theirs[there["id"]] = f"note {step}"
                world.clinic.put({**there, "description": f"note {step}"})
        elif what < 0.75:
            world.clinic.fail(chance.choice(["POST", "PUT", "GET"]), "*", chance.choice(FAULTS), chance.randint(1, 3))
        else:
            world.store = Mortal(sound, chance.randint(1, 6), chance.random() < 0.5) if chance.random() < 0.5 else sound
            try:
                await world.push(world.clinic, attempts=1000)
            except Killed:
                pass
            finally:
                world.store = sound
            world.clock.advance(timedelta(seconds=chance.choice([0, 1, 11, 400])))
    world.clinic.faults.clear()
    for _ in range(6):
        world.clock.advance(timedelta(minutes=11))
        await world.push(world.clinic, attempts=1000)
    writes = sum(count for count in [*world.clinic.posts().values(), sum(method == "PUT" for method, _ in world.clinic.log)])
    assert await sound.states(queue("clinic")) == {} and await letters(sound, "clinic") == {}, f"seed {seed}"
    for patient in patients:
        there = f"Patient/c{patient[1:]}"
        got = [one["topic"]["text"] for one in world.clinic.all("Communication") if one["subject"]["reference"] == there]
        assert got == sent[patient], f"seed {seed}: each once, in order"
        plans = [one for one in world.clinic.all("CarePlan") if one["subject"]["reference"] == there]
        assert [one["title"] for one in plans] == ([titles[patient]] if patient in titles else []), f"seed {seed}"
        assert [one.get("description") for one in plans] == [theirs.get(one["id"]) for one in plans], (
            f"seed {seed}: theirs is kept"
        )
    await world.push(world.clinic)
    assert writes == sum(
        count for count in [*world.clinic.posts().values(), sum(method == "PUT" for method, _ in world.clinic.log)]
    ), "and then nothing more is sent"
