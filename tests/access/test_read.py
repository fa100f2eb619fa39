"""What each sees by reading, against an oracle of plain loops: random relationships, consents and labels, on both databases."""

from datetime import timedelta

import pytest

from .conftest import GRACE_DAYS
from .oracle import Oracle
from .world import SOMEBODY, admitted, world, write


@pytest.mark.parametrize("seed", range(6))
async def test_each_reads_what_there_is_a_reason_for_and_nothing_against(opened, clock, seed):
    population = world(seed, clock.now)
    oracle = Oracle(population.resources, clock.now, timedelta(days=GRACE_DAYS))
    async with opened() as (store, http):
        await write(store, population.resources)
        for someone in SOMEBODY:
            headers = {"Authorization": f"Bearer {await admitted(store.database, someone)}"}
            for tree in population.resources:
                name = f"{tree['resourceType']}/{tree['id']}"
                answer = await http.get(f"/fhir/{name}", headers=headers)
                expected = oracle.within_scope(someone, tree) and oracle.sees(someone, tree)
                if answer.status_code == 403:
                    assert someone.name == "labs-only" or not expected
                    continue
                assert answer.status_code == (200 if expected else 404), (someone.name, name, expected, tree, answer.text)
