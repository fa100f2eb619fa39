"""A guide's own examples keep its profiles, and no longer do when something that is asked for is taken away.

The small guide of the tests always; besides, every package (`*.tgz`) in the folder that FHIRCM_DATA names, US Core for instance.
"""

import copy
import io
import os
import re
import tarfile
from pathlib import Path

import pytest

from fhircm.fhir import json, profiles
from fhircm.fhir.guides import Artefact, Guide, InForce, put_in_force
from fhircm.fhir.package import read_package
from fhircm.fhir.profile_elements import members
from fhircm.fhir.profile_rules import ABSENT
from fhircm.fhir.validation import check
from tests.packages import BASE, GUIDE, package, patient

EXAMPLE = patient("x", name=[{"family": "Doe"}], meta={"profile": [f"{BASE}/StructureDefinition/patient"]})
SMALL = package(*GUIDE, more=[("package/example/Patient-x.json", json.dumps(EXAMPLE))]).getvalue()
PACKAGES = {"small": lambda: SMALL}
if os.environ.get("FHIRCM_DATA"):
    PACKAGES |= {path.stem: path.read_bytes for path in sorted(Path(os.environ["FHIRCM_DATA"]).glob("*.tgz"))}


@pytest.fixture(scope="module", params=PACKAGES)
def examples(request):
    """The examples of a package that claim a profile of it, which is in force."""
    content = PACKAGES[request.param]()
    read = read_package(io.BytesIO(content))
    artefacts = tuple(
        Artefact(one.resource.type, one.url, one.version, one.resource.body, str(one.resource.tree.get("type", "")))
        for one in read.definitions
    )
    put_in_force(InForce(request.param, (Guide(read.name, read.version, artefacts),)))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = [name for name in archive.getnames() if re.fullmatch(r"package/example/[^/]*\.json", name)]
        trees = [json.loads(archive.extractfile(name).read()) for name in names]
    yield [tree for tree in trees if any(profiles.profile_of(url) for url in tree.get("meta", {}).get("profile", ()))]
    put_in_force(InForce())


def errors(tree):
    return [issue.expression for issue in profiles.broken(tree) if issue.severity == "error"]


def rules(holder, type, rule, at):
    """Each rule with the elements that it is about."""
    for child in rule.children.values():
        found = list(members(holder, type, child.name, at))
        yield child, found
        for one in found:
            if isinstance(one.value, dict):
                yield from rules(one.value, one.type, child, one.path)


def holder_of(tree, path):
    """What holds the elements at a path, and under which names."""
    steps = [int(index) if index else name for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path)]
    while isinstance(steps[-1], int):
        steps.pop()
    for step in steps[:-1]:
        tree = tree[step if isinstance(step, int) else named(tree, step)[0]]
    return tree, named(tree, steps[-1])


def named(tree, step):
    """The members of an element: itself and what stands beside it, or the one of a choice."""
    own = [name for name in (step, f"_{step}") if name in tree]
    return own or [name for name in tree if re.fullmatch(f"_?{step}[A-Z].*", name)]


def test_every_example_keeps_what_it_claims(examples):
    assert examples
    for tree in examples:
        check(json.dumps(tree))


def test_what_is_asked_for_and_taken_away_or_changed_is_told_with_its_place(examples):
    tried = 0
    for tree in examples:
        for url in tree["meta"]["profile"]:
            profile = profiles.profile_of(url)
            if profile is None:
                continue
            for rule, found in rules(tree, profile.type, profile.root, profile.type):
                demanded = rule.min or any(slice.min for slice in rule.slices.values())
                if not found or not (demanded or rule.fixed is not ABSENT):
                    continue
                broken = copy.deepcopy(tree)
                holder, names = holder_of(broken, found[0].path)
                for name in names:
                    del holder[name]
                if not demanded:
                    holder[names[0]] = "urn:wrong"
                place = re.sub(r"\[\d+\]$", "", found[0].path)
                assert any(one.startswith(place) or place.startswith(one) for one in errors(broken)), (url, place)
                tried += 1
    assert tried > len(examples) / 2
