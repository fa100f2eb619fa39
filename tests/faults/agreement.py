"""What must hold when a storm is over and the hub has come to rest: nothing lost, nothing doubled, or the difference is listed for a human."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta

from fhircm.coordination import build
from fhircm.exchange import breaker, human, mirror, news, pull
from fhircm.exchange.breaker import WHOLE
from fhircm.exchange.case import concerns, gather, sent
from fhircm.exchange.dead_letters import UNDELIVERED, letters
from fhircm.exchange.due import queue
from fhircm.exchange.gone import CODE as GONE_CODE
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.native import written
from fhircm.exchange.outbound import check_deliver, fulfils, occasions, occurring
from fhircm.exchange.three_way import says
from fhircm.exchange.ways import adapt
from fhircm.fhir import json as fhir_json
from fhircm.fhir.systems import DELIVERY
from fhircm.reactions import TIMERS
from fhircm.store.operations import Put
from fhircm.worker import parked_at

NATIVE = ("CarePlan", "CareTeam", "Goal", "Task", "ServiceRequest")
MERGED_FROM = "https://fhircm.example/StructureDefinition/merged-from"
OWN = {"id", "meta", "text", "identifier", "resourceType"}


async def check_all(storm, fresh) -> None:
    """Raises AssertionError with the seed in it. `fresh` is a storm over the same EHRs with a hub that comes today."""
    async with storm.hub() as hub:
        await at_rest(storm, hub)
        await nothing_unreacted(storm, hub)
        nothing_doubled(storm)
        in_order(storm)
        for name in storm.partners:
            await nothing_lost(storm, hub, name)
            await natively_alike(storm, hub, name)
        await copies_agree(storm, hub, fresh)


def wrong(storm, what) -> str:
    return f"seed {storm.seed}: {what}"


async def _rows(store, sql):
    async with store.database.reading() as connection:
        return await connection.fetch(sql)


# --- at rest -----------------------------------------------------------------------------------------------------------------


async def at_rest(storm, hub) -> None:
    """Nothing waits, nothing is overdue, and what was parked is with a human."""
    store = hub.store
    for name in storm.partners:
        assert not await store.state_keys(queue(name), 1), wrong(storm, f"{name}: something is still in the queue")
        assert await store.state(news.NAMESPACE, name) is None, wrong(storm, f"{name} was not told the last news")
        states = await breaker.state(store, name)
        open_ones = [one for one in states if one.what == WHOLE or (one.until and one.until > store.clock())]
        assert not open_ones, wrong(storm, f"{name}: breakers are open: {open_ones}")
    for reaction in hub.worker.reactions:
        rest = (await store.changes(await store.cursor(reaction.name), types=reaction.types)).changes
        assert not rest, wrong(storm, f"{reaction.name} has not reacted to {len(rest)} changes")
    overdue = await store.claim_timers(frozenset({*TIMERS, news.DUE}), limit=5, lease=timedelta(seconds=1))
    assert not overdue, wrong(storm, f"timers are overdue: {[one.key for one in overdue]}")
    for where in [one.name for one in hub.worker.reactions] + list(TIMERS):
        for what in await store.states(parked_at(where)):
            task = build.stable_id("parked", where, what)
            assert ("Task", task) in await store.read_many([("Task", task)]), wrong(storm, f"{where}: nobody was told of {what}")
            storm.weather.happened["changes parked at a reaction"] += 1


async def nothing_unreacted(storm, hub) -> None:
    """Asked again about every resource as it stands, no reaction wants to make anything that is not there: none of its writes was lost."""
    store = hub.store
    for reaction in hub.worker.reactions:
        parked = await store.states(parked_at(reaction.name))
        marks = ", ".join(f"'{one}'" for one in sorted(reaction.types))
        for row in await _rows(store, f"SELECT type, id, version FROM resource WHERE NOT deleted AND type IN ({marks})"):
            what = f"{row['type']}/{row['id']}/_history/{row['version']}"
            if what in parked:
                continue
            wanted = await reaction.function(await store.change(row["type"], row["id"], row["version"]))
            made = [(one.resource.type, one.resource.id) for one in wanted if isinstance(one, Put)]
            lost = sorted(set(made) - (await store.read_many(made)).keys())
            storm.weather.happened["reactions asked again"] += 1
            assert not lost, wrong(storm, f"{reaction.name} has still to make {lost[:3]} of {what}")


# --- at the EHRs -------------------------------------------------------------------------------------------------------------


def deliveries(tree):
    return [one["value"] for one in tree.get("identifier", []) if one.get("system") == DELIVERY]


def nothing_doubled(storm) -> None:
    """What the hub sent stands once at each EHR."""
    for name, ehr in storm.ehrs.items():
        sent_there = Counter(
            key
            for type in ("DocumentReference", "Communication", *NATIVE)
            for tree in ehr.chart.of_type(type)
            for key in deliveries(tree)
        )
        storm.weather.happened["resources that the hub made at an EHR"] += len(sent_there)
        twice = [key for key, times in sent_there.items() if times > 1]
        shown = [tree for type in NATIVE for tree in ehr.chart.of_type(type) if set(deliveries(tree)) & set(twice[:1])]
        assert not twice, wrong(storm, f"{name} has twice: {twice[:3]} {json.dumps(shown)[:1500]}")


def in_order(storm) -> None:
    """For each patient at an EHR, what is no matter of the newest version came in the order in which it happened."""
    for name, ehr in storm.ehrs.items():
        last: dict[tuple[str, str], tuple[str, str]] = {}
        for one in ehr.received:
            for key in one["identifiers"] if one["method"] == "POST" else ():
                occasion = key.rpartition("/")[0]
                kind = occasion.rpartition("/")[2].partition(".")[0]
                place = storm.ledger.places.get((name, occasion))
                if (
                    place is None
                    or kind not in occasions()
                    or any((name, f"{occasion}/{n}") in storm.ledger.parked for n in (1, 2, 3))
                ):
                    continue
                lane = (one["patient"], occasion.rpartition(".")[0] if occasions()[kind].every else "")
                before = last.get(lane, ("", ""))
                assert before[0] <= place, wrong(storm, f"{name}: {key} came after {before[1]}")
                last[lane] = (place, key)


# --- nothing lost ------------------------------------------------------------------------------------------------------------


async def nothing_lost(storm, hub, name) -> None:
    """Every occasion of the hub's own resources was told, was overtaken, is withheld, or is a dead letter that a human knows of."""
    store, partner = hub.store, storm.partners[name]
    deliver = check_deliver(partner.deliver)
    told, waiting = await store.states(sent(name)), await letters(store, name)
    storm.weather.happened.update(f"dead letter: {row['why']}" for row in waiting.values())
    types = sorted({occasions()[one].resource for one in deliver})
    marks = ", ".join(f"'{one}'" for one in types)
    for row in await _rows(store, f"SELECT type, id FROM resource WHERE NOT deleted AND type IN ({marks})"):
        history = list(reversed(await store.history(row["type"], row["id"])))
        newest = history[-1]
        if newest.tree.get("meta", {}).get("source"):
            continue
        made = [
            (occasion, stored)
            for before, stored in zip([None, *history], history, strict=False)
            for occasion in occurring(stored.tree, before.tree if before else None, list(deliver))
        ]
        for occasion in {one.name: one for one, _ in made}.values():
            versions = [stored for one, stored in made if one.name == occasion.name]
            for stored in versions[-1:] if occasion.every else versions:
                if await concerns(store, partner, occasion, stored) is None:
                    continue
                for number in range(1, len(deliver[occasion.name]) + 1):
                    ended = await _ended(store, partner, occasion, stored, newest, number, told, waiting)
                    storm.weather.happened[f"occasions {ended or 'lost'}"] += 1
                    what = f"{row['type']}/{row['id']} version {stored.version}, {occasion.name}, {number}"
                    assert ended, wrong(storm, f"{name} was never told of {what}; newest {newest.version}")
    for key, row in waiting.items():
        wanted = deliver.get(row["occasion"] or "", [])
        left = row["why"] == "no-record" and wanted and wanted[(row["number"] or 1) - 1][-1] == "none"
        if row["why"] != "withheld" and not left:
            task, _ = await human.latest(store, UNDELIVERED, name, key)
            assert task is not None and task.tree["status"] in human.OPEN, wrong(storm, f"{name}: nobody has a Task for {key}")


