"""Whatever comes in whatever order, the Persons are those that the records and the answers of now make: arrivals, changes, answers and merges."""

import random
from itertools import combinations

import pytest

from fhircm.coordination.rules import RULES
from fhircm.exchange import review
from fhircm.exchange.features import features
from fhircm.exchange.linkage import Linkage, ordered
from fhircm.exchange.mapping import hub_id
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Put
from tests.exchange.test_identity import AWAY, CLINIC, HOME, HOSPITAL, PAYER, Hub, patient

RECORDS = [(base, id) for base in (HOSPITAL, CLINIC, PAYER) for id in "12"]


class Model:
    """Every record and answer, and the groups that they make when every pair is judged."""

    def __init__(self):
        self.trees, self.said = {}, {}

    def people(self):
        trees = {id: tree for id, tree in self.trees.items() if "link" not in tree}
        linkage = Linkage(
            {id: features(tree) for id, tree in trees.items()},
            {id: tree["meta"]["source"].partition("/Patient/")[0] for id, tree in trees.items()},
        )
        for a, b in combinations(sorted(trees), 2):
            if linkage.sources[a] != linkage.sources[b]:
                match = linkage.judge(a, b)
                if said := self.said.get((a, b)):
                    linkage.decisions[a, b] = said
                if match.decision != "distinct" or said:
                    linkage.matches[a, b] = match
        return {frozenset(trees[id]["meta"]["source"] for id in group) for group in linkage.groups(trees)}


def written(draw, base, id):
    """A record as one of a few people who are easily mistaken for each other."""
    tree = patient(
        base,
        id,
        draw.choice(["Okafor", "Okafor", "Okafro", "Bianchi"]),
        draw.choice(["Amara", "Amara", "Amara Grace", "Chioma"]),
        draw.choice(["1971-03-09", "1971-03-09", "1971-09-03"]),
        draw.choice([None, None, "412-88-1930", "536-90-4812"]),
        draw.choice([HOME, HOME, AWAY]),
        gender=draw.choice(["female", "female", "female", "male"]),
        telecom=[{"system": "phone", "value": draw.choice(["312-555-0147", "503-555-0190"])}],
    )
    return tree


@pytest.mark.parametrize("seed", (9, 12))
async def test_the_persons_are_those_of_the_records_and_answers_of_now(store, seed):
    store.rules = RULES
    await store.transact([Put(check_tree({"resourceType": "Organization", "id": "hub", "name": "Coordination"}))], origin="hub")
    hub, model, draw = Hub(store), Model(), random.Random(seed)
    for step in range(22):
        kind = draw.random()
        if kind < 0.75 or len(model.trees) < 3:
            tree = written(draw, *draw.choice(RECORDS))
            model.trees[tree["id"]] = tree
            await hub.see(tree)
        elif kind < 0.85:
            base = draw.choice((HOSPITAL, CLINIC, PAYER))
            old, new = hub_id(base, "Patient/1"), hub_id(base, "Patient/2")
            if not {old, new} <= model.trees.keys() or "link" in model.trees[new]:
                continue
            model.trees[old] = {**model.trees[old], "link": [{"other": {"reference": f"Patient/{new}"}, "type": "replaced-by"}]}
            for pair, said in list(model.said.items()):
                if old in pair:  # what was said of it goes for the survivor, unless that was decided itself
                    other = pair[0] if pair[1] == old else pair[1]
                    if "link" not in model.trees[other]:
                        model.said.setdefault(ordered(new, other), said)
            await hub.see(model.trees[old])
        else:
            a, b = draw.sample(sorted(id for id, tree in model.trees.items() if "link" not in tree), 2)
            if (
                model.trees[a]["meta"]["source"].partition("/Patient/")[0]
                == model.trees[b]["meta"]["source"].partition("/Patient/")[0]
            ):
                continue
            pair, said = ordered(a, b), draw.choice(["same", "different"])
            model.said[pair] = said
            linkage = Linkage({id: features(model.trees[id]) for id in pair}, dict.fromkeys(pair, ""))
            await review.decide(store, pair, said, linkage.judge(*pair), "Organization/hub", who="steward")
            await hub.see()
        assert await hub.people() == model.people(), f"seed {seed}, step {step}"
