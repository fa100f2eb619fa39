"""What the two sides of a referral have to do for each other until the loop is closed, by operation or by update alike."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal, within_roles
from fhircm.access.scopes import parse_scopes
from fhircm.coordination.codes import member, own, value_set
from fhircm.fhir.outcome import Conflict, IllegalTransition, Invalid, NotTheirStep
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import Put

from .network import REASON, SYSTEM, Network, ref

BSER = "http://hl7.org/fhir/us/bser/StructureDefinition/BSeR-ReferralTask"
COW = "http://hl7.org/fhir/uv/cow/StructureDefinition/coordination-task"
GRAVITY = "http://hl7.org/fhir/us/sdoh-clinicalcare/StructureDefinition/SDOHCC-TaskForReferralManagement"
FULFILL = {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}
BUSINESS = "http://hl7.org/fhir/us/bser/CodeSystem/TaskBusinessStatusCS"


@pytest.fixture
async def network(world):
    made = Network(world)
    await made.begin()
    return made


def step(code):
    return {"coding": [{"system": BUSINESS, "code": code}]}


def document(id, about="ServiceRequest/s"):
    """A paper of the patient's; about what it is, is who sees it."""
    return {
        "resourceType": "DocumentReference",
        "id": id,
        "status": "current",
        "subject": ref("Patient/x"),
        "context": {"related": [ref(about)]},
        "content": [{"attachment": {"contentType": "text/plain", "data": "c2Vlbg=="}}],
    }


async def accepted(network, to="a"):
    await network.order(to=to)
    await network.act(to, "task-accept", await network.task(to))
    return await network.task(to)


async def completed(network):
    task = await accepted(network)
    await network.written(document("report"))
    await network.update(
        "a", task, status="completed", output=[{"type": {"text": "report"}, "valueReference": ref("DocumentReference/report")}]
    )
    return task


async def the(network, code):
    """The reference of the only Task with a code that is open, else of the last."""
    found = [one for one in await network.world.find("Task") if own(one.get("code")) == code]
    return f"Task/{found[-1]['id']}"


async def read(network, about):
    return (await network.store.read(*about.split("/"))).tree


# --- an operation means what an update means ---------------------------------------------------------------------------------


async def question_by_update(network, task, order):
    tree = await read(network, task)
    question = {
        "resourceType": "Task",
        "id": "q",
        "partOf": [ref(task)],
        "status": "ready",
        "intent": "order",
        "code": {"coding": [{"system": SYSTEM, "code": "provide-information"}]},
        "description": "Which dressing?",
        "focus": ref(task),
        "for": tree["for"],
        "requester": tree["owner"],
        "owner": tree["requester"],
    }
    await network.created("a", question)
    waiting = {"coding": [{"system": SYSTEM, "code": "awaiting-information"}], "text": "Waits for information"}
    await network.update("a", task, status="on-hold", statusReason=waiting)


async def answer_by_update(network, task, order):
    given = [{"type": {"text": "answer"}, "valueString": "Hydrocolloid"}]
    await network.update("h", "Task/q", status="completed", output=given)


async def acknowledgement_by_update(network, task, order):
    await network.update("h", order, status="completed")


VERBS = {  # who, what is said, and the same by an update
    "accept": ("a", {}, {"status": "accepted"}),
    "decline": ("a", {"reason": REASON}, {"status": "rejected", "statusReason": REASON}),
    "start": ("a", {}, {"status": "in-progress"}),
    "pause": ("a", {"reason": REASON}, {"status": "on-hold", "statusReason": REASON}),
    "resume": ("a", {}, {"status": "in-progress", "statusReason": None}),
    "complete": ("a", {}, {"status": "completed"}),
    "fail": ("a", {"reason": REASON}, {"status": "failed", "statusReason": REASON}),
    "cancel": ("h", {"reason": REASON}, {"status": "cancelled", "statusReason": REASON}),
    "request-information": ("a", {"question": "Which dressing?"}, question_by_update),
    "provide-information": ("h", {"text": "Hydrocolloid"}, answer_by_update),
    "acknowledge": ("h", {}, acknowledgement_by_update),
}


