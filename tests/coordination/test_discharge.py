"""Discharge planning, over weeks: opened at the admission, changed with where the patient goes, flagged before, carried on after."""

import json
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.coordination import escalation, open_loops
from fhircm.coordination.discharge import arrange, follow
from fhircm.coordination.discharge.rules import rules
from fhircm.coordination.rules import RULES
from fhircm.fhir.validation import check
from fhircm.store.database import open_database
from fhircm.store.operations import Put
from fhircm.store.resources import Store

from .conftest import REACTIONS, SCT, World, at

CODES = "https://fhircm.example/CodeSystem/coordination"
NUBC = "http://www.nubc.org/patient-discharge"
EXPECTED = "https://fhircm.example/StructureDefinition/expected-discharge"


NEEDED = ("transition", "deadlines")
ALL = (("discharge", set(follow.TYPES.split()), follow.follow), *(one for one in REACTIONS if one[0] in NEEDED))
TIMERS = {escalation.KIND: escalation.overdue, arrange.KIND: follow.look_again}


class Hospital(World):
    """A hub that plans discharges."""

    reactions, timer_handlers = ALL, TIMERS

    async def admit(self, start="2026-03-02T09:00:00-06:00", born="1990-05-01", **members):
        await self.lakeside.patient(birthDate=born)
        self.stay = await self.lakeside.stay(start=start, **members)
        await self.react()

    async def plan(self):
        found = await self.find("Task", code=f"{CODES}|discharge-planning", status="in-progress")
        return found[0] if found else None

    async def items(self, *status):
        """The items by step: those of a status, or all; the newest of each step."""
        tasks = await self.find("Task", code=f"{CODES}|discharge-item")
        tasks.sort(key=lambda task: (task["authoredOn"], task["status"] in ("ready", "in-progress")))
        by_step = {task["instantiatesUri"].rpartition("#")[2]: task for task in tasks}
        return {step: task for step, task in by_step.items() if not status or task["status"] in status}

    async def open(self):
        return set(await self.items("ready", "in-progress"))

    async def expect(self, date=None, code=None, stay=None):
        plans = await self.find("Task", code=f"{CODES}|discharge-planning", encounter=f"Encounter/{stay}") if stay else []
        plan = plans[0] if plans else await self.plan()
        parts = [{"url": "date", "valueDateTime": date}] if date else []
        parts += [{"url": "disposition", "valueCodeableConcept": {"coding": [{"system": NUBC, "code": code}]}}] if code else []
        extension = [*plan.get("extension", []), {"url": EXPECTED, "extension": parts}]
        await self.edit("Task", plan["id"], extension=extension)
        await self.react()
        return code

    async def do(self, *steps, status="completed", **members):
        for step, task in (await self.items()).items():
            if step in steps or not steps:
                for one in ("in-progress", status) if task["status"] == "ready" and status == "completed" else (status,):
                    await self.edit("Task", task["id"], status=one, **members)
        await self.react()


@pytest.fixture
async def hospital(database_url, clock):
    clock.now = at("2026-03-02T10:00:00-06:00")
    store = Store(await open_database(database_url), clock=clock, rules=RULES)
    made = Hospital(store, clock)
    await made.begin()
    yield made
    await store.close()


async def test_an_admission_opens_the_planning_once(hospital):
    await hospital.admit()
    plan = await hospital.plan()
    assert plan["focus"]["reference"] == f"Encounter/{hospital.stay}"
    assert "reasonCode" not in plan
    assert await hospital.open() == {"expected-date", "important-message"}
    due = {step: task["restriction"]["period"]["end"] for step, task in (await hospital.items()).items()}
    assert due == {"expected-date": "2026-03-04T23:59:59-06:00", "important-message": "2026-03-04T23:59:59-06:00"}
    assert await hospital.again() == []


OLD = {"born": "1941-05-01"}


