"""Many storms, one seed each: `python -m tests.faults.campaign 0 1000` tells which seeds failed and what happened in all of them.

`--url postgresql://…` uses that server (it makes databases of its own there); otherwise each seed has two files of SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from time import monotonic

import asyncpg

from fhircm.store.migrations import migrate
from tests.faults.agreement import check_all
from tests.faults.storm import Storm

ROUNDS = 8


async def run(seed: int, url: str, fresh_url: str, folder: Path) -> Storm:
    """One seed, from its first fault until hub and EHRs agree. Raises AssertionError with the seed in it."""
    storm = Storm(seed, url, folder)
    with storm.felt():
        await storm.begin()
        await storm.blow(ROUNDS)
        await storm.calm()
        fresh = storm.comes_today(fresh_url)
        await fresh.begin()
        await check_all(storm, fresh)
    return storm


async def _databases(seed: int, server: str | None, folder: Path, template: Path) -> list[str]:
    if server is None:
        for name in ("storm", "fresh"):
            shutil.copy(template, folder / f"{name}.db")
        return [f"sqlite:///{folder / name}.db" for name in ("storm", "fresh")]
    urls = []
    connection = await asyncpg.connect(server)
    for name in (f"storm_{seed}", f"fresh_{seed}"):
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE storm_template")
        head, _, query = server.partition("?")
        urls.append(f"{head.rpartition('/')[0]}/{name}" + (f"?{query}" if query else ""))
    await connection.close()
    return urls


async def _drop(seed: int, server: str | None) -> None:
    if server is not None:
        connection = await asyncpg.connect(server)
        for name in (f"storm_{seed}", f"fresh_{seed}"):
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.close()


async def _campaign(first: int, count: int, server: str | None, minutes: float) -> int:
    happened, failed, lives, begun, done = Counter(), [], 0, monotonic(), 0
    with tempfile.TemporaryDirectory() as root:
        template = Path(root) / "template.db"
        if server is None:
            await migrate(f"sqlite:///{template}")
        else:
            connection = await asyncpg.connect(server)
            await connection.execute("DROP DATABASE IF EXISTS storm_template WITH (FORCE)")
            await connection.execute("CREATE DATABASE storm_template")
            await connection.close()
            head, _, query = server.partition("?")
            await migrate(f"{head.rpartition('/')[0]}/storm_template" + (f"?{query}" if query else ""))
        for seed in range(first, first + count):
            if monotonic() - begun > 60 * minutes:
                break
            done += 1
            folder = Path(root) / str(seed)
            folder.mkdir()
            urls = await _databases(seed, server, folder, template)
            try:
                storm = await run(seed, *urls, folder)
                happened += storm.weather.happened
                lives += storm.lives
            except Exception as error:  # whatever it is, the seed is told
                failed.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:2500]}", flush=True)
                traceback.print_exc(limit=-6)
            finally:
                await _drop(seed, server)
                shutil.rmtree(folder)
            if done % 25 == 0:
                print(f"{done} of {count}, {len(failed)} failed, {monotonic() - begun:.0f} s", flush=True)
    print(
        f"{done} seeds from {first}: {done - len(failed)} agree, failed: {failed or 'none'}; {lives} lives, {monotonic() - begun:.0f} s"
    )
    for what, times in happened.most_common():
        print(f"  {times:7} {what}")
    return 1 if failed else 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--url", help="a PostgreSQL server")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further seed after so long")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    sys.exit(asyncio.run(_campaign(options.first, options.count, options.url, options.minutes)))


if __name__ == "__main__":
    main()
