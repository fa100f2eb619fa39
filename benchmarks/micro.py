"""What a write costs before it reaches the database, beside reading the same bytes: `python -m benchmarks.micro > micro.json`.

Over the resources of the seeded population: Python's own decoder, this server's strict one, the check of everything, the search values.
Best of some rounds, in microseconds a resource. Prints JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from benchmarks.population import Records
from benchmarks.run import machine
from fhircm.fhir import json as fhir_json
from fhircm.fhir.extract import search_values
from fhircm.fhir.validation import check

ROUNDS = 15


def microseconds(work: Callable[[Any], Any], over: Sequence[Any]) -> float:
    """The best of some rounds, for each of these."""
    rounds = []
    for _ in range(ROUNDS):
        begun = perf_counter()
        for one in over:
            work(one)
        rounds.append(perf_counter() - begun)
    return round(min(rounds) / len(over) * 1e6, 1)


def main() -> None:
    records = Records()
    staff = ["Organization/o", *(f"Practitioner/p{n}" for n in range(20))]
    bodies = [json.dumps(tree).encode() for number in range(50) for _, tree in records.patient(number, staff)]
    trees = [check(body).tree for body in bodies]
    costs = {
        "json.loads": microseconds(json.loads, bodies),
        "parse": microseconds(fhir_json.parse, bodies),
        "parse and check": microseconds(check, bodies),
        "search values": microseconds(search_values, trees),
    }
    ratio = (costs["parse and check"] - costs["parse"]) / costs["json.loads"]
    size = sum(map(len, bodies)) // len(bodies)
    print(
        json.dumps({"machine": machine(), "bytes": size, "microseconds": costs, "check to json.loads": round(ratio, 2)}, indent=1)
    )


if __name__ == "__main__":
    main()
