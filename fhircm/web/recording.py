"""What people do on the pages is told to the audit journal, before they see the answer. fhircm/access/audit.py"""

from __future__ import annotations

from collections.abc import Iterable

from fhircm import correlation
from fhircm.access.audit import Touched, record, record_security
from fhircm.access.audit_journal import Journal
from fhircm.access.person import PAGES
from fhircm.access.principal import Principal
from fhircm.store.stored import Stored
from fhircm.web.pages import Visit


def require_room(visit: Visit) -> None:
    """Raises AuditUnavailable: what cannot be recorded may not happen."""
    if (journal := _journal(visit)) is not None:
        journal.require_room()


def note(visit: Visit, what: str, target: str | None = None, *, patient: str | None = None, status: int = 200) -> None:
    """Something was done to a client, a person, an organisation, a key or a grant. `target` names it: never a secret."""
    journal, login = _journal(visit), visit.login
    if journal is not None:
        record_security(
            journal,
            what,
            status=status,
            client=PAGES,
            user=login.fhir_user,
            login=login.id,
            organization=login.organization or None,
            roles=sorted(login.roles),
            patient=patient,
            address=_address(visit),
            request=_request(),
            target=target,
        )


def note_shown(
    visit: Visit, principal: Principal, code: str, target: str, shown: Iterable[Stored], *, query: str = "", status: int = 200
) -> None:
    """Resources were shown or written: `code` is the interaction that did it, `target` the type or the resource."""
    journal = _journal(visit)
    if journal is None:
        return
    touched = Touched(code)
    for stored in shown:
        touched.add(stored)
    record(
        journal,
        touched,
        principal,
        status=status,
        method=visit.request.method,
        address=_address(visit),
        request=_request(),
        target=target,
        query=query,
    )


def _journal(visit: Visit) -> Journal | None:
    journal: Journal | None = visit.request.app.state.journal
    return journal


def _address(visit: Visit) -> str | None:
    return visit.request.client.host if visit.request.client else None


def _request() -> str | None:
    id = correlation.current.get()
    return id if id != "-" else None