async def _ended(store, partner, occasion, stored, newest, number, told, waiting):
    """What became of one thing wanted; None when nothing did."""
    about = f"{stored.type}/{stored.id}/{occasion.name}"
    later = range(stored.version, newest.version + 1) if occasion.every else [stored.version]
    keys = [f"{about}.{one}/{number}" for one in later] if occasion.every or occasion.repeats else [f"{about}/{number}"]
    if any(told.get(key, {}).get("state") in ("done", "left") for key in keys):
        return "told"
    if dead := [waiting[key] for key in keys if key in waiting]:
        return "withheld" if dead[0]["why"] == "withheld" else "with a human"
    wanted = occasion.when if occasion.every else occasion.still
    if wanted and not fulfils(newest.tree, wanted):
        return "overtaken"
    if occasion.to in ("elsewhere", "known") and not fulfils(newest.tree, {**occasion.when, **occasion.still}):
        return "over before the patient was known there"
    if occasion.after and not any(key.startswith(f"{stored.type}/{stored.id}/{occasion.after}") for key in [*told, *waiting]):
        return "of something never told"
    return None


async def natively_alike(storm, hub, name) -> None:
    """What the hub keeps at an EHR says there what it says here, but for what somebody changed there."""
    store, partner, chart = hub.store, storm.partners[name], storm.ehrs[name].chart
    waiting = await letters(store, name)
    for key, row in (await store.states(sent(name))).items():
        about = key.removesuffix("/native")
        if about == key or row["state"] != "done":
            continue
        type, _, id = about.partition("/")
        newest = (await store.read_many([(type, id)])).get((type, id))
        occasion = next(one for one in occasions().values() if one.resource == type and one.every)
        if (last := await store.state(sent(name), f"{about}/{occasion.name}.{newest.version if newest else 0}/1")) and last[
            "state"
        ] == "left":
            continue  # the EHR could not be told at the time, and its file says that then nobody is
        if newest is None or any(letter.startswith(f"{about}/") for letter in waiting):
            continue
        case = await gather(store, partner, occasion, newest)
        if case is None or not fulfils(newest.tree, occasion.when):
            continue
        there = chart.get(type, row["url"].rpartition("/")[2])
        if there is None and chart.was(type, row["url"].rpartition("/")[2]):
            continue  # somebody deleted it there: the copy of it is marked as gone, which copies_agree looks at
        assert there is not None, wrong(storm, f"{name}: {row['url']} is not there, and nobody was told")
        ours = named(json.loads(fhir_json.dumps(adapt(partner, await written(case)))))
        there = named(there)
        touched = {member for at, kind, one, member in storm.people.touched if (at, kind, one) == (name, type, there["id"])}
        differ = [member for member in sorted({*ours} - OWN - touched) if not says(there.get(member), ours[member])] + list(
            {*there} - {*ours} - OWN - touched
        )
        storm.weather.happened["resources kept alike"] += 1
        shown = {member: (ours.get(member), there.get(member)) for member in differ}
        assert not differ, wrong(
            storm, f"{name}: {about} version {newest.version} ({row['version']} sent) differs: {json.dumps(shown)[:1500]}"
        )


