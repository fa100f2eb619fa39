"""A request is given out: to one after the other, to several of whom one has it, to whoever is able; nothing stays with nobody."""

import asyncio
from datetime import timedelta

import pytest

from fhircm.coordination.distribution import task_id
from fhircm.fhir.outcome import Conflict, FhirError, Forbidden, IllegalTransition, Invalid, NotFound, NotTheirStep
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import Put

from .network import NEED, REASON, Network, distributed, ref


@pytest.fixture
async def network(world):
    made = Network(world)
    await made.begin()
    return made


async def test_one_after_the_other(network):
    await network.order(to="abc")
    assert await network.states() == {"a": "requested"}
    await network.act("a", "task-decline", await network.task("a"), reason=REASON)
    assert await network.states() == {"a": ("rejected", "no-capacity"), "b": "requested"}
    tasks = await network.tasks()
    assert tasks["a"]["id"] == task_id("s"), "the first has the number of the order"
    (replaces,) = (one for one in tasks["b"]["extension"] if one["url"].endswith("task-replaces"))
    assert replaces["valueReference"]["reference"] == f"Task/{tasks['a']['id']}"
    assert tasks["a"]["groupIdentifier"] == tasks["b"]["groupIdentifier"]
    await network.act("b", "task-accept", await network.task("b"))
    assert await network.left_to_do() == []
    await network.act("b", "task-fail", await network.task("b"), reason={"text": "Moved away"})
    assert await network.states() == {"a": ("rejected", "no-capacity"), "b": "failed"}, "nobody else is asked without a human"
    assert await network.left_to_do() == [("choose-performer", "Hospital")]


async def test_when_all_have_declined_the_requester_chooses_and_a_new_round_begins(network):
    await network.order(to="a")
    await network.act("a", "task-decline", await network.task("a"), reason=REASON)
    assert await network.left_to_do() == [("choose-performer", "Hospital")]
    await network.act("h", "service-request-refer", "ServiceRequest/s", to=[ref("Organization/b")])
    assert await network.states() == {"a": ("rejected", "no-capacity"), "b": "requested"}
    assert await network.left_to_do() == []
    assert await network.left_to_do(all=True) == [("choose-performer", "Hospital", "completed")]


async def test_a_performer_may_be_asked_again_in_another_round(network):
    await network.order(to="a")
    first = await network.task("a")
    await network.act("a", "task-decline", first, reason=REASON)
    await network.act("h", "service-request-refer", "ServiceRequest/s")
    again = await network.task("a")
    assert again != first
    assert (await network.states())["a"] in ("requested", ("rejected", "no-capacity"))
    await network.act("a", "task-accept", again)
    assert await network.left_to_do() == []


async def test_whom_the_requester_names_no_more_is_withdrawn(network):
    await network.order(to="a")
    await network.update("h", "ServiceRequest/s", performer=[ref("Organization/b")])
    assert await network.states() == {"a": ("cancelled", "not-asked-any-more"), "b": "requested"}


async def test_after_a_failure_those_whom_the_requester_names_then_are_asked(network):
    await network.order(to="ab")
    await network.act("a", "task-accept", await network.task("a"))
    await network.act("a", "task-cancel", await network.task("a"), reason={"text": "Burst pipe"})
    assert await network.states() == {"a": "cancelled"}
    network.world.clock.advance(network.world.context.window / 30)
    await network.update("h", "ServiceRequest/s", performer=[ref("Organization/a"), ref("Organization/b"), ref("Organization/c")])
    assert await network.states() == {"a": "cancelled", "c": "requested"}
    assert await network.left_to_do() == []


async def test_to_choose_nobody_is_no_choice(network):
    await network.order(to="a")
    await network.act("a", "task-decline", await network.task("a"), reason=REASON)
    (asked,) = (one for one in await network.world.find("Task") if one["status"] == "ready")
    await network.update("h", f"Task/{asked['id']}", status="completed")
    assert await network.left_to_do() == [("choose-performer", "Hospital")], "nobody has it still"


# --- to several --------------------------------------------------------------------------------------------------------------


async def test_the_first_who_accepts_has_it(network):
    await network.order(to="abc", how="first-accept")
    assert await network.states() == dict.fromkeys("abc", "requested")
    await network.act("c", "task-decline", await network.task("c"), reason=REASON)
    await network.act("b", "task-accept", await network.task("b"))
    other = ("cancelled", "filled-by-another")
    assert await network.states() == {"a": other, "b": "accepted", "c": ("rejected", "no-capacity")}
    with pytest.raises(IllegalTransition, match="from 'cancelled' to: nothing"):
        await network.act("a", "task-accept", await network.task("a"))


