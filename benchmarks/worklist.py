"""What a work list costs at a million open Tasks: `python -m benchmarks.worklist --tasks 1000000 [--url postgresql://…]`.

Loads the Tasks of a network (a thousand people in fifty organisations, each patient with a care team), serves them by two processes, and lets 64 people ask for their lists: each at a pace of their own, as people work, and then without a pause, as fast as they are
answered. Then a bare ASGI application reads the same pages by the same index with the bare driver (benchmarks/worklist_ceiling.py): the
ceiling. Prints a Markdown table and writes benchmarks/results/worklist.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import hub as hubs
from benchmarks.http import Connection
from benchmarks.run import machine
from fhircm.access.bearer import Bearer
from fhircm.fhir.systems import ROLE
from fhircm.store.credentials import Credentials
from fhircm.store.database import Database, open_database
from fhircm.store.migrations import migrate
from fhircm.store.principals import Principals
from fhircm.store.search_rows import insert_statement, search_rows
from fhircm.store.stored import instant, micros

PORT, CEILING_PORT = 58196, 58197
ORGANIZATIONS, PEOPLE = 50, 1000
ROLES = ("nurse", "social-worker", "care-coordinator")
PROBABILITY = "http://terminology.hl7.org/CodeSystem/risk-probability"
OF_A_PATIENT = 10  # Tasks
_AT_ONCE = 200  # patients in one transaction
_COLUMNS = {
    "resource": "key, type, id, version, last_updated, deleted",
    "version": "resource_key, version, method, last_updated, body",
    "change": "tx, type, id, version, method, origin, at",
}
_NOW = datetime.now(UTC)
Tree = dict[str, Any]

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


def _ref(to: str) -> Tree:
    return {"reference": to}


def person(number: int) -> tuple[str, str, str]:
    """A person, their organisation and their role."""
    return f"Practitioner/u{number}", f"Organization/o{number % ORGANIZATIONS}", ROLES[number // ORGANIZATIONS % len(ROLES)]


def directory() -> Iterator[Tree]:
    """The organisations and the people."""
    for number in range(ORGANIZATIONS):
        yield {"resourceType": "Organization", "id": f"o{number}", "name": f"Organisation {number}"}
    for number in range(PEOPLE):
        yield {"resourceType": "Practitioner", "id": f"u{number}", "name": [{"family": f"Person {number}"}]}


def record(number: int) -> Iterator[Tree]:
    """A patient: the team, a risk for one in three, and the Tasks: six in ten somebody's own, the others in the queue of a role."""
    draw, patient = random.Random(number), f"Patient/p{number}"
    home = number % ORGANIZATIONS
    yield {
        "resourceType": "Patient",
        "id": f"p{number}",
        "name": [{"family": f"Family {number % 977}", "given": [f"Given {number % 83}"]}],
    }
    yield {
        "resourceType": "CareTeam",
        "id": f"t{number}",
        "status": "active",
        "subject": _ref(patient),
        "participant": [{"member": _ref(f"Organization/o{home}")}],
    }
    if draw.random() < 0.33:
        level = draw.choice(("low", "low", "moderate", "high"))
        yield {
            "resourceType": "RiskAssessment",
            "id": f"r{number}",
            "status": "final",
            "subject": _ref(patient),
            "occurrenceDateTime": f"2026-0{draw.randrange(1, 10)}-11",
            "prediction": [{"qualitativeRisk": {"coding": [{"system": PROBABILITY, "code": level}]}}],
        }
    for at in range(OF_A_PATIENT):
        own = draw.random() < 0.6
        owner = (
            f"Practitioner/u{home + ORGANIZATIONS * draw.randrange(PEOPLE // ORGANIZATIONS)}" if own else f"Organization/o{home}"
        )
        due = _NOW + timedelta(minutes=draw.randrange(-10_000, 60_000))
        yield {
            "resourceType": "Task",
            "id": f"k{number}-{at}",
            "status": draw.choice(("requested", "accepted", "in-progress")),
            "intent": "order",
            "priority": draw.choice(("routine", "routine", "routine", "urgent", "asap", "stat")),
            "code": {"coding": [{"system": "https://benchmark.example/task", "code": f"c{at}", "display": f"Step {at}"}]},
            "description": "Call the patient, look at the medication and agree on the next visit",
            "for": _ref(patient),
            "authoredOn": _NOW.isoformat(timespec="seconds"),
            "requester": _ref(f"Organization/o{home}"),
            "owner": _ref(owner),
            "performerType": None if own else [{"coding": [{"system": ROLE, "code": draw.choice(ROLES)}]}],
            "restriction": {"period": {"end": due.isoformat(timespec="seconds")}},
        }


