"""What an AuditEvent says: who did what, for whom, why, from where, and with what outcome.

https://profiles.ihe.net/ITI/BALP/content.html and https://hl7.org/fhir/R4/auditevent.html. Pure: from an Event of the journal and the
patients that it touched to an AuditEvent. One event stands for one request, with every patient it touched; BALP would have one for
each patient.
"""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from fhircm.access.audit_journal import Event, Journal
from fhircm.fhir.outcome import Forbidden
from fhircm.fhir.systems import CLIENT, HUB, OPERATION, SECURITY, SERVER
from fhircm.store.operations import Write, WriteRule
from fhircm.store.stored import Stored, instant, moment

if TYPE_CHECKING:
    from fhircm.access.principal import Principal

Tree = dict[str, Any]

TERMS = "http://terminology.hl7.org/CodeSystem"
BALP = "https://profiles.ihe.net/ITI/BALP"
_DICOM = "http://dicom.nema.org/resources/ontology/DCM"
_REST = {"system": f"{TERMS}/audit-event-type", "code": "rest"}
_INTERACTION = "http://hl7.org/fhir/restful-interaction"
_PARTICIPATION = f"{TERMS}/v3-ParticipationType"
PATIENTS = 500  # of one event; more of them (an export) are told in several

# Action of each interaction, and which way the data went: the client is the destination (110152) of what it reads, and the source
# (110153) of what it asks or writes; of a delete BALP says "application" and "custodian".
_READS, _QUERIES, _UPDATES = ("R", "110152"), ("E", "110153"), ("U", "110153")
_KINDS = {
    "read": _READS,
    "vread": _READS,
    "history-instance": _READS,
    "history-type": _READS,
    "history-system": _READS,
    "export-file": _READS,
    "search-type": _QUERIES,
    "search-system": _QUERIES,
    "create": ("C", "110153"),
    "update": _UPDATES,
    "patch": _UPDATES,
    "delete": ("D", "110150"),
}
_SEARCHES = frozenset({"search-type", "search-system"})
# What happens to clients, people and grants: DICOM's code of the kind of event, and of what it was.
_SECURITY = {
    "login": ("110114", (_DICOM, "110122")),
    "logout": ("110114", (_DICOM, "110123")),
    "token": ("110114", ("urn:ihe:event-type-code", "ITI-71")),
    "consent": ("110113", (f"{BALP}/CodeSystem/AuthZsubType", "AuthZ-Consent")),
    "user": ("110113", (_DICOM, "110137")),
    "role": ("110113", (_DICOM, "110136")),
    "break-glass": ("110113", (_DICOM, "110127")),
}
_SECRET = re.compile(r"((?:^|&)(?:access_token|refresh_token|id_token|token|code|password|client_secret|client_assertion)=)[^&]*")
_OF_PATIENT = frozenset({"patient", "subject", "beneficiary", "individual"})
_PATIENT = re.compile(r"(?:^|/)Patient/([A-Za-z0-9\-.]{1,64})(?:$|/)")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


class Touched:
    """What an interaction says of itself while it works: which versions it showed or wrote, and the query that it was asked."""

    __slots__ = ("code", "job", "query", "versions")

    def __init__(self, code: str) -> None:
        self.code = code
        self.query: str | None = None
        self.versions: dict[str, None] = {}
        self.job: str | None = None

    def add(self, stored: Stored) -> None:
        """A version was shown or written."""
        self.versions[f"{stored.type}/{stored.id}/{stored.version}"] = None


def record(
    journal: Journal,
    touched: Touched,
    principal: Principal | None,
    *,
    status: int,
    method: str,
    address: str | None,
    request: str | None,
    target: str | None,
    query: str,
) -> None:
    """Write down a request of the FHIR API, before its answer leaves. Raises AuditUnavailable."""
    query = query if touched.query is None else touched.query
    journal.record(
        Event(
            time.time_ns() // 1000,
            touched.code,
            status,
            method,
            address,
            request[:128] if request else None,
            *_who(principal),
            target,
            _SECRET.sub(r"\1", query) if query else None,
            tuple(touched.versions),
            touched.job,
        )
    )


