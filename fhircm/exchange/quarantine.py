"""What a partner sends that must not get into a record: recognised, kept as it came with the reason, and tried again when a human asks.

https://hl7.org/fhir/R4/compartmentdefinition-patient.html. It never stops the rest. It is tried anew with every pull that brings it; what was
refused for its content comes in by itself once its content, or the map of the partner, is mended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from fhircm.exchange.mapping import Source, referred, source
from fhircm.exchange.pages import Received
from fhircm.fhir.belonging import named_by
from fhircm.fhir.extract import searchable
from fhircm.fhir.outcome import FhirError, Issue
from fhircm.store.resources import Held, Hold, LetGo, Store

AHEAD = timedelta(minutes=10)  # of the partner's own clock; more is no longer a matter of clocks
INVALID, MISPLACED, NAMELESS, WENT_BACK, FUTURE = "invalid", "misplaced", "nameless", "went-back", "future"
MESSAGE = "message"
KINDS = {
    INVALID: "is not FHIR R4, or breaks a rule of this hub or of the partner's map",
    MISPLACED: "came in the record of a patient whom it is not about",
    NAMELESS: "has no type or no id",
    WENT_BACK: "is of an older version than the one that was read before",
    FUTURE: "was changed in the future, by its own word",
    MESSAGE: "is an HL7 v2 message that cannot be taken",
}
TRUSTED = (WENT_BACK, FUTURE)  # what a human may let in as it is


class Misplaced(FhirError):
    """A resource came in the record of a patient whom it is not about."""

    status, code = 422, "security"


class Nameless(FhirError):
    """A resource has no type or no id, so that nothing can refer to it."""

    status, code = 422, "required"


class WentBack(FhirError):
    """A resource is of an older version than the one that was read before."""

    status, code = 409, "conflict"


class FromTheFuture(FhirError):
    """A resource was changed in the future, by its own word."""

    status, code = 422, "value"


_KIND = {Misplaced: MISPLACED, Nameless: NAMELESS, WentBack: WENT_BACK, FromTheFuture: FUTURE}


@dataclass(frozen=True, slots=True)
class Strange:
    """Something to be held: under which name, why, and as it came."""

    name: str
    why: FhirError
    received: Received

    @property
    def kind(self) -> str:
        """See KINDS."""
        return _KIND.get(type(self.why), INVALID)

    @property
    def reason(self) -> str:
        """In words, with the place; never what is there."""
        return told(self.why.issues)

    @property
    def digest(self) -> str:
        """Tells one content of it from another."""
        return sha256(self.received.body).hexdigest()[:32]


def told(issues: Sequence[Issue]) -> str:
    """Issues in one line, each with its place."""
    return "; ".join(dict.fromkeys(f"{one.expression}: {one.text}" if one.expression else one.text for one in issues))


def check_place(base_url: str, received: Received, patients: Collection[str], panel: Collection[str] | None = None) -> None:
    """Whether a resource that came in a patient's record is about that patient. Raises Misplaced, and Malformed for what is no FHIR.

    `patients` are the ids that this human has at the partner: the record's own, and those that were merged with it. With a `panel`, every
    patient that the resource names must be in it, or it would tell this hub of people whom it has nothing to do with.
    """
    named = {one.id for one in referred(base_url, received.body) if one.type == "Patient"}
    if panel is not None and any(id not in panel for id in named):
        raise Misplaced("It names a patient who is not in the panel")
    if received.type == "Patient":
        if received.id not in patients:
            raise Misplaced("It is another patient's record")
        return
    if all(id in patients for id in named):
        return  # it names nobody else, so it cannot be about anybody else
    about = _about(base_url, received)
    if about and not about & set(patients):
        raise Misplaced("It came in the record of a patient whom it is not about")


def _about(base_url: str, received: Received) -> set[str]:
    """The ids of the patients in whose compartments a resource is."""
    type = received.type or ""
    codes = named_by("Patient").get(type, ())
    if not codes:
        return set()
    known, tree = searchable(type).extractors, received.tree
    elements = (element for code in codes for place in known[code].sources for element in place.get(tree))
    named = (element.get("reference") for element in elements if isinstance(element, dict))
    found = (source(base_url, reference) for reference in named if isinstance(reference, str))
    return {one.id for one in found if one is not None and one.type == "Patient"}


def check_time(received: Received, before: str | None, now: datetime) -> None:
    """Whether a resource follows what was read before, and is of this day. Raises WentBack, FromTheFuture.

    `before` is the version at the partner that was read last, as far as it counts; `now` the later of the hub's clock and the partner's own.
    """
    if before and numbered(received.version) is not None and int(received.version or 0) < int(before):
        raise WentBack(f"It is version {received.version}, and version {before} was read before", "meta.versionId")
    try:
        at = datetime.fromisoformat(received.last_updated or "")
    except ValueError:
        return
    if at.tzinfo is not None and at > now + AHEAD:
        raise FromTheFuture("It was changed in the future, by its own word", "meta.lastUpdated")


def numbered(version: str | None) -> str | None:
    """A version that counts, as most do; None for any other."""
    return version if version and version.isascii() and version.isdigit() and len(version) <= 18 else None


async def hold(store: Store, partner: str, batch: str, strange: Sequence[Strange], held: Collection[str]) -> list[Hold | LetGo]:
    """What changes in quarantine when these are strange, and `held` are the names that were held of the same batch and came again.

    Nothing, when the same things are held for the same reasons already.
    """
    names = {one.name for one in strange}
    known: Mapping[str, Held] = await store.held(partner, names) if names else {}
    operations: list[Hold | LetGo] = [LetGo(partner, name) for name in sorted(set(held) - names)]
    for one in strange:
        row = known.get(one.name)
        if row is None or (row.digest, row.reason, row.kind) != (one.digest, one.reason, one.kind):
            operations.append(Hold(partner, one.name, one.kind, one.digest, one.reason, one.received.body, batch))
    return operations


def nameless(received: Received, batch: str) -> Strange:
    """What has no type or no id, under a name that its content gives it."""
    type = received.type or "Resource"
    return Strange(f"{type}/? {sha256(received.body).hexdigest()[:8]} in {batch}", Nameless("It has no type or no id"), received)


def misplaced_name(one: Source | str, batch: str) -> str:
    """The name under which something is held that came in the wrong record."""
    return f"{one} in {batch}"