async def test_who_is_likely_to_do_badly_is_evaluated_and_who_asks(hospital):
    await hospital.admit(**OLD)
    plan = await hospital.plan()
    assert plan["reasonCode"]["text"] == "Likely to do badly without planning: 84 years old"
    evaluation = (await hospital.items())["evaluation"]
    assert evaluation["restriction"]["period"]["end"] == "2026-03-03T23:59:59-06:00"
    assert evaluation["owner"]["display"] == "Lakeside"
    assert evaluation["performerType"][0]["text"] == "Discharge planner"


async def test_a_patient_may_ask_for_an_evaluation_and_is_answered(hospital):
    await hospital.admit()
    assert "evaluation" not in await hospital.open()
    code = {"coding": [{"system": CODES, "code": "discharge-evaluation-request"}]}
    request = {"status": "requested", "intent": "proposal", "code": code, "focus": {"reference": f"Encounter/{hospital.stay}"}}
    for id, status, reason in (("asked", "completed", {}), ("once-more", "cancelled", {"statusReason": {"text": "Done before"}})):
        asked = {"resourceType": "Task", "id": id, **request, "for": hospital.lakeside.ref("Patient/p1")}
        asked["authoredOn"] = hospital.clock.now.isoformat()
        await hospital.store.transact([Put(check(json.dumps(asked).encode()))], origin="client:portal")
        await hospital.react()
        assert "evaluation" in await hospital.open()
        hospital.clock.now += timedelta(hours=1)
        await hospital.do("evaluation", status=status, lastModified=hospital.clock.now.isoformat(), **reason)
        assert (await hospital.context.get("Task", id)).tree["status"] == status
        hospital.clock.now += timedelta(hours=1)


async def test_years_of_history_open_nothing(hospital):
    await hospital.admit(start="2019-05-01T09:00:00-05:00")
    await hospital.lakeside.stay("e2", start="2019-06-01", end="2019-06-09")
    await hospital.lakeside.stay("e4", start="2026-02-26T09:00:00-06:00")  # planned elsewhere for four days
    await hospital.lakeside.stay("e3", start="2026-03-02", cls="AMB", status="in-progress")
    await hospital.react()
    assert await hospital.find("Task") == []


