"""A plan spends no more than it has, takes the urgent first, starves nothing, and finds changes sooner than going round in turn."""

import random
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fhircm.exchange.plan import HINTED, LIKELY, NEVER, URGENT, WAITED, Budget, Look, Situation, plan, rules

NOW = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
AT = int(NOW.timestamp())
TYPES = ("Encounter", "Task", "Goal")
WEEK = 7 * 86_400
RULES = rules()


def looked(ago, whole=None, **more):
    return Look(at=AT - ago, whole=AT - (ago if whole is None else whole), **more)


def situation(looks, **more):
    return Situation(sorted(looks), TYPES, looks, WEEK, **more)


looks = st.builds(
    lambda ago, more, events, days, cost: looked(ago, ago + more, events=events, days=days, cost=cost),
    st.integers(0, 2 * WEEK),
    st.integers(0, WEEK),
    st.floats(0, 50),
    st.floats(0, 400),
    st.integers(1, 30),
) | st.just(Look())
panels = st.dictionaries(
    st.sampled_from([f"p{number}" for number in range(12)]), st.fixed_dictionaries(dict.fromkeys(TYPES, looks))
)
wholes = st.frozensets(st.sampled_from([f"p{number}" for number in range(12)]))


@given(panels, wholes, st.integers(0, 200), st.integers(0, 5))
def test_no_plan_spends_more_than_it_has_and_the_same_knowledge_gives_the_same_plan(panel, open, budget, seed):
    made = plan(situation(panel, open=open), NOW, budget, seed)
    assert made.requests <= budget
    chosen = list(made.looks)
    assert len({(patient, type) for patient, type, _ in chosen}) == len(chosen)
    assert made == plan(situation(dict(reversed(panel.items())), open=open), NOW, budget, seed)
    costs = [panel[patient].get(type).cost for patient, type, _ in chosen]
    assert sum(min(cost, budget) for cost in costs) == made.requests
    left = {(patient, type) for patient in panel for type in TYPES} - {(patient, type) for patient, type, _ in chosen}
    # It does not stop while something fits into what is left.
    assert all(min(panel[patient][type].cost, budget) > budget - made.requests for patient, type in left) or not budget


@given(panels, wholes)
def test_without_a_budget_everything_is_looked_at_and_reasons_come_in_order(panel, open):
    made = plan(situation(panel, open=open, hints={("p3", "Goal"): "adt"}), NOW, None)
    assert {(patient, type) for patient, type, _ in made.looks} == {(patient, type) for patient in panel for type in TYPES}
    first = [min([HINTED, URGENT, NEVER, WAITED, LIKELY].index(why) for why in visit.types.values()) for visit in made.visits]
    classes = [0 if one < 2 else 1 if one < 4 else 2 for one in first]
    assert classes == sorted(classes)


def test_what_is_hinted_at_comes_first_then_open_loops_then_what_waited_then_what_is_likely():
    panel = {
        "hinted": dict.fromkeys(TYPES, looked(60)),
        "open": dict.fromkeys(TYPES, looked(3600)),
        "late": dict.fromkeys(TYPES, looked(WEEK - 3600)),
        "quiet": dict.fromkeys(TYPES, looked(7200, days=400.0)),
        "busy": dict.fromkeys(TYPES, looked(7200, events=20.0, days=100.0)),
    }
    made = plan(situation(panel, open=frozenset({"open"}), hints={("hinted", "Task"): "subscription"}), NOW, None)
    assert [visit.patient for visit in made.visits] == ["hinted", "open", "late", "busy", "quiet"]
    assert made.visits[0].types["Task"] == HINTED
    assert made.visits[1].types == {"Encounter": URGENT, "Task": URGENT, "Goal": LIKELY}
    few = plan(situation(panel, open=frozenset({"open"}), hints={("hinted", "Task"): "subscription"}), NOW, 3)
    assert [why for _, _, why in few.looks] == [HINTED, URGENT, WAITED]  # a part is kept for what waited
    assert few.left == 1 + 2


def test_one_search_for_all_patients_counts_as_a_look_at_each():
    panel = {"p": dict.fromkeys(TYPES, looked(3600))}
    told = {"Task": AT - 60}
    made = plan(situation(panel, open=frozenset({"p"}), told=told), NOW, None)
    assert made.visits[0].types == {"Encounter": URGENT, "Task": LIKELY, "Goal": LIKELY}


