"""Whatever organisations do with a request in whatever order: one has it, and somebody always has to see to it."""

from contextlib import suppress
from random import Random

import pytest

from fhircm.coordination.codes import own
from fhircm.coordination.distribution import group_of, has_it
from fhircm.coordination.task_states import is_open, is_referral
from fhircm.fhir.outcome import FhirError

from .network import NEED, REASON, Network, ref

SAID = {
    "accept": {},
    "decline": {"reason": REASON},
    "offer": {"terms": "Monday"},
    "choose": {},
    "start": {},
    "hold": {"reason": REASON},
    "resume": {},
    "complete": {},
    "fail": {"reason": REASON},
    "cancel": {"reason": REASON},
    "request-information": {"question": "Which payer?"},
    "provide-information": {"text": "Medicare"},
    "acknowledge": {},
    "reopen": {"reason": {"text": "Not what was asked for"}},
    "forward": {"to": ref("Organization/b")},
}
WAYS = ("direct", "first-accept", "offers", "open")


async def act(network, random):
    """Somebody does something; refused is fine."""
    orders = await network.world.find("ServiceRequest")
    about = random.choice(orders)
    to = [ref(f"Organization/{one}") for one in random.sample("abcp", random.randint(1, 3))]
    kind = random.random()
    if kind < 0.15:
        how = random.choice(WAYS)
        return await network.act(
            "h", "service-request-refer", f"ServiceRequest/{about['id']}", to=to, distribution=how, performerType=NEED
        )
    if kind < 0.2:
        return await network.update("h", f"ServiceRequest/{about['id']}", performer=to)
    if kind < 0.22:
        return await network.update("h", f"ServiceRequest/{about['id']}", status=random.choice(("revoked", "on-hold", "active")))
    if kind < 0.26:
        how = random.choice(WAYS)
        return await network.order(f"s{len(orders)}", to=random.sample("abp", 2), how=how, performerType=NEED)
    tasks = await network.world.find("Task")
    task, verb = random.choice(sorted(tasks, key=lambda one: one["id"])), random.choice(list(SAID))
    sides = [(task.get(side) or {}).get("reference", "").rpartition("/")[2] for side in ("owner", "requester")]
    who = random.choice([*filter(None, sides), "a"] * 3 + ["h", "a", "b", "c", "p"])
    return await network.act(who, f"task-{verb}", f"Task/{task['id']}", **SAID[verb])


async def check(network):
    tasks = await network.world.find("Task")
    held = {}
    for one in tasks:
        if is_referral(one) and has_it(one):
            assert held.setdefault(group_of(one), one["id"]) == one["id"], "one has it"
        if is_open(one):
            assert one["restriction"]["period"]["end"], "each has a due time"
            assert "owner" in one or one["status"] == "requested", "and somebody who has it, unless it is to be taken"
    for order in await network.world.find("ServiceRequest"):
        about = [one for one in tasks if one.get("focus") == ref(f"ServiceRequest/{order['id']}")]
        referrals = [one for one in about if is_referral(one)]
        if order["status"] == "revoked":
            assert not [one for one in about if is_open(one)], "who wants nothing any more leaves nothing behind"
        if order["status"] != "active":
            continue
        asked = [one for one in referrals if is_open(one)]
        chosen = [one for one in about if own(one["code"]) == "choose-performer" and is_open(one)]
        done = [one for one in referrals if one["status"] == "completed"]
        passed_on = [
            one
            for one in await network.world.find("ServiceRequest", based_on=f"ServiceRequest/{order['id']}")
            if one["status"] in ("active", "on-hold", "completed")
        ]
        assert asked or chosen or done or passed_on, "somebody has it, or has to choose who"
        if done and not asked and not any(one.get("partOf") for one in done):
            looks = [one for one in tasks if own(one["code"]) == "acknowledge-report" and is_open(one)]
            assert looks or chosen, "somebody has to look at what came of it"


@pytest.mark.parametrize("seed", [1])
async def test_whatever_they_do(world, seed):
    network, random = Network(world), Random(seed)
    await network.begin()
    for one in "ab":
        service = {
            "resourceType": "HealthcareService",
            "id": f"at-{one}",
            "providedBy": ref(f"Organization/{one}"),
            "type": [NEED],
        }
        await network.written(service)
    await network.order("s", to="abp", how=random.choice(WAYS), performerType=NEED)
    for _ in range(25):
        with suppress(FhirError):
            await act(network, random)
        await check(network)
    await network.world.react()
    assert [one.resource.type for one in await network.world.again()] == []