async def test_the_checklist_goes_with_where_the_patient_goes(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-06", "03")
    assert "expected-date" not in await hospital.open(), "it is said"
    snf = await hospital.items("ready")
    assert {"choice", "acceptance", "pasrr", "transport", "orders", "summary", "medication-list"} <= set(snf)
    assert snf["pasrr"]["restriction"]["period"]["end"] == "2026-03-05T23:59:59-06:00"
    assert snf["transport"]["restriction"]["period"]["end"] == "2026-03-06T23:59:59-06:00"
    await hospital.do("pasrr", "medication-list")
    await hospital.expect("2026-03-05", "01")
    home, items = await hospital.open(), await hospital.items()
    assert {"instructions", "follow-up", "summary", "equipment"} <= home
    assert not {"choice", "acceptance", "transport", "orders"} & home
    assert items["transport"]["status"] == "cancelled"
    assert items["transport"]["statusReason"]["coding"][0]["code"] == "no-longer-applicable"
    assert items["transport"]["statusReason"]["text"] == "Not asked for any more: Home"
    assert {items[done]["status"] for done in ("pasrr", "medication-list")} == {"completed"}, "what is done stays done"
    assert items["summary"]["restriction"]["period"]["end"] == "2026-03-05T23:59:59-06:00", "it follows the date"
    await hospital.expect("2026-03-09", "03")
    assert {"choice", "transport"} <= await hospital.open(), "asked for again"
    assert "pasrr" not in await hospital.open()


async def test_a_clock_that_was_set_back_keeps_nothing_from_being_done_or_flagged(hospital):
    await hospital.admit()
    hospital.clock.now -= timedelta(minutes=10)
    await hospital.expect("2026-03-02T16:00:00-06:00", "01")
    assert (await hospital.items())["expected-date"]["status"] == "completed"
    assert [flag["status"] for flag in await hospital.find("Flag")] == ["active"], "the discharge is near"
    hospital.clock.now -= timedelta(minutes=10)
    await hospital.expect("2026-03-20")
    (flag,) = await hospital.find("Flag")
    assert (flag["status"], flag["period"]["end"]) == ("inactive", flag["period"]["start"])


async def test_a_change_that_moves_nothing_has_nothing_to_commit(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-09", "03")
    stay = await hospital.context.get("Encounter", hospital.stay)
    assert await arrange.arrange(hospital.context, stay) == []
    assert [(await hospital.store.timer(key)).due for key in arrange.keys(stay.id)][1] == at("2026-03-10T04:59:59+00:00")


async def test_a_date_that_passes_is_asked_for_again(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-03", "01")
    hospital.clock.now = at("2026-03-04T06:00:00-06:00")
    assert await hospital.timers() > 0
    await hospital.react()
    again = (await hospital.items())["expected-date"]
    assert (again["status"], again["restriction"]["period"]["end"]) == ("ready", "2026-03-04T23:59:59-06:00")
    await hospital.expect("2026-03-07")
    assert (await hospital.items())["expected-date"]["status"] == "completed"


async def test_a_date_before_the_hour_of_the_admission_is_one_that_has_passed(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-02T08:00:00-06:00", "01")
    plan = await hospital.plan()
    assert plan["restriction"]["period"]["end"] == plan["restriction"]["period"]["start"], "no period ends before it begins"
    assert "follow-up" in await hospital.open()
    assert await hospital.again() == []
    await hospital.expect("2026-03-05")
    assert (await hospital.plan())["restriction"]["period"]["end"] == "2026-03-05T23:59:59-06:00"


async def test_a_plain_edit_of_the_date_is_an_expectation_too(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-06", "01")
    plan = await hospital.plan()
    period = {**plan["restriction"]["period"], "end": "2026-03-07T14:00:00-06:00"}
    await hospital.edit("Task", plan["id"], restriction={"period": period})
    await hospital.react()
    plan = await hospital.plan()
    assert [parts(one).get("date") for one in plan["extension"]] == ["2026-03-06", "2026-03-07T14:00:00-06:00"]
    assert (await hospital.items())["summary"]["restriction"]["period"]["end"] == "2026-03-07T14:00:00-06:00"
    planned = {
        "url": "http://hl7.org/fhir/5.0/StructureDefinition/extension-Encounter.plannedEndDate",
        "valueDateTime": "2026-03-07",
    }
    await hospital.lakeside.stay(start="2026-03-02T09:00:00-06:00", extension=[planned])
    await hospital.react()
    plan = await hospital.plan()
    assert plan["restriction"]["period"]["end"] == "2026-03-07T23:59:59-06:00"
    assert parts(plan["extension"][-1])["by"] == {"reference": f"Encounter/{hospital.stay}"}
    assert len(plan["extension"]) == 3


def parts(extension):
    return {one["url"]: next(value for name, value in one.items() if name != "url") for one in extension["extension"]}


async def test_a_discharge_with_something_open_is_flagged_before_it_happens(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-09", "01")  # a Monday
    await hospital.do("important-message")
    assert await hospital.find("Flag") == []
    hospital.clock.now = at("2026-03-06T00:00:01-06:00")  # the business day before
    await hospital.timers()
    await hospital.react()
    (flag,) = await hospital.find("Flag")
    assert (flag["status"], flag["encounter"]["reference"]) == ("active", f"Encounter/{hospital.stay}")
    (task,) = await hospital.find("Task", code=f"{CODES}|discharge-open-items")
    assert task["reasonCode"]["text"].startswith("The discharge is expected 2026-03-09 at 23:59, and this is open: ")
    titles = {one["valueReference"]["display"] for one in task["input"]}
    assert "Follow-up visit is booked" in titles
    assert "Equipment is where the patient goes" not in titles, "that is not mandatory"
    await hospital.do("follow-up")
    (task,) = await hospital.find("Task", code=f"{CODES}|discharge-open-items")
    assert "Follow-up visit is booked" not in {one["valueReference"]["display"] for one in task["input"]}
    await hospital.do("medication-list", "instructions", "summary", "important-message-copy")
    (task,), (flag,) = await hospital.find("Task", code=f"{CODES}|discharge-open-items"), await hospital.find("Flag")
    assert (task["status"], flag["status"]) == ("completed", "inactive")
    await hospital.lakeside.stay(start="2026-03-02T09:00:00-06:00", end="2026-03-09T11:00:00-05:00")
    await hospital.react()
    assert await hospital.find("DetectedIssue") == []
    assert await hospital.plan() is None
    assert (await hospital.items())["equipment"]["status"] == "cancelled"


async def test_when_all_is_done_before_the_patient_leaves_the_planning_is_no_lost_loop(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-09", "01")
    await hospital.react()
    while standing := await hospital.items("ready"):
        for item in standing.values():
            await hospital.edit("Task", item["id"], status="in-progress")
            await hospital.edit("Task", item["id"], status="completed")
        await hospital.react()
    hospital.clock.now += 2 * open_loops.GRACE
    loops = await open_loops.everything(hospital.context)
    assert [
        (loop.stored.tree["code"]["text"], loop.wrong) for loop in loops if loop.name == f"Task/{(await hospital.plan())['id']}"
    ] == [("Discharge planning", ())]


async def test_an_order_to_discharge_makes_it_near(hospital):
    await hospital.admit()
    await hospital.lakeside.put(
        "ServiceRequest/go",
        status="active",
        intent="order",
        code={"coding": [{"system": SCT, "code": "58000006"}]},
        subject=hospital.lakeside.ref("Patient/p1"),
        encounter=hospital.lakeside.ref("Encounter/e1"),
    )
    await hospital.react()
    (task,) = await hospital.find("Task", code=f"{CODES}|discharge-open-items")
    assert task["reasonCode"]["text"].startswith("The discharge is ordered, and this is open: ")


async def test_what_was_open_at_the_discharge_goes_on_under_the_transition(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-05", "03")
    await hospital.do("important-message", "pasrr")
    hospital.clock.now = at("2026-03-05T12:00:00-06:00")
    await hospital.lakeside.stay(start="2026-03-02T09:00:00-06:00", end="2026-03-05T11:00:00-06:00")  # went home instead
    await hospital.react()
    (issue,) = await hospital.find("DetectedIssue")
    titles = {one["display"] for one in issue["implicated"]}
    assert {"Follow-up visit is booked", "Discharge instructions in the patient's language"} <= titles
    assert "Transport is arranged" not in titles, "nobody needs it who went home"
    (transition_of_care,) = await hospital.find("Task", code=f"{CODES}|transition-of-care")
    opened = await hospital.items("ready")
    assert set(opened) == {"follow-up", "instructions", "medication-list", "summary", "important-message-copy"}
    above = {"reference": f"Task/{transition_of_care['id']}"}
    assert all(above in task["partOf"] for task in opened.values())
    assert {flag["status"] for flag in await hospital.find("Flag")} <= {"inactive"}
    await hospital.do(*opened)
    assert await hospital.plan() is None
    (whole,) = await hospital.find("Task", code=f"{CODES}|discharge-planning")
    assert whole["status"] == "completed"
    assert (await hospital.find("DetectedIssue"))[0]["status"] == "final", "it did happen"
    assert await hospital.again() == []


async def test_what_is_open_goes_on_when_the_discharge_led_elsewhere_than_was_said_first(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-05", "50")
    hospital.clock.now = at("2026-03-05T12:00:00-06:00")
    stay = {"start": "2026-03-02T09:00:00-06:00", "end": "2026-03-05T11:00:00-06:00"}
    await hospital.lakeside.stay(**stay, **disposition("50"))
    await hospital.react()
    assert {"summary", "hospice-election"} <= await hospital.open()
    await hospital.lakeside.stay(**stay, **disposition("01"))
    await hospital.react()
    (transition,) = await hospital.find("Task", code=f"{CODES}|transition-of-care", status="in-progress")
    assert transition["instantiatesUri"].endswith("/transition-of-care#transition")
    opened = await hospital.items("ready")
    assert set(opened) == {
        "follow-up",
        "instructions",
        "medication-list",
        "summary",
        "important-message",
        "important-message-copy",
    }
    assert all({"reference": f"Task/{transition['id']}"} in task["partOf"] for task in opened.values())
    hospital.clock.now += timedelta(hours=1)
    await hospital.lakeside.stay("e2", start="2026-03-05T12:30:00-06:00")
    await hospital.react()
    assert await hospital.find("Task", encounter=f"Encounter/{hospital.stay}", status="ready,in-progress") == [], (
        "in hospital again"
    )


async def test_who_is_in_hospital_again_is_planned_for_the_new_stay_alone(hospital):
    await hospital.admit()
    hospital.clock.now = at("2026-03-05T12:00:00-06:00")
    stay = {"start": "2026-03-02T09:00:00-06:00", "end": "2026-03-05T11:00:00-06:00"}
    await hospital.lakeside.stay(**stay, **disposition("99"))  # from which no transition follows
    await hospital.react()
    assert "summary" in await hospital.open()
    await hospital.lakeside.stay("e2", start="2026-03-05T11:30:00-06:00")
    await hospital.react()
    about = {task["encounter"]["reference"] for task in await hospital.find("Task", status="ready,in-progress")}
    assert about == {hospital.lakeside.ref("Encounter/e2")["reference"]}


def disposition(code):
    return {"home": None, "hospitalization": {"dischargeDisposition": {"coding": [{"system": NUBC, "code": code}]}}}


async def leave_with_open_items(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-05", "01")
    hospital.clock.now = at("2026-03-05T12:00:00-06:00")
    await hospital.lakeside.stay(start="2026-03-02T09:00:00-06:00", end="2026-03-05T11:00:00-06:00")
    await hospital.react()


async def test_a_discharge_that_is_taken_back_is_planned_further(hospital):
    await leave_with_open_items(hospital)
    assert len(await hospital.find("DetectedIssue")) == 1
    await hospital.lakeside.stay(start="2026-03-02T09:00:00-06:00")
    await hospital.react()
    assert (await hospital.find("DetectedIssue"))[0]["status"] == "cancelled"
    assert "summary" in await hospital.open()
    assert (await hospital.find("Flag"))[0]["status"] == "active", "and it is as near as before"


async def test_a_discharge_that_is_taken_back_when_all_was_done_is_no_exception_either(hospital):
    await leave_with_open_items(hospital)
    await hospital.do(*await hospital.open())
    assert await hospital.plan() is None
    await hospital.lakeside.stay(start="2026-03-02T09:00:00-06:00")
    await hospital.react()
    assert await hospital.plan() is not None
    assert [issue["status"] for issue in await hospital.find("DetectedIssue")] == ["cancelled"]


async def test_an_admission_that_is_taken_back_and_comes_again_is_planned_again(hospital):
    await hospital.admit()
    await hospital.lakeside.stay(start="2026-03-02T09:00:00-06:00", status="cancelled")
    await hospital.react()
    assert {task["status"] for task in await hospital.find("Task")} == {"cancelled"}
    await hospital.lakeside.stay(start="2026-03-02T09:00:00-06:00")
    await hospital.react()
    assert (await hospital.plan())["status"] == "in-progress"
    assert len(await hospital.find("Task", code=f"{CODES}|discharge-item", status="ready")) == 2


async def test_who_dies_or_was_never_there_is_planned_no_further(hospital):
    await hospital.admit()
    await hospital.expect("2026-03-03", "01")
    assert (await hospital.find("Flag"))[0]["status"] == "active"
    await hospital.lakeside.patient(deceasedBoolean=True)
    await hospital.react()
    assert {task["status"] for task in await hospital.find("Task")} <= {"cancelled", "completed"}
    assert (await hospital.find("Flag"))[0]["status"] == "inactive"
    whole = (await hospital.find("Task", code=f"{CODES}|discharge-planning"))[0]
    assert whole["statusReason"]["text"] == "The patient has died"


ITEM = st.integers(0, 30)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("expect"), st.sampled_from(["01", "06", "03", "62", "63", "50", "07", "02", "99"])),
        st.tuples(st.sampled_from(["done", "waived", "dropped", "declined"]), ITEM),
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(events=EVENTS, last=st.sampled_from(["01", "06", "03", "62", "50", "07", None]))
async def test_no_mandatory_item_of_where_the_patient_goes_is_lost_and_none_of_elsewhere_stays(hospital, events, last):
    hospital.reactions = ALL[:1]
    hospital.number = number = getattr(hospital, "number", 0) + 1
    await hospital.lakeside.put(f"Patient/x{number}", birthDate="1990-05-01")
    subject, start = {"subject": hospital.lakeside.ref(f"Patient/x{number}")}, "2026-03-02T09:00:00-06:00"
    stay = await hospital.lakeside.stay(f"x{number}", start=start, **subject)
    await hospital.react()
    done, where = set(), None
    for kind, value in events:
        if kind == "expect":
            where = await hospital.expect("2026-03-06", value, stay)
        else:
            await change(hospital, stay, kind, value)
        await hospital.react()
        done = await hold(hospital, stay, where, done)
    if last is not None:
        code = {"hospitalization": {"dischargeDisposition": {"coding": [{"system": NUBC, "code": last}]}}}
        await hospital.lakeside.stay(f"x{number}", start=start, end="2026-03-02T09:59:00-06:00", home=None, **code, **subject)
        await hospital.react()
        await hold(hospital, stay, last, done, left=True)


async def of_stay(hospital, stay):
    return await hospital.find("Task", code=f"{CODES}|discharge-item", encounter=f"Encounter/{stay}")


async def change(hospital, stay, kind, number):
    """Somebody ends one of the open items."""
    standing = [task for task in await of_stay(hospital, stay) if task["status"] == "ready"]
    if not standing:
        return
    task = standing[number % len(standing)]
    steps = {"done": ["in-progress", "completed"], "waived": ["cancelled"], "dropped": ["cancelled"], "declined": ["cancelled"]}[
        kind
    ]
    for status in steps:
        reason = {"statusReason": {"text": "The patient does not want it"}} if kind == "waived" else {}
        await hospital.edit("Task", task["id"], status=status, **reason)


async def hold(hospital, stay, code, done, left=False):
    """Hold the rule; returns the items that are done."""
    (pathway,) = hospital.context.pathways_of("admission")
    where = rules().disposition({"coding": [{"system": NUBC, "code": code}]} if code else None)
    facts = {"disposition": where, "class": "inpatient", "payer": "unknown", "need": "no"}
    facts["expected"] = "yes" if left or code else "no"
    wanted = {step.id for step in pathway.applicable(facts)}
    mandatory = {step.id for step in pathway.applicable(facts) if step.mandatory}
    standing, closed = [], set()
    for task in await of_stay(hospital, stay):
        step = task["instantiatesUri"].rpartition("#")[2]
        reason = task.get("statusReason", {})
        if task["status"] in ("ready", "in-progress"):
            standing.append(step)
        elif task["status"] == "completed" or ("coding" not in reason and reason):
            closed.add(step)
    assert len(standing) == len(set(standing)), "one item of a step is open at a time"
    assert set(standing) <= wanted, "nothing of elsewhere stays"
    assert mandatory <= {*standing, *closed}, "nothing mandatory is lost"
    completed = {task["id"] for task in await of_stay(hospital, stay) if task["status"] == "completed"}
    assert done <= completed, "what is done stays done"
    return completed
