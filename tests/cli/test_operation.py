"""`fhircm operation` teaches every operation from its definition, and calls it as HTTP does, with the rights of who is named."""

import json
import re

import pytest

from fhircm import cli_operation
from fhircm.fhir.outcome import Invalid
from fhircm.operations import OPERATIONS
from fhircm.operations.spelled import read, spelling
from tests.commands import run

TASK = {
    "resourceType": "Task",
    "id": "t1",
    "status": "requested",
    "intent": "order",
    "description": "Call the patient",
    "performerType": [{"coding": [{"system": "https://fhircm.example/role", "code": "care-coordinator"}]}],
    "owner": {"reference": "Organization/clinic"},
}
RECORD = [
    {"resourceType": "Organization", "id": "clinic", "name": "Clinic"},
    {"resourceType": "Practitioner", "id": "ann"},
    {"resourceType": "Practitioner", "id": "bob"},
    {"resourceType": "Patient", "id": "secret"},
    TASK,
]


@pytest.fixture
def hub(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {f"FHIRCM_{name}_DIR": str(tmp_path / name.lower()) for name in ("KEYS", "AUDIT")}

    def command(*words):
        return run(*words, FHIRCM_DATABASE_URL=database_url, **places)

    (tmp_path / "record.ndjson").write_text("\n".join(map(json.dumps, RECORD)))
    assert command("load", "record.ndjson").returncode == 0
    for name in ("ann", "bob"):
        person = ("--user", f"Practitioner/{name}", "--organization", "Organization/clinic", "--role", "care-coordinator")
        assert command("user", "add", name, "--name", name, *person, "--one-time-code").returncode == 0
    return command


def test_an_operation_called_from_here_means_what_it_means_over_http(hub):
    mine = hub("operation", "call", "claim", "Task/t1", "lease=30 min", "--as", "ann")
    assert mine.returncode == 0, mine.stderr
    assert json.loads(mine.stdout)["owner"] == {"reference": "Practitioner/ann"}
    taken = hub("operation", "call", "$claim", "Task/t1", "--as", "bob")
    assert (taken.returncode, taken.stdout) == (1, "")
    assert "Task.owner: A care-coordinator at Organization/clinic has claimed this Task until" in " ".join(taken.stderr.split())
    over = hub("operation", "call", "hand-over", "Task/t1", "to=Practitioner/bob", "note=In the evening", "--as", "ann")
    assert json.loads(over.stdout)["note"][0]["text"] == "In the evening"
    stale = hub("operation", "call", "accept", "Task/t1", "--if-version", "1", "--as", "bob")
    assert (stale.returncode, "is at version 3, not 1" in stale.stderr) == (1, True)
    declined = hub("operation", "call", "decline", "Task/t1", "reason=No capacity")
    assert json.loads(declined.stdout)["statusReason"] == {"text": "No capacity"}, "the hub's custodian may"


def test_who_is_named_sees_what_they_may_and_nobody_else_is_taken(hub, tmp_path):
    assert hub("operation", "call", "everything", "Patient/secret").returncode == 0
    journal = b"".join(path.read_bytes() for path in (tmp_path / "audit").rglob("*") if path.is_file())
    assert b"Patient/secret/$everything" in journal, "who asks for the record of a patient is found by that patient"
    hidden = hub("operation", "call", "everything", "Patient/secret", "--as", "ann")
    assert (hidden.returncode, "Patient/secret is not known" in hidden.stderr) == (1, True)
    for who in (("--as", "nobody"), ("--client", "nothing")):
        refused = hub("operation", "call", "claim", "Task/t1", *who)
        assert (refused.returncode, "may sign in" in refused.stderr) == (1, True)
    hub("user", "disable", "ann")
    assert hub("operation", "call", "claim", "Task/t1", "--as", "ann").returncode == 1
    wrong = hub("operation", "call", "claim", "Task/t1", "lease=soon")
    assert (wrong.returncode, "lease is a Duration: a number and a UCUM unit" in " ".join(wrong.stderr.split())) == (1, True)
    assert (
        "has no parameter 'speed'; it has: owner, lease, fence" in hub("operation", "call", "claim", "Task/t1", "speed=1").stderr
    )
    assert "is not called at Patient/x, but at: Task/ID" in hub("operation", "call", "claim", "Patient/x").stderr
    assert hub("operation", "call", "claim", "Tsk/t1").returncode == 2
    checked = hub("operation", "call", "validate", "Patient", 'resource={"resourceType": "Patient", "gender": "unsaid"}')
    assert "Patient.gender must be one of" in checked.stdout


def test_every_operation_is_listed_and_taught(capsys):
    cli_operation.list_()
    listed = {line.split("\t")[0] for line in capsys.readouterr().out.splitlines()}
    assert listed == {one.code for one in OPERATIONS.values()}
    for name, one in OPERATIONS.items():
        cli_operation.show(name)
        told = capsys.readouterr().out
        assert re.match(rf"\$({re.escape(one.code)}): \S.*\n\n\S", told), f"{name} needs a title and a description"
        for parameter in one.parameters:
            lines = told[told.index(f"  {parameter.name} (") :].splitlines()
            assert lines[1].startswith("      ") and not lines[1].startswith("      Written as"), f"{name}: {parameter.name}"
            example = re.search(r"Written as .*?: [\w-]+=(.*)$", lines[2])[1].strip("'")
            if not example.startswith("@"):
                read(parameter.name, parameter.type, example)
    assert "There is no operation wash. There are: accept" in run("operation", "show", "wash").stderr


SPELLED = [
    ("CodeableConcept", "Off duty", {"text": "Off duty"}),
    ("CodeableConcept", "http://x|a|Word", {"coding": [{"system": "http://x", "code": "a"}], "text": "Word"}),
    ("Coding", "http://x|a", {"system": "http://x", "code": "a"}),
    ("Reference", "Practitioner/1", {"reference": "Practitioner/1"}),
    ("Period", "2026-03-02/", {"start": "2026-03-02"}),
    ("Duration", "2 h", {"value": 2, "unit": "h", "system": "http://unitsofmeasure.org", "code": "h"}),
    ("Identifier", "urn:mrn|1", {"system": "urn:mrn", "value": "1"}),
    ("boolean", "yes", True),
    ("positiveInt", "3", 3),
    ("Reference", '{"display": "Somebody"}', {"display": "Somebody"}),
]


@pytest.mark.parametrize(("type", "text", "value"), SPELLED)
def test_values_are_written_as_people_write_them(type, text, value):
    assert read("it", type, text) == value


@pytest.mark.parametrize(("type", "text"), [("Coding", "a"), ("Period", "2026"), ("Duration", "soon"), ("boolean", "maybe"), ("Meta", "x"), ("Reference", "{")])  # fmt: skip
def test_what_cannot_be_read_is_told_with_how_it_is_written(type, text):
    with pytest.raises(Invalid, match=re.escape(spelling(type).how)):
        read("it", type, text)
