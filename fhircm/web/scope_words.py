"""What an app asks for, one sentence for each scope. The words are data: profiles/scope-words.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from fhircm.access.scopes import Scope, parse_scope
from fhircm.fhir.artefacts import folder, read_yaml

_LETTERS = (("see", "rs"), ("add", "c"), ("change", "u"), ("delete", "d"))
BY_CHOICE = ("offline_access", "online_access")  # besides those about records, what a person may leave out


@dataclass(frozen=True, slots=True)
class Asked:
    """A scope and its sentence."""

    scope: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Told:
    """What an app asks for. `patient`: of the record of the patient whom it is opened for; `user`: of all that the person may see.

    `lasting`: for how long; `always`: what is a part of letting it in at all.
    """

    patient: list[Asked]
    user: list[Asked]
    lasting: list[Asked]
    always: list[Asked]


def told(scopes: Iterable[str], until: str) -> Told:
    """The scopes in words. `until`: the last day of access that goes on when nobody is there."""
    found = Told([], [], [], [])
    special = _words()["special"]
    for text in scopes:
        scope = parse_scope(text)
        if scope is not None:
            (found.patient if scope.context == "patient" else found.user).append(Asked(text, _sentence(scope)))
        elif text in special:
            sentence = special[text].replace("{until}", until)
            (found.lasting if text in BY_CHOICE else found.always).append(Asked(text, sentence))
    return found


def by_choice(scope: str) -> bool:
    """Whether a person may leave this scope out."""
    return scope in BY_CHOICE or parse_scope(scope) is not None


def _sentence(scope: Scope) -> str:
    words = _words()
    thing = words["everything"] if scope.type == "*" else words["things"].get(scope.type, scope.type)
    only = f" ({_only(scope)})" if scope.query else ""
    return f"{_verbs(scope.verbs)} {thing}{only}"


def _verbs(letters: frozenset[str]) -> str:
    """The letters as one phrase: who may search or read may see."""
    words = _words()["verbs"]
    first, *rest = [words[kind] for kind, of in _LETTERS if letters & set(of)]
    later = [word[0].lower() + word[1:] for word in rest]
    listed = [first, *later]
    return f"{', '.join(listed[:-1])} {words['and']} {listed[-1]}" if later else first


def _only(scope: Scope) -> str:
    words = _words()
    known = words["narrowed"].get(scope.type, {})
    values: list[str] = []
    for name, value in parse_qsl(scope.query, keep_blank_values=True):
        for one in value.split(","):
            code = one.rpartition("|")[2] or one
            unknown = words["unknown"].replace("{name}", name).replace("{value}", code)
            values.append(known.get(name, {}).get(code, unknown))
    return words["only"].replace("{values}", f" {words['or']} ".join(dict.fromkeys(values)))


@cache
def _words() -> dict[str, Any]:
    tree: dict[str, Any] = read_yaml(folder("profiles") / "scope-words" / "en.yaml")
    return tree
