"""docs/reference/rest.md and search.md keep true: what they list is what there is, and every example is sent as it stands."""

import ast
import re
from pathlib import Path

import pytest

from fhircm.fhir import asked, query
from fhircm.fhir.definitions import definitions
from fhircm.fhir.extract import OWN_COLUMNS, searchable
from fhircm.operations import OPERATIONS
from fhircm.rest.router import INTERACTIONS

ROOT = Path(__file__).parent.parent.parent
REST, SEARCH = ROOT / "docs/reference/rest.md", ROOT / "docs/reference/search.md"
JSON = "application/fhir+json"
_SPAN = re.compile(r"`([^`]+)`")


def tables(page):
    """The rows of the tables of examples below each heading, a list of cells each; other tables do not say what shows them."""
    found, heading, listed = {}, "", False
    for line in page.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        if not line.startswith("|"):
            listed = False
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[-1] == "shown by":
            listed = True
        elif listed and not cells[0].startswith("---"):
            found.setdefault(heading, []).append(cells)
    return found


def code(cell):
    """What stands in code in a cell."""
    return _SPAN.findall(cell)


def test_every_interaction_is_listed():
    listed = {(code(row[0])[0], code(row[1])[0].strip()) for row in tables(REST)["Interactions"]}
    names = {"type": "[type]", "id": "[id]", "version": "[version]"}
    there = {
        (of, f"{method} {'/'.join(names.get(step, step) for step in shape.split('/'))}".strip())
        for shape, method, of, _ in INTERACTIONS
    }
    assert listed == there


def test_every_operation_is_listed():
    listed = [(code(row[0])[0], row[1]) for row in tables(REST)["Operations"]]
    levels = ("system", "type", "instance")
    there = [
        (
            f"${one.code}",
            f"{', '.join(sorted(one.types)) or 'any'}: {', '.join(level for level in levels if level in one.levels)}",
        )
        for one in OPERATIONS.values()
    ]
    assert sorted(listed) == sorted(there)


def test_every_header_that_is_read_is_listed():
    sources = [*(ROOT / "fhircm/rest").glob("*.py"), *(ROOT / "fhircm/operations").glob("*.py")]
    read = {name for source in sources for name in re.findall(r'headers\.get\("([a-z-]+)"', source.read_text())}
    assert {code(row[0])[0].lower() for row in tables(REST)["Headers"]} == read - {"content-length"}, "that one is HTTP's own"


def test_every_kind_of_search_parameter_is_listed():
    there = {one.definition.type for type in definitions().resource_types for one in searchable(type).extractors.values()}
    assert {code(row[0])[0] for row in tables(SEARCH)["Parameter types"]} == there


def test_every_modifier_and_prefix_is_listed():
    listed = {tuple(code(row[0])) for row in tables(SEARCH)["Modifiers"]}
    of_types = {(f":{modifier}", type) for type, modifiers in asked._MODIFIERS.items() for modifier in modifiers}
    assert listed == of_types | {(":missing",), (":of-type", "token"), (":[type]", "reference")}
    prefixes = asked._PREFIXED.pattern.partition("(")[2].partition(")")[0].split("|")
    assert {code(row[0])[0] for row in tables(SEARCH)["Prefixes"]} == set(prefixes)


def test_every_special_parameter_is_listed():
    listed = {code(row[0])[0] for row in tables(SEARCH)["Special parameters"]}
    there = {*query._CONTROLS, *query._ABOUT_THE_ANSWER, *OWN_COLUMNS, "_filter", "_has", "_list", "_type", "_page"}
    assert listed == there | {"_include:iterate", "_revinclude:iterate"}


@pytest.mark.parametrize("page", [REST, SEARCH], ids=["rest", "search"])
def test_every_test_that_is_named_exists(page):
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()))
    rows = [row for listed in tables(page).values() for row in listed]
    assert all(code(row[-1]) for row in rows)
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}, name


class Story:
    """Sends examples one after the other; the ids of what was made stand for {patient} and the like."""

    def __init__(self, http):
        self.http, self.ids = http, {}

    async def send(self, cell):
        request, *more = [self.filled(one) for one in code(cell)]
        method, _, path = request.partition(" ")
        headers = dict(one.split(": ", 1) for one in more if re.match(r"[A-Z][A-Za-z-]+: ", one))
        body = next((one for one in more if not re.match(r"[A-Z][A-Za-z-]+: ", one)), None)
        if body is not None:
            headers = {"Content-Type": JSON} | headers
        answer = await self.http.request(method, path, content=body, headers=headers)
        if location := answer.headers.get("Location"):
            type, id = location.split("/")[-4:-2]
            self.ids[type.lower()] = id
        return answer

    def filled(self, text):
        return re.sub(r"\{([a-z]+)\}", lambda found: self.ids[found[1]], text)


async def test_every_example_of_the_api_is_answered_as_told(http):
    story = Story(http)
    for heading, rows in tables(REST).items():
        for row in rows:
            answer = await story.send(row[2])
            assert answer.status_code == int(row[3]), (heading, row[2], answer.text)


RECORD = [
    {"resourceType": "Organization", "name": "Lakeside Clinic", "identifier": [{"system": "urn:npi", "value": "17"}]},
    {
        "resourceType": "Patient",
        "meta": {"tag": [{"system": "urn:tags", "code": "vip"}]},
        "identifier": [{"system": "urn:mrn", "value": "1", "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR"}]}}],
        "name": [{"family": "Alvarez", "given": ["Rosa"]}],
        "gender": "female",
        "birthDate": "1951-04-12",
        "managingOrganization": {"reference": "Organization/{organization}"},
        "generalPractitioner": [{"identifier": {"system": "urn:npi", "value": "23"}}],
    },
    {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "29463-7", "display": "Body weight"}]},
        "subject": {"reference": "Patient/{patient}"},
        "effectiveDateTime": "2024-03-01",
        "valueQuantity": {"value": 72.5, "system": "http://unitsofmeasure.org", "code": "kg", "unit": "kg"},
    },
    {"resourceType": "RiskAssessment", "status": "final", "subject": {"reference": "Patient/{patient}"}, "prediction": [{"probabilityDecimal": 0.8}]},
    {"resourceType": "Location", "name": "Clinic", "position": {"latitude": 42.36, "longitude": -71.07}},
    {"resourceType": "ValueSet", "status": "active", "url": "http://example.org/fhir/ValueSet/moods"},
    {"resourceType": "List", "status": "current", "mode": "working", "entry": [{"item": {"reference": "Patient/{patient}"}}]},
]  # fmt: skip


async def test_every_example_of_a_search_finds_what_it_is_for(http):
    import json

    story = Story(http)
    for resource in RECORD:
        body = json.dumps(resource)
        for name, id in story.ids.items():
            body = body.replace("{" + name + "}", id)
        answer = await http.post(f"/fhir/{resource['resourceType']}", content=body, headers={"Content-Type": JSON})
        assert answer.status_code == 201, answer.text
        story.ids[resource["resourceType"].lower()] = answer.json()["id"]
    first = (await http.get("/fhir?_type=Patient,Observation&_count=1")).json()
    story.ids["token"] = next(link["url"] for link in first["link"] if link["relation"] == "next").partition("_page=")[2]
    for heading, rows in tables(SEARCH).items():
        for row in rows:
            answer = await story.send(row[2])
            assert answer.status_code == 200, (heading, row[2], answer.text)
            bundle = answer.json()
            assert len(bundle.get("entry", ())) + bundle.get("total", 0) > 0, (heading, row[2], "finds nothing")
