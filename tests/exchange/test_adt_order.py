"""Whatever the order in which messages come, late or more than once, the records end as they would have in the right order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fhircm.exchange.adt_map import load_adt
from fhircm.exchange.adt_records import applied, happened, said, taken
from fhircm.exchange.hl7v2 import Message
from fhircm.exchange.hl7v2_types import Around, pl
from fhircm.exchange.map_rules import Notes
from fhircm.fhir.artefacts import folder

from .test_adt import message

ADT = load_adt(folder("mappings") / "lakeside-hospital")
AROUND = Around({"NORTH": "urn:mrn", "NV": "urn:visit"}, "America/Chicago")

_message = st.builds(
    lambda event, minute, place, klass, family, born, sex, street: (
        event,
        minute,
        place,
        klass,
        f"{family}^X||{born}|{sex}|||{street}",
    ),
    st.sampled_from(["A01", "A02", "A03", "A04", "A05", "A06", "A07", "A08", "A11", "A12", "A13"]),
    st.integers(0, 59),
    st.sampled_from(["", "3W^1^A", "4E^2^B", "ICU^9^C"]),
    st.sampled_from(["", "I", "O", "E"]),
    st.sampled_from(["One", "Two", "Three"]),
    st.sampled_from(["", "19700203", '""']),
    st.sampled_from(["", "M", "F", '""']),
    st.sampled_from(["", "1 Main St^^Town^^^^H", "2 Side St^^Town^^^^C", '""']),
)


def state(messages):
    """The records after these messages, in this order."""
    seen, records, trees = set(), {}, {}
    for number, (event, minute, place, klass, pid) in messages:
        if number in seen:
            continue
        seen.add(number)
        raw = message(event, str(number), f"2026030110{minute:02d}00", place=place, klass=klass, pid=pid)
        read, stamp = Message(raw, ADT.segments), [f"2026-03-01T10:{minute:02d}:00+00:00", "", f"{number:03d}"]
        for one in said(read, ADT, AROUND, Notes(), patient_only=False):
            applied(trees.setdefault(one.map.type, {}), taken(records.setdefault(one.map.type, {}), one.elements, stamp))
        pv1 = read.field(read.all("PV1")[0], 3)
        location = pl(pv1[0], AROUND) if pv1 else None
        applied(trees["Encounter"], happened(records["Encounter"], [stamp, event, location, None, None], ADT))
    return {
        type: {name: _unordered(value) if name != "location" else value for name, value in tree.items()}
        for type, tree in trees.items()
    }


def _unordered(value):
    return sorted(map(repr, value)) if isinstance(value, list) else value


@settings(max_examples=60, deadline=None)
@given(st.lists(_message, min_size=1, max_size=7), st.data())
def test_late_and_repeated_messages_end_in_the_same_state(messages, data):
    numbered = list(enumerate(messages))
    right = sorted(numbered, key=lambda one: (one[1][1], one[0]))
    shuffled = data.draw(st.permutations(numbered + data.draw(st.lists(st.sampled_from(numbered), max_size=3))))
    assert state(shuffled) == state(right)
