"""How well, and how fast, records are linked: `python -m benchmarks.identity > benchmarks/results/identity.json`.

The curve, error kinds and other populations come from the made-up records of benchmarks/identity_population.py, on seeds that nothing was
set by. `--cost N` measures instead what one changed Patient costs in a database of N, beside a plain search of the same database. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.identity_linking import Linked, link
from benchmarks.identity_population import Errors, Population, records
from benchmarks.run import machine
from fhircm.exchange.features import features, tables
from fhircm.exchange.identity import link_person
from fhircm.exchange.matching import compare
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Put, Store

SEEDS = (1, 2, 3)
MAIN = Population()
OTHERS = {
    "half the errors": replace(MAIN, errors=Errors().scaled(0.5)),
    "twice the errors": replace(MAIN, errors=Errors().scaled(2)),
    "three times the errors": replace(MAIN, errors=Errors().scaled(3)),
    "no SSN anywhere": replace(MAIN, ssn=(0.0,)),
    "Hispanic community": replace(MAIN, peoples=(("hispanic", 1.0),)),
    "Vietnamese, Chinese and Hmong community": replace(MAIN, peoples=(("asian", 1.0),)),
    "one small town": replace(MAIN, humans=3000, towns=1),
    "a tenth of all records twice": replace(MAIN, duplicates=0.1),
    "two partners": replace(MAIN, partners=2, humans=18000),
}
CURVE = range(10, 56, 3)


def curve(got: Linked) -> list[dict[str, Any]]:
    """Pairs that one of the searches finds, by bits alone and by rules, vetoes and choice as well, over the threshold."""
    scored = [(got.linkage.judge(*pair).score, got.right(pair), pair in got.linked) for pair in got.found]
    rows = []
    for bits in CURVE:
        row: dict[str, Any] = {"bits": bits}
        for name, taken in (
            ("bits alone", [r for s, r, _ in scored if s >= bits]),
            ("with rules", [r for s, r, k in scored if k and s >= bits]),
        ):
            right = sum(taken)
            row[name] = {"precision": round(right / max(1, len(taken)), 5), "recall": round(right / len(got.true), 4)}
        rows.append(row)
    return rows


def together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several seeds as one."""
    sums = {name: sum(one[name] for one in results) for name in ("records", "true pairs", "linked", "wrong", "asked")}
    right = sums["linked"] - sums["wrong"]
    weighed = {
        name: round(sum(one[name] * one["true pairs"] for one in results) / sums["true pairs"], 4)
        for name in ("found by blocking", "recall with the answers")
    }
    return {
        **sums,
        "precision": round(right / sums["linked"], 5),
        "recall": round(right / sums["true pairs"], 4),
        "asked per 1000 records": round(1000 * sums["asked"] / sums["records"], 1),
        **weighed,
    }


def kinds(results: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The figures of each trait and error over several seeds."""
    found = {}
    for kind in sorted({kind for one in results for kind in one}):
        mine = [one[kind] for one in results if kind in one]
        pairs = sum(one["pairs"] for one in mine)
        shares = {name: round(sum(one[name] * one["pairs"] for one in mine) / max(1, pairs), 3) for name in ("recall", "asked")}
        found[kind] = {"pairs": pairs, **shares, "wrong links": sum(one["wrong links"] for one in mine)}
    return found


def evaluate() -> dict[str, Any]:
    """Everything about how well."""
    main = [link(records(MAIN, seed)) for seed in SEEDS]
    print("main set", together([one.figures() for one in main]), file=sys.stderr)
    populations = {}
    for name, population in OTHERS.items():
        populations[name] = together([link(records(population, seed)).figures() for seed in SEEDS[:1]])
        print(name, populations[name], file=sys.stderr)
    return {
        "machine": machine(),
        "seeds": SEEDS,
        "thresholds": {name: tables()["decision"][name] for name in ("link", "possible")},
        "main": together([one.figures() for one in main]),
        "by seed": [one.figures() for one in main],
        "curve": curve(main[0]),
        "kinds": kinds([one.kinds() for one in main]),
        "populations": populations,
    }


def comparing() -> dict[str, float]:
    """Microseconds to fold one Patient and to compare two that are folded."""
    some = records(replace(MAIN, humans=600), 9)
    begun = perf_counter()
    folded = [features(record.tree) for record in some]
    fold = (perf_counter() - begun) / len(some)
    pairs = list(pairwise(folded))
    same = [(a, a) for a in folded]
    times = {}
    for name, listed in (("two strangers", pairs), ("one and the same", same)):
        rounds = []
        for _ in range(5):
            begun = perf_counter()
            for a, b in listed:
                compare(a, b)
            rounds.append(perf_counter() - begun)
        times[name] = round(min(rounds) / len(listed) * 1e6, 1)
    return {"fold": round(fold * 1e6, 1), **times}


async def cost(size: int, changes: int = 200) -> dict[str, Any]:
    """What a changed Patient costs in a SQLite database of so many, beside one search by birth date of the same."""
    population = replace(MAIN, humans=int(size / MAIN.partners / MAIN.visits), towns=max(60, size // 300))
    some = records(population, 5)
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'identity.db'}"
        await migrate(url)
        store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
        for at in range(0, len(some), 500):
            await store.transact(
                [Put(check_tree(record.tree), fresh=False) for record in some[at : at + 500]], origin="partner:x"
            )
            if at % 20_000 == 0:
                print(at, file=sys.stderr, flush=True)
        chosen = draw.sample(some, changes)
        linked, searched, written = [], [], 0
        for record in chosen:
            change = await store.change("Patient", record.tree["id"], 1)
            begun = perf_counter()
            operations = await link_person(store, change)
            linked.append(perf_counter() - begun)
            written += len(operations)
            query = parse_query("Patient", [("birthdate", record.tree["birthDate"]), ("_count", "200")])
            begun = perf_counter()
            await store.search(query)
            searched.append(perf_counter() - begun)
        await store.close()
    milliseconds = {
        name: round(statistics.median(times) * 1000, 2) for name, times in (("linking", linked), ("search", searched))
    }
    return {
        "patients": len(some),
        "changes": changes,
        "p50 ms": milliseconds,
        "ratio": round(milliseconds["linking"] / milliseconds["search"], 1),
        "operations": written,
    }


def looked_at(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """How many Patients one changed Patient is compared with while the hub grows."""
    rows = []
    for size in sizes:
        population = replace(MAIN, humans=int(size / MAIN.partners / MAIN.visits), towns=max(60, size // 300))
        got = link(records(population, 5))
        rows.append({"patients": len(got.records), "compared with": round(2 * len(got.found) / len(got.records), 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("--cost", type=int, nargs="*", help="numbers of Patients")
    options = parser.parse_args()
    if options.cost:
        told: dict[str, Any] = {
            "machine": machine(),
            "microseconds": comparing(),
            "looked at": looked_at((2_000, 20_000, 100_000)),
            "changed Patient": [asyncio.run(cost(size)) for size in options.cost],
        }
    else:
        told = evaluate()
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