async def test_the_others_see_nothing_of_the_patient_when_one_has_it(network):
    await network.written({"resourceType": "Condition", "id": "c", "subject": ref("Patient/x"), "code": {"text": "Wound"}})
    await network.order(to="ab", how="first-accept", supportingInfo=[ref("Condition/c")])
    seen = [("ServiceRequest", "s"), ("Patient", "x"), ("Condition", "c")]
    for who in "ab":
        for type, id in seen:
            assert (await network.seen_by(who).read(type, id)).id == id, "to decide, one must know"
    await network.act("a", "task-accept", await network.task("a"))
    network.world.clock.advance(timedelta(days=8))
    for type, id in seen:
        assert (await network.seen_by("a").read(type, id)).id == id
        with pytest.raises(NotFound):
            await network.seen_by("b").read(type, id)


async def test_the_second_is_told_even_before_anything_followed_from_the_first(network):
    await network.order(to="ab", how="first-accept")
    for who in "ab":
        store = network.seen_by(who)
        type, id = (await network.task(who)).split("/")
        tree = (await store.read(type, id)).tree | {"status": "accepted"}
        if who == "a":
            await store.transact([Put(check_tree(tree))], [("u", type)])
        else:
            with pytest.raises(Conflict, match="Another organisation has accepted this request already"):
                await store.transact([Put(check_tree(tree))], [("u", type)])


async def test_a_winner_that_ends_without_doing_it_lets_go(network):
    await network.order(to="ab", how="first-accept")
    await network.act("a", "task-accept", await network.task("a"))
    await network.act("a", "task-fail", await network.task("a"), reason={"text": "The nurse is ill"})
    assert await network.left_to_do() == [("choose-performer", "Hospital")]
    await network.act("h", "service-request-refer", "ServiceRequest/s", to=[ref("Organization/b"), ref("Organization/c")])
    assert await network.left_to_do() == []
    await network.act("b", "task-accept", await network.task("b"))
    states = await network.states()
    assert (states["b"], states["c"]) == ("accepted", ("cancelled", "filled-by-another"))


async def test_of_many_who_accept_at_the_same_moment_one_has_it(network):
    agencies = [f"m{number}" for number in range(8)]
    await network.written(*({"resourceType": "Organization", "id": one, "active": True, "name": one} for one in agencies))
    await network.order(to=agencies, how="first-accept")
    tasks = {owner: one["id"] for owner, one in (await network.tasks()).items()}

    async def accept(who):
        store = network.seen_by(who)
        tree = (await store.read("Task", tasks[who])).tree | {"status": "accepted"}
        try:
            await store.transact([Put(check_tree(tree))], [("u", "Task")])
        except Conflict:
            return None
        return who

    winners = [one for one in await asyncio.gather(*(accept(who) for who in agencies)) if one]
    assert len(winners) == 1
    await network.react()
    states = await network.states()
    assert states.pop(winners[0]) == "accepted"
    assert set(states.values()) == {("cancelled", "filled-by-another")}


async def test_a_visit_with_the_number_of_one_who_lost_moves_nothing(network):
    await network.order(to="ab", how="first-accept")
    lost = (await network.tasks())["b"]
    await network.act("a", "task-accept", await network.task("a"))
    visit = {
        "resourceType": "Encounter",
        "id": "v",
        "status": "planned",
        "class": {"code": "AMB"},
        "identifier": lost["identifier"],
        "subject": ref("Patient/x"),
    }
    await network.written(visit)
    await network.react()
    assert await network.states() == {"a": "accepted", "b": ("cancelled", "filled-by-another")}


