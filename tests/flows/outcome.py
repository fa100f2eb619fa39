"""What a telling of the story came to, at the hub and at both EHRs: the same, whatever happened on the way."""

from collections import Counter

from fhircm.demo.story import CLINIC, HOSPITAL

WRITTEN = ("Task", "Communication", "Person", "RiskAssessment", "DocumentReference", "ServiceRequest", "Organization")

PATIENTS, HUMANS_OF_BOTH = 22, 6


async def outcome(story):
    """Counted: what the hub itself wrote, what it mirrors, and what each EHR was sent."""
    hub, mirrored = Counter(), Counter()
    for type in (*WRITTEN, "Patient", "Encounter", "Condition", "CarePlan", "CareTeam", "Goal", "Coverage", "RelatedPerson"):
        for tree in await story.find(f"{type}?_count=500"):
            if tree.get("meta", {}).get("source"):
                mirrored[type] += 1
            else:
                named = tree.get("code", tree.get("topic", {})).get("text", "")
                hub[type, tree.get("status", ""), named] += 1
    sent = {name: Counter((one["method"], one["type"]) for one in await story.received(name)) for name in (HOSPITAL, CLINIC)}
    return hub, mirrored, sent


async def assert_nothing_is_doubled(story):
    """No delivery stands twice at an EHR, no version has two accounts, and a further pull writes nothing."""
    for name in (HOSPITAL, CLINIC):
        created = Counter((one["type"], *one["identifiers"]) for one in await story.received(name) if one["method"] == "POST")
        assert created
        assert max(created.values()) == 1, created
    told = Counter(
        (
            one["target"][0]["reference"],
            one["activity"]["coding"][0]["code"],
            one.get("entity", [{}])[0].get("what", {}).get("reference"),
        )
        for one in await story.find("Provenance?_count=500")
    )
    assert max(told.values()) == 1, told.most_common(3)


async def assert_the_story_is_whole(story):
    """After the steps of the story on the sixteen humans of seed 7."""

    async def delivered():
        return not await story.find("Communication?status=in-progress")

    async def planned():
        goals = [one for one in await story.find("Goal?_count=500") if not one.get("meta", {}).get("source")]
        return len(await story.find("CarePlan?category=longitudinal&_count=500")) == PATIENTS and len(goals) == HUMANS_OF_BOTH

    await story.until("the last message", delivered)
    await story.until("the last plan", planned)
    hub, mirrored, sent = await outcome(story)
    assert hub == {
        ("Person", "", ""): 6,
        ("Task", "ready", "Deliver by other means"): 1,
        ("Task", "requested", "Fulfil the referral"): 1,
        ("Task", "completed", "Fulfil the referral"): 1,
        ("Task", "completed", "Look at the report and close the request"): 1,  # the hospital's order is completed
        ("Task", "in-progress", "Transition of care"): 1,
        ("Task", "ready", "Contact the patient"): 1,
        ("Task", "ready", "Reconcile medications"): 1,
        ("Task", "ready", "Follow-up visit within 14 days"): 1,
        ("Communication", "completed", "A task is overdue and passes to the next in line"): 1,
        ("Communication", "completed", "Discharged"): 1,  # those who care for the patient at the clinic are told of the discharge
        ("RiskAssessment", "final", ""): 1,
        ("Organization", "", ""): 1,
        ("CarePlan", "active", ""): PATIENTS,
        ("CareTeam", "active", ""): PATIENTS,
        ("Goal", "", ""): HUMANS_OF_BOTH,  # the goal that both partners have of somebody is one
    }
    assert mirrored == {
        "Patient": 22,
        "Encounter": 23,
        "Condition": 22,
        "CarePlan": 22,
        "CareTeam": 22,
        "Goal": 22,
        "RelatedPerson": 22,
        "Coverage": 22,
        "ServiceRequest": 22,
        "Task": 14,
        "DocumentReference": 3,
        "Organization": 3,
    }
    assert sent[HOSPITAL].items() >= {("PUT", "ServiceRequest"): 1, ("POST", "DocumentReference"): 1}.items()
    assert sent[CLINIC]["POST", "DocumentReference"] == 1
    # News that was overtaken by other news before it could be told is not told any more.
    assert 2 <= sent[HOSPITAL]["POST", "Communication"] <= 4
    told = [one["identifiers"] for one in await story.received(CLINIC) if one["type"] == "Communication"]
    assert 1 <= len(told) <= 3, told
