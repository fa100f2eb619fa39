"""A partner merges two of its Patients: whatever is of the one that was given up is seen, and goes on, with the one that is left.

https://hl7.org/fhir/R4/patient.html#merging and HL7 v2 ADT^A40, which becomes the same: a `link` of type `replaced-by`. Every reference to the
Patient that was given up leads to the survivor from then on, in the hub's own resources and in its copies of the partner's, and keeps in an
extension whom it named first: so a search, an access rule or a pathway of the survivor finds all of it, and a merge that the partner takes
back is undone reference by reference. Provenance and AuditEvents tell of the past and stay as they are.

The work is done in steps, each one transaction with the timer of the next: a process that dies in between loses nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, Protocol

from fhircm.exchange import human
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.partners import Partner
from fhircm.fhir.definitions import definitions
from fhircm.fhir.query import parse_query
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import HUB
from fhircm.fhir.validation import check_tree
from fhircm.store.changes import Change
from fhircm.store.resources import Op, Put, SetState, SetTimer, Store, Stored
from fhircm.store.timers import Timer

KIND = "merge"  # of the timer that goes on with it
MERGED = "merged"  # namespace: Patient that was given up -> the survivor
ORIGINAL = f"{HUB}StructureDefinition/merged-from"
REVIEW, DISPLAY = "merge-review", "Look at a merge of two records of a partner"
AT_ONCE = 100  # resources in one transaction
_PAGE = 200
_LONGEST = 16  # merges in a row
# The past, and what identity.py keeps itself: it is about records, not about humans.
_KEPT = frozenset({"Patient", "Person", "Provenance", "AuditEvent"})
_OF_RECORDS = frozenset({"possible-match", "match-withdrawn", REVIEW})
_BESIDES = {"Task": ("patient", "focus"), "List": ("item",), "Consent": ("patient",)}


def types() -> str:
    """What can refer to a Patient and is moved, for the list of reactions."""
    return " ".join(sorted({"Patient", *definitions().compartments["Patient"], *_BESIDES} - (_KEPT - {"Patient"})))


def target_of(tree: dict[str, Any]) -> str | None:
    """The id at the hub of the Patient that replaced this one at the same partner; None when none did."""
    base = tree.get("meta", {}).get("source", "").rpartition("/Patient/")[0]
    for link in tree.get("link", []):
        if link.get("type") == "replaced-by":
            reference = link.get("other", {}).get("reference", "")
            parsed = parse_reference(reference)
            if parsed.kind == "local" and parsed.type == "Patient":
                return parsed.id
            if base and reference.startswith(f"{base}/Patient/"):
                return hub_id(base, reference.removeprefix(f"{base}/"))
    return None


async def survivor(store: Store, id: str) -> str | None:
    """The Patient in whose place this one is: itself, or the end of its merges. None when they run in a circle, out of a partner, or nowhere."""
    seen, here = {id}, id
    stored = (await store.read_many([("Patient", id)])).get(("Patient", id))
    while stored is not None and (there := target_of(tree := stored.tree)):
        stored = (await store.read_many([("Patient", there)])).get(("Patient", there))
        if stored is None or there in seen or len(seen) > _LONGEST or _base(stored.tree) != _base(tree):
            return None
        seen.add(there)
        here = there
    return here


def _base(tree: dict[str, Any]) -> str:
    return tree.get("meta", {}).get("source", "").rpartition("/Patient/")[0]


async def follow(store: Store, change: Change, *, owner: str | None = None) -> list[Op]:
    """Reaction to a Patient, and to what a partner writes of one that was given up: it still names that one."""
    stored = (await store.read_many([(change.type, change.id)])).get((change.type, change.id))
    if stored is None:
        return []
    if change.type == "Patient":
        concerned = [stored, *[one async for one in _pointing_to(store, stored)]]
        return [one for patient in concerned for one in await _merged(store, patient, owner)]
    if not change.origin.startswith("partner:") or not await store.state_keys(MERGED, 1):
        return []
    settled = await _settled(store, stored, {})
    return [settled] if settled else []


async def _pointing_to(store: Store, patient: Stored) -> AsyncIterator[Stored]:
    """Patients that were replaced by this one, which the hub may have learned of before it knew this one."""
    named = [f"Patient/{patient.id}", *filter(None, [patient.tree.get("meta", {}).get("source")])]
    for name in named:
        for one in (await store.search(parse_query("Patient", [("link", name), ("_count", str(_PAGE))]))).matches:
            if target_of(one.tree) == patient.id:
                yield one


async def _merged(store: Store, patient: Stored, owner: str | None) -> list[Op]:
    """Begin to move what is of a Patient, if it has another survivor than before."""
    row = await store.state(MERGED, patient.id)
    was = row["into"] if row else patient.id
    end = await survivor(store, patient.id)
    if end is None:
        reason = "The partner says that another record replaced this one, but that leads to none that the hub has, in a circle, or to another partner. Nothing was moved"
        return [
            *await human.tell(
                store,
                (REVIEW, patient.id),
                REVIEW,
                DISPLAY,
                reason,
                focus=f"Patient/{patient.id}",
                patient=f"Patient/{patient.id}",
                owner=owner,
            )
        ]
    operations: list[Op] = [*await human.take_back(store, (REVIEW, patient.id), "The merge can be followed")]
    if end == was:
        return operations
    fact = {"into": end} if end != patient.id else None
    sweep = {"patient": patient.id, "from": sorted({patient.id, was}), "back": was if end == patient.id else None, "step": 0}
    due = SetTimer(f"merge:{patient.id}:{patient.version}:0", KIND, store.clock(), sweep)
    return [*operations, SetState(MERGED, patient.id, fact), due]


class Around(Protocol):
    """What the handler may look at: the store, and the id of the Organization that coordinates."""

    @property
    def store(self) -> Store: ...

    @property
    def organization(self) -> str: ...


async def carry_on(around: Around, timer: Timer) -> list[Op]:
    """Timer handler: move the next resources of a merge, and come again while there are more."""
    store, owner = around.store, f"Organization/{around.organization}"
    payload, ends = timer.payload, dict[str, str | None]()
    moved: list[Op] = []
    for id in payload["from"]:
        async for stored in _of(store, id):
            if settled := await _settled(store, stored, ends):
                moved.append(settled)
            if len(moved) == AT_ONCE:
                key, _, _ = timer.key.rpartition(":")
                step = payload["step"] + 1
                return [*moved, SetTimer(f"{key}:{step}", KIND, store.clock(), {**payload, "step": step})]
    return [*moved, *await _done(store, payload, owner, moved)]


async def _of(store: Store, patient: str) -> AsyncIterator[Stored]:
    """Everything that refers to a Patient and may be moved, each once."""
    there = await store.types()
    compartment = definitions().compartments["Patient"]
    for type in sorted(({*compartment, *_BESIDES} & there) - _KEPT):
        seen: set[str] = set()
        known = definitions().search_parameters[type]
        for code in dict.fromkeys([*compartment.get(type, ()), *_BESIDES.get(type, ())]):
            if code not in known:
                continue
            query = parse_query(type, [(code, f"Patient/{patient}"), ("_count", str(_PAGE))])
            while True:
                page = await store.search(query)
                for stored in page.matches:
                    if stored.id not in seen:
                        seen.add(stored.id)
                        yield stored
                if page.next is None:
                    break
                query = replace(query, cursor=page.next)


async def _settled(store: Store, stored: Stored, ends: dict[str, str | None]) -> Put | None:
    """The resource with every reference where it belongs now; None when all are there."""
    tree = stored.tree
    if any(coding.get("code") in _OF_RECORDS for coding in tree.get("code", {}).get("coding", []) if stored.type == "Task"):
        return None
    changed = False
    for reference in list(_references(tree)):
        here = reference["reference"].removeprefix("Patient/")
        first = _original(reference) or here
        if first not in ends:
            ends[first] = await survivor(store, first)
        end = ends[first]
        if end is None or end == here:
            continue
        changed = True
        kept = [one for one in reference.get("extension", []) if one.get("url") != ORIGINAL]
        if end != first:
            kept.append({"url": ORIGINAL, "valueString": f"Patient/{first}"})
        reference["reference"] = f"Patient/{end}"
        reference.pop("extension", None)
        if kept:
            reference["extension"] = kept
    return Put(check_tree(tree, by_guides=False), if_version=stored.version) if changed else None


def _references(node: Any) -> Iterator[dict[str, Any]]:
    """The Reference elements that lead to a Patient, whichever version they name not."""
    if isinstance(node, list):
        for one in node:
            yield from _references(one)
    elif isinstance(node, dict):
        url = node.get("reference")
        if isinstance(url, str) and url.startswith("Patient/") and url.count("/") == 1:
            yield node
        for one in node.values():
            yield from _references(one)


def _original(reference: dict[str, Any]) -> str | None:
    named = (one.get("valueString", "") for one in reference.get("extension", []) if one.get("url") == ORIGINAL)
    return next((name.removeprefix("Patient/") for name in named), None)


async def _done(store: Store, payload: dict[str, Any], owner: str | None, moved: list[Op]) -> list[Op]:
    """What a human must look at when all is moved: consents that say different things, and what a merge that was taken back left behind."""
    end = await survivor(store, payload["patient"]) or payload["patient"]
    about = f"Patient/{end}"
    if payload["back"]:
        reason = (
            "A merge was taken back. What named this record goes back to it; what was written for the other one in the meantime stays "
            "there, for nobody can tell from the record whom it meant: look through it"
        )
        return [
            *await human.tell(
                store,
                (REVIEW, payload["patient"], "back"),
                REVIEW,
                DISPLAY,
                reason,
                focus=about,
                patient=f"Patient/{payload['back']}",
                owner=owner,
            )
        ]
    pending = {one.resource.id: one.resource.tree for one in moved if isinstance(one, Put) and one.resource.type == "Consent"}
    page = await store.search(parse_query("Consent", [("patient", about), ("status", "active"), ("_count", str(_PAGE))]))
    consents = {stored.id: stored.tree for stored in page.matches} | {
        id: tree for id, tree in pending.items() if tree["status"] == "active"
    }
    says = {tree.get("provision", {}).get("type", "permit") for tree in consents.values()}
    if len(says) < 2:
        return []
    reason = "Two records were merged whose consents say different things. Until somebody settles it each denial counts, whatever the other consents permit"
    parts = ("consent-conflict", end)
    return [
        *await human.tell(
            store,
            parts,
            "consent-conflict",
            "Two consents of a merged record say different things",
            reason,
            focus=about,
            patient=about,
            owner=owner,
        )
    ]


async def replaced(store: Store, partner: Partner, gone_id: str, found_id: str) -> list[Op]:
    """The writes that note that a partner has one Patient (ids there) no more and another in its place, when it said so only by a search.

    Nothing to do when the hub has not both. Commit them with the origin of the partner.
    """
    gone, found = (hub_id(partner.base_url, f"Patient/{id}") for id in (gone_id, found_id))
    there = await store.read_many([("Patient", gone), ("Patient", found)])
    if len(there) < 2:
        return []
    stored = there["Patient", gone]
    tree = stored.tree
    if target_of(tree) == found:
        return []
    others = [link for link in tree.get("link", []) if link.get("type") != "replaced-by"]
    tree |= {"active": False, "link": [*others, {"other": {"reference": f"Patient/{found}"}, "type": "replaced-by"}]}
    return [Put(check_tree(tree, by_guides=False), if_version=stored.version)]