async def test_the_requester_chooses_among_offers(network):
    await network.order(to="abc", how="offers")
    for who in "ab":
        await network.act(who, "task-offer", await network.task(who), terms="A nurse on Monday")
    assert await network.states() == {"a": "accepted", "b": "accepted", "c": "requested"}
    assert await network.left_to_do() == [("choose-offer", "Hospital")]
    (offered,) = (await network.tasks())["a"]["output"]
    assert (offered["type"]["coding"][0]["code"], offered["valueString"]) == ("offer", "A nurse on Monday")
    with pytest.raises(IllegalTransition, match="an offer that the requester has not chosen"):
        await network.act("a", "task-start", await network.task("a"))
    with pytest.raises(IllegalTransition, match="said by the Task's requester"):
        await network.act("a", "task-choose", await network.task("a"))
    await network.act("h", "task-choose", await network.task("b"))
    other = ("cancelled", "filled-by-another")
    assert await network.states() == {"a": other, "b": "accepted", "c": other}
    assert await network.left_to_do() == []
    await network.act("b", "task-start", await network.task("b"))
    assert (await network.states())["b"] == "in-progress"


async def test_of_many_choices_one_holds(network):
    await network.order(to="abc", how="offers")
    for who in "abc":
        await network.act(who, "task-accept", await network.task(who))
    tasks = await network.tasks()

    async def choose(who):
        store, tree = network.seen_by("h"), dict(tasks[who])
        tree["extension"] = [
            {**one, "extension": [*one["extension"], {"url": "chosen", "valueBoolean": True}]} for one in tree["extension"]
        ]
        try:
            await store.transact([Put(check_tree(tree))], [("u", "Task")])
        except Conflict as error:
            assert "Another offer was chosen already" in str(error)
            return None
        return who

    chosen = [one for one in await asyncio.gather(*(choose(who) for who in "abcabc")) if one]
    assert len(set(chosen)) == 1


async def test_an_offer_may_be_withdrawn_and_a_chosen_one_that_ends_lets_go(network):
    await network.order(to="ab", how="offers")
    await network.act("a", "task-accept", await network.task("a"))
    await network.act("a", "task-cancel", await network.task("a"), reason={"text": "Too late"})
    assert await network.left_to_do() == []
    assert await network.left_to_do(all=True) == [("choose-offer", "Hospital", "completed")]
    await network.act("b", "task-accept", await network.task("b"))
    await network.act("h", "task-choose", await network.task("b"))
    await network.act("b", "task-cancel", await network.task("b"), reason={"text": "No nurse"})
    assert await network.left_to_do() == [("choose-performer", "Hospital")]


async def test_who_asks_for_an_answer_by_a_time_is_answered_by_then(network):
    await network.order(to="a", extension=distributed("first-accept", respond_by="2026-03-03T12:00:00-06:00"))
    assert (await network.tasks())["a"]["restriction"]["period"]["end"] == "2026-03-03T12:00:00-06:00"


async def test_how_is_a_code_that_there_is_and_a_task_keeps_its_own(network):
    with pytest.raises(Invalid, match="direct, first-accept, offers, open"):
        await network.order(to="a", how="everybody")
    await network.order(to="a", how="offers")
    with pytest.raises(IllegalTransition, match="a Task keeps what it was made with"):
        await network.update("a", await network.task("a"), status="accepted", extension=distributed("first-accept"))


# --- to whoever is able ------------------------------------------------------------------------------------------------------


async def service(network, organization, **members):
    """A service of an organisation."""
    tree = {
        "resourceType": "HealthcareService",
        "id": f"at-{organization}",
        "active": True,
        "providedBy": ref(f"Organization/{organization}"),
        "type": [NEED],
        **members,
    }
    await network.written(tree)
    await network.react()


async def test_an_open_request_is_found_and_taken_by_who_is_able(network):
    await service(network, "a")
    await service(network, "c", active=False)
    await network.order(performerType=NEED)
    (task,) = await network.world.find("Task", focus="ServiceRequest/s")
    assert "owner" not in task
    assert [one["reference"] for one in task["restriction"]["recipient"]] == ["Organization/a"]
    await service(network, "b")
    (task,) = await network.world.find("Task", **{"owner:missing": "true"}, status="requested")
    assert [one["display"] for one in task["restriction"]["recipient"]] == ["Agency A", "Agency B"], "also who is able since"
    for who in "bc":
        told = network.act(who, "task-accept", f"Task/{task['id']}")
        if who == "c":
            with pytest.raises(NotFound):
                await told
        else:
            await told
    assert await network.states() == {"b": "accepted"}
    with pytest.raises(Conflict, match="Another organisation has accepted"):
        await network.act("a", "task-accept", f"Task/{task['id']}")