def test_what_takes_more_than_a_round_has_is_done_alone_and_paid_for_later():
    panel = {"p": {type: looked(2 * WEEK, cost=50) for type in TYPES}}
    made = plan(situation(panel), NOW, 10)
    assert (len(list(made.looks)), made.requests) == (1, 10)
    budget = Budget(40)
    assert budget.allowance(None, NOW) == 40
    kept = budget.after(None, NOW, 50)
    assert budget.after(None, NOW, 5000)["left"] == -40
    assert budget.allowance(kept, NOW) == 0
    assert budget.allowance(kept, NOW + timedelta(minutes=30)) == 10
    assert budget.allowance(kept, NOW + timedelta(days=3)) == 40  # an hour's worth and no more, however long nothing was asked
    assert budget.allowance(kept, NOW - timedelta(days=3)) == 0  # a clock that was set back gives nothing for nothing
    assert Budget().allowance(None, NOW) is None


def test_the_rate_follows_what_is_seen_and_forgets():
    look, usual = Look(), 1 / 90
    for day in range(60):
        look = look.seen(AT + day * 86_400, day % 2 == 0, 1, RULES)
    assert 0.3 < RULES.rate(look, usual) < 0.9
    for day in range(60, 600):
        look = look.seen(AT + day * 86_400, False, 1, RULES)
    assert RULES.rate(look, usual) < 0.02
    assert RULES.rate(look, usual, is_open=True) == RULES.open * RULES.rate(look, usual)


def test_what_is_seen_of_a_panel_outweighs_what_was_supposed():
    assert 1 / 95 < RULES.usual([("Goal", Look())])["Goal"] < 1 / 85
    seen = [("Goal", Look(at=1, events=10.0, days=100.0))] * 50
    assert 0.08 < RULES.usual(seen)["Goal"] < 0.11


def simulate(days, budget, patients, choose, seed=7):
    """Rounds of a quarter of an hour against patients who change at rates of their own.

    Returns how long a change waited to be found, on average, in hours, and the longest interval between two looks, in seconds.
    """
    draw, rates = random.Random(seed), {}
    for number in range(patients):
        for type in TYPES:
            rates[f"p{number}", type] = 0.002 if number % 10 else 0.4  # a tenth of the panel changes all the time
    known = {f"p{number}": {type: looked(draw.randrange(WEEK // 2)) for type in TYPES} for number in range(patients)}
    since, waited, longest = {}, [], 0
    for turn in range(96 * days):
        now = NOW + timedelta(minutes=15 * turn)
        for key, rate in rates.items():
            if draw.random() < rate / 96:
                since.setdefault(key, turn)
        for patient, type in choose(known, now, budget, turn):
            look, at = known[patient][type], int(now.timestamp())
            began = since.pop((patient, type), None)
            waited += [] if began is None else [(turn - began) / 4]
            longest = max(longest, at - look.whole)
            known[patient][type] = look.seen(at, began is not None, 1, RULES)._replace(whole=at)
    waited += [(turn - began) / 4 for began in since.values()]
    longest = max([longest, *(int(now.timestamp()) - look.whole for of in known.values() for look in of.values())])
    return sum(waited) / len(waited), longest


def planned(known, now, budget, turn):
    return [(patient, type) for patient, type, _ in plan(situation(known), now, budget, seed=turn).looks]


def in_turn(known, now, budget, turn):
    every = [(patient, type) for patient in sorted(known) for type in TYPES]
    return [every[(turn * budget + number) % len(every)] for number in range(budget)]


def test_nothing_starves_and_changes_are_found_sooner_than_by_going_round_in_turn():
    waited, longest = simulate(20, 1, 60, planned)
    in_turn_waited, _ = simulate(20, 1, 60, in_turn)
    assert longest <= WEEK
    assert waited < 0.75 * in_turn_waited  # though it has to learn first who changes


def test_when_urgent_work_alone_exceeds_the_budget_what_waited_still_gets_its_part():
    panel = {f"p{number}": dict.fromkeys(TYPES, looked(7200)) for number in range(100)}
    panel["quiet"] = dict.fromkeys(TYPES, looked(WEEK))
    made = plan(situation(panel, open=frozenset(panel) - {"quiet"}), NOW, 10)
    assert {type for patient, type, _ in made.looks if patient == "quiet"} == set(TYPES)
    assert made.requests == 10
