"""Each vendor's rules, shown by its sandbox: with what the shape says the whole panel is read, with that one thing overridden it is not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from fhircm.exchange.capabilities import discover
from fhircm.exchange.client import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable
from fhircm.exchange.drift import followed
from fhircm.exchange.members import members
from fhircm.exchange.probe import habits
from fhircm.exchange.shapes import shapes
from fhircm.sandbox.ehr import vendors
from tests.sandbox.ehrs import InProcess

PATIENT = {"patient": "{patient}"}


async def everything(ehr, folder, **changes):
    """What the searches of a partner find for its panel, as Type/id; changes since long ago are everything too."""
    found = set()
    async with ehr.client(folder, **changes) as client:
        client.partner, _ = followed(client.given, await discover(client))
        for patient in await members(client):
            for one in client.partner.pull:
                for search in one.searches:
                    sent = [(name, value.replace("{patient}", patient)) for name, value in search]
                    matches = await client.search_all(one.type, sent)
                    if one.last_updated:
                        assert await client.search_all(one.type, [*sent, ("_lastUpdated", "ge2000-01-01")]) == matches
                    found |= {f"{match.type}/{match.id}" for match in matches}
    return found


@dataclass
class Quirk:
    """A vendor's rule. `handled` and `off` are keys of partner.yaml; `told` is what comes of its being overridden: an error and its words,
    or `less` or `more` than there is."""

    name: str
    shape: str
    off: dict[str, Any]
    told: Any
    words: str = ""
    handled: dict[str, Any] = field(default_factory=dict)
    habits: dict[str, Any] = field(default_factory=dict)


def type(name, *searches, **more):
    return {"pull": [{"type": name, **({"searches": list(searches)} if searches else {}), **more}]}


SMALL = {"default": 1, "most": 1, "beyond": "capped", "with_id": "honoured"}
QUIRKS = [
    Quirk("plans of a stay come by their category alone", "epic", type("CarePlan", PATIENT), "less"),
    Quirk(
        "a search of observations needs a category that it serves",
        "epic",
        type("Observation", {**PATIENT, "category": "procedure"}),
        PartnerRefused,
        "category may be laboratory",
        handled=type("Observation", {**PATIENT, "category": "laboratory"}),
    ),
    Quirk("episodes need their type", "epic", type("EpisodeOfCare", PATIENT), PartnerRefused, "patient.type"),
    Quirk(
        "a type that it does not have is answered by a web server", "epic", type("Flag", PATIENT), PartnerRefused, "404 .*HTML"
    ),
    Quirk(
        "nobody is found by what is no demographic",
        "epic",
        {"panel": {"search": {"general-practitioner": "Practitioner/x"}}},
        PartnerRefused,
        "needs _id or identifier",
    ),
    Quirk(
        "care teams need a category", "oracle", type("CareTeam", PATIENT), PartnerRefused, "_id or patient.category or encounter"
    ),
    Quirk(
        "plans are served of one category",
        "oracle",
        type("CarePlan", {**PATIENT, "category": "longitudinal"}),
        PartnerRefused,
        "category may be assess-plan",
    ),
    Quirk("_lastUpdated is refused for plans", "oracle", type("CarePlan", last_updated=True), PartnerRefused, "_lastUpdated"),
    Quirk(
        "a date needs both its ends",
        "oracle",
        type("CarePlan", {**PATIENT, "category": "assess-plan", "date": "ge2000-01-01"}),
        PartnerRefused,
        "with ge and with lt",
        handled=type("CarePlan", {**PATIENT, "category": "assess-plan", "date": ["ge2000-01-01", "lt2100-01-01"]}),
    ),
    Quirk("it has no Task", "oracle", type("Task", PATIENT), PartnerRefused, "404"),
    Quirk(
        "without its practice a search crosses into others", "athenahealth", {"search_parameters": {"ah-practice": None}}, "more"
    ),
    Quirk(
        "another practice is not this client's",
        "athenahealth",
        {"parameters": {"practice": "a-1.Practice-1"}},
        PartnerRefused,
        "403",
    ),
    Quirk("a page may not be too large", "athenahealth", {"limits": {"page_size": 500}}, PartnerRefused, "_count may be 100"),
    Quirk(
        "who asks too often must wait",
        "athenahealth",
        {"limits": {"attempts": 1}},
        PartnerUnavailable,
        "429",
        habits={"rate": {"burst": 5, "per_second": 5, "retry_after": 1}},
    ),
    Quirk("plans need a category", "meditech", type("CarePlan", PATIENT), PartnerRefused, "a search for CarePlan needs"),
    Quirk("it has no orders", "meditech", type("ServiceRequest", PATIENT), PartnerRefused, "unknown resource type"),
    Quirk(
        "_lastUpdated is refused",
        "meditech",
        type("Encounter", last_updated=True),
        PartnerRefused,
        "unknown parameter _lastUpdated",
    ),
    Quirk("each practice has its own address", "eclinicalworks", {"parameters": {"practice": "WRONG1"}}, PartnerRefused, "404"),
    Quirk("plans need a category", "eclinicalworks", type("CarePlan", PATIENT), PartnerRefused, "patient.category"),
    Quirk(
        "links to the next page name a host behind the proxy",
        "hapi",
        {"quirks": {"next_link": "as-sent"}},
        PartnerAnswerBroken,
        "another address than the partner's own",
        habits={"count": SMALL},
    ),
    Quirk(
        "a parameter that it does not know is passed over unless it shall not be",
        "r4",
        {**type("Goal", {**PATIENT, "_unheard": "x"}), "quirks": {"prefer_handling": "strict"}},
        PartnerRefused,
        "unknown parameter _unheard",
        handled={**type("Goal", {**PATIENT, "_unheard": "x"}), "quirks": {"prefer_handling": "lenient"}},
    ),
]


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: f"{quirk.shape}: {quirk.name}")
async def test_a_quirk_is_handled_by_its_shape_and_by_nothing_else(quirk, tmp_path):
    def ehr():
        made = InProcess(quirk.shape, **quirk.habits)
        plan = {
            "resourceType": "CarePlan",
            "status": "active",
            "intent": "plan",
            "category": [{"coding": [{"code": "734163000"}]}],
        }
        for patient in made.panel:
            made.chart.write({**plan, "subject": {"reference": f"Patient/{patient}"}})
            made.chart.write(
                {**plan, "category": [{"coding": [{"code": "assess-plan"}]}], "subject": {"reference": f"Patient/{patient}"}}
            )
        return made

    whole = await everything(ehr := ehr(), tmp_path, **quirk.handled)
    assert whole
    assert {one for one in whole if "elsewhere" in one} == set()
    if isinstance(quirk.told, str):
        found = await everything(ehr, tmp_path, **quirk.off)
        assert found < whole if quirk.told == "less" else found > whole
    else:
        with pytest.raises(quirk.told, match=quirk.words):
            await everything(ehr, tmp_path, **quirk.off)


@pytest.mark.parametrize("name", vendors())
@pytest.mark.parametrize("entries", [1, 2, 7])
async def test_every_shape_reads_its_sandbox_whole_whatever_the_size_of_a_page(name, entries, tmp_path):
    ehr = InProcess(name, count={"default": entries, "most": entries, "beyond": "capped", "with_id": "honoured"})
    types = {one.type: one for one in ehr.partner(tmp_path).pull if one.searches}
    for patient in ehr.panel:  # more of each than a page holds
        for type in types:
            for tree in ehr.chart.of_patient(type, patient)[:1]:
                for number in range(4):
                    ehr.chart.write(tree, f"{tree['id']}-{number}")
    there = {
        f"{tree['resourceType']}/{tree['id']}" for type in types for id in ehr.panel for tree in ehr.chart.of_patient(type, id)
    }
    assert await everything(ehr, tmp_path) == there


async def seen(ehr, folder, **changes):
    """What a probe sees wrong."""
    async with ehr.client(folder, **changes) as client:
        snapshot = await discover(client)
        types = [one for one in client.partner.pull if one.searches]
        found = await habits(client, snapshot, ehr.panel[0], types)
    return [habit.text for habit in found if habit.wrong], [habit.text for habit in found]


@pytest.mark.parametrize("name", vendors())
async def test_a_probe_finds_every_shape_in_accord_with_its_sandbox(name, tmp_path):
    wrong, found = await seen(InProcess(name), tmp_path)
    assert wrong == []
    assert found


@pytest.mark.parametrize(
    ("name", "changes", "habits", "text"),
    [
        ("epic", type("Condition", last_updated=True), {}, "Condition: _lastUpdated is passed over"),
        ("eclinicalworks", type("Goal", last_updated=True), {}, "Goal: _lastUpdated is passed over"),
        ("oracle", type("Goal", last_updated=True), {}, r"Goal: _lastUpdated is refused \(400\)"),
        ("hapi", {"quirks": {"next_link": "as-sent"}}, {"count": SMALL}, "Links to the next page name another address"),
    ],
)
async def test_a_probe_sees_what_a_shape_would_have_handled(name, changes, habits, text, tmp_path):
    ehr = InProcess(name, **habits)
    for tree in ehr.chart.of_patient("Encounter", ehr.panel[0])[:1]:
        ehr.chart.write(tree, "another")
    wrong, _ = await seen(ehr, tmp_path, **changes)
    assert len(wrong) == 1
    assert re.match(text, wrong[0])


async def test_a_declared_last_updated_that_is_none_is_seen(tmp_path):
    ehr = InProcess("r4")
    ehr.habits["types"] = {**ehr.habits["types"], "Goal": {**ehr.habits["types"]["Goal"], "last_updated": "claimed"}}
    wrong, _ = await seen(ehr, tmp_path)
    assert wrong == ["Goal: _lastUpdated is passed over: a search for what changed in a future year finds what there is"]
    wrong, _ = await seen(ehr, tmp_path, **type("Goal", last_updated=False))
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "scopes", "good"),
    [
        ("oracle", ["system/Patient.read", "system/CarePlan.read"], False),
        ("oracle", ["system/Patient.rs"], True),
        ("eclinicalworks", ["system/Patient.rs"], False),
        ("epic", ["system/Patient.read", "system/Task.rs"], True),
    ],
)
async def test_scopes_are_wanted_in_the_form_of_the_vendor(name, scopes, good, tmp_path):
    ehr = InProcess(name)
    sign_in = ehr.sign_in
    assert all(sign_in._scope(scope) for scope in ehr.partner(tmp_path).scopes)
    assert all(sign_in._scope(scope) is not None for scope in scopes) is good


def test_every_shape_that_is_shipped_has_a_sandbox_and_every_sandbox_a_shape():
    assert sorted(shapes()) == vendors()
