"""A few days of the simulated network, at many times the usual pace: the promises hold, and nothing that an honest organisation asks is refused."""

import asyncio
import re

from benchmarks.year.__main__ import live
from benchmarks.year.network import Network


def test_twelve_days_of_a_network_keep_every_promise(tmp_path):
    report = asyncio.run(live(f"sqlite:///{tmp_path}/year.db", tmp_path, Network(seed=5, patients=60, pace=12), 12))
    promises, _, rest = report.partition("## Promises")[2].partition("## What was refused")
    assert "finds nothing: **kept**" in promises, promises
    assert "Nothing." in rest, rest
    happened = dict(re.findall(r"^\| ([a-z ]+) \| (\d+) \|$", report.partition("## Referrals")[0], re.M))
    assert int(happened["referral"]) >= 8
    assert int(happened["stay"]) >= 1
    assert "## Given to several at once" in report
