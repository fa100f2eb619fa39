"""The web addresses of the registered clients: from where their pages call."""

from __future__ import annotations

import json

from fhircm.store.database import Database


async def client_addresses(database: Database) -> list[str]:
    """The redirect_uris and launch_uri of all clients that are not disabled."""
    async with database.reading() as connection:
        rows = await connection.fetch("SELECT registration FROM client")
    found: list[str] = []
    for row in rows:
        registration = json.loads(row["registration"])
        if not registration.get("disabled"):
            found += [*registration.get("redirect_uris", []), *filter(None, [registration.get("launch_uri")])]
    return found
