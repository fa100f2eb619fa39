"""A partner.yaml is read strictly: each mistake is told with file, key and remedy."""

import re
from datetime import date

import pytest
import yaml

from fhircm.exchange.partners import PartnerWrong, load_partner, load_partners

GOOD = {
    "vendor": "epic",
    "base_url": "https://ehr.example/fhir/",
    "client_id": "fhircm",
    "algorithm": "ES384",
    "scopes": ["system/Patient.rs", "system/*.read"],
    "organization": {"id": "org-1", "name": "North Clinic", "npi": "1234567893"},
    "time_zone": "America/Chicago",
    "calendar": {"country": "US", "subdivision": "IL", "closed": [date(2026, 12, 24)], "weekend": ["friday", "saturday"]},
    "panel": {"group": "panel"},
    "pull": [
        {"type": "CarePlan", "searches": [{"patient": "{patient}", "category": "assess-plan"}], "last_updated": True},
        {"type": "Practitioner", "by_reference": True},
    ],
}


def written(folder, name="north-clinic", text=None, **changes):
    path = folder / name / "partner.yaml"
    path.parent.mkdir(exist_ok=True, parents=True)
    tree = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    path.write_text(text if text is not None else yaml.safe_dump(tree, sort_keys=False))
    return path


def test_a_good_file_is_read(tmp_path):
    partner = load_partner(
        written(tmp_path, limits={"page_size": "none", "requests_per_second": 5}, headers={"Epic-Client-ID": "1"})
    )
    assert (partner.name, partner.base_url, partner.group) == ("north-clinic", "https://ehr.example/fhir", "panel")
    assert partner.folder == tmp_path / "north-clinic"
    assert partner.calendar.weekend == (4, 5)
    assert partner.calendar.closed == (date(2026, 12, 24),)
    assert partner.limits.page_size is None
    assert partner.limits.requests_per_second == 5.0
    assert partner.pull[0].searches == ((("patient", "{patient}"), ("category", "assess-plan")),)
    assert partner.pull[0].last_updated
    assert partner.types == {"Patient", "CarePlan", "Practitioner"}
    assert partner.prefer_handling == "strict"


def test_an_address_may_be_replaced(tmp_path):
    written(tmp_path)
    [partner] = load_partners(tmp_path, {"north-clinic": "http://127.0.0.1:9000/r4/"})
    assert partner.base_url == "http://127.0.0.1:9000/r4"


def test_partners_are_chosen_by_name(tmp_path):
    written(tmp_path)
    written(tmp_path, "south-clinic")
    assert [partner.name for partner in load_partners(tmp_path)] == ["north-clinic", "south-clinic"]
    assert [partner.name for partner in load_partners(tmp_path, names=["south-clinic"])] == ["south-clinic"]
    with pytest.raises(PartnerWrong, match="no partner east; it has: north-clinic, south-clinic"):
        load_partners(tmp_path, names=["east"])
    with pytest.raises(PartnerWrong, match="no partner weast"):
        load_partners(tmp_path, {"weast": "https://x.example"})


