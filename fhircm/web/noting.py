"""What people do on the pages is written down before its answer leaves: who signed in or failed to, what an app was let do, whom a list showed.

https://profiles.ihe.net/ITI/BALP. Never what was typed: a password may stand in the field of the user name.
"""

from __future__ import annotations

from collections.abc import Iterable

from fhircm import correlation
from fhircm.access import audit
from fhircm.access.person import PAGES
from fhircm.access.principal import Principal
from fhircm.store.logins import Login
from fhircm.store.stored import Stored
from fhircm.web.pages import Visit


def note(
    visit: Visit,
    what: str,
    login: Login | None,
    *,
    status: int = 200,
    client: str | None = None,
    patient: str | None = None,
    target: str | None = None,
) -> None:
    """Write down what happened to a person or a grant. Raises AuditUnavailable."""
    journal = visit.request.app.state.journal
    if journal is not None:
        audit.record_security(
            journal,
            what,
            status=status,
            client=client,
            user=login.fhir_user if login else None,
            login=login.id if login else None,
            organization=login.organization if login else None,
            roles=sorted(login.roles) if login else (),
            patient=patient,
            address=_address(visit),
            request=correlation.current.get(),
            target=target,
        )


def note_done(visit: Visit, what: str, target: str, *, patient: str | None = None, status: int = 200) -> None:
    """Write down what the person of a visit did to a client, a person, an organisation, a key or a grant. Raises AuditUnavailable."""
    note(visit, what, visit.login, status=status, client=PAGES, patient=patient, target=target)


def require_room(visit: Visit) -> None:
    """Raises AuditUnavailable: what cannot be recorded may not happen."""
    journal = visit.request.app.state.journal
    if journal is not None:
        journal.require_room()


def note_shown(
    visit: Visit, interaction: str, principal: Principal, target: str, shown: Iterable[Stored], *, query: str = ""
) -> None:
    """Write down which resources a page showed or wrote. Raises AuditUnavailable."""
    journal = visit.request.app.state.journal
    if journal is not None:
        touched = audit.Touched(interaction)
        for one in shown:
            touched.add(one)
        audit.record(
            journal,
            touched,
            principal,
            status=200,
            method=visit.request.method,
            address=_address(visit),
            request=correlation.current.get(),
            target=target,
            query=query,
        )


def _address(visit: Visit) -> str | None:
    return visit.request.client.host if visit.request.client else None
