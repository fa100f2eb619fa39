"""The codes that coordination rests on: listed, described, and valid resources."""

import re
from pathlib import Path

import pytest

import fhircm.coordination
from fhircm.coordination.build import concept
from fhircm.coordination.codes import codings, displays, member, value_set
from fhircm.fhir.artefacts import folder
from fhircm.fhir.json import loads
from fhircm.fhir.validation import check

FILES = [
    path
    for kind in ("value-set", "code-system", "plan-definition")
    for path in sorted((folder("profiles") / kind).glob("*.json"))
]
SOURCE = "".join(path.read_text() for path in Path(fhircm.coordination.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_artefacts_are_valid_and_named_as_their_files(path):
    checked = check(path.read_bytes())
    tree = loads(checked.body)
    assert tree["id"] == path.stem
    assert tree["url"] == f"https://fhircm.example/{checked.type}/{path.stem}"


def test_no_code_stands_twice():
    tree = loads((folder("profiles") / "code-system" / "coordination.json").read_bytes())
    assert len(displays()) == len(tree["concept"]) == tree["count"]


def test_every_value_set_and_every_code_that_is_used_is_there():
    for name in set(re.findall(r'member\(\s*"([a-z-]+)"', SOURCE)):
        assert value_set(name)
    for code in set(re.findall(r'concept\("([a-z-]+)"\)', SOURCE)):
        assert concept(code)["text"]


def test_codings_of_any_shape():
    code = {"system": "s", "code": "c"}
    assert list(codings(code, {"coding": [code]}, [{"coding": [code]}, {"text": "no code"}], None, {})) == [("s", "c")] * 3
    assert member("inpatient-stay", {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"})
    assert not member("inpatient-stay", {"system": "http://example.org", "code": "IMP"})
