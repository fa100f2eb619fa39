"""What the pages work with, put together when the application starts."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from fhircm.access.bearer import Bearer
from fhircm.access.guarded_store import GuardedStore
from fhircm.access.logins import Now, SignIn
from fhircm.access.one_time_codes import OneTimeCodes
from fhircm.access.person import principal_of
from fhircm.access.sealing import Seal, SealBroken
from fhircm.access.sessions import Sessions
from fhircm.exchange.launch import EhrLaunches
from fhircm.exchange.partners import Partner
from fhircm.exchange.status import Status
from fhircm.fhir.outcome import Malformed
from fhircm.fhir.query import Cursor
from fhircm.lately import Lately
from fhircm.smart.provider import Provider
from fhircm.store.credentials import Credentials
from fhircm.store.grants import Grants
from fhircm.store.logins import Logins
from fhircm.store.principals import Principals
from fhircm.web.pages import Problem, Visit

if TYPE_CHECKING:
    from fhircm.smart.authorize import Authorizations
    from fhircm.store.resources import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts. `grace`: for which a care relationship is good after its end; `now` tells the seconds since the epoch.

    `coordinator`: reference of the Organization that coordinates.
    """

    logins: Logins
    sign_in: SignIn
    sessions: Sessions
    codes: OneTimeCodes
    grants: Grants
    authorizations: Authorizations
    credentials: Credentials
    bearer: Bearer
    principals: Principals
    store: Store
    seal: Seal
    provider: Provider | None
    launches: EhrLaunches
    partners: Sequence[Partner]
    stand: Lately[list[Status]]  # how it stands with each of them
    coordinator: str
    grace: timedelta
    now: Now


def parts(visit: Visit) -> Parts:
    """The parts of the application that answers."""
    found: Parts = visit.request.app.state.parts
    return found


async def seen_by(visit: Visit) -> GuardedStore:
    """The store as the person sees it who is signed in."""
    at_hand = parts(visit)
    bound = visit.session.launch.get("patient") if visit.session else None
    return GuardedStore(at_hand.store, await principal_of(visit.login, at_hand.principals, bound), at_hand.grace)


def sealed(visit: Visit, cursor: Cursor) -> str:
    """The place where the next page begins, which may hold a name: not to be read or made up by anybody."""
    return base64.b64encode(parts(visit).seal.seal(json.dumps(cursor.as_json()).encode())).decode()


def opened(visit: Visit, page: str) -> Cursor:
    """What `sealed` made. Raises Problem."""
    try:
        return Cursor.from_json(json.loads(parts(visit).seal.unseal(base64.b64decode(page))))
    except (SealBroken, ValueError, Malformed):
        raise Problem("This page was open for too long", "Go back and search again.") from None


def escaped(value: str) -> str:
    """What a person typed as one value of a search, commas and bars included: https://hl7.org/fhir/R4/search.html#escaping"""
    for special in "\\,$|":
        value = value.replace(special, f"\\{special}")
    return value