async def summary(network, order, task):
    """How an order and all that came of it stand, without what must differ."""
    about = [task, order]
    tasks = [one for one in await network.world.find("Task") if one["focus"]["reference"] in about]
    shape = sorted(
        (
            own(one.get("code")) or "fulfill",
            one["status"],
            one.get("businessStatus", {}).get("coding", [{}])[0].get("code"),
            (one.get("statusReason") or {}).get("text"),
            one.get("restriction", {}).get("period", {}).get("end"),
            one.get("owner", {}).get("reference"),
            len(one.get("input", [])),
            len(one.get("output", [])),
        )
        for one in tasks
    )
    return shape, (await read(network, order))["status"]


@pytest.mark.parametrize(
    "way",
    [
        "decline",
        "accept start pause resume request-information provide-information complete acknowledge",
        "accept fail",
        "accept pause cancel",
    ],
)
async def test_an_operation_means_what_an_update_means(network, way):
    await network.order("s", to="a")
    await network.order("t", to="a")
    by_operation, by_update = await network.task("a", "s"), await network.task("a", "t")
    for verb in way.split():
        who, said, update = VERBS[verb]
        await network.act(who, f"task-{verb}", by_operation, **said)
        if callable(update):
            await update(network, by_update, "ServiceRequest/t")
        else:
            await network.update(who, by_update, **update)
        done = await summary(network, "ServiceRequest/s", by_operation)
        assert done == await summary(network, "ServiceRequest/t", by_update), verb
        assert done[0]


async def test_an_order_is_given_out_by_operation_or_by_update(network):
    drafts = [{"status": "draft", "category": [{"text": "Social care"}], "id": id} for id in ("s", "t")]
    for draft in drafts:
        await network.order(draft.pop("id"), **draft)
    assert await network.world.find("Task") == []
    await network.act(
        "h",
        "service-request-refer",
        "ServiceRequest/s",
        to=[ref("Organization/a"), ref("Organization/b")],
        distribution="offers",
        message="Please call",
    )
    s = await read(network, "ServiceRequest/s")
    kept = {name: s[name] for name in ("status", "performer", "extension", "note", "category")}
    await network.update("h", "ServiceRequest/t", **kept)
    assert await network.states("s") == await network.states("t") == {"a": "requested", "b": "requested"}
    assert s["note"][0]["text"] == "Please call"
    await network.act("h", "service-request-refer", "ServiceRequest/s", to=ref("Organization/c"))
    assert set(await network.states("s")) == {"a", "b", "c"}, "while some are asked, others are added"


# --- declining ---------------------------------------------------------------------------------------------------------------


async def test_reasons_to_decline_are_coded_and_told_in_words(network):
    await network.order(to="a")
    coding = {"coding": [{"system": SYSTEM, "code": "exceeds-capability"}]}
    task = await network.act("a", "task-decline", await network.task("a"), reason=coding)
    assert task["statusReason"]["text"] == "Needs more than can be given here"
    assert member("decline-reason", task["statusReason"])
    assert member("decline-reason-clinical", task["statusReason"])
    assert not member("decline-reason-clinical", REASON)
    assert value_set("decline-reason-clinical") < value_set("decline-reason")


# --- questions ---------------------------------------------------------------------------------------------------------------