def load(url: str, first: int, last: int, whole: bool) -> None:
    """Write the records of these patients, with the rows that the store would have made of them; `whole`: the directory, too."""

    async def go() -> None:
        database = await open_database(url)
        if whole:
            await _write(database, list(directory()), 10**9)
        for number in range(first, last, _AT_ONCE):
            trees = [tree for one in range(number, min(last, number + _AT_ONCE)) for tree in record(one)]
            await _write(database, trees, 1 + number * (OF_A_PATIENT + 3))
        await database.close()

    asyncio.run(go())


async def _write(database: Database, trees: list[Tree], key: int) -> None:
    """Rows straight into the tables: through the store it takes five times as long, and makes the same."""
    at = micros(_NOW)
    tables: dict[str, list[tuple[Any, ...]]] = {"resource": [], "version": [], "change": []}
    for number, tree in enumerate(trees, start=key):
        clean = {name: value for name, value in tree.items() if value is not None}
        clean["meta"] = {"versionId": "1", "lastUpdated": instant(_NOW)}
        type, id = clean["resourceType"], clean["id"]
        tables["resource"].append((number, type, id, 1, at, False))
        tables["version"].append((number, 1, "create", at, json.dumps(clean).encode()))
        tables["change"].append((0, type, id, 1, "create", "load", at))
        for table, rows in search_rows(number, type, clean, words=False).by_table.items():
            tables.setdefault(table, []).extend(rows)
    async with database.writing() as connection:
        for table, rows in tables.items():
            columns = _COLUMNS.get(table) or insert_statement(table).partition("(")[2].partition(")")[0]
            if database.dialect == "postgresql":
                await connection.copy_records_to_table(table, records=rows, columns=columns.split(", "))
            else:
                marks = ", ".join(f"${place}" for place in range(1, len(rows[0]) + 1))
                await connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)


def filled(url: str, tasks: int, writers: int) -> dict[str, Any]:
    """Load all of it; how fast that went."""
    asyncio.run(migrate(url))
    load(url, 0, 0, True)
    begun, patients = perf_counter(), tasks // OF_A_PATIENT
    writers = 1 if url.startswith("sqlite") else writers
    cuts = [patients * at // writers for at in range(writers + 1)]
    spawned = multiprocessing.get_context("spawn")
    parts = [spawned.Process(target=load, args=(url, low, high, False)) for low, high in pairwise(cuts)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
        if part.exitcode:
            raise SystemExit("Loading failed")
    asyncio.run(_analysed(url))
    seconds = perf_counter() - begun
    return {"tasks": patients * OF_A_PATIENT, "seconds": round(seconds), "rate": round(patients * OF_A_PATIENT / seconds)}


async def _analysed(url: str) -> None:
    """The keys go on behind those that were given; and what PostgreSQL does by itself within the minute after so much was written."""
    if url.startswith("postgresql"):
        database = await open_database(url)
        async with database.reading() as connection:
            await connection.execute("SELECT setval(pg_get_serial_sequence('resource', 'key'), 2000000000)")
            await connection.execute("VACUUM ANALYZE")
        await database.close()


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
    found: dict[str, Any] = {"loaded": filled(url, options.tasks, options.writers)}
    print(f"loaded {found['loaded']}", file=sys.stderr, flush=True)
    given = asyncio.run(tokens(url, options.users))
    with hubs.hub(url, folder, PORT, 2) as hub:
        asyncio.run(drive(hub.base_url, given, options.seconds / 3, None))  # every process has seen every person
        busy = hub.cpu()
        found["at a pace"] = asyncio.run(drive(hub.base_url, given, options.seconds, options.pace))
        found["cpu_ms"] = round((hub.cpu() - busy) / found["at a pace"]["requests"] * 1000, 2)
        found["without a pause"] = asyncio.run(drive(hub.base_url, given, options.seconds, None))
        found["one alone"] = asyncio.run(drive(hub.base_url, given[:1], options.seconds / 3, None))
    environment = {"WORKLIST_URL": url, "WORKLIST_USERS": str(options.users)}
    command = ["-m", "uvicorn", "benchmarks.worklist_ceiling:app", "--port", str(CEILING_PORT), "--workers", "2", "--log-level", "warning", "--no-access-log"]  # fmt: skip
    address = f"http://127.0.0.1:{CEILING_PORT}"
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
