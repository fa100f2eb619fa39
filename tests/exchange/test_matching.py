"""Two Patients are judged the same human on evidence, and never against a conflict."""

import copy
from datetime import date
from math import inf
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhircm.exchange.features import features, spellings, tables
from fhircm.exchange.matching import Thresholds, compare, own_thresholds, score
from fhircm.exchange.yaml_keys import Keys, YamlWrong

SSN = "http://hl7.org/fhir/sid/us-ssn"


def patient(family="Okafor", first="Amara", **changes):
    """A Patient as a registration desk writes one; keyword arguments replace elements, None removes one."""
    tree = {
        "resourceType": "Patient",
        "name": [{"use": "official", "family": family, "given": first.split()}],
        "birthDate": "1971-03-09",
        "gender": "female",
        "telecom": [{"system": "phone", "value": "(312) 555-0147", "use": "home"}],
        "address": [{"line": ["418 North Maple Street", "Apt 2"], "city": "Lakeside", "postalCode": "60611-1234"}],
        **changes,
    }
    return {name: value for name, value in tree.items() if value is not None}


def number(value, system=SSN, code="SS"):
    return {
        "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": code}]},
        "system": system,
        "value": value,
    }


def town(line, code, phone):
    return {"address": [{"line": [line], "postalCode": code}], "telecom": [{"system": "phone", "value": phone}]}


ELSEWHERE = town("9 Harbor Road", "97202", "503-555-0190")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(patient(), patient(), id="equal"),
        pytest.param(patient("Müller", "Jürgen"), patient("MUELLER", "Juergen"), id="umlauts written out"),
        pytest.param(patient("Müller", "Jürgen"), patient("Muller", "Jurgen"), id="umlauts dropped"),
        pytest.param(patient("Иванова", "Юлия"), patient("Ivanova", "Yuliya"), id="another alphabet"),
        pytest.param(patient("O'Brien", "Mary Ann"), patient("OBRIEN", "Maryann"), id="apostrophe and gap"),
        pytest.param(patient("de la Cruz"), patient("Cruz"), id="particles left out"),
        pytest.param(patient("García López"), patient("Garcia"), id="one of two surnames"),
        pytest.param(patient("Smith-Jones"), patient("Jones Smith"), id="surnames in another order"),
        pytest.param(patient("Nguyen", "Van Anh"), patient("Van Anh", "Nguyen"), id="parts in each other's place"),
        pytest.param(patient("Reed", "Robert James"), patient("Reed", "Bob J"), id="short form and initial"),
        pytest.param(
            patient(), patient(**town("418 n. maple st #2", "60611", "1-312-555-0147")), id="address and phone as typed"
        ),
        pytest.param(
            patient(),
            patient("Bianchi", name=[{"family": "Bianchi", "given": ["Amara"]}, {"use": "maiden", "family": "Okafor"}]),
            id="a name from before a wedding",
        ),
        pytest.param(patient(), patient(name=[{"text": "Okafor, Amara"}]), id="text alone"),
        pytest.param(patient(), patient(**ELSEWHERE), id="a rare name and birth date in another town"),
        pytest.param(patient("Smith", "Mary"), patient("Bianchi", "Mary"), id="a wedding that one of the two knows of"),
        pytest.param(patient("Smith", "Mary"), patient("Smiht", "Mary"), id="two letters in each other's place"),
        pytest.param(
            patient(identifier=[number("412-88-1930")]),
            patient(identifier=[number("412881930")], gender="male"),
            id="all but the gender, and a number of their own",
        ),
        pytest.param(
            patient(identifier=[number("412-88-1930")]),
            patient(identifier=[number("412881930")], **ELSEWHERE),
            id="moved, but with a number of their own",
        ),
        pytest.param(
            patient(identifier=[number("412-88-1930")]),
            patient(identifier=[number("412881930")], birthDate="1971-09-03"),
            id="day and month changed places, but a number and an address",
        ),
        pytest.param(patient(birthDate="1971-09-03"), patient(), id="day and month changed places at one house with one phone"),
    ],
)
def test_one_human_is_linked(one, other):
    assert score(one, other).decision == "link"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(patient("Lund", "Freya"), patient("Lund", "Astrid"), id="twins"),
        pytest.param(patient("Lund", "María Elena"), patient("Lund", "María Luisa"), id="twins with one first name"),
        pytest.param(
            patient("Reed", "James"), patient("Reed", "James", birthDate="1943-03-09"), id="parent and child of one name"
        ),
        pytest.param(patient("Lund", "Freya"), patient("Lund", "Nils", gender="male"), id="brother and sister"),
        pytest.param(patient("Lund", "Freya", birthDate="1971-05-01"), patient("Lund", "Astrid"), id="sisters with one phone"),
        pytest.param(patient("Lund", "Freya"), patient("Okafor", "Freya", **ELSEWHERE), id="one first name and birth date"),
        pytest.param(patient(name=None), patient(name=None), id="no names"),
        pytest.param(
            patient("Lund", "Baby Girl", birthDate="2024-01-01"),
            patient("Lund", "Baby Girl", birthDate="2024-01-01"),
            id="newborn",
        ),
    ],
)
def test_two_humans_are_distinct(one, other):
    assert score(one, other).decision == "distinct"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            patient("Smith", "Mary"), patient("Smith", "Mary", **ELSEWHERE), id="a common name and birth date in another town"
        ),
        pytest.param(patient("Lund", "Anna"), patient("Lund", "Anne"), id="twins, or a slip of the pen"),
        pytest.param(patient("Lund", "Sarah"), patient("Lund", "Sadie"), id="spellings that two sisters may bear"),
        pytest.param(patient(birthDate="1972-03-09"), patient(), id="a year between them, as between sisters"),
        pytest.param(
            patient(identifier=[number("412-88-1930")]),
            patient("Lund", "Freya", identifier=[number("412-88-1930")]),
            id="number alone",
        ),
        pytest.param(
            patient("Lund", "María Elena", multipleBirthBoolean=True),
            patient("Lund", "María", multipleBirthBoolean=True),
            id="a twin whose second name is missing",
        ),
        pytest.param(patient(), patient(gender="male"), id="all but the gender"),
    ],
)
def test_a_human_is_asked(one, other):
    assert score(one, other).decision == "possible"


