"""The pages of a work list hold while others write, against a list in memory; and many lists are one. On both databases."""

import random

import pytest

from fhircm.fhir.work_list import OPEN, PRIORITIES
from tests.access.conftest import opened  # noqa: F401 a fixture

from .test_worklist import NURSE, hub, ids, put, role, task  # noqa: F401 a fixture


class Oracle:
    """The Tasks as plain values, and what a list of them is."""

    def __init__(self, chance):
        self.chance, self.tasks = chance, {}

    def write(self, id):
        due = self.chance.choice([None, *(f"2026-03-{day:02}T{hour:02}:00:00Z" for day in range(1, 5) for hour in (9, 17))])
        owner = self.chance.choice(["Practitioner/nora", "Organization/clinic", "Practitioner/olga"])
        one = task(
            id,
            due,
            owner,
            self.chance.choice(["ada", "bo", "cy"]),
            self.chance.choice([*OPEN, "completed"]),
            priority=self.chance.choice(PRIORITIES),
            performerType=role(self.chance.choice(["nurse", "social-worker"])) if self.chance.random() < 0.5 else None,
        )
        self.tasks[id] = one
        return one

    def place(self, one, sort):
        due, priority = one.get("restriction", {}).get("period", {}).get("end", "9"), PRIORITIES.index(one["priority"])
        return (due, priority) if sort == "due" else (priority, due)

    def lines(self):
        """The ids of Nora's lines: what nobody of the clinic's patients is about is hers only as its owner."""
        mine = ("Practitioner/nora", "Organization/clinic")
        return {id for id, one in self.tasks.items() if one["status"] in OPEN and one["owner"]["reference"] in mine}


@pytest.mark.parametrize("seed", range(4))
async def test_pages_hold_while_tasks_are_written(hub, seed):  # noqa: F811
    chance = random.Random(seed)
    oracle, known = Oracle(chance), [f"t{number:02}" for number in range(60)]
    await put(hub.store, *(oracle.write(id) for id in known))
    keys = dict.fromkeys(known)
    for sort, count in (("due", 3), ("priority", 7)):
        before, touched, seen = dict(oracle.tasks), set(), []
        lines_before = oracle.lines()
        url = f"_sort={sort}&_count={count}"
        while url:
            page = await hub.list(NURSE, url)
            seen += ids(page)
            assert len(ids(page)) <= count
            url = next((one["url"] for one in page["link"] if one["relation"] == "next"), None)
            for _ in range(chance.randrange(4)):
                id = chance.choice([*known, f"new{len(keys)}"])
                keys[id] = None
                touched.add(id)
                await put(hub.store, oracle.write(id))
        same = [id for id in seen if id not in touched]
        assert len(same) == len(set(same))
        assert set(same) == {id for id in lines_before if id not in touched}
        assert [oracle.place(before[id], sort) for id in same] == sorted(oracle.place(before[id], sort) for id in same)
        known = list(keys)
    assert await hub.ids(NURSE, "_count=500") == sorted(
        oracle.lines(), key=lambda id: (oracle.place(oracle.tasks[id], "due"), list(keys).index(id))
    )


async def test_hundreds_of_lists_are_one(hub):  # noqa: F811
    """Somebody of whom every partner has a copy is known by many references."""
    await put(hub.store, *({"resourceType": "Practitioner", "id": f"p{number:03}"} for number in range(300)))
    await put(
        hub.store,
        *(task(f"t{number:03}", f"2026-04-0{1 + number % 9}", f"Practitioner/p{number:03}", "bo") for number in range(300)),
    )
    owners = ",".join(f"Practitioner/p{number:03}" for number in range(300))
    seen, url = [], f"owner={owners}&_count=120"
    while url:
        page = await hub.list(NURSE, url)
        seen += ids(page)
        url = next((one["url"] for one in page["link"] if one["relation"] == "next"), None)
    assert seen == sorted((f"t{number:03}" for number in range(300)), key=lambda id: (int(id[1:]) % 9, id))
