"""What the audit costs: `python -m benchmarks.audit > audit.json`.

A hub with it and one without it on databases of their own, in turns: requests a second and the processor time of one request, then how
long what waits in the journal takes to be written, when nobody asks anything. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import hub as hubs
from benchmarks.load import load, measure
from benchmarks.run import machine
from benchmarks.workloads import Known
from fhircm.access.audit_journal import Backlog, backlog

WORKLOADS = ("read", "patient's active plans", "create")
PORTS = {"on": 58192, "off": 58193}


def _round(hub: hubs.Server, line: str, known: Known, name: str, clients: int, seconds: float) -> dict[str, Any]:
    before = hub.cpu()
    found = asyncio.run(measure(hub.base_url, lambda: line, known, name, clients, seconds))
    return found | {"cpu_us": (hub.cpu() - before) / found["requests"] * 1e6}


def run(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both hubs on one kind of database."""
    with ExitStack() as stack:
        running: dict[str, tuple[hubs.Server, str, Known, Path]] = {}
        for audit, port in PORTS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(hubs.database(kind, folder))
            settings = {"FHIRCM_AUDIT": str(audit == "on").lower(), "FHIRCM_AUDIT_DIR": str(folder / "audit")}
            hub = stack.enter_context(hubs.hub(url, folder, port, settings=settings))
            line = f"Authorization: Bearer {hubs.token(url)}\r\n"
            known, _ = asyncio.run(load(hub.base_url, lambda line=line: line, options.patients))
            running[audit] = hub, line, known, folder / "audit"  # in it one folder: that of the database
        results = [_compared(name, running, options) for name in WORKLOADS]
        return {"workloads": results, "drain": _drained(running["on"])}


def _compared(name: str, running: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, Any]]] = {"on": [], "off": []}
    for number in range(options.rounds):
        for audit in sorted(rounds, reverse=bool(number % 2)):
            hub, line, known, folder = running[audit]
            _settle(folder)
            rounds[audit].append(_round(hub, line, known, name, options.clients, options.seconds))
    told: dict[str, Any] = {"workload": name}
    for part, digits in (("rate", 1), ("p50_ms", 2), ("p99_ms", 2), ("cpu_us", 0)):
        on, off = (statistics.median(one[part] for one in rounds[audit]) for audit in ("on", "off"))
        told[part] = {"on": round(on, digits), "off": round(off, digits), "on : off": round(on / off, 2)}
    print(f"{name}: {told}", file=sys.stderr)
    return told


def _settle(folder: Path) -> None:
    """What the round before left is written first, as in the pauses of a hub that is not measured."""
    while _waiting(folder).files:
        time.sleep(0.2)


def _waiting(folder: Path) -> Backlog:
    return next((backlog(one) for one in folder.glob("*")), Backlog(0, 0, 0.0, ()))


def _drained(of: tuple[hubs.Server, str, Known, Path]) -> dict[str, Any]:
    """How long the events of some seconds of reads take to be written."""
    hub, line, known, folder = of
    _settle(folder)
    before = hub.cpu()
    asked = asyncio.run(measure(hub.base_url, lambda: line, known, "read", 8, 3.0))["requests"]
    serving, begun, waiting = hub.cpu() - before, time.perf_counter(), _waiting(folder)
    _settle(folder)
    return {
        "events": asked,
        "waiting_bytes": waiting.size,
        "serving_cpu_s": round(serving, 2),
        "seconds_after": round(time.perf_counter() - begun, 2),
        "cpu_after_s": round(hub.cpu() - before - serving, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--patients", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    databases = {kind: run(kind, options) for kind in options.database or ["sqlite", "postgresql"]}
    print(json.dumps({"machine": machine(), "databases": databases}, indent=1))


if __name__ == "__main__":
    main()
