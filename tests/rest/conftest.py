"""The application over ASGI, with a client that signed in by a real assertion."""

from contextlib import asynccontextmanager

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.coordination.task_states import enforce
from fhircm.rest.exchange import RestSettings

from .signing import BASE, register, signed_in

REST = RestSettings(body_limit=20_000, bundle_limit=2_000_000, update_create=False, conditional_delete_limit=1)


@asynccontextmanager
async def hub(database_url, clock, tmp_path, rest):
    """A client of the application, not signed in, and two clients that may."""
    await register(database_url, "app", "system/*.cruds")
    await register(database_url, "reader", "system/Patient.rs")
    app = create_app(AppConfig(database_url, BASE, tmp_path / "keys", rest, False, clock, [enforce]))
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
        yield http


@pytest.fixture
async def anonymous(database_url, clock, tmp_path):
    async with hub(database_url, clock, tmp_path, REST) as http:
        yield http


@pytest.fixture
async def http(anonymous):
    anonymous.headers["Authorization"] = f"Bearer {await signed_in(anonymous)}"
    return anonymous
