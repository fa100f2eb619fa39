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
from functools import partial
from pathlib import Path

from benchmarks.year.facts import gather
from benchmarks.year.hospital import Hospitals
from benchmarks.year.hub import running
from benchmarks.year.network import START, Network
from benchmarks.year.report import rendered
from benchmarks.year.work import Work
from benchmarks.year.world import World
from fhircm.store.migrations import migrate


async def live(url: str, folder: Path, network: Network, days: int) -> str:
    """One year; returns its report."""
    await migrate(url)
    async with running(url, folder, network, START) as hub:
        world = World(hub, network)
        work, hospitals, begun = Work(world), Hospitals(world), time.perf_counter()
        for one in network.year(days):
            world.at(one.at, partial(work.referring.refer if one.kind == "referral" else hospitals.arrive, one))
        for number in range(1, 24 * days + 1):
            hour = START + timedelta(hours=number)
            await world.until(hour)
            await hub.react(hour)
            if work.is_time(hour):
                await work.everybody()
                await hub.react(hour)
            if number % 24 == 0:
                await hub.check()
                print(f"day {number // 24} of {days}, {time.perf_counter() - begun:.0f} s", end="\r", file=sys.stderr, flush=True)
        return rendered(await gather(world), world, days, time.perf_counter() - begun)


def main() -> None:
    """Live through it and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=1.0, help="how many times as often as usual things happen")
    parser.add_argument("--database", help="a URL; a SQLite file without one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{folder}/year.db"
        print(asyncio.run(live(url, Path(folder), Network(options.seed, options.patients, options.pace), options.days)))


if __name__ == "__main__":
    main()
