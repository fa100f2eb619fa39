"""What the weights of mappings/identity.yaml would be by the records alone: `pip install splink` and `python -m benchmarks.identity_weights`.

https://moj-analytical-services.github.io/splink/ estimates, by expectation maximisation and without any label, how often two records of one
human agree at each level (m) and how often those of two humans do (u). The comparisons are the hub's own, so that the estimates fit
it. Prints bits for each level, beside those in force. A site may run it on `Patient` resources of its own: one JSON tree a line with --patients.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import lru_cache
from math import log2
from pathlib import Path
from typing import Any

import duckdb
import pandas
from splink import DuckDBAPI, Linker, SettingsCreator
from splink.comparison_level_library import CustomLevel
from splink.comparison_library import CustomComparison

from benchmarks.identity_population import Population, records
from fhircm.exchange.features import Features, features, tables
from fhircm.exchange.matching import levels_of

BLOCKS = (["birth_date"], ["family", "given"])


def estimate(trees: list[dict[str, Any]], pairs: float) -> dict[str, dict[str, tuple[float, float]]]:
    """For each field and level: m and u."""
    folded: dict[str, Features] = {}
    rows = []
    for number, tree in enumerate(trees):
        this = folded[str(number)] = features(tree)
        name = this.names[0] if this.names else None
        rows.append(
            {
                "unique_id": str(number),
                "birth_date": this.birth_date or None,
                "family": min(name.family[0]) if name else None,
                "given": min(name.given[0]) if name else None,
            }
        )

    @lru_cache(maxsize=1 << 16)
    def judged(a: str, b: str) -> dict[str, str]:
        return levels_of(folded[a], folded[b])

    connection = duckdb.connect()
    connection.create_function(
        "level_of", lambda field, a, b: judged(a, b).get(field, ""), ["VARCHAR", "VARCHAR", "VARCHAR"], "VARCHAR"
    )
    database = DuckDBAPI(connection)
    comparisons = []
    for field, levels in tables()["weights"].items():
        asked = f"level_of('{field}', unique_id_l, unique_id_r)"
        own = list(levels) if "differs" in levels else [*levels, "differs"]
        listed = [CustomLevel(f"{asked} = '{level}'", level) for level in own[:-1]]
        null = {"sql_condition": f"{asked} = ''", "label_for_charts": "absent", "is_null_level": True}
        if "differs" not in levels:  # that is no evidence, so the hub does not say it
            listed, null = [CustomLevel(f"{asked} = '{level}'", level) for level in levels], None
        comparisons.append(
            CustomComparison(
                [*([null] if null else []), *listed, {"sql_condition": "ELSE", "label_for_charts": "differs"}],
                output_column_name=field.replace("-", "_"),
            )
        )
    settings = SettingsCreator(link_type="dedupe_only", comparisons=comparisons, blocking_rules_to_generate_predictions=[])
    linker = Linker(database.register(pandas.DataFrame(rows)), settings)
    linker.training.estimate_u_using_random_sampling(max_pairs=pairs, seed=1)
    for columns in BLOCKS:
        rule = " AND ".join(f"l.{column} = r.{column}" for column in columns)
        linker.training.estimate_parameters_using_expectation_maximisation(rule, record_sample_proportion=1.0)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for field, comparison in zip(tables()["weights"], linker._settings_obj.comparisons, strict=True):
        found[field] = {
            level.label_for_charts: (level.m_probability, level.u_probability)
            for level in comparison.comparison_levels
            if not level.is_null_level
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity_weights", description=__doc__)
    parser.add_argument("--patients", type=Path, help="Patients, one JSON tree a line; without it the made-up population")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--humans", type=int, default=4000)
    parser.add_argument("--pairs", type=float, default=4e5, help="random pairs for u")
    options = parser.parse_args()
    if options.patients:
        trees = [json.loads(line) for line in options.patients.read_text("utf-8").splitlines()]
    else:
        trees = [record.tree for record in records(Population(options.humans), options.seed)]
    estimated = estimate(trees, options.pairs)
    told: dict[str, dict[str, Any]] = {}
    for field, levels in estimated.items():
        for level, (m, u) in levels.items():
            bits = round(log2(m / u), 1) if m and u else None
            told.setdefault(field, {})[level] = {"m": m, "u": u, "bits": bits, "in force": tables()["weights"][field].get(level)}
            print(
                f"{field:13}{level:10} m {m or 0:8.5f}  u {u or 0:10.8f}  bits {bits}  in force {tables()['weights'][field].get(level)}",
                file=sys.stderr,
            )
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