def named(node):
    """A tree without what its references lead to: what is known of that may have changed since, and is no change of this one."""
    if isinstance(node, list):
        return [named(one) for one in node]
    if not isinstance(node, dict):
        return node
    if node.keys() <= {"reference", "type", "identifier", "display"}:
        return {"reference": "somewhere"}
    return {name: named(value) for name, value in node.items()}


# --- copies ------------------------------------------------------------------------------------------------------------------


async def copies_agree(storm, hub, fresh) -> None:
    """The hub has what a hub has that comes today; what it has besides is marked as gone, or held."""
    bases = [partner.base_url for partner in storm.partners.values()]
    async with fresh.hub() as late:
        for name in storm.partners:
            async with late.clients.at(name) as client:
                for _ in range(2):
                    await pull.reconcile(late.store, client)
        there = await mirrored(late.store, bases)
    here = await mirrored(hub.store, bases)
    held = await hub.store.held_page(limit=10_000)
    storm.weather.happened["copies compared"] += len(there)
    storm.weather.happened["held in quarantine"] += len(held)
    held = {hub_id(storm.partners[one.partner].base_url, one.name.split(" ")[0]) for one in held}
    differ = [key for key in there if here.get(key) != there[key] and key[1] not in held]
    assert not differ, wrong(storm, f"{len(differ)} differ: {_difference(here, there, differ[0])}")
    gone = await _gone(hub.store, storm)
    untold = [
        key
        for key in gone & here.keys() - there.keys()
        if not any(tag.get("code") == GONE_CODE for tag in here[key]["meta"].get("tag", []))
    ]
    assert not untold, wrong(
        storm, f"gone at the partner, and the copy does not say so: {[here[key]['meta']['source'] for key in untold[:3]]}"
    )
    extra = [key for key in here.keys() - there.keys() if key not in gone and key[1] not in held]
    assert not extra, wrong(
        storm, f"not at the partner, and not marked as gone: {[here[key]['meta']['source'] for key in extra[:3]]}"
    )


