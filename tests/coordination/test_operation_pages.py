"""docs/reference/coordination-operations*.md keep true: each operation has its section, and its request is one that it takes."""

import json
import re
from pathlib import Path

import pytest

from fhircm.fhir.artefacts import folder
from fhircm.operations import OPERATIONS
from fhircm.operations.acting import VERBS

REFERENCE = Path(__file__).parent.parent.parent / "docs/reference"
PAGES = "\n".join(page.read_text() for page in sorted(REFERENCE.glob("coordination-operations*.md")))
SECTIONS = {
    (type, verb): text
    for type, verb, text in re.findall(r"^### `(\w+)/\[id\]/\$([\w-]+)`(.*?)(?=^### |^## |\Z)", PAGES, re.MULTILINE | re.DOTALL)
}


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_has_a_section_with_a_request_that_it_takes_and_a_response(name):
    operation = OPERATIONS[name]
    (type,) = operation.types
    text = SECTIONS[type, operation.code]
    assert re.search(rf"^POST /fhir/{type}/\w+/\${operation.code}$", text, re.MULTILINE)
    *requests, response = (json.loads(one) for one in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    definition = json.loads((folder("profiles") / "operation" / f"{name}.json").read_bytes())
    assert response["resourceType"] == definition["parameter"][-1]["type"], "what it returns"
    operation.of_body(requests[0] if requests else None)