async def test_the_performer_asks_and_goes_on_when_it_is_answered(network):
    task = await accepted(network)
    needed = {"coding": [{"system": "http://loinc.org", "code": "18842-5"}], "text": "Discharge summary"}
    await network.act("a", "task-request-information", task, question="What was done?", needed=needed)
    assert (await read(network, task))["status"] == "on-hold"
    assert await network.left_to_do() == [("provide-information", "Hospital")]
    asked = await read(network, await the(network, "provide-information"))
    assert (asked["description"], asked["input"][0]["valueCodeableConcept"]) == ("What was done?", needed)
    await network.written(document("summary", "Patient/x"))
    await network.act("h", "task-provide-information", task, reference=ref("DocumentReference/summary"))
    tree = await read(network, task)
    assert tree["status"] == "in-progress"
    assert [one["valueReference"] for one in tree["input"]] == [ref("DocumentReference/summary")]
    assert (await network.seen_by("a").read("DocumentReference", "summary")).id == "summary", "the referral names it now"
    with pytest.raises(IllegalTransition, match="nothing that is not answered"):
        await network.act("h", "task-provide-information", task, text="More")


async def test_who_has_made_an_offer_may_ask_and_the_offer_stands_meanwhile(network):
    await network.order(to="ab", how="offers")
    task = await network.task("a")
    await network.act("a", "task-offer", task, terms="Monday")
    await network.act("a", "task-request-information", task, question="Which payer?")
    assert (await read(network, task))["status"] == "accepted"
    await network.act("h", "task-provide-information", task, text="Medicare")
    tree = await read(network, task)
    assert (tree["status"], tree["input"][-1]["valueString"]) == ("accepted", "Medicare")


@pytest.mark.parametrize("who", ["a", "h"])
async def test_a_referral_waits_no_longer_for_the_answer_to_a_question_that_was_called_off(network, who):
    task = await accepted(network)
    await network.act("a", "task-request-information", task, question="Which dressing?")
    await network.act("a", "task-request-information", task, question="Which payer?")
    for waits, asked in zip(("on-hold", "in-progress"), await open_questions(network), strict=True):
        await network.update(who, f"Task/{asked['id']}", status="cancelled", statusReason={"text": "Nobody knows"})
        assert (await read(network, task))["status"] == waits
    assert "input" not in await read(network, task)


async def open_questions(network):
    return await network.world.find("Task", code=f"{SYSTEM}|provide-information", status="ready")


async def test_a_question_before_the_answer_to_a_request_begins_its_time_anew(network):
    await network.order(to="a")
    task = await network.task("a")
    await network.act("a", "task-request-information", task, question="Which payer?")
    tree = await read(network, task)
    assert tree["status"] == "requested"
    network.world.clock.advance(network.world.context.window / 10)
    await network.act("h", "task-provide-information", task, text="Medicare")
    answered = await read(network, task)
    assert answered["status"] == "requested"
    assert answered["restriction"]["period"]["end"] > tree["restriction"]["period"]["end"]


async def test_a_question_that_was_written_by_hand_gets_who_and_when_and_ends_with_the_referral(network):
    task = await accepted(network)
    code = {"coding": [{"system": SYSTEM, "code": "provide-information"}]}
    bare = {"resourceType": "Task", "id": "q", "status": "ready", "intent": "order", "code": code, "partOf": [ref(task)]}
    await network.written(bare)
    await network.react()
    assert await network.left_to_do() == [("provide-information", "Hospital")]
    await network.act("h", "task-cancel", task, reason={"text": "No need"})
    assert await network.left_to_do(all=True) == [
        ("choose-performer", "Hospital", "ready"),
        ("provide-information", "Hospital", "cancelled"),
    ]


# --- the report --------------------------------------------------------------------------------------------------------------


async def test_the_loop_is_open_until_the_requester_has_looked_at_the_report(network):
    task = await completed(network)
    assert await network.left_to_do() == [("acknowledge-report", "Hospital")]
    await network.act("h", "task-acknowledge", task, note="As expected")
    assert await network.left_to_do() == []
    assert (await read(network, "ServiceRequest/s"))["status"] == "completed"
    with pytest.raises(Conflict, match="Nobody waits"):
        await network.act("h", "task-acknowledge", task)