def record_security(
    journal: Journal,
    what: str,
    *,
    status: int = 200,
    principal: Principal | None = None,
    client: str | None = None,
    user: str | None = None,
    login: str | None = None,
    organization: str | None = None,
    roles: Sequence[str] = (),
    purpose: str | None = None,
    patient: str | None = None,
    address: str | None = None,
    request: str | None = None,
    target: str | None = None,
) -> None:
    """Write down what happened to a client, a person or a grant: `what` is login, logout, token, consent, user, role, break-glass, or a
    code of the hub's own (launch, revoke, client, key …); `target` names what it was done to: never a secret. Raises AuditUnavailable.
    """
    known = _who(principal)
    given = (client, user, login, organization, tuple(roles), purpose)
    who = tuple(own or other for own, other in zip(given, known, strict=True))
    versions = (f"Patient/{patient}",) if patient else ()
    request = request[:128] if request else None
    journal.record(Event(time.time_ns() // 1000, f"!{what}", status, "", address, request, *who, target, None, versions))


def _who(principal: Principal | None) -> tuple[Any, ...]:
    if principal is None:
        return None, None, None, None, (), None
    roles = _in_order(principal.roles)
    return principal.client_id, principal.user, principal.login, principal.organization, roles, principal.purpose


@lru_cache(maxsize=256)
def _in_order(roles: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(roles))


# --- which patients ------------------------------------------------------------------------------------------------------------


def asked_of(event: Event) -> list[str]:
    """The ids of the patients that a request was about by its own words: its address and its query."""
    ids = [found[1] for found in [_PATIENT.search(event.target)] if found] if event.target else []
    for name, value in parse_qsl(event.query or "", keep_blank_values=True):
        name = name.partition(":")[0]
        for one in value.split(",") if name in _OF_PATIENT or "Patient/" in value else ():
            if found := _PATIENT.search(one):
                ids.append(found[1])
            elif name == "patient" and _ID.fullmatch(one):
                ids.append(one)
        if name == "_id" and event.target == "Patient":
            ids += [one for one in value.split(",") if _ID.fullmatch(one)]
    return list(dict.fromkeys(ids))


# --- what it says --------------------------------------------------------------------------------------------------------------


def outcome(status: int) -> str:
    """https://hl7.org/fhir/R4/valueset-audit-event-outcome.html: refusals are serious, mistakes minor, what the hub cannot do major."""
    return "0" if status < 400 else "8" if status in (401, 403) else "4" if status < 500 else "12"


def framed(event: Event, base_url: str) -> Tree:
    """All of an AuditEvent but its time and entities: the same for many events of one caller."""
    return frame(
        event.code,
        outcome(event.status),
        str(event.status),
        event.method,
        event.address,
        event.client,
        event.user,
        event.login,
        event.organization,
        tuple(event.roles),
        event.purpose,
        base_url,
    )


@lru_cache(maxsize=4096)
def frame(
    code: str,
    outcome: str,
    status: str,
    method: str,
    address: str | None,
    client: str | None,
    user: str | None,
    login: str | None,
    organization: str | None,
    roles: tuple[str, ...],
    purpose: str | None,
    base_url: str,
) -> Tree:
    """What `framed` says; not to be changed, for it is kept."""
    tree: Tree = {"resourceType": "AuditEvent"}
    if code.startswith("!"):
        kind, (system, what) = _SECURITY.get(code[1:], ("110113", (SECURITY, code[1:])))
        tree["type"], tree["subtype"], action, direction = _coding(_DICOM, kind), [_coding(system, what)], "E", "110150"
    elif code.startswith("$"):
        action, direction = "E", "110153"
        tree["type"], tree["subtype"] = _REST, [_coding(_INTERACTION, "operation"), _coding(OPERATION, code[1:])]
    else:
        action, direction = _KINDS.get(code, ("E", "110153"))
        system = _INTERACTION if code != "export-file" else OPERATION
        tree["type"], tree["subtype"] = _REST, [_coding(system, code)] if code else []
    if not tree["subtype"]:
        del tree["subtype"]
    tree["action"], tree["outcome"] = action, outcome
    if outcome != "0":
        tree["outcomeDesc"] = status
    why = [{"coding": [_coding(f"{TERMS}/v3-ActReason", purpose)]}] if purpose else None
    if why:
        tree["purposeOfEvent"] = why
    tree["agent"] = [
        _app(direction, client, address, by_itself=user is None and login is None),
        _server(code, direction, base_url),
        *_person(action, user, login, roles, why),
    ]
    if organization:
        provider = {"coding": [_coding(f"{TERMS}/v3-RoleClass", "PROV")]}
        tree["agent"].append({"type": provider, "who": {"reference": organization}, "requestor": False})
    kind = "6" if code.startswith("!") else "4"
    tree["source"] = {"observer": observer(base_url), "type": [_coding(f"{TERMS}/security-source-type", kind)]}
    return tree


def observer(base_url: str) -> Tree:
    """The hub as the source of its AuditEvents."""
    return {"identifier": {"system": SERVER, "value": base_url}}


def _coding(system: str, code: str) -> Tree:
    return {"system": system, "code": code}


def _app(direction: str, client: str | None, address: str | None, *, by_itself: bool) -> Tree:
    who: Tree = {"identifier": {"system": CLIENT, "value": client}} if client else {"display": "somebody who did not sign in"}
    agent: Tree = {"type": {"coding": [_coding(_DICOM, direction)]}, "who": who, "requestor": by_itself}
    return agent | {"network": {"address": address, "type": "2"}} if address else agent


def _server(code: str, direction: str, base_url: str) -> Tree:
    kind = _coding(_DICOM, "110153" if direction == "110152" else "110152")
    if code == "delete":
        kind = _coding(f"{TERMS}/provenance-participant-type", "custodian")
    elif code.startswith("!"):
        kind = _coding(f"{TERMS}/extra-security-role-type", "authserver")
    network = {"address": base_url, "type": "5"}
    return {"type": {"coding": [kind]}, "who": observer(base_url), "requestor": False, "network": network}


def _person(action: str, user: str | None, login: str | None, roles: tuple[str, ...], why: list[Tree] | None) -> list[Tree]:
    if user is None and login is None:
        return []
    part = "AUT" if action in ("C", "U", "D") else "IRCP"
    agent: Tree = {"type": {"coding": [_coding(_PARTICIPATION, part)]}}
    if roles:
        agent["role"] = [{"coding": [_coding(f"{HUB}role", role)]} for role in roles]
    agent["who"] = {"reference": user} if user else {"identifier": {"system": f"{HUB}login", "value": login}}
    if login:
        agent["altId"] = login
    agent["requestor"] = True
    if why:
        agent["purposeOfUse"] = why
    return [agent]


def entities(event: Event, patients: Sequence[str]) -> list[Tree]:
    """What was touched, asked, and by which request."""
    found = [entity("1", "1", f"Patient/{id}") for id in patients]
    if event.code in _SEARCHES:
        text = b64encode((f"{event.target}?" if event.target else "?").encode() + (event.query or "").encode()).decode()
        found.append({"type": _entity_type("2"), "role": _role("24"), "query": text})
    elif event.job:
        found.append(entity("2", "20", f"Task/{event.job}"))
        found.append({"type": _entity_type("2"), "role": _role("24"), "query": b64encode((event.query or "").encode()).decode()})
    else:
        # Who looks at many versions (a history, $everything) is told by what was asked, as a search is.
        written = event.code in ("read", "vread", "create", "update", "patch", "delete", "transaction")
        things = [versioned(one) for one in event.touched] if written else []
        if not things and event.target and "/" in event.target:
            things = [event.target]
        found += [entity("2", "4", one) for one in things if not event.code.startswith("!")]
        if event.code.startswith("!") and event.target:
            found.append({"type": _entity_type("2"), "role": _role("13"), "name": event.target})
        if event.query:
            asked = b64encode(f"{event.target or ''}?{event.query}".encode()).decode()
            found.append({"type": _entity_type("2"), "role": _role("24"), "query": asked})
    if event.request:
        kind = _coding(f"{BALP}/CodeSystem/BasicAuditEntityType", "XrequestId")
        found.append({"what": {"identifier": {"value": event.request}}, "type": kind})
    return found


def entity(kind: str, role: str, reference: str) -> Tree:
    """An entity that is a resource."""
    return {"what": {"reference": reference}, "type": _entity_type(kind), "role": _role(role)}


def _entity_type(code: str) -> Tree:
    return _coding(f"{TERMS}/audit-entity-type", code)


def _role(code: str) -> Tree:
    return _coding(f"{TERMS}/object-role", code)


def versioned(touched: str) -> str:
    """The reference to what was touched: its version, if it is known."""
    type, _, rest = touched.partition("/")
    id, _, version = rest.partition("/")
    return f"{type}/{id}/_history/{version}" if version else f"{type}/{id}"


def audit_event(event: Event, patients: Sequence[str], base_url: str) -> Tree:
    """The AuditEvent, without id and meta."""
    tree = {**framed(event, base_url), "recorded": instant(moment(event.at))}
    listed = entities(event, patients)
    return tree | {"entity": listed} if listed else tree


# --- who may write it ----------------------------------------------------------------------------------------------------------


def _keep(write: Write) -> None:
    if write.origin == "hub":
        return
    if write.previous is not None or write.new is None:
        raise Forbidden("An AuditEvent is neither changed nor deleted: it tells what was")
    if SERVER in str(write.new):
        raise Forbidden(f"Only the hub speaks in the name of {SERVER}", "AuditEvent.source.observer")


RULE = WriteRule(frozenset({"AuditEvent"}), _keep, deletes=True)
