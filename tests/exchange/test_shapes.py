"""A shape says what follows from the vendor, a partner.yaml what is its own; each mistake names the file that it stands in."""

import re

import pytest
import yaml

from fhircm.exchange.outbound import check_deliver
from fhircm.exchange.partners import PartnerWrong, load_partner
from fhircm.exchange.shapes import recognised, shapes
from fhircm.exchange.ways import habits
from fhircm.sandbox.ehr import vendor, vendors

OWN = {
    "shape": "mine",
    "client_id": "fhircm",
    "organization": {"id": "org-1", "name": "North Clinic", "npi": "1234567893"},
    "time_zone": "America/Chicago",
    "calendar": {"country": "US"},
    "panel": {"group": "panel"},
    "parameters": {"practice": "ABC123"},
}
SHAPE = {
    "vendor": "mine",
    "software": ["mine ehr"],
    "parameters": {"practice": {"means": "the practice's code, six characters", "pattern": "[A-Z0-9]{6}"}},
    "base_url": "https://ehr.example/fhir/{practice}",
    "algorithm": "RS384",
    "scopes": ["system/Patient.read"],
    "limits": {"page_size": 7, "concurrency": 2},
    "headers": {"X-Practice": "{practice}", "X-Other": "1"},
    "search_parameters": {"practice": "{practice}"},
    "quirks": {"prefer_handling": "none", "next_link": "rebased"},
    "pull": [
        {"type": "CarePlan", "searches": [{"patient": "{patient}", "category": "assess-plan"}], "last_updated": "declared"},
        {"type": "Goal", "searches": [{"patient": "{patient}"}], "last_updated": True},
        {"type": "Practitioner", "by_reference": True},
    ],
    "deliver": {"message": [["message", "letter"]], "transition-opened": [["message"]]},
    "outbound": {"Communication": {"find": {"recipient": "{recipient}"}}},
}


