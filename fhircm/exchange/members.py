"""Who is in a partner's panel: asked of its Group or List, found by a search, or resolved line by line from a roster file.

https://hl7.org/fhir/R4/group.html, https://hl7.org/fhir/R4/list.html and https://hl7.org/fhir/R4/search.html#token. A line of a roster
that finds nobody, or more than one, is told with its number and left out: nobody is guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from fhircm.exchange import roster
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerRefused
from fhircm.exchange.mapping import referred, source
from fhircm.exchange.mirror import Refusal
from fhircm.exchange.roster import Line, Membership
from fhircm.exchange.together import together
from fhircm.fhir.outcome import Issue
from fhircm.store.resources import SetState, Store

log = logging.getLogger("fhircm.exchange.members")

BELIEVED = timedelta(days=1)  # so long the Patient of a roster's identifier is not searched for again
_BATCH = 200  # of answers that are kept in one transaction
Tell = Callable[[Refusal], None]


async def members(client: PartnerClient, store: Store | None = None, tell: Tell | None = None) -> list[str]:
    """The ids of the Patients in the partner's panel, each once and in order.

    `tell` is given each line or entry that could not be taken; without it they are logged. With a store, what a roster's identifiers
    were found to mean is kept for a day. Raises the client's errors, and RosterWrong.
    """
    panel, tell = client.partner.panel, tell or _logged(client.partner.name)
    if panel is None:
        found = _of_group(client, (await client.read("Group", client.partner.group)).tree)
    elif panel.list is not None:
        found = _of_list(client, (await client.read("List", panel.list)).tree)
    elif panel.search is not None:
        found = await _by_search(client, panel, tell)
    else:
        found = await _Roster(client, store, tell).found(roster.lines(panel.roster))  # type: ignore[arg-type]
    return sorted(set(found))


def named(client: PartnerClient) -> str:
    """What the panel is, for people: Group/17, List/4, a search or a roster."""
    return str(client.partner.panel or f"Group/{client.partner.group}")


def _logged(name: str) -> Tell:
    def tell(refusal: Refusal) -> None:
        log.warning("%s: %s", name, refusal)

    return tell


def _of_group(client: PartnerClient, tree: dict[str, Any]) -> Iterator[str]:
    for member in _mappings(tree.get("member")):
        if member.get("inactive") is not True:
            yield from _patient(client, member.get("entity"))


def _of_list(client: PartnerClient, tree: dict[str, Any]) -> Iterator[str]:
    for entry in _mappings(tree.get("entry")):
        if entry.get("deleted") is not True:
            yield from _patient(client, entry.get("item"))


def _patient(client: PartnerClient, reference: Any) -> Iterator[str]:
    written = reference.get("reference") if isinstance(reference, dict) else None
    one = source(client.partner.base_url, written) if isinstance(written, str) else None
    if one is not None and one.type == "Patient":
        yield one.id


async def _by_search(client: PartnerClient, panel: Membership, tell: Tell) -> list[str]:
    assert panel.search is not None
    type, parameters = panel.search
    found = []
    for received in await client.search_all(type, parameters):
        if received.type == "Patient" and received.id:
            found.append(received.id)
        elif received.type == type:
            patients = {one.id for one in referred(client.partner.base_url, received.body) if one.type == "Patient"}
            if len(patients) == 1:
                found += patients
            else:
                tell(
                    _refusal(
                        f"{type}/{received.id}", f"speaks of {len(patients) or 'no'} patients, so that nobody is taken by it"
                    )
                )
    return found


class _Roster:
    """The resolving of one roster."""

    def __init__(self, client: PartnerClient, store: Store | None, tell: Tell) -> None:
        self.client, self.store, self.tell = client, store, tell
        self.namespace = f"roster:{client.partner.name}"
        self._new: list[SetState] = []

    async def found(self, lines: Iterable[Line]) -> list[str]:
        """The Patients of all lines that name one. What does not answer ends it: half a panel would look like people who left."""
        kept = await self.store.states(self.namespace) if self.store else {}
        patients: list[str] = []
        wanted: list[Line] = []
        for line in lines:
            if line.wrong is not None:
                self.tell(_refusal(f"line {line.number} of the roster", line.wrong))
            elif line.id is not None:
                patients.append(line.id)
            elif (known := self._known(kept.get(self._key(line)))) is not None:
                patients.append(known)
            else:
                wanted.append(line)
        size = self.client.partner.limits.concurrency
        for start in range(0, len(wanted), size):
            some = wanted[start : start + size]
            for line, answer in zip(some, await together(self._resolve(line) for line in some), strict=True):
                patients += [answer] if answer else []
                if answer:
                    await self._keep(line, answer)
        await self._save()
        return patients

    async def _resolve(self, line: Line) -> str | None:
        where = f"line {line.number} of the roster"
        try:
            matches = await self.client.search_all("Patient", [("identifier", str(line.identifier))])
        except PartnerRefused as error:
            if error.answered in (401, 403):
                raise
            self.tell(_refusal(where, str(error)))
            return None
        wanted = str(line.identifier).partition("|")
        ids = {one.id for one in matches if one.type == "Patient" and one.id and _has(one.tree, wanted[0], wanted[2])}
        if len(ids) == 1:
            return ids.pop()
        self.tell(_refusal(where, "finds nobody at the partner" if not ids else f"finds {len(ids)} patients at the partner"))
        return None

    def _key(self, line: Line) -> str:
        return sha256(f"{self.client.partner.base_url} {line.identifier}".encode()).hexdigest()

    def _known(self, row: dict[str, Any] | None) -> str | None:
        """A Patient that was found a short while ago."""
        if row is None or self.store is None:
            return None
        age = self.store.clock() - datetime.fromisoformat(row["at"])
        return row["id"] if timedelta() <= age < BELIEVED else None

    async def _keep(self, line: Line, id: str) -> None:
        if self.store is not None:
            self._new.append(SetState(self.namespace, self._key(line), {"id": id, "at": self.store.clock().isoformat()}))
            if len(self._new) >= _BATCH:
                await self._save()

    async def _save(self) -> None:
        if self._new and self.store is not None:
            new, self._new = self._new, []
            await self.store.transact(new, origin=f"partner:{self.client.partner.name}")


def _has(patient: dict[str, Any], system: str, value: str) -> bool:
    """Whether the Patient really has the identifier: a partner that ignores the parameter answers with anybody."""
    return any(one.get("system") == system and one.get("value") == value for one in _mappings(patient.get("identifier")))


def _mappings(tree: Any) -> list[dict[str, Any]]:
    return [one for one in tree if isinstance(one, dict)] if isinstance(tree, list) else []


def _refusal(what: str, why: str) -> Refusal:
    return Refusal(what, (Issue("error", "not-found", why),))
