"""Entries of one organisation, practitioner, place or role are known as such: by number, else by name and address and telephone, never by name alone."""

from types import SimpleNamespace

import pytest

from fhircm.coordination.rules import RULES
from fhircm.exchange.directory import CODE, ENTITIES, TYPES, at_partner, enlist
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.repoint import known_as
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Delete, MoveCursor, Put
from tests.exchange.test_identity import decision

HOSPITAL, CLINIC = "https://lakeside.test/R4", "https://riverbend.test/r4"
NPI = "http://hl7.org/fhir/sid/us-npi"
ELM = {"address": [{"line": ["12 Elm Street"], "city": "Madison", "postalCode": "53703"}]}
PHONE = {"telecom": [{"system": "phone", "value": "(608) 555-0143"}]}
ELM_HERE = {"address": [{"line": ["12 Elm St."], "city": "Madison", "postalCode": "53703-1111"}]}
PHONE_HERE = {"telecom": [{"system": "phone", "value": "6085550143"}]}


def entry(type, base, id, npi=None, **members):
    numbers = {"identifier": [{"system": NPI, "value": npi}]} if npi else {}
    return {
        "resourceType": type,
        "id": hub_id(base, f"{type}/{id}"),
        "meta": {"source": f"{base}/{type}/{id}"},
        **numbers,
        **members,
    }


class Hub:
    def __init__(self, store):
        self.store = store

    async def see(self, *trees, origin="partner:any"):
        await self.store.transact([Put(check_tree(tree)) for tree in trees], origin=origin)
        before = await self.store.cursor("directory")
        for change in (await self.store.changes(before, types=frozenset({*TYPES, "Task"}), limit=500)).changes:
            operations = await enlist(self.store, change)
            await self.store.transact([*operations, MoveCursor("directory", before, change.position)], origin="hub")
            before = change.position

    async def at(self, base, tree):
        return await at_partner(self.store, tree, SimpleNamespace(base_url=base))

    async def questions(self):
        page = await self.store.search(parse_query("Task", [("code", CODE), ("status", "ready")]))
        return [stored.tree for stored in page.matches]


@pytest.fixture
def hub(store):
    store.rules = RULES
    return Hub(store)


@pytest.mark.parametrize("type", ["Organization", "Practitioner", "Location"])
async def test_one_number_is_one_entity_whatever_the_names(hub, type):
    name = {"name": [{"family": "Reyes"}]} if type == "Practitioner" else {"name": "Riverbend"}
    there = entry(type, CLINIC, "own", "1982736450", **name)
    here = entry(type, HOSPITAL, "listed", "1982736450")
    await hub.see(here, there)
    assert (await hub.at(CLINIC, here), await hub.at(HOSPITAL, there)) == ("own", "listed")
    partner = SimpleNamespace(base_url=CLINIC, name="clinic")
    assert (await known_as(hub.store, partner, here))["reference"] == f"{type}/own"
    await hub.store.transact([Delete(type, there["id"])], origin="partner:any")
    await hub.see(here)
    assert await hub.at(CLINIC, here) is None
    assert len(await hub.store.states(ENTITIES)) == 1


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("type", ["Organization", "Location"])
async def test_name_and_address_and_telephone_are_enough_in_any_order(hub, type, order):
    place = ELM if type == "Organization" else {"address": ELM["address"][0]}
    here = entry(type, HOSPITAL, "listed", name="Riverbend Clinic, Inc.", **place, **PHONE)
    place = ELM_HERE if type == "Organization" else {"address": ELM_HERE["address"][0]}
    there = entry(type, CLINIC, "own", "1982736450", name="Riverbend Clinic", **place, **PHONE_HERE)
    for tree in (here, there)[::order]:
        await hub.see(tree)
    assert (await hub.at(CLINIC, here), await hub.at(HOSPITAL, there)) == ("own", "listed")
    assert await hub.questions() == []


@pytest.mark.parametrize(
    ("here", "asked"),
    [
        pytest.param({"name": "Riverbend Clinic"}, 0, id="a name alone"),
        pytest.param({"name": "Riverbend Clinic", **PHONE}, 1, id="a name and a telephone"),
        pytest.param({"name": "Riverbend Dialysis", **ELM, **PHONE}, 0, id="another name at one address"),
        pytest.param({"name": "Riverbend Clinic", "npi": "1234567893", **ELM, **PHONE}, 0, id="another number"),
    ],
)
async def test_what_is_not_enough_links_nothing(hub, here, asked):
    mine = entry("Organization", HOSPITAL, "listed", **here)
    await hub.see(mine, entry("Organization", CLINIC, "own", "1982736450", name="Riverbend Clinic", **ELM, **PHONE))
    assert await hub.at(CLINIC, mine) is None
    assert len(await hub.questions()) == asked


@pytest.mark.parametrize(("said", "found"), [("same", "own"), ("different", None)])
async def test_a_human_decides(hub, said, found):
    mine = entry("Organization", HOSPITAL, "listed", name="Riverbend Clinic", **PHONE)
    await hub.see(mine, entry("Organization", CLINIC, "own", "1982736450", name="Riverbend Clinic", **ELM, **PHONE))
    (task,) = await hub.questions()
    await hub.see({**task, "status": "in-progress"}, origin="client:console")
    await hub.see({**task, "status": "completed", "output": [decision(said)]}, origin="client:console")
    assert await hub.at(CLINIC, mine) == found
    await hub.see({**mine, "active": True})
    assert (await hub.at(CLINIC, mine), await hub.questions()) == (found, [])


async def test_practitioners_of_one_name_are_never_linked_without_a_number(hub):
    name = {"name": [{"family": "Reyes", "given": ["Ana"]}]}
    mine = entry("Practitioner", HOSPITAL, "ana", **name, **PHONE)
    await hub.see(mine, entry("Practitioner", CLINIC, "ana", **name, **PHONE_HERE))
    assert await hub.at(CLINIC, mine) is None
    assert len(await hub.questions()) == 1


@pytest.mark.parametrize("roles_first", [False, True])
async def test_a_role_is_who_where_and_what(hub, roles_first):
    def role(base, id, code="207RC0000X"):
        return entry("PractitionerRole", base, id, practitioner={"reference": f"Practitioner/{hub_id(base, 'Practitioner/p')}"}, organization={"reference": f"Organization/{hub_id(base, 'Organization/o')}"}, specialty=[{"coding": [{"system": "http://nucc.org/provider-taxonomy", "code": code}]}])  # fmt: skip

    staff = [entry(type, base, id, npi) for base in (HOSPITAL, CLINIC) for type, id, npi in (("Practitioner", "p", "1234567893"), ("Organization", "o", "1982736450"))]  # fmt: skip
    mine, other, there = role(HOSPITAL, "r1"), role(HOSPITAL, "r2", "207Q00000X"), role(CLINIC, "r9")
    if roles_first:
        await hub.see(mine, other, there, *staff)
    else:
        for tree in (*staff, mine, other, there):
            await hub.see(tree)
    assert (await hub.at(CLINIC, mine), await hub.at(CLINIC, other)) == ("r9", None)
