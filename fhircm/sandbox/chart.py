"""What an EHR has on record: resources in memory, versioned; kept in a file of its own when it is given a folder.

https://hl7.org/fhir/R4/http.html#versioning
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

Tree = dict[str, Any]
_PATIENT = ("patient", "subject", "for", "beneficiary")


class Chart:
    """The record of one EHR. Every write is appended to the journal before it is answered."""

    def __init__(
        self, resources: Iterable[Tree], state: Path | None = None, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.clock = clock
        self._by_key: dict[tuple[str, str], Tree] = {}
        self._of_patient: dict[tuple[str, str], dict[str, None]] = {}
        self._versions: dict[tuple[str, str], list[Tree]] = {}
        self._waiting: list[Tree] | None = None  # for the journal, until all of a transaction is done
        self.deleted: list[tuple[str, str, datetime]] = []  # type, id, when
        self.watchers: list[Callable[[Tree], Any]] = []  # told of every write
        for resource in resources:
            self._keep({**resource, "meta": {"versionId": "1", "lastUpdated": "2026-01-05T08:00:00Z"}})
        self._journal = state / "journal.ndjson" if state else None
        if self._journal and self._journal.exists():
            for line in self._journal.read_text().splitlines():
                if line.endswith("}"):  # the last one may have been cut
                    tree = json.loads(line)
                    if tree.get("_deleted"):
                        self._forget(tree["resourceType"], tree["id"])
                    else:
                        self._keep(tree)

    def get(self, type: str, id: str) -> Tree | None:
        """A resource, or None."""
        return self._by_key.get((type, id))

    def of_type(self, type: str) -> list[Tree]:
        """Every resource of a type."""
        return [tree for (kind, _), tree in self._by_key.items() if kind == type]

    def of_patient(self, type: str, patient: str) -> list[Tree]:
        """The resources of a type about a patient."""
        found = (self._by_key.get((type, id)) for id in self._of_patient.get((type, patient), ()))
        return [tree for tree in found if tree is not None and patient_of(tree) == patient]

    def was(self, type: str, id: str) -> bool:
        """Whether there was such a resource once."""
        return (type, id) in self._versions

    def versions(self, type: str, id: str) -> list[Tree]:
        """Every version of a resource, in order."""
        return list(self._versions.get((type, id), ()))

    def version(self, type: str, id: str, version: str) -> Tree | None:
        """One version of a resource, or None."""
        return next((one for one in self.versions(type, id) if one["meta"]["versionId"] == version), None)

    def delete(self, type: str, id: str) -> None:
        """Take a resource away; its versions stay."""
        self._note({"resourceType": type, "id": id, "_deleted": True})
        self._forget(type, id)
        self.deleted.append((type, id, self.clock()))

    @contextmanager
    def together(self) -> Iterator[None]:
        """All writes within, or none when one raises."""
        before, versions = dict(self._by_key), {key: list(kept) for key, kept in self._versions.items()}
        self._waiting = []
        try:
            yield
        except BaseException:
            self._by_key, self._versions, self._waiting = before, versions, None
            raise
        noted, self._waiting = self._waiting, None
        self._note(*noted)

    def write(self, tree: Tree, id: str | None = None) -> Tree:
        """Create (without an id) or update; returns what was stored."""
        type = tree["resourceType"]
        id = id or uuid4().hex
        version = len(self._versions.get((type, id), ())) + 1
        meta = {
            "versionId": str(version),
            "lastUpdated": self.clock().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        stored = {**tree, "id": id, "meta": meta}
        self._note(stored)
        self._keep(stored)
        for watcher in self.watchers:
            watcher(stored)
        return stored

    def _note(self, *trees: Tree) -> None:
        if self._waiting is not None:
            self._waiting += trees
        elif self._journal and trees:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a") as file:
                file.write("".join(json.dumps(tree) + "\n" for tree in trees))

    def _keep(self, tree: Tree) -> None:
        type, id = tree["resourceType"], tree["id"]
        self._by_key[type, id] = tree
        self._versions.setdefault((type, id), []).append(tree)
        if patient := patient_of(tree):
            self._of_patient.setdefault((type, patient), {})[id] = None

    def _forget(self, type: str, id: str) -> None:
        self._by_key.pop((type, id), None)


def patient_of(tree: Tree) -> str | None:
    """The id of the patient that a resource is about."""
    for name in _PATIENT:
        element = tree.get(name)
        if isinstance(element, dict) and str(element.get("reference", "")).startswith("Patient/"):
            return str(element["reference"]).removeprefix("Patient/")
    return None


def identifiers(tree: Tree) -> list[tuple[str, str]]:
    """System and value of every identifier of a resource, those of what it names as related too."""
    found: list[tuple[str, str]] = []

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("value"), str) and "system" in node:
                found.append((str(node["system"]), node["value"]))
            for inner in node.values():
                look(inner)
        elif isinstance(node, list):
            for inner in node:
                look(inner)

    look(tree)
    return found
