"""Who is in a panel: by Group, List, search or roster; nobody is guessed, and half an answer is none."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from fhircm.exchange.client import PartnerClient, PartnerRefused, PartnerUnavailable
from fhircm.exchange.members import members, named
from fhircm.exchange.roster import Membership, RosterWrong, lines
from fhircm.store.database import open_database
from fhircm.store.resources import Store
from tests.sandbox.ehrs import InProcess

MRN = "https://hospital.example/mrn"


async def found(ehr, folder, panel, store=None):
    told = []
    async with ehr.client(folder, panel=panel) as client:
        return await members(client, store, told.append), [str(one) for one in told]


def roster(folder, ehr, name, text):
    path = ehr.partner(folder).folder / name
    path.write_text(text)
    return {"roster": name}


async def test_the_members_of_a_group_who_are_active(tmp_path):
    ehr = InProcess("r4")
    one, two, three = ehr.panel[:3]
    member = [{"entity": {"reference": f"Patient/{one}"}}, {"entity": {"reference": f"Patient/{two}"}, "inactive": True}]
    member += [
        {"entity": {"reference": f"{ehr.base_url}/Patient/{three}"}},
        {"entity": {"reference": "Practitioner/x"}},
        {"entity": {}},
    ]
    ehr.chart.write({"resourceType": "Group", "type": "person", "actual": True, "member": member * 2}, "some")
    assert await found(ehr, tmp_path, {"group": "some"}) == ([one, three], [])


async def test_the_entries_of_a_list_that_are_not_deleted(tmp_path):
    ehr = InProcess("epic")
    one, two = ehr.panel[:2]
    entry = [
        {"item": {"reference": f"Patient/{one}"}},
        {"item": {"reference": f"Patient/{two}"}, "deleted": True},
        {"item": {"display": "x"}},
    ]
    ehr.chart.write({"resourceType": "List", "status": "current", "mode": "working", "entry": entry}, "mine")
    assert await found(ehr, tmp_path, {"list": "mine"}) == ([one], [])
    with pytest.raises(PartnerRefused):
        await found(ehr, tmp_path, {"list": "nobody"})


async def test_whom_a_search_finds(tmp_path):
    ehr = InProcess("r4", count={"default": 2, "most": 2, "beyond": "capped", "with_id": "honoured"})
    for id in ehr.panel[:3]:
        ehr.chart.write({**ehr.chart.get("Patient", id), "generalPractitioner": [{"reference": "Practitioner/gp"}]}, id)
    assert (await found(ehr, tmp_path, {"search": {"general-practitioner": "Practitioner/gp"}}))[0] == ehr.panel[:3]


async def test_of_whom_the_matches_of_a_search_speak_and_those_that_speak_of_several_are_told(tmp_path):
    ehr = InProcess("r4")
    one, two = ehr.panel[:2]
    task = {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "code": {"coding": [{"system": "urn:x", "code": "coordinate"}]},
    }
    ehr.chart.write({**task, "for": {"reference": f"Patient/{one}"}})
    ehr.chart.write({**task, "for": {"reference": f"Patient/{one}"}, "focus": {"reference": f"Patient/{two}"}}, "both")
    ehr.chart.write(task, "none")
    ids, told = await found(ehr, tmp_path, {"search": {"type": "Task", "code": "urn:x|coordinate"}})
    assert ids == [one]
    assert sorted(told) == [
        "Task/both: speaks of 2 patients, so that nobody is taken by it",
        "Task/none: speaks of no patients, so that nobody is taken by it",
    ]


@pytest.mark.parametrize("vendor", ["epic", "r4", "hapi"])
async def test_each_line_of_a_roster_is_resolved_or_told(vendor, tmp_path):
    ehr = InProcess(vendor)
    one, two, three = ehr.panel[:3]
    twice = {"resourceType": "Patient", "identifier": [{"system": MRN, "value": "twice"}]}
    ehr.chart.write(twice), ehr.chart.write(twice)
    text = f"\ufeffname,ID,System,Value\nDoe,{one},,\n\n,,{MRN},{two}\n,,{MRN},nobody\n,,{MRN},twice\n,,,{three}\n,a b,,\n,,urn:x,a|b\n"
    ids, told = await found(ehr, tmp_path, roster(tmp_path, ehr, "r.csv", text))
    assert ids == [one, two]
    assert sorted(told) == [
        "line 5 of the roster: finds nobody at the partner",
        "line 6 of the roster: finds 2 patients at the partner",
        "line 7 of the roster: has neither an id nor both system and value",
        "line 8 of the roster: has an id that is none",
        "line 9 of the roster: has a system or a value with a character that no identifier has",
    ]


async def test_a_roster_of_lines_of_json(tmp_path):
    ehr = InProcess("r4")
    one, two = ehr.panel[:2]
    text = f'{{"id": "Patient/{one}"}}\n{{"system": "{MRN}", "value": "{two}"}}\n[]\n{{"id": 7}}\nid\n'
    ids, told = await found(ehr, tmp_path, roster(tmp_path, ehr, "r.ndjson", text))
    assert ids == [one, two]
    assert [line.partition(":")[0] for line in told] == ["line 3 of the roster", "line 4 of the roster", "line 5 of the roster"]


async def test_a_partner_that_passes_over_the_identifier_makes_nobody_a_member(tmp_path):
    ehr = InProcess("r4", unknown_parameters="ignored")
    ehr.habits["types"] = {**ehr.habits["types"], "Patient": {"interactions": ["read", "search-type"], "one_of": [[]]}}
    ids, told = await found(ehr, tmp_path, roster(tmp_path, ehr, "r.csv", "system,value\nurn:nobody,1\n"))
    assert (ids, told) == ([], ["line 2 of the roster: finds nobody at the partner"])


async def test_a_partner_that_fails_midway_gives_no_half_of_a_panel(tmp_path):
    ehr = InProcess("r4", rate={"burst": 2, "per_second": 0, "retry_after": 100})
    lines = "".join(f"{MRN},{id}\n" for id in ehr.panel)
    with pytest.raises(PartnerUnavailable):
        await found(ehr, tmp_path, roster(tmp_path, ehr, "r.csv", f"system,value\n{lines}"))


async def test_a_client_that_may_not_search_is_told_once_and_not_line_by_line(tmp_path):
    ehr = InProcess("r4", "system/Patient.r")
    with pytest.raises(PartnerRefused, match="403"):
        await found(ehr, tmp_path, roster(tmp_path, ehr, "r.csv", f"system,value\n{MRN},{ehr.panel[0]}\n"))


async def test_whom_a_line_means_is_believed_for_a_day(tmp_path, database_url):
    now = datetime(2026, 3, 2, tzinfo=UTC)
    store = Store(await open_database(database_url), clock=lambda: now)
    try:
        ehr = InProcess("r4")
        panel = roster(tmp_path, ehr, "r.csv", f"system,value\n{MRN},{ehr.panel[0]}\n{MRN},nobody\n")
        searches = []
        for hours in (0, 1, 23, 25):
            now = datetime(2026, 3, 2, tzinfo=UTC) + timedelta(hours=hours)
            ehr.requests.clear()
            assert (await found(ehr, tmp_path, panel, store))[0] == ehr.panel[:1]
            searches.append(len(ehr.requests))
        assert searches == [2, 1, 1, 2]  # who was not found is looked for each time
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [(b"", "must name the columns"), (b"name,mrn\nx,1\n", "must name the columns"), (b"id\n\xff\n", "is not UTF-8")],
)
def test_a_roster_that_cannot_be_read_is_told_by_its_name(tmp_path, text, told):
    path = tmp_path / "r.csv"
    path.write_bytes(text)
    with pytest.raises(RosterWrong, match=told):
        list(lines(path))
    with pytest.raises(RosterWrong, match="cannot be read: No such file"):
        list(lines(tmp_path / "other.csv"))


def test_a_panel_is_named_for_people(tmp_path):
    partner = InProcess("r4").partner(tmp_path)

    def name(**panel):
        from dataclasses import replace

        made = Membership(**panel) if panel else None
        return named(PartnerClient(replace(partner, panel=made), transport=httpx.MockTransport(lambda _: httpx.Response(404))))

    assert name() == "Group/panel"
    assert name(list="7") == "List/7"
    assert name(search=("Patient", (("general-practitioner", "Practitioner/1"),))) == "search of Patient by general-practitioner"
    assert name(roster=tmp_path / "r.csv") == f"roster {tmp_path / 'r.csv'}"
