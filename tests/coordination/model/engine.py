"""A hypothesis machine that drives the coordination engine: anybody may try anything at any time, the worker dies, clocks move.

What it holds against the engine is written here once more, by hand, from the specifications: no table of the product is read. Each
file has the rules of one matter, and what must hold of it.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import rule

from fhircm.coordination import open_loops
from fhircm.coordination.timeline import timeline
from fhircm.fhir.query import parse_query

from .appointments import Appointments
from .chores import Chores
from .claims import Claims
from .clocks import Clocks
from .discharges import Discharges
from .hub import Killed, code_of, is_open
from .platforms import Platforms
from .questions import Questions


class Engine(Discharges, Appointments, Questions, Platforms, Claims, Chores, Clocks):
    """All of it at once, and what must hold of everything."""

    @rule(commits=st.integers(0, 6), before=st.booleans(), times=st.integers(0, 2))
    def work(self, commits, before, times):
        """The worker works, dies `times` times, and another goes on; then everything that must hold holds."""
        for _ in range(times):
            self.store.left, self.store.before = commits, before
            try:
                self.run(self.worker.run_until_idle())
            except Killed:
                self.caught["kills"] += 1
            self.store.left = None
            self.hired()
        self.run(self.settle())

    # --- what must hold ----------------------------------------------------------------------------------------------------------

    async def check(self, tasks):
        parked = [one.tree["description"] for one in tasks if code_of(one) == "parked"]
        assert not parked, f"nothing fails again and again: {set(parked)}"
        for one in tasks:
            if is_open(one):
                self.in_sight(one)
        await super().check(tasks)
        await self.every_version_is_told()
        wrong = [(one.name, one.wrong) for one in await open_loops.everything(self.context) if one.wrong]
        assert not wrong, wrong

    def in_sight(self, task):
        tree = task.tree
        assert tree.get("owner") or tree.get("performerType") or tree.get("restriction", {}).get("recipient"), (
            f"nobody has {tree}"
        )
        assert tree.get("restriction", {}).get("period", {}).get("end"), f"no due time: {tree['id']}"

    async def every_version_is_told(self):
        """The timeline of the patient equals the history: one Provenance for each version of what is coordinated."""
        told = Counter()
        for one in await self.context.find("Provenance", ("_lastUpdated", "ge2000")):
            told[one.tree["target"][0]["reference"]] += 1
        versions = Counter()
        for type in ("Task", "ServiceRequest", "Communication"):
            page = await self.store.search(parse_query(type, [("_count", "1000")]))
            for one in page.matches:
                versions.update(f"{type}/{one.id}/_history/{number}" for number in range(1, one.version + 1))
        relevant = Counter(
            {key: number for key, number in told.items() if key.split("/")[0] in ("Task", "ServiceRequest", "Communication")}
        )
        assert relevant == versions, (relevant - versions, versions - relevant)
        story = await timeline(self.store, "p")
        assert [one.at for one in story if one.at] == sorted(one.at for one in story if one.at), "in order"
        heard = Counter(one.reference for one in story if "/_history/" in one.reference)
        assert max(heard.values(), default=1) == 1, f"told twice: {heard.most_common(1)}"
        assert {key for key in versions if not key.startswith("Communication")} <= heard.keys(), "the timeline equals the history"
