"""Resources along the index of a code, in the order in which they came to be: for who goes over all of them, a page at a time, for ever.

https://hl7.org/fhir/R4/search.html. Unlike the pages of a search, these show each what is there at the time: nothing is kept between two, and
what came or changed since is seen as it is. A page costs the same wherever it begins.
"""

from __future__ import annotations

from fhircm.fhir.definitions import param_key
from fhircm.store.database import Database
from fhircm.store.search_include import COLUMNS, CURRENT, stored
from fhircm.store.stored import Stored


async def along(
    database: Database, type: str, parameter: str, code: str, after: int, limit: int
) -> tuple[list[Stored], int | None]:
    """The next resources of which a token parameter has a code, behind a place (0: the first); and the place to go on from, None at the end."""
    async with database.reading() as connection:
        rows = await connection.fetch(
            f"SELECT {COLUMNS}, s.resource_key AS place FROM search_token s JOIN resource r ON r.key = s.resource_key {CURRENT}"
            " WHERE s.param = $1 AND s.code = $2 AND s.resource_key > $3 ORDER BY s.resource_key LIMIT $4",
            param_key(type, parameter),
            code,
            after,
            limit,
        )
    return [stored(row) for row in rows], rows[-1]["place"] if len(rows) == limit else None
