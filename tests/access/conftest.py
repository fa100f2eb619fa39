"""Databases, any number of them, of the kind that a test runs on; and the application over each."""

from contextlib import asynccontextmanager

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.coordination.rules import RULES
from fhircm.rest.exchange import RestSettings

from .world import admitted, write

BASE = "http://hub.example"
GRACE_DAYS = 7


@pytest.fixture
def opened(databases, clock, tmp_path):
    """An application over a fresh database: its store, and a client without a token."""
    from datetime import timedelta

    @asynccontextmanager
    async def over(**options):
        settings = {"body_limit": 200_000, "bundle_limit": 2_000_000, "update_create": False, "conditional_delete_limit": 1}
        rest = RestSettings(**{**settings, "full_text": True, "grace": timedelta(days=GRACE_DAYS), **options})
        async with databases() as url:
            app = create_app(AppConfig(url, BASE, tmp_path / "keys", rest, False, clock, RULES))
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http,
            ):
                yield app.state.store, http

    return over


@pytest.fixture
def asking(opened):
    """An application over some records, at which anybody is signed in and asks."""
    from .test_probes import Asked

    @asynccontextmanager
    async def over(records, **options):
        async with opened(**options) as (store, http):
            await write(store, records)

            async def of(someone):
                return Asked(http, await admitted(store.database, someone))

            of.store = store
            yield of

    return over
