"""A bulk load takes what is good, reports each line that is not, and goes on."""

import gzip
import json

from fhircm.exchange.bulk import load


def patient(id, **more):
    return {"resourceType": "Patient", "id": id, **more}


def condition(id, patient_id, **more):
    return {"resourceType": "Condition", "id": id, "subject": {"reference": f"Patient/{patient_id}"}, **more}


def written(path, *lines):
    text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


async def test_each_bad_line_is_reported_with_its_number_and_the_rest_goes_on(store, tmp_path):
    file = written(
        tmp_path / "records.ndjson",
        patient("p1"),
        b'{"resourceType": "Patient", "id": "p2"',
        {"resourceType": "Nonsense", "id": "x"},
        patient("p3", colour="red"),
        patient("p4", gender="blue"),
        b'"just a string"',
        b"",
        {"resourceType": "Patient"},
        condition("c1", "nowhere"),
        condition("c2", "p1"),
    )
    report = await load(store, file)
    assert report.loaded == 2
    assert [rejected.line for rejected in report.rejected] == [2, 3, 4, 5, 6, 8, 9]
    told = {rejected.line: rejected.issues[0] for rejected in report.rejected}
    assert "line 1, column" in told[2].text
    assert "colour" in told[4].text
    assert told[5].expression == "Patient.gender"
    assert "Condition.subject" in told[9].text
    assert (await store.read("Condition", "c2")).version == 1


async def test_lines_may_refer_forward_and_in_circles(store, tmp_path):
    encounter = {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "finished",
        "class": {"code": "AMB"},
        "diagnosis": [{"condition": {"reference": "Condition/c1"}}],
        "subject": {"reference": "Patient/p1"},
    }
    file = written(
        tmp_path / "records.ndjson.gz", condition("c1", "p1", encounter={"reference": "Encounter/e1"}), encounter, patient("p1")
    )
    report = await load(store, file)
    assert (report.loaded, report.rejected) == (3, [])


async def test_what_refers_to_a_rejected_line_is_rejected_too(store, tmp_path):
    file = written(tmp_path / "records.ndjson", patient("p1", gender="blue"), condition("c1", "p1"), patient("p2"))
    report = await load(store, file)
    assert report.loaded == 1
    assert [rejected.line for rejected in report.rejected] == [1, 2]


async def test_bundles_are_taken_apart_and_their_urns_become_references(store, tmp_path):
    urn = "urn:uuid:6c5d9ca9-54d7-42f5-bfae-a7c19cd217f2"
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            {"fullUrl": urn, "resource": patient("p1"), "request": {"method": "POST", "url": "Patient"}},
            {
                "fullUrl": "urn:uuid:0",
                "resource": {"resourceType": "Condition", "subject": {"reference": urn}},
                "request": {"method": "POST", "url": "Condition"},
            },
        ],
    }
    report = await load(store, written(tmp_path / "bundles.ndjson", bundle))
    assert (report.loaded, report.rejected) == (2, [])
    again = await load(store, tmp_path / "bundles.ndjson")
    assert (again.loaded, again.unchanged) == (0, 2)


async def test_a_second_load_of_the_same_file_writes_nothing(store, tmp_path):
    file = written(tmp_path / "records.ndjson", patient("p1"), condition("c1", "p1"))
    await load(store, file)
    again = await load(store, file)
    assert (again.loaded, again.unchanged) == (0, 2)
    assert (await store.read("Patient", "p1")).version == 1
