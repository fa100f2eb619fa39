"""Whether a code is in a value set or code system, with the words that were sent along.

https://hl7.org/fhir/R4/valueset-operation-validate-code.html and https://hl7.org/fhir/R4/codesystem-operation-validate-code.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fhircm.fhir.terminology.artefacts import Tree
from fhircm.fhir.terminology.code_system import CodeSystem
from fhircm.fhir.terminology.expansion import PARTS, Member, Members
from fhircm.fhir.terminology.listing import display


class Asked(NamedTuple):
    """A coding to be checked; `system` None: the code of an element that has no system."""

    system: str | None
    version: str | None
    code: str
    display: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result, why, and the words that are right."""

    result: bool
    message: str | None = None
    display: str | None = None


def coding(tree: Tree) -> Asked:
    """A Coding as it is asked for."""
    return Asked(tree.get("system"), tree.get("version"), tree.get("code", ""), tree.get("display"))


def any_of(asked: Sequence[Asked], check: Callable[[Asked], Verdict]) -> Verdict:
    """The verdict on a CodeableConcept: one coding that passes is enough."""
    verdicts = [check(one) for one in asked]
    passed = next((one for one in verdicts if one.result), None)
    if passed is not None:
        return passed
    messages = "; ".join(one.message for one in verdicts if one.message) or "There is no coding with a code"
    return Verdict(False, messages, next((one.display for one in verdicts if one.display), None))


def in_value_set(
    members: Members,
    system: CodeSystem | None,
    value_set: str,
    asked: Asked,
    *,
    abstract: bool = False,
    language: str | None = None,
) -> Verdict:
    """Check a coding against the members of a value set; `system` is the code system of the coding, where it is here."""
    concept = system.find(asked.code) if system else None
    code = concept.code if concept else asked.code
    if asked.system is not None:
        found = [one for one in (members.get((asked.system, code)),) if one]
    else:
        found = [one for key, one in members.items() if key[1] == code]
    if len(found) > 1:
        return Verdict(False, f"The code '{asked.code}' is in the value set in several systems: say which is meant")
    if found:
        return _judged(found[0], asked, abstract=abstract, language=language)
    if system is not None and concept is None:
        return _unknown(system, asked)
    of = f" of {asked.system}" if asked.system else ""
    return Verdict(False, f"The code '{asked.code}'{of} is not in the value set {value_set}")


def in_code_system(system: CodeSystem, asked: Asked, *, abstract: bool = True, language: str | None = None) -> Verdict:
    """Check a coding against a code system."""
    concept = system.find(asked.code)
    if asked.system not in (None, system.url):
        return Verdict(False, f"The code is of the system {asked.system}, not of {system.url}")
    if concept is None:
        return _unknown(system, asked)
    member = Member(system.url, system.version, concept.code, concept.display, concept)
    return _judged(member, asked, abstract=abstract, language=language)


def _unknown(system: CodeSystem, asked: Asked) -> Verdict:
    part = ", of which only a part is here" if system.content in PARTS else ""
    return Verdict(False, f"The code '{asked.code}' is not in the code system {system.canonical}{part}")


def _judged(member: Member, asked: Asked, *, abstract: bool, language: str | None) -> Verdict:
    right = Verdict(True, "The code is inactive" if member.inactive else None, display(member, language))
    if None not in (asked.version, member.version) and asked.version != member.version:
        return replace(right, result=False, message=f"The code is here of version {member.version} of its code system")
    if member.abstract and not abstract:
        return replace(right, result=False, message=f"The code '{member.code}' only groups others and is no choice itself")
    if asked.display is not None and not _says(member, asked.display):
        return replace(
            right, result=False, message=f"The display is not that of the code '{member.code}', which is '{right.display}'"
        )
    return right


def _says(member: Member, text: str) -> bool:
    known = [member.display, *(one.get("value") for one in member.designations)]
    known.append(member.concept.display if member.concept else None)
    if not any(known):
        return True  # a code without words of its own: nothing says that these are wrong
    return _plain(text) in {_plain(one) for one in known if one}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