def written(folder, over=None, **changes):
    """A partner.yaml over a shape of the operator's own; what is None is left out."""

    def without(tree):
        return {name: value for name, value in tree.items() if value is not None}

    for path, tree in (
        (folder / "shape" / "mine.yaml", without({**SHAPE, **(over or {})})),
        (folder / "north-clinic" / "partner.yaml", without({**OWN, **changes})),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "north-clinic" / "partner.yaml"


def pulled(partner):
    return {one.type: one for one in partner.pull}


def test_what_the_partner_does_not_say_its_shape_says(tmp_path):
    partner = load_partner(written(tmp_path))
    assert (partner.vendor, partner.shape, partner.base_url) == ("mine", "mine", "https://ehr.example/fhir/ABC123")
    assert partner.headers == {"X-Practice": "ABC123", "X-Other": "1"}
    assert partner.search_parameters == (("practice", "ABC123"),)
    assert (partner.limits.page_size, partner.limits.concurrency, partner.limits.attempts) == (7, 2, 4)
    assert (partner.prefer_handling, partner.rebase_links) == (None, True)
    assert [one.type for one in partner.pull] == ["CarePlan", "Goal", "Practitioner"]
    assert (pulled(partner)["CarePlan"].last_updated, pulled(partner)["CarePlan"].if_declared) == (False, True)
    assert set(partner.deliver) == {"message", "transition-opened"}


def test_what_the_partner_says_goes_before_key_by_key_and_type_by_type(tmp_path):
    partner = load_partner(
        written(
            tmp_path,
            base_url="https://proxy.example/x/",
            limits={"concurrency": 9},
            headers={"X-Other": None, "X-More": "2"},
            search_parameters={"practice": None},
            quirks={"next_link": "as-sent"},
            pull=[
                {"type": "CarePlan", "last_updated": False},
                {"type": "Goal", "leave_out": True},
                {"type": "Task", "searches": [{"patient": "{patient}", "_has": "{practice}"}]},
            ],
            deliver={"message": [["letter"]], "transition-opened": []},
        )
    )
    assert partner.base_url == "https://proxy.example/x"
    assert (partner.limits.page_size, partner.limits.concurrency) == (7, 9)
    assert partner.headers == {"X-Practice": "ABC123", "X-More": "2"}
    assert partner.search_parameters == ()
    assert (partner.prefer_handling, partner.rebase_links) == (None, False)
    assert list(pulled(partner)) == ["CarePlan", "Practitioner", "Task"]
    assert pulled(partner)["CarePlan"].searches == ((("patient", "{patient}"), ("category", "assess-plan")),)
    assert not pulled(partner)["CarePlan"].if_declared
    assert pulled(partner)["Task"].searches == ((("patient", "{patient}"), ("_has", "ABC123")),)
    assert partner.deliver == {"message": [["letter"]]}


def test_a_parameter_may_stand_in_a_search_more_than_once(tmp_path):
    search = {"patient": "{patient}", "date": ["ge2020-01-01", "lt2030-01-01"]}
    partner = load_partner(written(tmp_path, pull=[{"type": "CarePlan", "searches": [search]}]))
    assert pulled(partner)["CarePlan"].searches[0][1:] == (("date", "ge2020-01-01"), ("date", "lt2030-01-01"))


def test_what_is_sent_otherwise_is_the_shapes_and_over_it_the_partners(tmp_path):
    path = written(tmp_path)
    assert load_partner(path).outbound["Communication"] == {"find": {"recipient": "{recipient}"}}
    (path.parent / "outbound.yaml").write_text("Communication: {leave-out: [note]}")
    assert habits(load_partner(path), "Communication") == {"find": {"recipient": "{recipient}"}, "leave-out": ["note"]}


@pytest.mark.parametrize(
    ("shape", "own", "file", "told"),
    [
        ({}, {"shape": "yours"}, "partner", "shape must be one of .*epic.*mine"),
        ({}, {"parameters": {}}, "partner", "parameters.practice is missing: give the practice's code, six characters"),
        ({}, {"parameters": {"practice": "abc"}}, "partner", "parameters.practice must be the practice's code"),
        ({}, {"parameters": {"practice": "ABC123", "site": "1"}}, "partner", "parameters.site is not a key"),
        ({"parameters": {"practice": {"pattern": "["}}}, {}, "shape", "parameters.practice.means is missing"),
        (
            {"parameters": {"practice": {"means": "x", "pattern": "["}}},
            {},
            "shape",
            "parameters.practice.pattern must be a regular",
        ),
        ({"colour": "red"}, {}, "shape", "colour is not a key that fhircm knows here"),
        ({}, {"colour": "red"}, "partner", "colour is not a key that fhircm knows here"),
        ({"software": ["Mine"]}, {}, "shape", r"software\[0\] must be a text in small letters"),
        ({"limits": {"page_size": 0}}, {}, "shape", "limits.page_size must be a number"),
        ({}, {"limits": {"page_size": 0}}, "partner", "limits.page_size must be a number"),
        ({"limits": {"pace": 1}}, {}, "shape", "limits.pace is not a key"),
        ({"algorithm": "HS256"}, {}, "shape", "algorithm must be one of"),
        ({"algorithm": None}, {}, "partner", "algorithm is missing"),
        ({"scopes": ["x"]}, {}, "shape", r"scopes\[0\] must be a system scope"),
        ({"base_url": "https://x.example/{site}"}, {}, "shape", r"base_url may hold no other placeholder than \{practice\}"),
        ({"headers": {"Accept": "x"}}, {}, "shape", "headers.Accept is set by fhircm itself"),
        ({"pull": [{"type": "Goals", "by_reference": True}]}, {}, "shape", r"pull\[0\].type must be an R4 resource type"),
        (
            {},
            {"pull": [{"type": "Goal", "last_updated": "maybe"}]},
            "partner",
            r"pull\[0\].last_updated must be true, false or declared",
        ),
        ({}, {"pull": [{"type": "Task", "leave_out": True}]}, "partner", r"pull\[0\].leave_out has no meaning"),
        (
            {},
            {"pull": [{"type": "Goal", "searches": [{"patient": ["{patient}", 7]}]}]},
            "partner",
            r"pull\[0\].searches\[0\].patient must be a text",
        ),
        ({"deliver": []}, {}, "shape", "deliver must be a mapping"),
        ({}, {"panel": {"group": "a", "list": "b"}}, "partner", "panel.list stands beside group"),
        ({}, {"panel": {"roster": "../secret.csv"}}, "partner", "panel.roster must be the name of a .csv or .ndjson file"),
        ({}, {"panel": {"search": {}}}, "partner", "panel.search gives no search parameter"),
        ({}, {"panel": {"search": {"colour": "red"}}}, "partner", "panel.search.colour is not a search parameter of Patient"),
        (
            {},
            {"panel": {"search": {"type": "Patients", "name": "x"}}},
            "partner",
            "panel.search.type must be an R4 resource type",
        ),
    ],
)
def test_each_mistake_names_the_file_that_it_stands_in(tmp_path, shape, own, file, told):
    path = written(tmp_path, shape, **own)
    where = path if file == "partner" else tmp_path / "shape" / "mine.yaml"
    with pytest.raises(PartnerWrong, match=f"^{re.escape(str(where))}: {told}"):
        load_partner(path)


def test_an_operators_shape_goes_before_a_shipped_one_of_the_same_name(tmp_path):
    path = written(tmp_path)
    (tmp_path / "shape" / "mine.yaml").rename(tmp_path / "shape" / "epic.yaml")
    path.write_text(path.read_text().replace("shape: mine", "shape: epic"))
    assert load_partner(path).vendor == "mine"


@pytest.mark.parametrize("name", sorted(shapes()))
def test_what_a_shipped_shape_delivers_can_be_followed(name):
    tree = yaml.safe_load(shapes()[name].read_text())
    assert check_deliver(tree["deliver"])


@pytest.mark.parametrize("name", vendors())
def test_an_ehr_is_recognised_by_the_name_under_which_it_presents_itself(name):
    expected = [] if name == "r4" else [name]
    assert recognised(" ".join(vendor(name)["software"])) == expected
