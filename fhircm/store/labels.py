"""Which profiles, tags and security labels are in use, by the search rows alone: the index is read, not the resources.

https://hl7.org/fhir/R4/resource-operation-meta.html. The rows fold case and clip what is long, so they do not tell a label as it was
written; for each distinct row one resource that has it does.
"""

from __future__ import annotations

from collections.abc import Sequence

from fhircm.fhir.conditions import Condition
from fhircm.fhir.definitions import param_key
from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_include import COLUMNS, CURRENT, TooCostly, stored
from fhircm.store.search_sql import Builder
from fhircm.store.stored import Stored

LIMIT = 2000  # different labels
_ASKED = 400  # keys in one statement


async def labels_in_use(connection: Connection, dialect: str, within: Narrowing) -> list[Stored]:
    """Resources that together have every label in use. Raises TooCostly for more labels than anybody could choose from."""
    keys: set[int] = set()
    narrowed = {type: Builder(dialect, within).narrowed(type, []) for type in within.by_type}
    whole = [type for type, conditions in narrowed.items() if not conditions]
    for sql, arguments in [
        _of_whole_types(whole),
        *(_of_part(dialect, within, *one) for one in narrowed.items() if one[1]),
    ]:
        keys |= {row["resource_key"] for row in await connection.fetch(sql, *arguments)} if sql else set()
    if len(keys) > LIMIT:
        raise TooCostly(f"More than {LIMIT} different labels are in use; ask for one resource type")
    listed = sorted(keys)
    found: list[Stored] = []
    for start in range(0, len(listed), _ASKED):
        chunk = ", ".join(map(str, listed[start : start + _ASKED]))  # numbers of ours
        found += map(stored, await connection.fetch(f"SELECT {COLUMNS} FROM resource r {CURRENT} WHERE r.key IN ({chunk})"))
    return found


def _of_whole_types(types: Sequence[str]) -> tuple[str, list[object]]:
    """One key for each label of these types. For the profiles, of which nearly every resource has one, the index is leapt through."""
    if not types:
        return "", []
    profiles = ", ".join(f"({param_key(type, '_profile')})" for type in types)
    tags = ", ".join(str(param_key(type, code)) for type in types for code in ("_tag", "_security"))
    sql = (
        f"WITH RECURSIVE params (param) AS (VALUES {profiles}), seen (param, uri) AS ("
        "SELECT p.param, (SELECT MIN(s.uri) FROM search_uri s WHERE s.param = p.param) FROM params p UNION ALL "
        "SELECT n.param, (SELECT MIN(s.uri) FROM search_uri s WHERE s.param = n.param AND s.uri > n.uri) "
        "FROM seen n WHERE n.uri IS NOT NULL) "
        "SELECT (SELECT MIN(s.resource_key) FROM search_uri s WHERE s.param = n.param AND s.uri = n.uri) AS resource_key "
        "FROM seen n WHERE n.uri IS NOT NULL UNION "
        f"SELECT MIN(t.resource_key) FROM search_token t WHERE t.param IN ({tags}) GROUP BY t.param, t.code, t.system"
    )
    return f"SELECT k.resource_key FROM ({sql}) k LIMIT {LIMIT + 1}", []


def _of_part(dialect: str, within: Narrowing, type: str, conditions: Sequence[Condition]) -> tuple[str, list[object]]:
    """The same of a type of which the caller sees a part."""
    builder = Builder(dialect, within)
    ways = []
    for table, column, code in (
        ("search_uri", "s.uri", "_profile"),
        ("search_token", "s.code, s.system", "_tag"),
        ("search_token", "s.code, s.system", "_security"),
    ):
        holds = " AND ".join(builder.holds(condition, "s.resource_key") for condition in conditions)
        ways.append(
            f"SELECT MIN(s.resource_key) AS resource_key FROM {table} s WHERE s.param = {builder.parameter(type, code)}"
            f" AND {holds} GROUP BY {column}"
        )
    return f"SELECT k.resource_key FROM ({' UNION '.join(ways)}) k LIMIT {LIMIT + 1}", builder.arguments
