"""A code system as an index: its concepts by code, what each is a kind of, and what is said of it.

https://hl7.org/fhir/R4/codesystem.html and #hierarchy
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fhircm.fhir.terminology.artefacts import Artefact, Tree

_CONCEPT_PROPERTIES = "http://hl7.org/fhir/concept-properties#"
_RETIRED = frozenset({"retired", "inactive", "deprecated"})  # as the tables of HL7 v2 and v3 say it


@dataclass(slots=True, eq=False)
class Concept:
    """A code and what the code system says of it (`tree`, without the concepts below it). `parents` and `children` are ordered sets."""

    code: str
    tree: Tree
    parents: dict[str, None] = field(default_factory=dict)
    children: dict[str, None] = field(default_factory=dict)
    inactive: bool = False
    abstract: bool = False

    @property
    def display(self) -> str | None:
        """The words that the code system prefers."""
        return self.tree.get("display")

    @property
    def designations(self) -> list[Tree]:
        """Other words for it, in other languages and for other uses."""
        return self.tree.get("designation", [])

    def values(self, name: str) -> list[Any]:
        """The values of one of its properties; those that every code system has are named code, display, parent and so on."""
        match name:
            case "code" | "concept":
                return [self.code]
            case "display" | "definition":
                return [self.tree[name]] if name in self.tree else []
            case "designation":
                return [one["value"] for one in self.designations if "value" in one]
            case "parent":
                return list(self.parents)
            case "child":
                return list(self.children)
        found = [value for code, value in _properties(self.tree) if code == name]
        return found or ([self.inactive] if name == "inactive" else [self.abstract] if name == "notSelectable" else [])


def _properties(tree: Tree) -> Iterator[tuple[str, Any]]:
    for one in tree.get("property", ()):
        yield one.get("code", ""), next((value for name, value in one.items() if name.startswith("value")), None)


@dataclass(slots=True, eq=False)
class CodeSystem(Artefact):
    """The concepts of a code system in the order in which it lists them, those below a concept right behind it."""

    concepts: dict[str, Concept] = field(default_factory=dict)
    folded: dict[str, str] | None = None  # codes without case, where case does not matter

    def __post_init__(self) -> None:
        self._read(self.tree.pop("concept", []))
        self._link({one.get("code", ""): str(one.get("uri", "")) for one in self.tree.get("property", ())})
        if self.tree.get("caseSensitive") is False:
            self.folded = {code.casefold(): code for code in self.concepts}

    @property
    def content(self) -> str:
        """How much of the code system is here: complete, fragment, example, not-present or supplement."""
        return str(self.tree.get("content"))

    def _read(self, listed: list[Tree]) -> None:
        waiting: list[tuple[Tree, str | None]] = [(one, None) for one in reversed(listed)]
        while waiting:
            tree, parent = waiting.pop()
            below, code = tree.pop("concept", []), tree.get("code", parent)
            if code is None:
                continue  # a concept without a code has an extension in its place: nothing can name it
            concept = self.concepts.setdefault(code, Concept(code, tree))
            if parent is not None and parent != code:
                self._join(parent, concept.code)
            waiting.extend((one, code) for one in reversed(below))

    def _join(self, parent: str, child: str) -> None:
        self.concepts[child].parents[parent] = None
        self.concepts[parent].children[child] = None

    def _link(self, uris: Mapping[str, str]) -> None:
        """What the properties say: parents and children besides the nesting, and what may be used how."""
        for concept in self.concepts.values():
            for code, value in _properties(concept.tree):
                match uris.get(code, "").removeprefix(_CONCEPT_PROPERTIES) or code:
                    case "parent" | "subsumedBy" if value in self.concepts:
                        self._join(value, concept.code)
                    case "child" if value in self.concepts:
                        self._join(concept.code, value)
                    case "inactive":
                        concept.inactive = concept.inactive or value is True
                    case "status":
                        concept.inactive = concept.inactive or value in _RETIRED
                    case "notSelectable":
                        concept.abstract = concept.abstract or value is True

    def find(self, code: str) -> Concept | None:
        """The concept of a code, in whatever case where the code system says that case does not matter."""
        found = self.concepts.get(code)
        if found is None and self.folded is not None:
            return self.concepts.get(self.folded.get(code.casefold(), ""))
        return found

    def below(self, code: str) -> set[str]:
        """The code and all that it subsumes."""
        return self._reached(code, lambda concept: concept.children)

    def above(self, code: str) -> set[str]:
        """The code and all that subsume it."""
        return self._reached(code, lambda concept: concept.parents)

    def _reached(self, code: str, next_of: Any) -> set[str]:
        start = self.find(code)
        reached = {start.code} if start else {code}
        waiting = [start] if start else []
        while waiting:
            fresh = [one for one in next_of(waiting.pop()) if one not in reached]
            reached.update(fresh)
            waiting += [self.concepts[one] for one in fresh]
        return reached

    def subsumes(self, one: str, other: str) -> str:
        """How the first code relates to the second: equivalent, subsumes, subsumed-by or not-subsumed."""
        one, other = self.concepts[one].code, self.concepts[other].code
        if one == other:
            return "equivalent"
        if other in self.below(one):
            return "subsumes"
        return "subsumed-by" if one in self.below(other) else "not-subsumed"

    def in_order(self, codes: Iterable[str]) -> list[Concept]:
        """The concepts of these codes in the order of the code system."""
        wanted = set(codes)
        return [concept for code, concept in self.concepts.items() if code in wanted]


def compiled(tree: Tree, identity: str) -> Artefact:
    """A terminology resource, ready to be computed with. The tree is given away."""
    make = CodeSystem if tree["resourceType"] == "CodeSystem" else Artefact
    return make(identity, tree, tree.get("url", ""), tree.get("version"), tree.get("status", ""))
