"""Any sequence of writes, deletes and reads means what a dictionary of histories means."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.fhir.outcome import Gone, NotFound, VersionConflict
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check
from fhircm.store.resources import Delete, Put

IDS = st.sampled_from(["a", "b", "c"])
CODES = st.sampled_from(["x", "y", "z"])
STEP = st.one_of(
    st.tuples(st.just("put"), IDS, CODES, st.none() | st.integers(0, 4)),
    st.tuples(st.just("delete"), IDS, st.none(), st.none() | st.integers(0, 4)),
)


def basic(id, code):
    tree = {"resourceType": "Basic", "id": id, "identifier": [{"system": "urn:s", "value": code}], "code": {"text": code}}
    return check(json.dumps(tree).encode())


def expected(history, action, if_version):
    """The error that a step must meet, or None."""
    version, exists = len(history), bool(history) and history[-1] is not None
    if action == "delete" and not history:
        return NotFound
    if if_version is None:
        return None
    if if_version == 0:
        return VersionConflict if exists else None
    return None if exists and version == if_version else VersionConflict


async def test_the_store_is_a_dictionary_of_histories(store):
    sequences = []

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEP, max_size=25))
    def collect(steps):
        sequences.append(steps)

    collect()
    for number, steps in enumerate(sequences):
        model = {}
        for action, name, code, if_version in steps:
            id = f"{name}{number}"
            history = model.get(id, [])
            operation = Put(basic(id, code), if_version) if action == "put" else Delete("Basic", id, if_version)
            if error := expected(history, action, if_version):
                with pytest.raises(error):
                    await store.transact([operation], origin="test")
            else:
                (stored,) = await store.transact([operation], origin="test")
                if action == "put" or (history and history[-1] is not None):
                    model.setdefault(id, history).append(code)
                assert stored.version == len(model[id])
        await agrees(store, model, number)


async def agrees(store, model, number):
    """Reading, each version, the history and the search tell the same as the model."""
    for id, history in model.items():
        assert [one.version for one in await store.history("Basic", id)] == list(range(len(history), 0, -1))
        for version, code in enumerate(history, start=1):
            if code is None:
                with pytest.raises(Gone):
                    await store.vread("Basic", id, version)
            else:
                assert (await store.vread("Basic", id, version)).tree["code"]["text"] == code
    for code in ("x", "y", "z"):
        found = await store.search(parse_query("Basic", [("identifier", f"urn:s|{code}"), ("_count", "1000")]))
        now = {id for id, history in model.items() if history[-1] == code}
        assert {one.id for one in found.matches if one.id.endswith(str(number)) and one.id[1:] == str(number)} == now
