"""$expand: the codes of a value set, in pages. https://hl7.org/fhir/R4/valueset-operation-expand.html"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fhircm.fhir import json
from fhircm.fhir.outcome import Invalid, TooCostly
from fhircm.fhir.terminology.artefacts import Artefact, Tree, canonical
from fhircm.fhir.terminology.expansion import Expansion, Member
from fhircm.fhir.terminology.library import Library, Versions
from fhircm.fhir.terminology.listing import entry, nested, selected
from fhircm.operations.call import Answer, Call
from fhircm.operations.terms import artefact, member, of_systems
from fhircm.store.stored import instant

AT_ONCE = 10_000  # codes in one answer; who needs more asks for pages

_UNCLOSED = "http://hl7.org/fhir/StructureDefinition/valueset-unclosed"
_PLAIN = ("resourceType", "url", "identifier", "version", "name", "title", "status", "experimental", "date", "publisher")
# Parameters that say how the expansion was made, with their types: it repeats them.
_REPEATED = {
    "filter": "string", "offset": "integer", "count": "integer", "includeDesignations": "boolean", "designation": "string",
    "activeOnly": "boolean", "excludeNested": "boolean", "excludeNotForUI": "boolean", "excludePostCoordinated": "boolean",
    "displayLanguage": "code", "exclude-system": "uri", "system-version": "uri", "check-system-version": "uri",
    "force-system-version": "uri",
}  # fmt: skip


async def expand(call: Call) -> Answer:
    """All codes that belong to a value set, or a page of those that a filter finds."""
    offset, count = _whole(call, "offset"), _whole(call, "count")
    library, value_set = await artefact(call, "ValueSet", "valueSet", "valueSetVersion")
    versions = Versions(*(of_systems(call, f"{how}system-version") for how in ("", "check-", "force-")))
    without = [canonical(text) for text in call.all("exclude-system")]
    expansion = call.store.expansion(library, value_set, versions, without)
    as_tree = call.one("excludeNested") is False and offset is None and count is None and not call.one("filter")
    found = selected(
        expansion.members.values(),
        call.one("filter", ""),
        active_only=call.one("activeOnly", False),
        abstract=as_tree and not call.one("excludeNotForUI", False),
    )
    page = found[offset or 0 :] if count is None else found[offset or 0 : (offset or 0) + min(count, AT_ONCE)]
    if len(page) > AT_ONCE:
        raise TooCostly(f"The expansion has {len(page)} codes, and {AT_ONCE} go at once; ask for pages with 'count' and 'offset'")
    shown = _entries(call, expansion, page)
    made = {
        **({"extension": [{"url": _UNCLOSED, "valueBoolean": True}]} if expansion.parts else {}),
        "identifier": f"urn:uuid:{_identity(call, library, value_set)}",
        "timestamp": instant(call.store.now),
        "total": len(found),
        **({"offset": offset or 0} if offset is not None or count is not None else {}),
        "parameter": list(_parameters(call, expansion)),
        **({"contains": nested(page, shown) if as_tree else shown} if shown else {}),
    }
    kept = (*_PLAIN, "compose") if call.one("includeDefinition", False) else _PLAIN
    tree = {name: value_set.tree[name] for name in kept if name in value_set.tree}
    return Answer(json.dumps({**tree, "expansion": {name: value for name, value in made.items() if value != []}}))


def _whole(call: Call, name: str) -> int | None:
    number = call.one(name)
    if number is not None and number < 0:
        raise Invalid(f"The parameter '{name}' must not be negative", name)
    return number


def _entries(call: Call, expansion: Expansion, page: Sequence[Member]) -> list[Tree]:
    tokens = frozenset(call.all("designation"))
    designations = tokens if tokens or call.one("includeDesignations", False) else None
    versioned = len({one.url for one in expansion.systems}) < len(expansion.systems)
    language = call.one("displayLanguage")
    return [entry(one, language, designations, versioned=versioned) for one in page]


def _identity(call: Call, library: Library, value_set: Artefact) -> Any:
    """The same for every page, and for everybody who asks the same of the same artefacts."""
    asked = sorted(
        (one.name, str(one.value)) for one in call.arguments if one.name in _REPEATED and one.name not in ("offset", "count")
    )
    return uuid5(NAMESPACE_URL, f"{call.base_url} {value_set.identity} {sorted(library.identity)} {asked}")


def _parameters(call: Call, expansion: Expansion) -> Iterator[Tree]:
    for one in call.arguments:
        if one.name in _REPEATED:
            yield member(one.name, _REPEATED[one.name], one.value)
    for system in sorted(expansion.systems, key=str):
        yield member("version", "uri", str(system))
    for system in sorted(expansion.parts, key=str):
        yield member("only-a-part-is-here", "uri", str(system))
    for value_set in sorted(expansion.stored):
        yield member("stored-expansion", "uri", value_set)
