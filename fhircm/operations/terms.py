"""Which value set, code system or concept map an operation is about, and the coding it is asked of.

https://hl7.org/fhir/R4/terminology-service.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from fhircm.fhir import json
from fhircm.fhir.outcome import Invalid, NotFound, NotSupported
from fhircm.fhir.terminology.artefacts import Artefact, CannotCompute, Canonical, Tree, canonical
from fhircm.fhir.terminology.code_system import CodeSystem, compiled
from fhircm.fhir.terminology.library import Library, Wanted, needs
from fhircm.fhir.terminology.validation import Asked, coding
from fhircm.operations.call import Call

_WORDS = {"ValueSet": "value set", "CodeSystem": "code system", "ConceptMap": "concept map"}


async def artefact(call: Call, type: str, inline: str, version: str) -> tuple[Library, Artefact]:
    """The artefact of an instance, of a resource sent along (parameter `inline`), or of a URL (and `version`), with all that it needs.

    Raises NotSupported when none or more than one is named, NotFound, and what a read raises.
    """
    given = [name for name in (inline, "url") if call.one(name) is not None] + (["the instance"] if call.id else [])
    if len(given) != 1:
        raise NotSupported(
            f"One {_WORDS[type]} is needed, by 'url', by '{inline}' or by its id in the address; there are {len(given)}"
        )
    if call.id or given == [inline]:
        found = await _sent(call, type, inline)
        if call.one(version) not in (None, found.version):
            raise NotFound(f"The {_WORDS[type]} is not in the version that '{version}' names")
        return await call.store.library(*needs(found.tree)), found
    wanted = canonical(call.one("url"), call.one(version))
    library = await call.store.library(Wanted(type, wanted.url))
    return library, existing(library.find(type, wanted), type, wanted)


async def _sent(call: Call, type: str, inline: str) -> Artefact:
    if call.id:
        stored = await call.store.read(type, call.id)
        return compiled(stored.tree, f"{type}/{call.id}/_history/{stored.version}")
    tree = call.one(inline)
    if tree["resourceType"] != type:
        raise Invalid(f"The parameter '{inline}' must be a {type}", inline)
    digest = hashlib.sha256(json.dumps(tree)).hexdigest()  # before it is compiled: that takes the tree
    return compiled(tree, f"sent {type} {digest}")


def existing(found: Artefact | None, type: str, wanted: Canonical) -> Artefact:
    """The artefact. Raises NotFound when there is none."""
    if found is None:
        raise NotFound(f"The {_WORDS[type]} {wanted} is not known here")
    return found


async def code_system(call: Call, url: str | None, version: str | None) -> CodeSystem:
    """The code system that is named by its URL. Raises NotSupported, NotFound, CannotCompute."""
    if url is None:
        raise NotSupported("The code system is needed, by 'system' or in the coding")
    library = await call.store.library(Wanted("CodeSystem", url))
    return with_codes(existing(library.find("CodeSystem", Canonical(url, version)), "CodeSystem", Canonical(url, version)))


def with_codes(found: Artefact) -> CodeSystem:
    """The code system, when some of its codes are here. Raises CannotCompute."""
    assert isinstance(found, CodeSystem)
    if not found.concepts:
        raise CannotCompute(f"Of the code system {found.canonical} no codes are known here")
    return found


def codings(call: Call, system: str = "system", version: str = "version") -> list[Asked]:
    """What is asked: a code with its system, a coding, or all codings of a CodeableConcept. Raises NotSupported, Invalid."""
    given = [name for name in ("code", "coding", "codeableConcept") if call.one(name) is not None]
    if len(given) != 1:
        raise NotSupported(f"One of 'code', 'coding' and 'codeableConcept' is needed; there are {len(given)}")
    match given[0]:
        case "code":
            return [Asked(call.one(system), call.one(version), call.one("code"), call.one("display"))]
        case "coding":
            return [_with_code(call.one("coding"))]
    return [coding(one) for one in call.one("codeableConcept").get("coding", ()) if "code" in one]


def _with_code(tree: Tree) -> Asked:
    if "code" not in tree:
        raise Invalid("The coding has no code", "coding.code")
    return coding(tree)


def of_systems(call: Call, name: str) -> dict[str, str]:
    """A parameter that gives versions of code systems, each as `system|version`. Raises Invalid."""
    wanted = [canonical(text) for text in call.all(name)]
    if any(one.version is None for one in wanted):
        raise Invalid(f"The parameter '{name}' takes system|version", name)
    return {one.url: str(one.version) for one in wanted}


def member(name: str, type: str, value: Any) -> Tree:
    """A parameter of an answer."""
    return {"name": name, f"value{type[0].upper()}{type[1:]}": value}


def present(members: Iterable[Tree]) -> list[Tree]:
    """Those parameters of an answer that have a value."""
    return [one for one in members if all(value is not None for value in one.values())]