async def test_what_is_not_what_was_asked_for_is_asked_once_more(network):
    task = await completed(network)
    await network.act("h", "task-reopen", task, reason={"text": "The wound is not described"})
    again = await network.task("a")
    assert again != task
    assert await network.left_to_do() == []
    tree = await read(network, again)
    assert tree["identifier"][0]["value"] == tree["id"], "it has a number of its own"
    assert tree["restriction"]["period"]["end"]
    assert tree["note"][0]["text"] == "The wound is not described"
    await network.act("a", "task-accept", again)
    await network.act("a", "task-complete", again, report=ref("DocumentReference/report"))
    assert await network.left_to_do() == [("acknowledge-report", "Hospital")]
    await network.update("h", "ServiceRequest/s", status="completed")
    assert await network.left_to_do() == []


# --- cancelling --------------------------------------------------------------------------------------------------------------


def by_hand(protocol, status, code=None):
    """A referral that a source system writes under a protocol of its own."""
    return {
        "resourceType": "Task",
        "id": "hand",
        "meta": {"profile": [protocol]},
        "status": status,
        "intent": "order",
        "code": FULFILL,
        "focus": ref("ServiceRequest/s"),
        "for": ref("Patient/x"),
        "authoredOn": "2026-03-02T08:00:00-06:00",
        "lastModified": "2026-03-02T08:00:00-06:00",
        "requester": ref("Organization/h"),
        "owner": ref("Organization/a"),
        **({"businessStatus": step(code)} if code else {}),
    }


async def handed(network, protocol, status, code=None):
    await network.order(status="on-hold")
    await network.created("h", by_hand(protocol, status, code))
    await network.act("a", "task-accept", "Task/hand")
    return "Task/hand"


@pytest.mark.parametrize("by", ["operation", "order"])
async def test_where_either_side_cancels_it_is_cancelled_at_once(network, by):
    task = await handed(network, GRAVITY, "requested")
    if by == "operation":
        await network.act("a", "task-cancel", task, reason={"text": "Closed"})
    else:
        await network.update("h", "ServiceRequest/s", status="revoked")
    assert (await read(network, task))["status"] == "cancelled"


@pytest.mark.parametrize("by", ["operation", "order"])
@pytest.mark.parametrize("answer", ["confirms", "does it all the same"])
async def test_where_the_requester_may_only_ask_the_performer_confirms_or_does_it_all_the_same(network, by, answer):
    task = await handed(network, BSER, "received", "2.0")
    if by == "operation":
        await network.act("h", "task-cancel", task, reason={"text": "The patient died"})
    else:
        await network.update("h", "ServiceRequest/s", status="revoked")
    tree = await read(network, task)
    assert (tree["status"], tree["businessStatus"]["coding"][0]["code"]) == ("in-progress", "5.2")
    assert tree["statusReason"]["text"]
    if answer == "confirms":
        await network.act("a", "task-confirm-cancellation", task)
    else:
        await network.written(document("report"))
        await network.act("a", "task-complete", task, report=ref("DocumentReference/report"))
    tree = await read(network, task)
    assert (tree["status"], tree["businessStatus"]["coding"][0]["code"]) == (
        ("cancelled", "6.0") if answer == "confirms" else ("completed", "7.0")
    )


async def test_nobody_confirms_what_was_not_asked_for_and_the_requester_does_not_confirm_itself(network):
    task = await handed(network, BSER, "received", "2.0")
    with pytest.raises(IllegalTransition, match="Nobody has asked to cancel"):
        await network.act("a", "task-confirm-cancellation", task)
    await network.act("h", "task-cancel", task, reason={"text": "No need"})
    with pytest.raises(NotTheirStep):
        await network.act("h", "task-confirm-cancellation", task)


