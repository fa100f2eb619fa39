"""Every page at its address, and the parts that pages work with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from fhircm.access.bearer import Bearer
from fhircm.access.logins import SignIn
from fhircm.access.one_time_codes import OneTimeCodes
from fhircm.access.passwords import Passwords
from fhircm.access.sealing import Seal
from fhircm.access.sessions import Sessions
from fhircm.exchange.launch import EhrLaunches
from fhircm.exchange.partners import Partner
from fhircm.exchange.status import statuses
from fhircm.lately import Lately
from fhircm.smart.authorize import Authorizations
from fhircm.smart.provider import Provider, ProviderSettings
from fhircm.store.logins import Logins
from fhircm.store.principals import Principals
from fhircm.store.sessions import SessionRecords
from fhircm.web import account, authorizing, emergencies, launching, patient, privacy, signing_in, worklist
from fhircm.web.console import routes as console
from fhircm.web.pages import Pages, serve_files
from fhircm.web.parts import Parts

if TYPE_CHECKING:
    from fhircm.store.resources import Store


@dataclass(frozen=True)
class WebSettings:
    """What is set for the pages. `now` tells the seconds since the epoch."""

    organization_name: str = "Care coordination"
    time_zone: str = "UTC"
    idle: timedelta = timedelta(minutes=30)
    longest: timedelta = timedelta(hours=12)
    provider: ProviderSettings | None = None
    coordinator: str = ""  # reference of the Organization that coordinates
    passwords: Callable[[], Passwords] = Passwords
    now: Callable[[], float] = time.time


def add_routes(app: Starlette) -> None:
    """Put every page at its address."""
    serve_files(app)
    signing_in.add_routes(app)
    authorizing.add_routes(app)
    account.add_routes(app)
    console.add_routes(app)
    worklist.add_routes(app)
    emergencies.add_routes(app)
    privacy.add_routes(app)
    launching.add_routes(app)
    patient.add_routes(app)


def start(
    app: Starlette,
    settings: WebSettings,
    partners: Sequence[Partner],
    base_url: str,
    keys_dir: Path,
    store: Store,
    authorizations: Authorizations,
    bearer: Bearer,
    grace: timedelta,
) -> None:
    """Put the parts together, once the store is open."""
    database, seal = store.database, Seal.open(keys_dir)
    logins = Logins(database)
    records = SessionRecords(database)
    sign_in = SignIn(logins, settings.passwords(), seal, settings.now)
    sessions = Sessions(records, idle=settings.idle, longest=settings.longest, now=settings.now)
    app.state.pages = Pages(base_url, settings.organization_name, settings.time_zone, sessions)
    app.state.parts = Parts(
        logins=logins,
        sign_in=sign_in,
        sessions=sessions,
        codes=OneTimeCodes(records, logins, sign_in, settings.now),
        grants=authorizations.grants,
        authorizations=authorizations,
        credentials=authorizations.credentials,
        bearer=bearer,
        principals=Principals(database),
        store=store,
        seal=seal,
        provider=Provider(settings.provider, settings.now) if settings.provider else None,
        launches=EhrLaunches([one for one in partners if one.launch is not None], keys_dir, base_url, settings.now),
        partners=partners,
        stand=Lately(lambda: statuses(store, partners)),
        coordinator=settings.coordinator,
        grace=grace,
        now=settings.now,
    )