VETOES = [
    pytest.param({"gender": "female"}, {"gender": "male"}, "gender", id="gender"),
    pytest.param({"identifier": [number("412-88-1930")]}, {"identifier": [number("412-88-1931")]}, "personal-id", id="number"),
    pytest.param(
        {"identifier": [number("M1-01", "https://payer.example/member", "MB")]},
        {"identifier": [number("M1-02", "https://payer.example/member", "MB")]},
        "member-id",
        id="member",
    ),
    pytest.param({"multipleBirthInteger": 1}, {"multipleBirthInteger": 2}, "birth-order", id="twins by birth order"),
    pytest.param(
        {"name": [{"family": "Reed", "given": ["James"], "suffix": ["Sr."]}]},
        {"name": [{"family": "Reed Jr", "given": ["James"]}]},
        "suffix",
        id="generation",
    ),
]


@pytest.mark.parametrize(("one", "other", "veto"), VETOES)
def test_a_conflict_forbids_a_link_whatever_else_agrees(one, other, veto):
    match = score(patient(**one), patient(**other))
    assert match.vetoes == (veto,)
    assert match.decision != "link"


def test_what_desks_fill_in_is_no_evidence():
    filled = patient(
        birthDate="1900-01-01",
        telecom=[{"system": "phone", "value": "000-000-0000"}],
        identifier=[number("999-99-9999")],
    )
    assert set(score(filled, filled).levels) == {"family", "given", "gender", "address"}
    assert score(filled, filled).decision == "distinct"


def test_half_a_number_is_no_number():
    """XXX-XX-1930 is that of many: it neither joins nor parts."""
    masked = (
        patient("Lund", "Freya", identifier=[number("XXX-XX-1930")]),
        patient(identifier=[number("XXX-XX-1930")], **ELSEWHERE),
    )
    assert "personal-id" not in score(*masked).levels
    assert score(masked[1], patient(identifier=[number("412-88-1930")], **ELSEWHERE)).vetoes == ()


def test_a_rare_name_weighs_more_than_a_common_one():
    rare, common = score(patient(), patient()), score(patient("Smith", "Mary"), patient("Smith", "Mary"))
    assert rare.levels == common.levels
    assert rare.score > common.score + 4


def test_a_partner_may_ask_for_more_and_never_for_less():
    one = features(patient())
    usual = compare(one, one)
    assert compare(one, one, [Thresholds(usual.score - 1, 0)]).decision == "link"
    assert compare(one, one, [Thresholds(usual.score + 1, 0), Thresholds(0, 0)]).decision == "possible"
    assert compare(one, one, [Thresholds(inf, usual.score + 1)]).decision == "distinct"
    thin = features(patient("Lund", "Freya")), features(patient("Okafor", "Amara", **ELSEWHERE))
    assert compare(*thin, [Thresholds(-inf, -inf)]) == compare(*thin)


