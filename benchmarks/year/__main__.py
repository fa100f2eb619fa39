"""Run a year: `python -m benchmarks.year --patients 10000 > report.md`; `--days 60 --patients 500` for a short look.

A network of 3 hospitals, 12 clinics, 8 post-acute facilities and 2 payers lives through its year out of a seed, over HTTP at a hub whose
worker does everything that is due: docs/reference/simulated-year.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from random import Random

from benchmarks.year.hub import running
from benchmarks.year.network import START, Network
from benchmarks.year.report import gather, rendered
from benchmarks.year.work import World, at_work, hours
from fhircm.store.migrations import migrate


async def live(url: str, folder: Path, seed: int, patients: int, days: int) -> str:
    """One year; returns its report."""
    await migrate(url)
    network = Network(seed, patients)
    ahead = network.year(days)
    async with running(url, folder, network, START) as hub:
        world, begun, next_one = World(hub, network, Random(seed)), time.perf_counter(), 0
        for hour in hours(START, days):
            await world.leave(hour)
            while next_one < len(ahead) and ahead[next_one].at <= hour:
                await world.befall(ahead[next_one])
                next_one += 1
            await hub.react(hour)
            if at_work(hour):
                await world.work()
                await hub.react(hour)
            if hour.hour == 0:
                passed = (hour - START).days
                print(f"day {passed} of {days}, {time.perf_counter() - begun:.0f} s", end="\r", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - begun
        facts = {
            "patients": patients, "days": days, "seed": seed, "seconds": seconds, "times": days * 86_400 / seconds, "reactions": hub.done,
        }  # fmt: skip
        return rendered(await gather(hub, world.ledger, START + timedelta(days=days)), world.ledger, facts)


def main() -> None:
    """Live through it and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", help="a URL; a SQLite file without one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{folder}/year.db"
        print(asyncio.run(live(url, Path(folder), options.seed, options.patients, options.days)))


if __name__ == "__main__":
    main()
