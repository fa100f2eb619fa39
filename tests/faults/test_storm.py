"""Some storms with every run of the suite; `FHIRCM_STORM=100` runs so many on each database. docs/reference/fault-campaign.md"""

import os
import shutil

import pytest

from tests.faults.campaign import run

SEEDS = range(1, 1 + int(os.environ.get("FHIRCM_STORM", "2")))


@pytest.fixture(scope="session")
def sky(tmp_path_factory):
    """One folder for all storms: their hubs sign in with the same keys."""
    return tmp_path_factory.mktemp("storms")


@pytest.mark.parametrize("seed", SEEDS)
async def test_after_a_storm_nothing_is_lost_and_nothing_is_doubled(seed, database_url, sqlite_template, sky, tmp_path):
    shutil.copy(sqlite_template, tmp_path / "fresh.db")
    folder = sky / tmp_path.name
    folder.mkdir()
    storm = await run(seed, database_url, f"sqlite:///{tmp_path / 'fresh.db'}", folder)
    assert storm.weather.happened["copies compared"] > 20, f"seed {seed}: there was nothing to compare"