def test_numbers_of_each_system_stand_for_themselves():
    """Medical record numbers differ by EHR, and two states may give one licence number."""
    mrn = patient(identifier=[number("123", "urn:oid:1.2.3", "MR")]), patient(identifier=[number("456", "urn:oid:1.2.3", "MR")])
    licences = patient(identifier=[number("S1", "urn:il", "DL")]), patient(identifier=[number("S2", "urn:or", "DL")])
    assert score(*mrn).vetoes == score(*licences).vetoes == ()


def test_a_verdict_names_elements_and_no_values():
    told = repr(score(patient(identifier=[number("412-88-1930")]), patient()))
    assert not any(value in told for value in ("Okafor", "okafor", "Amara", "1971", "412", "555", "Maple"))


def test_no_nickname_joins_two_names_that_are_spellings_of_each_other():
    """Two children may bear two spellings, so those never count as a short form."""
    nicknames = [set(line) for line in tables()["nicknames"]]
    full = [line[0] for line in tables()["nicknames"]]
    assert len(full) == len(set(full))
    for line in tables()["variants"]:
        assert not any(set(line) <= names for names in nicknames)
    assert all(spellings(name) == {name} for line in nicknames for name in line)


NAMES = st.sampled_from(
    ["Anna", "Anne", "Maria Elena", "Maria", "Bob", "Robert", "Robert J", "Юлия", "Müller", "Al", "Baby Boy", "X"]
)
FAMILIES = st.sampled_from(["Lund", "Lundt", "García López", "Garcia", "de la Cruz", "Cruz", "Reed Jr", "Reed", "Li", "Ng", "Ø"])
PLACES = st.sampled_from(
    [town("1 Elm St", "60611", "312-555-0101"), town("1 Elm Street", "60611", "312-555-0102"), ELSEWHERE, {}]
)
IDS = st.lists(
    st.builds(number, st.sampled_from(["412881930", "412881931", "999999999"]), st.sampled_from([SSN, "urn:x"]), st.sampled_from(["SS", "MB"])),
    max_size=2,
)  # fmt: skip


@st.composite
def patients(draw):
    birth = draw(st.sampled_from([date(1971, 3, 9), date(1971, 9, 3), date(1971, 3, 8), date(1943, 3, 9)]))
    return patient(
        draw(FAMILIES),
        draw(NAMES),
        birthDate=birth.isoformat()[: draw(st.sampled_from([10, 10, 10, 7, 4]))],
        gender=draw(st.sampled_from(["female", "male", "other", "unknown", None])),
        identifier=draw(IDS),
        multipleBirthInteger=draw(st.sampled_from([None, None, None, 1, 2])),
        **draw(PLACES),
    )


@settings(max_examples=600, deadline=None)
@given(patients(), patients())
def test_the_order_of_two_does_not_matter_and_no_link_crosses_a_veto(one, other):
    before = copy.deepcopy(one), copy.deepcopy(other)
    match = score(one, other)
    assert match == score(other, one)
    assert (one, other) == before
    if match.decision == "link":
        assert not match.vetoes or (match.vetoes == ("gender",) and match.levels["personal-id"] == "same")
        assert match.assurance in ("level3", "level4")
        assert match.levels.get("birth-date") in ("same", "slip") or match.levels["personal-id"] == "same"
        assert match.levels["given"] not in ("differs", "conflict")


@settings(max_examples=300, deadline=None)
@given(patients(), patients(), st.sampled_from([parameters.values for parameters in VETOES]))
def test_a_veto_added_to_any_pair_ends_every_link(one, other, veto):
    ours, theirs, name = veto
    match = score({**one, **ours}, {**other, **theirs})
    assert match.decision != "link" or (name == "gender" and match.levels["personal-id"] == "same")


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["name", "address", "telecom", "identifier"]), st.just([{}])),
    st.text(max_size=12),
    st.text(max_size=12),
)
def test_odd_text_is_no_stumbling_block(holes, family, first):
    one = patient(family, first, **holes)
    assert features(one) == features(copy.deepcopy(one))
    assert score(one, one) == score(copy.deepcopy(one), one)


def test_a_partner_yaml_can_only_ask_for_more():
    def read(tree):
        return own_thresholds(Keys(Path("partner.yaml"), "", tree))

    assert read({}) is None
    assert read({"identity": {"link": 32.5}}) == Thresholds(32.5, tables()["decision"]["possible"])
    assert read({"identity": {"link": "never", "possible": 20}}) == Thresholds(inf, 20)
    for wrong in ({"link": 1}, {"possible": "often"}, {"links": 30}):
        with pytest.raises(YamlWrong, match="identity"):
            read({"identity": wrong})