async def test_who_may_take_an_open_request_sees_the_task_and_nothing_of_the_patient_before(network):
    await service(network, "a")
    await network.order(performerType=NEED)
    (task,) = await network.world.find("Task", focus="ServiceRequest/s")
    seen = network.seen_by("a")
    assert (await seen.read("Task", task["id"])).tree["description"] == "Home health"
    for type, id in (("ServiceRequest", "s"), ("Patient", "x")):
        with pytest.raises(NotFound):
            await seen.read(type, id)
    await network.act("a", "task-accept", f"Task/{task['id']}")
    for type, id in (("ServiceRequest", "s"), ("Patient", "x")):
        assert (await seen.read(type, id)).id == id


async def test_an_accept_of_somebody_who_was_never_asked_is_refused(network):
    await network.written(
        {
            "resourceType": "CareTeam",
            "id": "t",
            "status": "active",
            "subject": ref("Patient/x"),
            "participant": [{"member": ref("Organization/c")}],
        }
    )
    await service(network, "a")
    await network.order("s", performerType=NEED)
    await network.order("t", to="a")
    (task,) = await network.world.find("Task", focus="ServiceRequest/s")
    with pytest.raises(NotTheirStep, match="whom the Task is addressed to"):
        await network.act("c", "task-accept", f"Task/{task['id']}")
    with pytest.raises(NotTheirStep, match="performer"):
        await network.act("c", "task-accept", await network.task("a", "t"))
    assert (await network.states("t"), await network.states("s")) == ({"a": "requested"}, {"": "requested"})


async def test_an_open_request_is_not_declined_for_all_nor_accepted_for_nobody(network):
    await service(network, "a")
    await network.order(performerType=NEED)
    (task,) = await network.world.find("Task", focus="ServiceRequest/s")
    with pytest.raises(IllegalTransition, match="leaves it to others"):
        await network.act("a", "task-decline", f"Task/{task['id']}", reason=REASON)
    with pytest.raises(IllegalTransition, match="together with Task"):
        await network.update("a", f"Task/{task['id']}", status="accepted")


async def test_of_many_who_take_an_open_request_one_has_it(network):
    for number in range(12):
        await network.written({"resourceType": "Organization", "id": f"m{number}", "active": True, "name": f"m{number}"})
        await network.written(
            {
                "resourceType": "HealthcareService",
                "id": f"s{number}",
                "providedBy": ref(f"Organization/m{number}"),
                "type": [NEED],
            }
        )
    await network.order(performerType=NEED)
    (task,) = await network.world.find("Task", focus="ServiceRequest/s")

    async def take(who):
        store = network.seen_by(who)
        tree = {**task, "status": "accepted", "owner": ref(f"Organization/{who}")}
        try:
            await store.transact([Put(check_tree(tree))], [("u", "Task")])
        except (NotTheirStep, NotFound, Forbidden):
            return None
        return who

    takers = [one for one in await asyncio.gather(*(take(f"m{number}") for number in range(12))) if one]
    assert len(takers) == 1
    assert (await network.states()) == {takers[0]: "accepted"}


async def test_when_nobody_is_able_the_requester_is_told_at_once(network):
    await network.order(performerType=NEED)
    assert await network.left_to_do() == [("choose-performer", "Hospital")]
    await service(network, "a")
    assert await network.left_to_do() == []


# --- the end -----------------------------------------------------------------------------------------------------------------


async def test_who_withdraws_an_order_withdraws_what_came_of_it(network):
    await network.order("s", to="abc", how="first-accept")
    await network.order("t", to="a")
    await network.act("a", "task-decline", await network.task("a", "t"), reason=REASON)
    for order in "st":
        await network.update("h", f"ServiceRequest/{order}", status="revoked")
    assert set((await network.states("s")).values()) == {"cancelled"}
    assert await network.left_to_do(all=True) == [("choose-performer", "Hospital", "cancelled")]


async def test_a_replay_asks_nobody_twice(network):
    await service(network, "a")
    await network.order("s", to="ab", how="offers")
    await network.order("t", to="ab")
    await network.order("u", performerType=NEED)
    await network.act("a", "task-accept", await network.task("a"))
    await network.act("a", "task-decline", await network.task("a", "t"), reason=REASON)
    await network.world.react()
    assert await network.world.again() == []


async def test_nothing_is_half_done_when_a_name_is_wrong(network):
    with pytest.raises(FhirError):
        await network.order(to=["nobody"])
    assert await network.world.find("Task") == []