@pytest.mark.parametrize("by", ["operation", "order"])
async def test_where_a_status_has_no_word_for_it_a_task_asks_to_stop(network, by):
    task = await handed(network, COW, "requested")
    await network.act("a", "task-start", task)
    if by == "operation":
        await network.act("h", "task-cancel", task, reason={"text": "No need"})
    else:
        await network.update("h", "ServiceRequest/s", status="revoked")
    (asked,) = await network.world.find("Task", code="http://hl7.org/fhir/CodeSystem/task-code|abort")
    assert (asked["status"], asked["owner"], asked["focus"]) == ("requested", ref("Organization/a"), ref(task))
    assert (await read(network, task))["status"] == "in-progress"


async def test_a_task_that_the_requester_writes_itself_is_followed_and_nobody_is_asked_twice(network):
    await network.order(to="a", status="draft")
    await network.created("h", by_hand(GRAVITY, "requested"))
    await network.update("h", "ServiceRequest/s", status="active")
    (task,) = await network.world.find("Task", focus="ServiceRequest/s")
    assert (task["identifier"][0]["value"], task["groupIdentifier"]["value"]) == ("hand", "hand")
    assert (task["basedOn"], task["restriction"]["period"]["end"]) == ([ref("ServiceRequest/s")], "2026-03-05T23:59:59-06:00")
    await network.act("a", "task-decline", "Task/hand", reason=REASON)
    assert await network.left_to_do() == [("choose-performer", "Hospital")]


# --- an intermediary ---------------------------------------------------------------------------------------------------------


async def above(network):
    tree = (await network.tasks())["p"]
    return tree["status"], tree["businessStatus"]["coding"][0]["code"]


async def below(network):
    return await network.world.find("ServiceRequest", intent="filler-order")


async def test_an_intermediary_passes_on_and_the_one_above_follows(network):
    await network.order(to="p")
    await network.act("p", "task-accept", await network.task("p"))
    assert await network.left_to_do() == [("choose-performer", "Platform")]
    await network.act("p", "task-forward", await network.task("p"), to=[ref("Organization/a"), ref("Organization/b")])
    assert await network.left_to_do() == []
    (order,) = await below(network)
    assert (order["basedOn"], order["requester"]["reference"]) == ([ref("ServiceRequest/s")], "Organization/p")
    child = await network.task("a", order["id"])
    assert (await read(network, child))["partOf"] == [ref(await network.task("p"))]
    await network.act("a", "task-decline", child, reason=REASON)
    assert await network.states(order["id"]) == {"a": ("rejected", "no-capacity"), "b": "requested"}
    assert await above(network) == ("accepted", "3.0")
    child = await network.task("b", order["id"])
    await network.act("b", "task-accept", child)
    assert await above(network) == ("in-progress", "5.1")
    await network.written(document("report", f"ServiceRequest/{order['id']}"))
    await network.act("b", "task-complete", child, report=ref("DocumentReference/report"))
    assert await above(network) == ("completed", "7.0")
    assert [one["valueReference"] for one in (await network.tasks())["p"]["output"]] == [ref("DocumentReference/report")]
    assert await network.left_to_do() == [("acknowledge-report", "Hospital")], "the one who asked in the end closes it"


async def test_a_clock_that_was_set_back_keeps_no_passed_on_request_open(network):
    await network.order(to="p")
    above = await network.task("p")
    await network.act("p", "task-forward", above, to=ref("Organization/a"))
    (order,) = await below(network)
    child = await network.task("a", order["id"])
    await network.act("a", "task-accept", child)
    network.world.clock.advance(timedelta(minutes=-10))
    await network.act("a", "task-complete", child)
    tree = await read(network, above)
    assert (tree["status"], tree["executionPeriod"]["end"]) == ("completed", tree["executionPeriod"]["start"])


