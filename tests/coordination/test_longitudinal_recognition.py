"""What is the same and what is not, row by row; and for whatever records there are: any order, any repetition, nothing unaccounted for."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhircm.coordination.longitudinal import recognition
from fhircm.coordination.longitudinal.conflicts import settled
from fhircm.coordination.longitudinal.plan import care_plan, care_team, planned
from fhircm.coordination.longitudinal.sources import Records, Source
from fhircm.coordination.longitudinal.table import RULES, TableWrong, read, table
from fhircm.coordination.longitudinal.terms import Terms, known
from fhircm.coordination.longitudinal.words import told
from fhircm.fhir.artefacts import folder
from fhircm.fhir.validation import check, check_tree
from fhircm.store.operations import Put

SCT, ICD, NPI = "http://snomed.info/sct", "http://hl7.org/fhir/sid/icd-10-cm", "http://hl7.org/fhir/sid/us-npi"
DIABETES, E11, E119, E1165, I10 = (SCT, "44054006"), (ICD, "E11"), (ICD, "E11.9"), (ICD, "E11.65"), (ICD, "I10")
TERMS = Terms({E119: DIABETES, DIABETES: DIABETES}, frozenset({(DIABETES, E11), (E1165, E11)}))


def concept(*codes, text=None):
    coding = [{"system": system, "code": code} for system, code in codes]
    return {**({"coding": coding} if coding else {}), **({"text": text} if text else {})}


def condition(*codes, text=None, **more):
    return {"resourceType": "Condition", "code": concept(*codes, text=text), **more}


def goal(*codes, text=None, **more):
    return {"resourceType": "Goal", "lifecycleStatus": "active", "description": concept(*codes, text=text), **more}


def order(*codes, **more):
    return {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "code": concept(*codes), **more}


def sources(*trees, voices="abcdefgh"):
    return [Source(tree["resourceType"], f"r{at}", tree, voices[at]) for at, tree in enumerate(trees)]


def records(found, **more):
    return Records(("p1", "p2"), {one.reference: one for one in found}, terms=TERMS, **more)


def grouped(things):
    return [[one.id for one in thing.sources] for thing in things]


@pytest.mark.parametrize(
    ("trees", "groups"),
    [
        ([condition(DIABETES), condition(DIABETES)], [["r0", "r1"]]),
        ([condition(DIABETES), condition(E119)], [["r0", "r1"]]),  # by a concept map
        ([condition(E11), condition(E119)], [["r0", "r1"]]),  # one is the broader
        ([condition(DIABETES), condition(I10)], [["r0"], ["r1"]]),
        ([condition(text="Gout"), condition(text="gout")], [["r0"], ["r1"]]),  # words alone are not enough
        ([condition(E119), condition(E1165), condition(E11)], [["r0"], ["r1"], ["r2"]]),  # the broad one would join two kinds
        ([condition(E119), condition(E1165), condition(E119)], [["r0", "r2"], ["r1"]]),
        ([condition(I10, abatementDateTime="2015"), condition(I10, onsetDateTime="2020")], [["r0"], ["r1"]]),
        ([condition(I10, abatementDateTime="2021"), condition(I10, onsetDateTime="2020")], [["r0", "r1"]]),
    ],
)
def test_problems(trees, groups):
    found = sources(*trees)
    assert grouped(recognition.problems(records(found), found)) == groups


@pytest.mark.parametrize(
    ("trees", "groups"),
    [
        ([goal(DIABETES), goal(E119)], [["r0", "r1"]]),
        ([goal(text="Walk daily"), goal(text="walk  daily.")], [["r0", "r1"]]),
        ([goal(text="Walk", target=[{"dueDate": "2026-01-01"}]), goal(text="Walk")], [["r0"], ["r1"]]),
        (
            [goal(DIABETES, addresses=[{"reference": "Condition/x"}]), goal(DIABETES, addresses=[{"reference": "Condition/y"}])],
            [["r0"], ["r1"]],
        ),
        ([goal(DIABETES, addresses=[{"reference": "Condition/x"}]), goal(DIABETES)], [["r0", "r1"]]),
        (
            [
                goal(DIABETES, addresses=[{"reference": "Condition/x"}]),
                goal(DIABETES, addresses=[{"reference": "Condition/same"}]),
            ],
            [["r0", "r1"]],
        ),
        (
            [goal(DIABETES, target=[{"measure": concept(I10)}]), goal(DIABETES, target=[{"measure": concept(E119)}])],
            [["r0"], ["r1"]],
        ),
    ],
)
def test_goals(trees, groups):
    found = sources(*trees)
    of = {"Condition/same": "Condition/x"}
    assert grouped(recognition.goals(records(found), found, of)) == groups


@pytest.mark.parametrize(
    ("trees", "groups"),
    [
        ([order(identifier=[{"system": "s", "value": "1"}]), order(identifier=[{"system": "s", "value": "1"}])], [["r0", "r1"]]),
        ([order(identifier=[{"value": "1"}]), order(identifier=[{"value": "1"}])], [["r0"], ["r1"]]),
        ([order(I10, authoredOn="2026-01-01"), order(I10, authoredOn="2026-01-01T10:00:00Z")], [["r0", "r1"]]),
        ([order(I10, authoredOn="2026-01-01"), order(I10, authoredOn="2026-01-02")], [["r0"], ["r1"]]),
        ([order(I10), order(I10)], [["r0"], ["r1"]]),
    ],
)
def test_activities(trees, groups):
    found = sources(*trees)
    assert grouped(recognition.activities(records(found), found)) == groups


def person(**more):
    return {
        "resourceType": "RelatedPerson",
        "name": [{"family": "Okafor", "given": ["Ben"]}],
        "relationship": [concept(("r", "SPS"))],
        **more,
    }


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"identifier": [{"system": NPI, "value": "1"}]}, {"identifier": [{"system": NPI, "value": "1"}]}, True),
        ({"identifier": [{"system": NPI, "value": "1"}]}, {"identifier": [{"system": NPI, "value": "2"}]}, False),
        ({"name": [{"family": "Reyes"}]}, {"name": [{"family": "Reyes"}]}, False),
        (
            {"identifier": [{"system": NPI, "value": "1"}, {"system": "s", "value": "9"}]},
            {"identifier": [{"system": NPI, "value": "2"}, {"system": "s", "value": "9"}]},
            False,
        ),
        (
            person(telecom=[{"system": "phone", "value": "(312) 555-0147"}]),
            person(telecom=[{"system": "phone", "value": "+1 312 555 0147"}]),
            True,
        ),
        (person(telecom=[{"system": "phone", "value": "(312) 555-0147"}]), person(), False),
    ],
)
def test_members(one, other, same):
    type = one.get("resourceType", "Practitioner")
    teams = sources(*({"resourceType": "CareTeam", "participant": [{"member": {"reference": f"{type}/{id}"}}]} for id in "ab"))
    others = {f"{type}/a": {"resourceType": type, **one}, f"{type}/b": {"resourceType": type, **other}}
    groups = recognition.members(records(teams, others=others), teams)
    assert (len(groups) == 1) is same


# --- who is right --------------------------------------------------------------------------------------------------------------


def below(value, comparator="<", unit="%", **more):
    return [{"detailQuantity": {"value": value, "comparator": comparator, "unit": unit}, **more}]


@pytest.mark.parametrize(
    ("element", "one", "other", "rule", "chosen"),
    [
        ("target", goal(target=below(7)), goal(target=below(8)), "strictest", 0),
        ("target", goal(target=below(7, ">")), goal(target=below(8, ">")), "strictest", 1),
        ("target", goal(target=below(7, ">")), goal(target=below(8)), "", None),
        ("target", goal(target=below(7, unit="mmol/L")), goal(target=below(8)), "", None),
        ("target", goal(target=below(7)), goal(target=below(7, dueDate="2026-05-01")), "strictest", 1),
        ("target", goal(target=[{"dueDate": "2026-05-01"}]), goal(target=[{"dueDate": "2026-04"}]), "strictest", 1),
        ("target", goal(target=[{"dueDate": "2026-05-01"}]), goal(target=below(7)), "", None),
        ("target", goal(target=below(7)), goal(), None, None),  # what one does not say is no difference
        (
            "achievementStatus",
            goal(achievementStatus=concept(("a", "improving"))),
            goal(achievementStatus=concept(("a", "worsening"))),
            "",
            None,
        ),
        (
            "achievementStatus",
            goal(achievementStatus=concept(("a", "improving")), statusDate="2026-01-02"),
            goal(achievementStatus=concept(("a", "worsening")), statusDate="2026-01-01"),
            "newest",
            0,
        ),
        (
            "achievementStatus",
            goal(achievementStatus=concept(("a", "improving")), statusDate="2026"),  # the year may lie behind the day
            goal(achievementStatus=concept(("a", "worsening")), statusDate="2026-01-01"),
            "",
            None,
        ),
        (
            "priority",
            goal(priority=concept(("p", "low-priority"))),
            goal(priority=concept(("p", "high-priority"))),
            "strictest",
            1,
        ),
        ("start[x]", goal(startDate="2026-02-01"), goal(startDate="2025-02-01"), "oldest", 1),
        ("description", goal(DIABETES, text="a"), goal(E119, text="b"), None, None),  # the same code in other words
    ],
)
def test_rules_by_what_is_said(element, one, other, rule, chosen):
    found = sources(one, other)
    answer = settled(records(found), recognition.Thing(tuple(found)), element, {})
    if rule is None:
        assert answer.conflict is None
    else:
        expected = None if chosen is None else f"Goal/r{chosen}"
        assert (answer.conflict.rule, answer.conflict.chosen) == (rule, expected)
        assert answer.conflict.asks is (rule == "" and table().rules["Goal"][element][-1] == "human")


def test_rules_by_who_says_it():
    states = [condition(I10, clinicalStatus=concept(("c", one))) for one in ("active", "resolved")]
    found = sources(*states)
    thing = recognition.Thing(tuple(found))
    answer = settled(records(found, primary_care=frozenset({"b"})), thing, "clinicalStatus", {})
    assert (answer.conflict.rule, answer.conflict.chosen) == ("primary-care", "Condition/r1")
    both = settled(records(found, primary_care=frozenset({"a", "b"})), thing, "clinicalStatus", {})
    assert both.conflict.asks  # two general practitioners that disagree are no authority
    said = settled(records(found), thing, "clinicalStatus", {both.conflict.fingerprint: "Condition/r0"})
    assert (said.conflict.rule, said.conflict.chosen, said.conflict.asks) == ("human", "Condition/r0", False)
    lists = [Source("Goal", f"r{at}", goal(category=[concept(("c", str(at)))]), "a", own=at == 1) for at in range(2)]
    assert len(settled(records(lists), recognition.Thing(tuple(lists)), "category", {}).members["category"]) == 2
    own = [
        Source(one.type, one.id, goal(lifecycleStatus=state) | {"lifecycleStatus": state}, one.voice, one.own)
        for one, state in zip(lists, ("active", "on-hold"), strict=True)
    ]
    assert settled(records(own), recognition.Thing(tuple(own)), "lifecycleStatus", {}).conflict.chosen == "Goal/r1"


def test_a_table_that_cannot_be_followed_is_refused_with_its_place():
    whole = {"asserted": {}, "author": {}, "current": {}, "problems": [], "not_an_activity": [], "priorities": []}
    for rules, words in (
        ({"Goal": {"target": ["loudest"]}}, "rules.Goal.target: 'loudest'"),
        ({"Wish": {}}, "rules.Wish"),
        ({"Goal": {"target": ["human", "newest"]}}, "'human' comes last"),
        ({"Goal": {"target": ["union", "newest"]}}, "'union' stands alone"),
    ):
        with pytest.raises(TableWrong, match=words):
            read({**whole, "rules": rules})
    assert {one for of in table().rules.values() for chain in of.values() for one in chain} == RULES


# --- whatever records there are ------------------------------------------------------------------------------------------------

CODES = st.lists(st.sampled_from([DIABETES, E11, E119, E1165, I10]), max_size=2, unique=True)
TEXT = st.sampled_from([None, "Gout", "gout", "Walk daily"])
DATE = st.sampled_from(["2015", "2020-03-01", "2024-06-30"])
REF = st.integers(0, 9)


@st.composite
def tree(draw, at):
    type = draw(st.sampled_from(["Condition", "Goal", "ServiceRequest", "CareTeam", "CarePlan"]))
    patient = {"reference": f"Patient/p{draw(st.integers(1, 2))}"}
    made = {"resourceType": type, "id": f"r{at}", "subject": patient}
    what = concept(*draw(CODES), text=draw(TEXT)) or {"text": "x"}
    if type == "Condition":
        made |= {"code": what, "clinicalStatus": concept(("c", draw(st.sampled_from(["active", "resolved"]))))}
        made |= draw(st.sampled_from([{}, {"onsetDateTime": draw(DATE)}, {"abatementDateTime": draw(DATE)}]))
        made |= {"category": [concept(("k", draw(st.sampled_from(["problem-list-item", "encounter-diagnosis"]))))]}
    elif type == "Goal":
        made |= {"description": what, "lifecycleStatus": draw(st.sampled_from(["active", "on-hold", "cancelled"]))}
        made |= {"target": below(draw(st.integers(5, 8)))} if draw(st.booleans()) else {}
        made |= {"addresses": [{"reference": f"Condition/r{draw(REF)}"}]} if draw(st.booleans()) else {}
    elif type == "ServiceRequest":
        made |= {
            "code": what,
            "status": draw(st.sampled_from(["active", "completed"])),
            "intent": "order",
            "authoredOn": draw(DATE),
        }
    elif type == "CareTeam":
        made |= {"status": "active", "participant": [{"role": [what], "member": {"reference": f"Practitioner/d{draw(REF)}"}}]}
    else:
        made |= {"status": draw(st.sampled_from(["active", "completed"])), "intent": "plan"}
        made |= {"activity": [{"reference": {"reference": f"ServiceRequest/r{draw(REF)}"}}]}
    return Source(type, f"r{at}", made, draw(st.sampled_from("abc")), draw(st.booleans()), draw(st.integers(0, 9)) == 0)


@settings(max_examples=120)
@given(st.integers(1, 10).flatmap(lambda n: st.tuples(*(tree(at) for at in range(n)))), st.randoms(use_true_random=False))
def test_any_order_makes_the_same_plan_and_each_source_is_in_it_or_left_out_with_a_reason(found, shuffle):
    doctors = {
        f"Practitioner/d{at}": {"resourceType": "Practitioner", "identifier": [{"system": NPI, "value": str(at // 2)}]}
        for at in range(10)
    }

    def of(order):
        plan = planned(records(order, others=doctors), {})
        parts = [care_plan(plan, "p1", {"reference": "Organization/o"}), care_team(plan, "p1"), *plan.merged.values()]
        return plan, json.dumps([one for one in parts if one], sort_keys=True, default=str)

    plan, written = of(found)
    other = list(found)
    shuffle.shuffle(other)
    assert of(other)[1] == written
    left = {one.reference for one in plan.left}
    assert all(one.reason for one in plan.left)
    for one in found:
        assert (f'"{one.reference}"' in written) != (one.reference in left) or one.type == "CarePlan" or _in_a_conflict(plan, one)
        assert f'"{one.reference}"' in written or one.reference in left
    for one in json.loads(written):
        check_tree(one)


def _in_a_conflict(plan, one):
    """What was overruled is left out, and named by the conflict."""
    return any(one.reference in conflict.sources for conflict in plan.conflicts)


# --- what the terminology of the hub knows ---------------------------------------------------------------------------------------


async def test_concept_maps_and_code_systems_of_the_hub_tell_what_is_the_same_and_what_is_broader(store):
    group = {
        "source": ICD,
        "target": SCT,
        "element": [{"code": "E11.9", "target": [{"code": "44054006", "equivalence": "equivalent"}]}],
    }
    mapped = {"resourceType": "ConceptMap", "id": "m", "url": "https://x.example/m", "status": "active", "group": [group]}
    concepts = [{"code": "E11", "concept": [{"code": "E11.9"}, {"code": "E11.65"}]}]
    system = {"resourceType": "CodeSystem", "id": "s", "url": ICD, "status": "active", "content": "fragment", "concept": concepts}
    await store.transact([Put(check(json.dumps(one).encode())) for one in (mapped, system)], origin="load")
    terms = await known(store, [DIABETES, E11, E119, E1165, I10])
    assert terms.related([DIABETES], [E119])
    assert terms.related([DIABETES], [E11])  # over the map and the hierarchy
    assert terms.related([E1165], [E11])
    assert not terms.related([E1165], [E119])
    assert not terms.related([I10], [E11])


async def test_the_plan_in_words_names_every_source_and_every_difference():
    found = sources(
        condition(DIABETES, text="Diabetes", subject={"reference": "Patient/p1"}),
        goal(I10, text="Weight", target=below(7)),
        goal(I10, text="Weight", target=below(8)),
        order(I10) | {"status": "revoked"},
        {
            "resourceType": "CarePlan",
            "status": "active",
            "activity": [{"detail": {"status": "scheduled", "description": "Call"}}],
        },
    )
    plan = planned(records(found), {})
    text = await told(SimpleNamespace(), plan)
    for one in found[:3]:
        assert f"{one.voice}: " in text and f"[{one.reference}]" in text
    assert "Goal.target: by the rule 'strictest' Goal/r1 stands" in text
    assert "a: Diabetes" in text and "< 7 %" in text and "< 8 %" in text
    assert "ServiceRequest/r3: its state is 'revoked'" in text
    assert "Call (scheduled)" in text


def test_the_page_of_the_rules_is_the_table():
    page = (folder("mappings").parent / "docs/reference/longitudinal-rules.md").read_text()
    written = [
        f"| `{type}.{name}` | {', '.join(f'`{one}`' for one in chain)} |"
        for type, of in table().rules.items()
        for name, chain in of.items()
    ]
    assert [line for line in page.splitlines() if line.startswith("| `") and "." in line.split("|")[1]] == written
