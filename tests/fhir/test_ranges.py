"""Folded text: the quick way for plain letters is the way for all."""

from hypothesis import given
from hypothesis import strategies as st

from fhircm.fhir.ranges import normalise


@given(st.text(st.characters(max_codepoint=127), max_size=20))
def test_plain_text_is_folded_as_any_other(text):
    accent = "\N{COMBINING ACUTE ACCENT}"  # is dropped, and makes the text one with more than plain letters
    assert normalise(text) == normalise(text + accent)