async def test_one_request_is_split_and_a_refusal_comes_back_to_the_intermediary(network):
    await network.order(to="p")
    task = await network.task("p")
    for who, what in (("a", "Food"), ("b", "Transport")):
        await network.act("p", "task-forward", task, to=ref(f"Organization/{who}"), code={"text": what})
    food, transport = sorted(await below(network), key=lambda one: one["code"]["text"])
    assert await above(network) == ("accepted", "3.0"), "it was accepted with the first"
    await network.act("a", "task-accept", await network.task("a", food["id"]))
    await network.act("a", "task-complete", await network.task("a", food["id"]))
    await network.act("b", "task-decline", await network.task("b", transport["id"]), reason=REASON)
    assert await above(network) == ("in-progress", "5.1")
    assert await network.left_to_do() == [("choose-performer", "Platform")]
    await network.act("p", "service-request-refer", f"ServiceRequest/{transport['id']}", to=ref("Organization/c"))
    await network.act("c", "task-accept", await network.task("c", transport["id"]))
    await network.act("c", "task-complete", await network.task("c", transport["id"]))
    assert await above(network) == ("completed", "7.0")


async def test_an_order_of_an_intermediary_that_was_closed_without_a_result_is_no_other_way(network):
    await network.order(to="p")
    task = await network.task("p")
    await network.act("p", "task-forward", task, to=ref("Organization/a"))
    (order,) = await below(network)
    await network.update("p", f"ServiceRequest/{order['id']}", status="completed")
    await network.act("p", "task-fail", task, reason=REASON)
    assert await network.left_to_do() == [("choose-performer", "Hospital")], "nobody has it, and nobody is asked"


async def test_who_withdraws_a_request_withdraws_what_an_intermediary_made_of_it(network):
    await network.order(to="p")
    await network.act("p", "task-forward", await network.task("p"), to=ref("Organization/a"))
    (order,) = await below(network)
    await network.update("h", "ServiceRequest/s", status="revoked")
    assert (await below(network))[0]["status"] == "revoked"
    assert await network.states(order["id"]) == {"a": "cancelled"}
    assert await network.left_to_do() == []


async def test_an_order_that_a_partner_keeps_is_passed_on_when_it_was_declined(network):
    """The hospital's own record cannot be given out anew at the hub: the hub asks with a request of its own."""
    place = network.world.lakeside
    await place.patient()
    await place.put(
        "Organization/clinic", name="Clinic", identifier=[{"system": "http://hl7.org/fhir/sid/us-npi", "value": "1982736453"}]
    )
    id = await place.put(
        "ServiceRequest/s1",
        status="active",
        intent="order",
        category=[{"coding": [{"system": "http://snomed.info/sct", "code": "3457005"}]}],
        subject=place.ref("Patient/p1"),
        authoredOn="2026-03-02T08:00:00-06:00",
        performer=[place.ref("Organization/clinic")],
    )
    await network.react()
    (task,) = await network.world.find("Task", focus=f"ServiceRequest/{id}", status="requested")
    await network.world.edit("Task", task["id"], status="rejected", statusReason=REASON)
    await network.react()
    assert await network.left_to_do() == [("choose-performer", "Lakeside care coordination")]
    custodian = network.seen_by("h", roles=("custodian",))
    with pytest.raises(Conflict, match=r"Task/\$forward"):
        await network.act_as(custodian, "service-request-refer", f"ServiceRequest/{id}", to=ref("Organization/a"))
    await network.act_as(custodian, "task-forward", f"Task/{task['id']}", to=ref("Organization/a"))
    (order,) = await below(network)
    assert await network.states(order["id"]) == {"a": "requested"}
    assert await network.left_to_do() == []


# --- the patient -------------------------------------------------------------------------------------------------------------


def patient_x(network):
    principal = Principal(
        "app",
        parse_scopes("patient/*.cruds"),
        frozenset({"patient"}),
        user="Patient/x",
        patient="x",
        known_as=frozenset({"Patient/x"}),
    )
    return GuardedStore(network.store, replace(principal, scopes=within_roles(principal.scopes, principal.roles)))