async def mirrored(store, bases) -> dict[tuple[str, str], dict]:
    """Every copy at a hub, without what the hub adds."""
    rows = await _rows(
        store,
        "SELECT r.type, r.id, v.body FROM resource r JOIN version v ON v.resource_key = r.key AND v.version = r.version WHERE NOT r.deleted",
    )
    found = {}
    for row in rows:
        tree = json.loads(bytes(row["body"]))
        meta = tree.get("meta", {})
        if "source" in meta:
            tree["meta"] = {name: value for name, value in meta.items() if name not in ("versionId", "lastUpdated")}
            found[row["type"], row["id"]] = led_home(tree, bases)
    return found


def led_home(node, bases):
    """A copy in which a reference to what a hub lacks is as it would be if the hub had it: one hub may still hold what is gone."""
    if isinstance(node, list):
        return [led_home(one, bases) for one in node]
    if isinstance(node, dict):
        for one in node.get("extension", ()):
            if (
                isinstance(one, dict) and one.get("url") == MERGED_FROM
            ):  # moved since, by a reaction that the late hub has not run
                return {**{name: value for name, value in node.items() if name != "extension"}, "reference": one["valueString"]}
        return {name: led_home(value, bases) if name != "meta" else value for name, value in node.items()}
    for base in bases:
        if isinstance(node, str) and node.startswith(base + "/") and node.count("/") == base.count("/") + 2:
            what = node.removeprefix(base + "/")
            return f"{what.split('/')[0]}/{hub_id(base, what)}"
    return node


def _difference(here, there, key):
    ours, theirs = here.get(key), there[key]
    if ours is None:
        return f"{theirs['meta']['source']} is not here"
    members = [name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)]
    return f"{theirs['meta']['source']}: " + "; ".join(
        f"{name}: here {json.dumps(ours.get(name))[:400]} there {json.dumps(theirs.get(name))[:400]}" for name in members
    )


async def _gone(store, storm):
    found = set()
    for name, partner in storm.partners.items():
        for row in (await store.states(f"mirror:{name}")).values():
            for what, mark in row["of"].items():
                if mark == mirror.GONE:
                    found.add((what.split("/")[0], hub_id(partner.base_url, what)))
    return found
