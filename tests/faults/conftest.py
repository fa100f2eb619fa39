"""Workers that are killed are processes of their own, so the clock is the machine's."""

from datetime import UTC, datetime

import pytest

from fhircm.coordination.rules import RULES
from fhircm.store.database import open_database
from fhircm.store.resources import Store


@pytest.fixture
async def store(database_url):
    opened = Store(await open_database(database_url), clock=lambda: datetime.now(UTC), rules=RULES)
    yield opened
    await opened.close()
