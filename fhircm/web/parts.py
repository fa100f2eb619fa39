"""What the pages work with, put together when the application starts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from fhircm.access.bearer import Bearer
from fhircm.access.guarded_store import GuardedStore
from fhircm.access.logins import Now, SignIn
from fhircm.access.person import principal_of
from fhircm.access.sealing import Seal
from fhircm.access.sessions import Sessions
from fhircm.smart.provider import Provider
from fhircm.store.credentials import Credentials
from fhircm.store.grants import Grants
from fhircm.store.logins import Logins
from fhircm.store.principals import Principals
from fhircm.web.pages import Visit

if TYPE_CHECKING:
    from fhircm.smart.authorize import Authorizations
    from fhircm.store.resources import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts. `grace`: for which a care relationship is good after its end; `now` tells the seconds since the epoch."""

    logins: Logins
    sign_in: SignIn
    sessions: Sessions
    grants: Grants
    authorizations: Authorizations
    credentials: Credentials
    bearer: Bearer
    principals: Principals
    store: Store
    seal: Seal
    provider: Provider | None
    grace: timedelta
    now: Now


def parts(visit: Visit) -> Parts:
    """The parts of the application that answers."""
    found: Parts = visit.request.app.state.parts
    return found


async def seen_by(visit: Visit) -> GuardedStore:
    """The store as the person sees it who is signed in."""
    at_hand = parts(visit)
    return GuardedStore(at_hand.store, await principal_of(visit.login, at_hand.principals), at_hand.grace)
