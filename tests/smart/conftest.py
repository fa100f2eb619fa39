"""The application with apps of every kind, and people who may let them in."""

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.coordination.rules import RULES
from tests.rest.conftest import REST
from tests.rest.signing import BASE

from .flow import Hub, settle


@pytest.fixture
async def hub(database_url, clock, tmp_path):
    app = create_app(AppConfig(database_url, BASE, tmp_path / "keys", REST, False, clock, RULES))
    async with app.router.lifespan_context(app):
        await settle(app.state.store.database)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
            yield Hub(app, http)


@pytest.fixture
def passes(monkeypatch):
    """Lets time pass, in seconds."""
    import time

    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])

    def go(seconds):
        ahead[0] += seconds

    return go
