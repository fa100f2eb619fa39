"""A few lives of the engine with every run of the suite; `FHIRCM_MODEL=500` tries so many, longer ones, on each database."""

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.coordination.model.engine import Engine

EXAMPLES = int(os.environ.get("FHIRCM_MODEL", "3"))
STEPS = 60 if "FHIRCM_MODEL" in os.environ else 30


def test_whatever_anybody_tries_no_loop_is_lost(databases):
    machine = type("EngineHere", (Engine,), {"lend": staticmethod(databases)})
    asked = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize="FHIRCM_MODEL" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        print_blob=True,
    )
    Engine.caught.clear()
    run_state_machine_as_test(machine, settings=asked)
    print(sum(Engine.caught.values()), dict(Engine.caught.most_common()))  # pytest -s shows it
    assert sum(Engine.caught.values()) > EXAMPLES, "things were done"
