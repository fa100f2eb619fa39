"""What an EHR has on record: resources in memory, versioned; kept in a file of its own when it is given a folder.

https://hl7.org/fhir/R4/http.html#versioning
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

Tree = dict[str, Any]
_PATIENT = ("patient", "subject", "for", "beneficiary")


class Chart:
    """The record of one EHR. Every write is appended to the journal before it is answered."""

    def __init__(self, resources: Iterable[Tree], state: Path | None = None) -> None:
        self._by_key: dict[tuple[str, str], Tree] = {}
        self._of_patient: dict[tuple[str, str], dict[str, None]] = {}
        self.deleted: list[tuple[str, str, datetime]] = []  # type, id, when
        self.watchers: list[Callable[[Tree], Any]] = []  # told of every write
        for resource in resources:
            self._keep({**resource, "meta": {"versionId": "1", "lastUpdated": "2026-01-05T08:00:00Z"}})
        self._journal = state / "journal.ndjson" if state else None
        if self._journal and self._journal.exists():
            for line in self._journal.read_text().splitlines():
                if line.endswith("}"):  # the last one may have been cut
                    self._keep(json.loads(line))

    def get(self, type: str, id: str) -> Tree | None:
        """A resource, or None."""
        return self._by_key.get((type, id))

    def of_type(self, type: str) -> list[Tree]:
        """Every resource of a type."""
        return [tree for (kind, _), tree in self._by_key.items() if kind == type]

    def of_patient(self, type: str, patient: str) -> list[Tree]:
        """The resources of a type about a patient."""
        return [self._by_key[type, id] for id in self._of_patient.get((type, patient), ())]

    def write(self, tree: Tree, id: str | None = None) -> Tree:
        """Create (without an id) or update; returns what was stored."""
        type = tree["resourceType"]
        id = id or uuid4().hex
        before = self._by_key.get((type, id))
        version = int(before["meta"]["versionId"]) + 1 if before else 1
        meta = {
            "versionId": str(version),
            "lastUpdated": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        stored = {**tree, "id": id, "meta": meta}
        if self._journal:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a") as file:
                file.write(json.dumps(stored) + "\n")
        self._keep(stored)
        for watcher in self.watchers:
            watcher(stored)
        return stored

    def delete(self, type: str, id: str) -> None:
        """Remove a resource. Raises KeyError."""
        tree = self._by_key.pop((type, id))
        if patient := patient_of(tree):
            self._of_patient[type, patient].pop(id, None)
        self.deleted.append((type, id, datetime.now(UTC)))

    def _keep(self, tree: Tree) -> None:
        type, id = tree["resourceType"], tree["id"]
        self._by_key[type, id] = tree
        if patient := patient_of(tree):
            self._of_patient.setdefault((type, patient), {})[id] = None


def patient_of(tree: Tree) -> str | None:
    """The id of the patient that a resource is about."""
    for name in _PATIENT:
        element = tree.get(name)
        if isinstance(element, dict) and str(element.get("reference", "")).startswith("Patient/"):
            return str(element["reference"]).removeprefix("Patient/")
    return None