def test_the_shipped_partners_are_good():
    partners = {partner.name: partner for partner in load_partners()}
    assert {"lakeside-hospital", "riverbend-clinic"} <= partners.keys()
    assert partners["lakeside-hospital"].algorithm == "RS384"
    assert partners["riverbend-clinic"].algorithm == "ES384"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"colour": "red"}, "colour is not a key that fhircm knows here"),
        ({"vendor": None}, "vendor is missing: give"),
        ({"vendor": ""}, "vendor must be"),
        ({"vendor": 7}, r"vendor must be .*put it in quotes"),
        ({"base_url": "ehr.example/fhir"}, "base_url must be an http or https URL"),
        ({"base_url": "https://me:secret@ehr.example/fhir"}, "base_url must be an http or https URL without"),
        ({"base_url": "https://ehr.example/fhir?x=1"}, "base_url must be"),
        ({"algorithm": "HS256"}, "algorithm must be one of RS384, ES384"),
        ({"scopes": ["system/Patient.sr"]}, r"scopes\[0\] must be a system scope"),
        ({"scopes": ["system/Patient."]}, r"scopes\[0\] must be a system scope"),
        ({"organization": {**GOOD["organization"], "npi": "1234567890"}}, "organization.npi is not an NPI"),
        ({"organization": {**GOOD["organization"], "npi": 1234567893}}, "organization.npi must be .*in quotes"),
        ({"organization": {**GOOD["organization"], "phone": "1"}}, "organization.phone is not a key"),
        ({"time_zone": "Chicago"}, "time_zone must be an IANA time zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone must be an IANA time zone"),
        ({"calendar": {"country": False}}, "calendar.country must be .*in quotes"),
        ({"calendar": {"country": "XX"}}, "calendar.country is not a country"),
        ({"calendar": {"country": "US", "subdivision": "Illinois"}}, "calendar.subdivision is not one of US"),
        ({"calendar": {"country": "US", "closed": ["Christmas"]}}, r"calendar.closed\[0\] must be a date"),
        ({"calendar": {"country": "US", "weekend": ["sun"]}}, r"calendar.weekend\[0\] must be one of monday"),
        (
            {"calendar": {"country": "US", "hours": [{"days": ["monday"], "from": "22:00", "to": "06:00"}]}},
            r"calendar.hours\[0\].to must be later",
        ),
        (
            {"calendar": {"country": "US", "hours": [{"days": ["sunday"], "from": "08:00", "to": "12:00"}]}},
            r"calendar.hours\[0\].days are of the weekend",
        ),
        ({"panel": {"group": "a/b"}}, "panel.group must be"),
        ({"panel": "panel"}, "panel must be"),
        ({"pull": [{"type": "CarePlans", "by_reference": True}]}, r"pull\[0\].type must be an R4 resource type"),
        ({"pull": [{"type": "CarePlan"}]}, r"pull\[0\] finds nothing"),
        ({"pull": [{"type": "Patient", "by_reference": True}]}, r"pull\[0\].type Patient is always pulled"),
        (
            {"pull": [{"type": "Goal", "by_reference": True}, {"type": "Goal", "by_reference": True}]},
            r"pull\[1\].type Goal stands",
        ),
        (
            {"pull": [{"type": "Goal", "searches": [{"patiend": "{patient}"}]}]},
            r"pull\[0\].searches\[0\].patiend is not a search",
        ),
        ({"pull": [{"type": "Goal", "searches": [{"category": "x"}]}]}, r"searches\[0\] must hold \{patient\}"),
        ({"pull": [{"type": "Goal", "searches": [{"patient": "{person}"}]}]}, "no other placeholder"),
        ({"pull": [{"type": "Goal", "by_reference": "yes"}]}, r"by_reference must be true or false"),
        ({"limits": {"concurrency": 0}}, "limits.concurrency must be a number from 1"),
        ({"limits": {"concurrency": True}}, "limits.concurrency must be a number"),
        ({"limits": {"timeout": "long"}}, "limits.timeout must be a number"),
        ({"headers": {"Authorization": "x"}}, "headers.Authorization is set by fhircm itself"),
        ({"headers": {"X-Tenant": "a\r\nb"}}, "headers.X-Tenant must be"),
        ({"quirks": {"prefer_handling": "maybe"}}, "quirks.prefer_handling must be one of strict"),
        ({"deliver": []}, "deliver must be a mapping"),
    ],
)
def test_each_mistake_is_told_with_its_place(tmp_path, change, told):
    path = written(tmp_path, **change)
    with pytest.raises(PartnerWrong, match=f"^{re.escape(str(path))}: .*{told}"):
        load_partner(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vendor: [", "is not YAML: .*line"),
        ("vendor: a\nvendor: b", "the key vendor stands twice"),
        ("- a", "the file must be a mapping"),
        ("", "the file must be a mapping"),
        ("when: 2026-13-45", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_what_is_no_mapping_is_told(tmp_path, text, told):
    with pytest.raises(PartnerWrong, match=told):
        load_partner(written(tmp_path, text=text))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(PartnerWrong, match="cannot be read: No such file"):
        load_partner(tmp_path / "nobody" / "partner.yaml")


def test_the_folder_name_is_the_name(tmp_path):
    with pytest.raises(PartnerWrong, match="folder's name must be"):
        load_partner(written(tmp_path, "North Clinic"))
