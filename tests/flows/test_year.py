"""A few days of the simulated network, at many times the usual pace: the promises hold, and nothing that an honest organisation asks is refused."""

import asyncio
import re

from benchmarks.year.__main__ import live
from benchmarks.year.network import Network


def test_eight_days_of_a_network_keep_every_promise(tmp_path):
    report = asyncio.run(live(f"sqlite:///{tmp_path}/year.db", tmp_path, Network(seed=1072, patients=60, pace=4), 8))
    promises, _, rest = report.partition("## Promises")[2].partition("## What was refused")
    assert "finds nothing: **kept**" in promises, promises
    assert "Nothing." in rest, rest
    happened = dict(re.findall(r"^\| ([a-z- ]+) \| (\d+) \|$", report.partition("## Referrals")[0], re.M))
    assert {name: int(happened[name]) for name in ("referral", "stay", "discharge")} == {"referral": 3, "stay": 1, "discharge": 1}
    asked = report.partition("## Given to several at once")[2].partition("## After")[0]
    assert "| specialist | first who accepts | 1 |" in asked, asked
    assert "| post-acute |" in asked, asked
    assert "1 stays were planned" in report