async def test_a_patient_asks_and_is_followed_like_anybody(network):
    own = {
        "resourceType": "ServiceRequest",
        "id": "s",
        "status": "active",
        "intent": "order",
        "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "3457005"}]}],
        "code": {"text": "Home health"},
        "subject": ref("Patient/x"),
        "requester": ref("Patient/x"),
        "performer": [ref("Organization/a")],
    }
    store = patient_x(network)
    with pytest.raises(NotTheirStep, match="in their own name"):
        await store.transact([Put(check_tree(own | {"requester": ref("Organization/h")}), 0)], [("c", "ServiceRequest")])
    await store.transact([Put(check_tree(own), 0)], [("c", "ServiceRequest")])
    await network.react()
    task = (await network.tasks())["a"]
    assert task["requester"]["display"] == "Lakeside care coordination", "who coordinates speaks for the patient"
    assert (await store.read("Task", task["id"])).tree["status"] == "requested", "the patient follows it in the own record"
    await network.act("a", "task-decline", await network.task("a"), reason=REASON)
    assert await network.left_to_do() == [("choose-performer", "Lakeside care coordination")]


# --- what somebody wrote with less ---------------------------------------------------------------------------------------------


def bare(**members):
    """A referral as plain R4 allows it: of nobody, by nobody."""
    tree = by_hand(None, "requested")
    return {name: value for name, value in tree.items() if name not in ("meta", "for", "requester")} | members


async def test_a_referral_that_says_of_nobody_whom_it_is_for_is_for_the_patient_of_its_order(network):
    await network.order(status="on-hold")
    await network.written(bare())
    await network.react()
    assert (await read(network, "Task/hand"))["for"] == ref("Patient/x")


async def test_a_referral_of_which_no_patient_is_known_is_followed_all_the_same(network):
    await network.written({"resourceType": "Group", "id": "g", "type": "person", "actual": True})
    await network.order(status="on-hold", subject=ref("Group/g"))
    await network.written(bare())
    await network.react()
    tree = await read(network, "Task/hand")
    assert "for" not in tree
    assert tree["restriction"]["period"]["end"]
    await network.act("a", "task-accept", "Task/hand")
    with pytest.raises(Invalid, match=r"Task\.for is needed"):
        await network.act("a", "task-schedule", "Task/hand", start="2026-03-09T15:00:00Z", end="2026-03-09T15:30:00Z")
    await network.written(document("report", about="Task/hand"))
    await network.react()
    assert (await read(network, "Task/hand"))["status"] == "accepted", "a paper about anybody moves nothing"
    done = [{"type": {"text": "report"}, "valueReference": ref("DocumentReference/report")}]
    await network.update("a", "Task/hand", status="completed", output=done)
    assert ("acknowledge-report", "Lakeside care coordination") in await network.left_to_do()


# --- what is news --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("client", "asked"), [("client:x", {"a": "requested"}), ("load", {})])
async def test_an_order_that_a_client_writes_today_is_news_whatever_date_it_bears(network, client, asked):
    tree = {
        "resourceType": "ServiceRequest",
        "id": "s",
        "status": "active",
        "intent": "order",
        "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "3457005"}]}],
        "subject": ref("Patient/x"),
        "authoredOn": "2019-03-02",
        "requester": ref("Organization/h"),
        "performer": [ref("Organization/a")],
    }
    await network.written(tree, client=client)
    await network.react()
    assert await network.states() == asked


async def test_an_old_order_for_which_somebody_must_be_chosen_stays_in_sight_until_somebody_is_asked(network):
    await network.order(authoredOn="2019-03-02")
    assert await network.left_to_do() == [("choose-performer", "Hospital")]
    (choose,) = await network.world.find("Task", focus="ServiceRequest/s")
    await network.update("h", f"Task/{choose['id']}", status="completed")
    assert await network.left_to_do() == [("choose-performer", "Hospital")], "it was ended, and nobody was asked"
    await network.update("h", "ServiceRequest/s", performer=[ref("Organization/a")])
    assert await network.states() == {"a": "requested"}
    assert await network.left_to_do() == []
