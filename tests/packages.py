"""Small packages of implementation guides, as a test needs them."""

import gzip
import io
import json
import tarfile

BASE = "https://guide.example"
RACE = f"{BASE}/StructureDefinition/race"
CORE = "http://hl7.org/fhir/StructureDefinition"


def archive(members):
    """A gzipped tar archive of (name, bytes), or of whatever else a TarInfo says."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members:
            if isinstance(name, tarfile.TarInfo):
                tar.addfile(name, io.BytesIO(content or b""))
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return io.BytesIO(gzip.compress(packed.getvalue(), 1))


def package(*resources, name="example.guide", version="1.0.0", more=(), **manifest):
    """A package of these definitions."""
    told = {"name": name, "version": version, "fhirVersions": ["4.0.1"], "title": "A guide", **manifest}
    members = [("package/package.json", json.dumps(told).encode())]
    for number, resource in enumerate(resources):
        members.append((f"package/{resource['resourceType']}-{number}.json", json.dumps(resource).encode()))
    return archive([*members, *more])


def search_parameter(code, expression, base="Patient", type="token", **more):
    return {
        "resourceType": "SearchParameter",
        "url": f"{BASE}/SearchParameter/{base}-{code}",
        "name": code,
        "status": "active",
        "description": code,
        "code": code,
        "base": [base],
        "type": type,
        "expression": expression,
        **more,
    }


def profile(name, type, *elements, **more):
    """A profile by its differential: elements are (path, members) or (path:slice, members)."""
    return {
        "resourceType": "StructureDefinition",
        "url": f"{BASE}/StructureDefinition/{name}",
        "name": name,
        "status": "active",
        "fhirVersion": "4.0.1",
        "kind": "complex-type" if type == "Extension" else "resource",
        "abstract": False,
        "type": type,
        "baseDefinition": f"{CORE}/{type}",
        "derivation": "constraint",
        **({"context": [{"type": "element", "expression": "Element"}]} if type == "Extension" else {}),
        "differential": {"element": [{"id": type, "path": type}, *(_element(path, members) for path, members in elements)]},
        **more,
    }


def _element(id, members):
    path = ".".join(step.partition(":")[0] for step in id.split("."))
    slice = id.rpartition(".")[2].partition(":")[2]
    return {"id": id, "path": path, **({"sliceName": slice} if slice else {}), **members}


def value_set(name, system, *codes):
    concept = [{"code": code} for code in codes]
    include = [{"system": system, "concept": concept}]
    url = f"{BASE}/ValueSet/{name}"
    return {"resourceType": "ValueSet", "url": url, "name": name, "status": "active", "compose": {"include": include}}


RACE_PARAMETER = search_parameter("race", f"Patient.extension.where(url = '{RACE}').value.code")
RACE_EXTENSION = profile(
    "race",
    "Extension",
    ("Extension.extension", {"max": "0"}),
    ("Extension.url", {"fixedUri": RACE}),
    (
        "Extension.value[x]",
        {"min": 1, "type": [{"code": "Coding"}], "binding": {"strength": "required", "valueSet": f"{BASE}/ValueSet/race"}},
    ),
)
PATIENT = profile(
    "patient",
    "Patient",
    ("Patient.name", {"min": 1}),
    ("Patient.extension:race", {"min": 1, "max": "1", "type": [{"code": "Extension", "profile": [RACE]}]}),
)
GUIDE = (RACE_PARAMETER, RACE_EXTENSION, PATIENT, value_set("race", "urn:race", "2106-3", "2054-5"))


def patient(id, code="2106-3", **more):
    extension = [{"url": RACE, "valueCoding": {"system": "urn:race", "code": code}}]
    return {"resourceType": "Patient", "id": id, "extension": extension, **more}
