"""What a search costs when ten thousand resources become a million: `python -m benchmarks.growth --database postgresql > growth.json`.

One hub, one database, loaded through the API in steps; after each step the same workloads, one client at a time. The staff grows with
the patients, so that a nurse's work list stays as long as it is. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import hub as hubs
from benchmarks.load import load, measure
from benchmarks.run import PORT, machine
from benchmarks.workloads import Known

WATCHED = (
    "read",
    "patient's active plans",
    "work list",
    "referrals by requester",
    "chained",
    "date range",
    "identifier",
    "newest 20",
)
_A_PATIENT = 19  # resources


def grow(database_url: str, folder: Path, steps: list[int], seconds: float) -> dict[str, Any]:
    """The p50 of each workload at each size."""
    known: Known | None = None
    with hubs.hub(database_url, folder, PORT) as hub:
        line = f"Authorization: Bearer {hubs.token(database_url)}\r\n"
        sizes = []
        for step in steps:
            more = step // _A_PATIENT - (known.patients if known else 0)
            known, loaded = asyncio.run(load(hub.base_url, lambda: line, more, known=known))
            print(f"{step} resources ({loaded['rate']}/s)", file=sys.stderr, flush=True)
            found = {}
            for name in WATCHED:
                asyncio.run(measure(hub.base_url, lambda: line, known, name, 4, 1.0))
                found[name] = asyncio.run(measure(hub.base_url, lambda: line, known, name, 1, seconds))["p50_ms"]
                print(f"  {name}: {found[name]} ms", file=sys.stderr, flush=True)
            sizes.append({"resources": sum(map(len, known.ids.values())), "rate": loaded["rate"], "p50_ms": found})
        growth = {name: round(sizes[-1]["p50_ms"][name] / sizes[0]["p50_ms"][name], 2) for name in WATCHED}
        return {"sizes": sizes, "growth": growth, "memory_mb": round(hub.memory())}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--database", default="postgresql", help="sqlite, postgresql (from pip), or the URL of an empty database")
    parser.add_argument("--steps", default="10000,100000,1000000", help="how many resources")
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, hubs.database(options.database, Path(name)) as url:
        result = grow(url, Path(name), [int(step) for step in options.steps.split(",")], options.seconds)
    print(json.dumps({"machine": machine(), "database": options.database.partition(":")[0], **result}, indent=1))


if __name__ == "__main__":
    main()
