"""What a work list costs at a million open Tasks: `python -m benchmarks.worklist --tasks 1000000 [--url postgresql://…]`.

Loads a network (benchmarks/worklist_network.py), serves it by two processes, and lets 64 people ask for their lists: each at a pace of their
own, as people work, and then without a pause, as fast as they are answered. Then a bare ASGI application reads the same pages by the same index with the bare driver (benchmarks/worklist_ceiling.py): the
ceiling. Prints a Markdown table and writes benchmarks/results/worklist.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import hub as hubs
from benchmarks.http import Connection
from benchmarks.run import machine
from benchmarks.worklist_network import PEOPLE, filled, person
from fhircm.access.bearer import Bearer
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from fhircm.store.principals import Principals

# What people ask, and how often. The second page is that of the list before it.
ASKED = (
    ("own list", 60, ""),
    ("next page", 10, "next"),
    ("queue of the role", 10, "role={role}&organization={organization}"),
    ("overdue", 8, "overdue=true"),
    ("by priority", 6, "_sort=priority"),
    ("high risk", 3, "why=mine&risk=high,certain"),
    ("by risk", 3, "why=mine&_sort=risk"),
)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def tokens(url: str, users: int) -> list[str]:
    """A token for each of so many people, signed in with their role at their organisation."""
    database = await open_database(url)
    credentials = Credentials(database)
    await credentials.add_client("list-app", {"scope": "user/*.cruds", "roles": ["system"]})
    bearer, made = Bearer(credentials, Principals(database)), []
    for number in range(users):
        who, organization, role = person(number * (PEOPLE // users))
        async with database.writing() as connection:
            await connection.execute(
                "INSERT INTO login (id, name, fhir_user, organization, roles, disabled, created) VALUES ($1, $1, $2, $3, $4, false, 0)"
                " ON CONFLICT DO NOTHING",
                who,
                who,
                organization,
                json.dumps([role]),
            )
            await connection.execute(
                "INSERT INTO authorization_grant (id, client_id, login_id, scope, context, created, expires)"
                " VALUES ($1, 'list-app', $1, 'user/*.cruds', '{}', 0, 9999999999) ON CONFLICT DO NOTHING",
                who,
            )
        made.append(await bearer.issue("list-app", "user/*.cruds", lifetime=86_400, grant_id=who))
    await database.close()
    return made


class Measured:
    """The times of one run, by what was asked."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self.statuses: Counter[int] = Counter()

    def add(self, name: str, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.times.setdefault(name, []).append(seconds)

    def result(self, seconds: float) -> dict[str, Any]:
        """Figures in ms."""
        everything = sorted(one for times in self.times.values() for one in times)
        return {
            "requests": len(everything),
            "rate": round(len(everything) / seconds, 1),
            **_figures(everything),
            "by": {name: {"requests": len(times), **_figures(sorted(times))} for name, times in self.times.items()},
            "errors": {str(status): count for status, count in self.statuses.items() if status != 200},
        }


def _figures(times: list[float]) -> dict[str, float]:
    at = (
        {name: round(times[int(len(times) * share)] * 1000, 1) for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))}
        if times
        else {}
    )
    return at | ({"most_ms": round(times[-1] * 1000, 1)} if times else {})


