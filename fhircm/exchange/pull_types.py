"""How resources of each type are found at a partner: the `pull` list of partner.yaml, over that of its shape.

https://hl7.org/fhir/R4/search.html. Types are put together one by one: what the partner's own entry does not say, the shape's says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fhircm.exchange.yaml_keys import Keys
from fhircm.fhir.definitions import definitions

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
Search = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PullType:
    """How resources of one type are found at the partner. `{patient}` in a search stands for the Patient's id there."""

    type: str
    searches: tuple[Search, ...]  # each is sent; what they find is put together
    by_reference: bool  # read by id when something that was pulled refers to it
    last_updated: bool  # the partner has _lastUpdated for this type, and it is honest
    if_declared: bool = False  # _lastUpdated is used as soon as the partner's CapabilityStatement says that it has it
    across: bool = False  # and the partner answers it for all patients at once, so that one search tells whose changed

    map: str = ""  # fingerprint of the partner's map

    @property
    def strategy(self) -> str:
        """The searches and the map in one line: when they change, what was read before says nothing any more."""
        searches = " ".join("&".join(f"{name}={value}" for name, value in one) for one in self.searches)
        return f"{self.type}?{searches}" + (f" mapped by {self.map}" if self.map else "")


def read(keys: Keys, parameters: Mapping[str, str]) -> tuple[PullType, ...]:
    """The types of `pull`; `parameters` are those that stand in braces beside {patient}. Raises YamlWrong."""
    below = keys.under if keys.under is not None and "pull" in keys.under.tree else None
    base = {one.type: one for one in _list(below, parameters, {}) if one is not None} if below else {}
    if below is not None and "pull" not in keys.tree:
        keys.known.append("pull")
        return tuple(base.values())
    own: dict[str, PullType | None] = {}
    for number, tree in enumerate(keys.take("pull", list, "a list of types with their searches")):
        entry = keys.at(f"pull[{number}]", tree)
        type = _type(entry)
        if type in own:
            entry.wrong("type", f"{type} stands in the list already; give one entry several searches instead")
        own[type] = _entry(entry, type, parameters, base.get(type))
    return tuple(one for one in {**base, **own}.values() if one is not None)


def _list(keys: Keys, parameters: Mapping[str, str], base: Mapping[str, PullType]) -> tuple[PullType | None, ...]:
    return keys.each("pull", "a list of types with their searches", lambda one: _entry(one, _type(one), parameters, None))


def fill(keys: Keys, key: str, text: str, parameters: Mapping[str, str], also: tuple[str, ...] = ()) -> str:
    """A text with the parameters in it; those named in `also` stay for later. Raises YamlWrong for an unknown one."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name in also:
            return found[0]
        if name not in parameters:
            others = [f"{{{one}}}" for one in (*also, *parameters)]
            keys.wrong(key, f"may hold no other placeholder than {', '.join(others) or 'none'}")
        return parameters[name]

    return PLACEHOLDER.sub(value, text)


def _type(keys: Keys) -> str:
    type = keys.text("type", "an R4 resource type such as CarePlan")
    if type not in definitions().resource_types:
        keys.wrong("type", "must be an R4 resource type such as CarePlan")
    if type == "Patient":
        keys.wrong("type", "Patient is always pulled, by the members of the panel: remove this entry")
    return type


def _entry(keys: Keys, type: str, parameters: Mapping[str, str], base: PullType | None) -> PullType | None:
    """One entry; None when it leaves the type out that the shape would pull."""
    if keys.take("leave_out", bool, "true or false", False):
        if base is None:
            keys.wrong("leave_out", f"has no meaning: the shape does not pull {type}")
        keys.done()
        return None
    searches = (
        keys.each("searches", "a list of searches", lambda search: _search(search, type, parameters), ...)
        if ("searches" in keys.tree)
        else (base.searches if base else ())
    )
    keys.known.append("searches")
    by_reference = keys.take("by_reference", bool, "true or false", base.by_reference if base else False)
    last_updated, if_declared = base.last_updated if base else False, base.if_declared if base else False
    if keys.says("last_updated", "declared"):
        last_updated, if_declared = False, True
    elif "last_updated" in keys.tree:
        last_updated, if_declared = keys.take("last_updated", bool, "true, false or declared"), False
    keys.known.append("last_updated")
    across = keys.take("across", bool, "true or false", base.across if base else False)
    if not searches and not by_reference:
        keys.wrong("", "finds nothing: give searches, or by_reference: true")
    if (last_updated or if_declared) and not searches:
        keys.wrong("last_updated", "has no meaning without searches")
    if across and not (last_updated or if_declared):
        keys.wrong("across", "has no meaning without last_updated")
    keys.done()
    return PullType(type, searches, by_reference, last_updated, if_declared, across)


def _search(keys: Keys, type: str, parameters: Mapping[str, str]) -> Search:
    """A search: a value may be a list, for a parameter that stands in it more than once, such as both ends of a period."""
    search = pairs(keys, type, parameters, ("patient",))
    if not any("{patient}" in value for _, value in search):
        keys.wrong("", "must hold {patient}: a search is made for each patient of the panel")
    return search


def pairs(keys: Keys, type: str, parameters: Mapping[str, str], also: tuple[str, ...] = ()) -> Search:
    """The parameters of a search for a type. Raises YamlWrong for one that R4 does not have and that is no vendor's own."""
    known = definitions().search_parameters[type]
    found: list[tuple[str, str]] = []
    for name in list(keys.tree):
        value = keys.tree[name]
        if isinstance(value, list) and value and all(isinstance(one, str) and one for one in value):
            keys.take(name, list, "a list of texts")
            values = value
        else:
            values = [keys.text(name, "a text, in quotes where YAML needs them")]
        if name.split(":")[0].split(".")[0] not in known and not name.startswith(("_", "-")):
            keys.wrong(name, f"is not a search parameter of {type}; R4 has: {', '.join(sorted(known))}")
        found += [(name, fill(keys, name, one, parameters, also)) for one in values]
    return tuple(found)
