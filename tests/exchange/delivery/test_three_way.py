"""A three-way merge keeps what either side changed, and names what both did."""

from hypothesis import given
from hypothesis import strategies as st

from fhircm.exchange.three_way import json_patch, merge, says

VALUES = st.one_of(st.none(), st.sampled_from(["a", "b", "c"]), st.lists(st.sampled_from(["x", "y", "z"]), unique=True))
TREES = st.dictionaries(st.sampled_from(["title", "note", "status"]), VALUES.filter(lambda value: value is not None), max_size=3)


def applied(theirs, members):
    return {name: value for name, value in {**theirs, **members}.items() if value is not None}


@given(TREES, TREES)
def test_what_only_the_hub_changed_arrives_and_what_only_they_changed_stays(base, other):
    assert applied(base, merge(base, base, base, other).members) == other
    assert merge(base, base, other, base) == merge(base, base, base, base), "nothing to write"


@given(TREES, TREES, TREES)
def test_nothing_of_theirs_is_lost_without_a_clash(base, theirs, ours):
    merged = merge(base, base, theirs, ours)
    now = applied(theirs, merged.members)
    for name in {*base, *theirs, *ours} - set(merged.clashes):
        changed = [side.get(name) for side in (theirs, ours) if side.get(name) != base.get(name)]
        if all(isinstance(one, list) for one in [*changed, base.get(name, [])]) and len(changed) == 2:
            assert set(changed[0]) - set(base.get(name, [])) <= set(now[name]), "what they added is there"
            assert set(changed[1]) - set(base.get(name, [])) <= set(now[name]), "what we added is there"
        elif changed:
            assert now.get(name) in changed
        else:
            assert now.get(name) == base.get(name)
    for name in merged.clashes:
        assert now.get(name) == theirs.get(name), "never overwritten"
    assert merge(base, base, theirs, ours, "hub").clashes == merge(base, base, theirs, ours, "partner").clashes == ()
    assert merge(ours, now, now, ours).members == {}, "merged once, it is quiet"


def test_a_server_that_adds_to_what_it_is_sent_has_changed_nothing():
    sent = {"code": {"coding": [{"code": "a"}]}}
    had = {"code": {"coding": [{"code": "a", "display": "A"}]}}
    assert says(had["code"], sent["code"])
    assert merge(sent, had, had, {"code": {"coding": [{"code": "b"}]}}).members == {"code": {"coding": [{"code": "b"}]}}
    assert merge(sent, sent, had, {"code": {"coding": [{"code": "b"}]}}).clashes == (), "nor one whose answer was lost"


def test_the_same_as_json_patch():
    edits = json_patch({"a": 1, "b": 2}, {"a": None, "b": 3, "c": 4})
    assert edits == [
        {"op": "remove", "path": "/a"},
        {"op": "replace", "path": "/b", "value": 3},
        {"op": "add", "path": "/c", "value": 4},
    ]
