"""Make the page of figures: `python -m benchmarks.report run.json --growth growth.json --micro micro.json --peer NAME=peer.json > page.md`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_OPENING = """# Performance

Absolute figures are those of one small machine; the ratios hold on others. Everything here is measured by what is in `benchmarks/`, and can
be measured again with the commands that stand above each table. The load driver, the server and the database share the cores, so that a
rate here is far below what the server alone could answer.
"""
_CEILING = """
`python -m benchmarks.run` starts a hub ({processes} process, authorization on), loads {patients} patients ({resources} resources) through transactions of
one patient each, and drives each workload with 1, 8 and 64 clients. The *ceiling* is a bare ASGI application that moves the same rows through
the bare driver, by primary key, in the same run: no routing, no authorization, no validation, no search. CPU is the hub's own, for one request.
"""
_PEER = """
`python -m benchmarks.load` drives any FHIR server with the same seeded records and the same requests. {name}: {about}. The hub: {processes}
processes, authorization on, the same database server and machine.
"""
_GROWTH = """
`python -m benchmarks.growth`: the p50 in ms of one client while the database grows; the staff grows with the patients, so that a nurse's work list
stays as long as it is.
"""
_MICRO = """
`python -m benchmarks.micro`: microseconds for one resource of {bytes} bytes, best of some rounds. The check is everything that a write passes:
structure, required codes, calendar, reference targets, narrative, invariants. It costs {ratio} times what this server's strict decoder costs.
"""


def _table(head: list[str], rows: list[list[Any]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---'] + ['---:'] * (len(head) - 1))}|"
    for row in rows:
        yield f"| {' | '.join(str(cell) for cell in row)} |"


def _by_workload(results: list[Row]) -> dict[str, dict[int, Row]]:
    found: dict[str, dict[int, Row]] = {}
    for one in results:
        found.setdefault(one["workload"], {})[one["clients"]] = one
    return found


def _ran(name: str, result: Row) -> Iterator[str]:
    yield f"\n## {name}, beside its ceiling"
    yield _CEILING.format(
        processes=result.get("processes", 1), patients=result["patients"], resources=result["load"]["resources"]
    ).rstrip()
    rows = []
    for workload, at in _by_workload(result["results"]).items():
        counts = sorted(at)
        middle = at[8] if 8 in at else at[counts[-1]]
        errors = sum(sum(one["errors"].values()) for one in at.values())
        ceiling = middle.get("ceiling", {}).get("rate", "")
        ratio = f"{middle['ratio']:.0%}" if "ratio" in middle else ""
        rates = " / ".join(f"{at[count]['rate']:.0f}" for count in counts)
        rows.append([workload, rates, middle["p50_ms"], at[counts[-1]]["p99_ms"], middle["cpu_us"], ceiling, ratio, errors])
    head = ["workload", "requests/s (1 / 8 / 64)", "p50 ms, 8", "p99 ms, 64", "CPU µs", "ceiling/s, 8", "of it", "errors"]
    yield from _table(head, rows)
    yield (
        f"\nLoading went at {result['load']['rate']} resources/s. The process answered {result['started_s']} s after it was started, "
        f"and held at most {result['memory_mb']} MB through all of it."
    )


def _beside(name: str, about: str, peer: Row, run: Row) -> Iterator[str]:
    yield f"\n## Beside {name}"
    yield _PEER.format(name=name, about=about, processes=run.get("processes", 1)).rstrip()
    theirs, ours = _by_workload(peer["results"]), _by_workload(run["results"])
    rows = [
        ["loading, resources/s", run["load"]["rate"], peer["load"]["rate"], f"{run['load']['rate'] / peer['load']['rate']:.1f}"]
    ]
    for workload, at in ours.items():
        for count in sorted(at.keys() & theirs.get(workload, {}).keys()):
            mine, other = at[count]["rate"], theirs[workload][count]["rate"]
            rows.append([f"{workload}, {count} clients", f"{mine:.0f}", f"{other:.0f}", f"{mine / other:.1f}"])
    yield from _table(["requests/s", "fhircm", name, "times"], rows)


def page(run: Row, beside: Row, growth: Row | None, micro: Row | None, peers: list[tuple[str, str, Row]]) -> Iterator[str]:
    """The lines of the page. A peer is compared with the hub on PostgreSQL, in the run `beside`."""
    yield _OPENING.rstrip()
    machine = run["machine"]
    yield (
        f"\nMachine: {machine['cores']} cores ({machine['processor']}), {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}, SQLite {machine['sqlite']}."
    )
    for name, result in run["databases"].items():
        yield from _ran({"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(name, name), result)
    for name, about, peer in peers:
        yield from _beside(name, about, peer, beside["databases"]["postgresql"])
    if growth:
        yield "\n## Growth"
        yield _GROWTH.rstrip()
        sizes = growth["sizes"]
        head = ["workload", *(f"{one['resources']:,} resources" for one in sizes), "last / first"]
        rows = [[name, *(one["p50_ms"][name] for one in sizes), growth["growth"][name]] for name in growth["growth"]]
        rows.append(["loading, resources/s", *(one["rate"] for one in sizes), ""])
        yield from _table(head, rows)
    if micro:
        yield "\n## What a check costs"
        costs = micro["microseconds"]
        ratio = round((costs["parse and check"] - costs["parse"]) / costs["parse"], 1)
        yield _MICRO.format(bytes=micro["bytes"], ratio=ratio).rstrip()
        yield from _table(["", "µs"], [[name, cost] for name, cost in costs.items()])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--beside", type=Path, help="another run, to compare the peers with")
    parser.add_argument("--growth", type=Path)
    parser.add_argument("--micro", type=Path)
    parser.add_argument("--peer", action="append", default=[], help="'NAME: how it was set up=FILE' of benchmarks.load")
    options = parser.parse_args()
    peers = []
    for text in options.peer:
        described, _, file = text.rpartition("=")
        name, _, about = described.partition(": ")
        peers.append((name, about, _read(Path(file))))
    growth, micro = (_read(file) if file else None for file in (options.growth, options.micro))
    run = _read(options.run)
    print("\n".join(page(run, _read(options.beside) if options.beside else run, growth, micro, peers)))


def _read(file: Path) -> Row:
    found: Row = json.loads(file.read_text())
    return found


if __name__ == "__main__":
    main()
