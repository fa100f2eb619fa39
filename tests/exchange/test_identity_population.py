"""The labelled set, small: automatic links are right, and the weights find nearly all of them. docs/explanation/identity.md has the whole."""

from dataclasses import replace

import pytest

from benchmarks.identity_linking import link
from benchmarks.identity_population import Errors, Population, records

SMALL = Population(humans=1200, towns=12)


@pytest.mark.parametrize(
    ("population", "recall", "asked"),
    [
        pytest.param(SMALL, 0.94, 40, id="main"),
        pytest.param(replace(SMALL, errors=Errors().scaled(2)), 0.86, 90, id="twice the errors"),
        pytest.param(replace(SMALL, ssn=(0.0,)), 0.9, 50, id="no SSN"),
    ],
)
def test_the_made_up_population_is_linked(population, recall, asked):
    figures = link(records(population, seed=77)).figures()
    assert figures["precision"] >= 0.999
    assert figures["recall"] >= recall
    assert figures["found by blocking"] >= 0.985
    assert figures["asked per 1000 records"] <= asked
