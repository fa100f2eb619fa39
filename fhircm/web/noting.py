"""What people do on the pages is written down before its answer leaves: who signed in or failed to, what an app was let do, whom a list showed.

https://profiles.ihe.net/ITI/BALP. Never what was typed: a password may stand in the field of the user name.
"""

from __future__ import annotations

from collections.abc import Iterable

from fhircm import correlation
from fhircm.access import audit
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


def note_shown(visit: Visit, interaction: str, principal: Principal, target: str, shown: Iterable[Stored]) -> None:
    """Write down which resources a page showed. Raises AuditUnavailable."""
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
            query="",
        )


def _address(visit: Visit) -> str | None:
    return visit.request.client.host if visit.request.client else None
