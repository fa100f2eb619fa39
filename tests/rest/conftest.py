"""The application over ASGI, with a client that signed in by a real assertion."""

from contextlib import asynccontextmanager

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.coordination.rules import RULES
from fhircm.rest.exchange import RestSettings

from .signing import BASE, register, signed_in

REST = RestSettings(body_limit=20_000, bundle_limit=2_000_000, update_create=False, conditional_delete_limit=1)


@asynccontextmanager
async def application(database_url, clock, tmp_path, rest):
    """The application, with two clients that may sign in."""
    await register(database_url, "app", "system/*.cruds")
    await register(database_url, "reader", "system/Patient.rs")
    app = create_app(AppConfig(database_url, BASE, tmp_path / "keys", rest, False, clock, RULES))
    async with app.router.lifespan_context(app):
        yield app


@asynccontextmanager
async def hub(database_url, clock, tmp_path, rest):
    """A client of the application, not signed in."""
    async with (
        application(database_url, clock, tmp_path, rest) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http,
    ):
        yield http


@pytest.fixture
async def rest_app(database_url, clock, tmp_path):
    async with application(database_url, clock, tmp_path, REST) as app:
        yield app


@pytest.fixture
async def anonymous(rest_app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(rest_app), base_url=BASE) as http:
        yield http


@pytest.fixture
async def http(anonymous):
    anonymous.headers["Authorization"] = f"Bearer {await signed_in(anonymous)}"
    return anonymous
