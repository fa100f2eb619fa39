"""What a pull brings goes through the map: it is written as the map has it, what the map does not know is told, what it fails at waits."""

import json
from dataclasses import replace

import pytest

from fhircm.exchange.mapping import Source, hub_id
from fhircm.exchange.maps import load_maps
from fhircm.exchange.mirror import Batch, Mirror, Row
from fhircm.exchange.pages import Received
from fhircm.exchange.unmapped import unmapped

from .test_pull import BASE, partner

CONCEPTS = {
    "resourceType": "ConceptMap",
    "url": "https://maps.example/c",
    "status": "active",
    "group": [
        {
            "source": "urn:local",
            "target": "http://snomed.info/sct",
            "element": [{"code": "a", "target": [{"code": "195967001", "equivalence": "equal"}]}],
        }
    ],
}


@pytest.fixture
def mapped_partner(tmp_path):
    folder = tmp_path / "mappings" / "north-clinic"
    (folder / "concept-map").mkdir(parents=True)
    (folder / "concept-map" / "c.json").write_text(json.dumps(CONCEPTS))
    rules = 'Condition: [{translate: {path: Condition.code, map: "https://maps.example/c"}}, {when: "recordedDate.exists()", replace: {path: Condition.onset, value: x}}]'
    (folder / "inbound.yaml").write_text(rules)
    return lambda: replace(partner(), maps=load_maps([folder])), folder


def condition(id, code, **more):
    tree = {"resourceType": "Condition", "id": id, "code": {"coding": [{"system": "urn:local", "code": code}]}, **more}
    return Source("Condition", id), Received(
        "Condition", id, json.dumps({**tree, "subject": {"reference": "Patient/p"}}).encode()
    )


def batch(*conditions, row=None):
    patient = Received("Patient", "p", b'{"resourceType":"Patient","id":"p"}')
    return Batch("Patient/p", row or Row(), own={Source("Patient", "p"): patient, **dict(conditions)})


async def test_a_pull_goes_through_the_map(store, mapped_partner):
    made, folder = mapped_partner
    mirror = Mirror(store, made())
    got = batch(condition("c1", "a"), condition("c2", "b"), condition("c3", "b"), condition("c4", "a", recordedDate="2026-01-01"))
    written = await mirror.write(got)
    assert (written.resources, written.written) == (5, 4)
    assert [str(one) for one in written.refused] == [
        "Condition/c4: Condition: north-clinic/inbound.yaml: Condition[1]: the path leads to no elements; it must lead to one"
    ]
    stored = await store.read("Condition", hub_id(BASE, "Condition/c1"))
    assert [one["code"] for one in stored.tree["code"]["coding"]] == ["a", "195967001"]
    (line,) = await unmapped(store, made())
    assert (line.resources, line.direction, line.unmapped.code, line.unmapped.path) == (2, "inbound", "b", "Condition.code")
    # The same again writes nothing, and counts nothing twice.
    again = Mirror(store, made())
    assert (await again.write(batch(condition("c1", "a"), condition("c2", "b"), condition("c3", "b"), row=got.row))).written == 0
    assert [one.resources for one in await unmapped(store, made())] == [2]
    # A map that knows the code: what is read again is written anew, and the report is empty.
    CONCEPTS["group"][0]["element"].append({"code": "b", "target": [{"code": "73211009", "equivalence": "equal"}]})
    (folder / "concept-map" / "c.json").write_text(json.dumps(CONCEPTS))
    CONCEPTS["group"][0]["element"].pop()
    changed = await Mirror(store, made()).write(
        batch(condition("c1", "a"), condition("c2", "b"), condition("c3", "b"), row=got.row)
    )
    assert changed.written == 2
    assert await unmapped(store, made()) == []