async def drive(
    base_url: str, given: list[str], seconds: float, pace: float | None, path: str = "/Task/$worklist"
) -> dict[str, Any]:
    """So many people ask for some seconds; `pace`: seconds from one question to the next, about; None: no pause."""
    measured, begun = Measured(), perf_counter()
    end = begun + seconds

    async def one(number: int, token: str) -> None:
        draw, connection, following = random.Random(number), Connection(base_url), ""
        _, organization, role = person(number * (PEOPLE // len(given)))
        line = f"Authorization: Bearer {token}\r\n"
        await asyncio.sleep(draw.uniform(0, pace) if pace else 0)
        while (now := perf_counter()) < end:
            name, _, query = draw.choices(ASKED, [one[1] for one in ASKED])[0]
            if query == "next":
                name, query = ("next page", following) if following else ("own list", "")
            query = query.format(role=role, organization=organization)
            status, answer = await connection.ask("GET", f"{path}?{query}" if query else path, line)
            measured.add(name, status, perf_counter() - now)
            if name == "own list" and status == 200 and path.endswith("worklist"):
                links = [link["url"] for link in json.loads(answer)["link"] if link["relation"] == "next"]
                following = links[0].partition("?")[2] if links else ""
            if pace:
                await asyncio.sleep(max(0.0, draw.uniform(0.5, 1.5) * pace - (perf_counter() - now)))
        connection.close()

    await asyncio.gather(*(one(number, token) for number, token in enumerate(given)))
    return measured.result(perf_counter() - begun)


def run(url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of it on one database."""
    found: dict[str, Any] = {} if options.loaded else {"loaded": filled(url, options.tasks, options.writers)}
    print(f"loaded: {found.get('loaded', 'before')}", file=sys.stderr, flush=True)
    given = asyncio.run(tokens(url, options.users))
    with hubs.hub(url, folder, _free_port(), 2) as hub:
        asyncio.run(drive(hub.base_url, given, options.seconds / 3, None))  # every process has seen every person
        busy = hub.cpu()
        found["at a pace"] = asyncio.run(drive(hub.base_url, given, options.seconds, options.pace))
        found["cpu_ms"] = round((hub.cpu() - busy) / found["at a pace"]["requests"] * 1000, 2)
        found["without a pause"] = asyncio.run(drive(hub.base_url, given, options.seconds, None))
        found["one alone"] = asyncio.run(drive(hub.base_url, given[:1], options.seconds / 3, None))
    environment = {"WORKLIST_URL": url, "WORKLIST_USERS": str(options.users)}
    port = _free_port()
    command = ["-m", "uvicorn", "benchmarks.worklist_ceiling:app", "--port", str(port), "--workers", "2", "--log-level", "warning", "--no-access-log"]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with hubs.server(command, address, f"{address}/", folder / "ceiling.log", environment) as ceiling:
        found["ceiling at a pace"] = asyncio.run(drive(ceiling.base_url, given, options.seconds / 2, options.pace, "/list"))
        found["ceiling without a pause"] = asyncio.run(drive(ceiling.base_url, given, options.seconds / 2, None, "/list"))
    return found


def table(result: dict[str, Any]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"{result['tasks']:,} open Tasks, {result['users']} people, each asking every {result['pace']:g} s about; load average {result['load_average']}."
    yield ""
    yield "| database | run | requests/s | p50 ms | p99 ms | errors |"
    yield "|---|---|---:|---:|---:|---:|"
    for database, found in result["databases"].items():
        for name in ("at a pace", "without a pause", "one alone", "ceiling at a pace", "ceiling without a pause"):
            one = found[name]
            yield f"| {database} | {name} | {one['rate']} | {one['p50_ms']} | {one['p99_ms']} | {sum(one['errors'].values())} |"
        for name, one in found["at a pace"]["by"].items():
            yield f"| {database} | at a pace: {name} | | {one['p50_ms']} | {one['p99_ms']} | |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worklist", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--url", help="of an empty database; without it, PostgreSQL from pip and SQLite, one after the other")
    parser.add_argument("--loaded", action="store_true", help="the database of --url was loaded by this before")
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"], help="only this one")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--pace", type=float, default=2.0, help="seconds between two questions of one person")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--writers", type=int, default=2, help="processes that load")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "worklist.json")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "tasks": options.tasks,
        "users": options.users,
        "pace": options.pace,
        "databases": {},
    }
    for kind in [options.url] if options.url else options.database or ["postgresql", "sqlite"]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(hubs.database(kind, folder))
            result["databases"][url.partition(":")[0]] = run(url, folder, options)
    result["load_average"] = [round(one, 1) for one in os.getloadavg()]
    result["at"] = time.strftime("%Y-%m-%d")
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
