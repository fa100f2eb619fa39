"""`fhircm mapping`: cases are run, a resource is tried, and what goes wrong is told with exit status 1."""

import json

import pytest
from typer.testing import CliRunner

from fhircm.cli import app

NOTE = {
    "resourceType": "DocumentReference",
    "id": "d1",
    "type": {"coding": [{"system": "urn:oid:1.2.840.114350.1.13.0.1.7.4.737880.5010", "code": "5"}]},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("FHIRCM_DATABASE_URL", f"sqlite:///{tmp_path}/hub.db")
    monkeypatch.setenv("FHIRCM_KEYS_DIR", str(tmp_path / "keys"))
    return lambda *words: CliRunner().invoke(app, ["mapping", *words])


def test_the_cases_of_the_shipped_partners(run):
    result = run("test")
    assert result.exit_code == 0 and result.output.endswith(" cases, 0 failed\n")


def test_a_resource_is_tried_with_what_each_rule_did(run, tmp_path):
    (tmp_path / "note.json").write_text(json.dumps(NOTE))
    result = run("try", "lakeside-hospital", str(tmp_path / "note.json"))
    assert result.exit_code == 0
    assert "'note types in LOINC, too': add /type/coding/1" in result.stderr
    assert json.loads(result.stdout)["type"]["coding"][1]["code"] == "18842-5"


def test_what_is_no_resource_is_told(run, tmp_path):
    (tmp_path / "note.json").write_text("{")
    result = run("try", "lakeside-hospital", str(tmp_path / "note.json"))
    assert result.exit_code == 1 and "not JSON" in result.stderr


def test_nothing_is_unmapped_before_anything_came(run):
    result = run("unmapped", "riverbend-clinic")
    assert (result.exit_code, result.output) == (0, "")
