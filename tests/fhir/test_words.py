"""The words of a resource, and the language in which they are asked for."""

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.fhir.conditions import AllOf, AnyOf, InvalidValue, Matches, WordsTest
from fhircm.fhir.outcome import NotSupported
from fhircm.fhir.query import parse_query
from fhircm.fhir.words import WORD_LIMIT, WORDS_LIMIT, full_text, words_of

XHTML = '<div xmlns="http://www.w3.org/1999/xhtml">'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Acute Bronchitis", ["acute", "bronchitis"]),
        ("O'Brien, J45.909; x-ray_2", ["obrien", "j45", "909", "x", "ray", "2"]),
        ("naïve STRASSE straße ½", ["naive", "strasse", "strasse", "1", "2"]),
        ("東京 हिन्दी", ["東京", "हिनदी"]),
        ("--- ° €", []),
        ("a" * 100, ["a" * WORD_LIMIT]),
    ],
)
def test_words_are_folded(text, words):
    assert words_of(text) == words


@given(st.text())
def test_words_hold_letters_marks_and_digits_and_are_the_same_wherever_they_stand(text):
    words = words_of(text)
    assert all(unicodedata.category(c)[0] in "LMN" for word in words for c in word)
    assert words == [word for part in text.split() for word in words_of(part)]


def test_a_narrative_is_its_text_and_what_is_binary_or_a_link_is_no_content():
    tree = {
        "resourceType": "DocumentReference",
        "id": "hidden",
        "meta": {"profile": ["http://hidden.example"]},
        "text": {
            "status": "generated",
            "div": f"{XHTML}<p>Left <b>kn</b>ee &amp; hip<br/>pain</p><table><tr><td>one</td><td>two</td></tr></table></div>",
        },
        "contained": [{"resourceType": "Patient", "name": [{"family": "Inner"}], "birthDate": "2020-01-01"}],
        "status": "current",
        "_status": {"extension": [{"url": "http://hidden.example", "valueString": "Within"}]},
        "subject": {"reference": "Patient/hidden", "display": "Shown"},
        "date": "2024-05-17T09:30:00Z",
        "content": [
            {"attachment": {"contentType": "text/plain", "data": "aGlkZGVu", "url": "http://hidden.example", "title": "T"}}
        ],
    }
    assert [tuple(one) for one in full_text(tree)] == [
        ("_text", "left knee hip pain | one | two"),
        ("_content", "left knee hip pain | one | two | inner | current | within | shown | text plain | t"),
    ]
    assert list(full_text({"resourceType": "Basic", "code": {}})) == []


def test_endless_text_is_cut_between_words():
    long = {"resourceType": "Basic", "code": {"text": " ".join(f"word{n}" for n in range(50_000))}}
    (content,) = full_text(long)
    assert WORDS_LIMIT - 20 < len(content.words) <= WORDS_LIMIT
    assert content.words.split()[-1] in long["code"]["text"].split()


def condition(text, name="_text"):
    (found,) = parse_query("Patient", [(name, text)], full_text=True).conditions
    return found


def all_words(*words, starts=(), phrases=()):
    return Matches("Patient", "_text", (WordsTest(words, starts, phrases),))


def no(found):
    return replace(found, negated=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bone liver", all_words("bone", "liver")),
        ("bone AND liver and bone", all_words("bone", "liver")),
        ("bon* liver", all_words("liver", starts=("bon",))),
        ('"Left Knee" pain', all_words("left", "knee", "pain", phrases=(" left knee ",))),
        ('"left kn"*', all_words("left", starts=("kn",), phrases=(" left kn",))),
        ("J45.909", all_words("j45", "909", phrases=(" j45 909 ",))),
        ('"or"', all_words("or")),
        ("a OR b c", AnyOf((all_words("a"), all_words("b", "c")))),
        ("a,b", AnyOf((all_words("a"), all_words("b")))),
        (r"a\,b", all_words("a", "b")),
        ("(bone OR liver) and metastases", AllOf((all_words("metastases"), AnyOf((all_words("bone"), all_words("liver")))))),
        ("a -b", AllOf((all_words("a"), no(all_words("b"))))),
        ("NOT (a b)", no(all_words("a", "b"))),
        ('a -"b c"', AllOf((all_words("a"), no(all_words("b", "c", phrases=(" b c ",)))))),
        ("-x-ray", no(all_words("x", "ray", phrases=(" x ray ",)))),
    ],
)
def test_what_words_ask(text, expected):
    assert condition(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "&", "a OR", "OR a", "a AND", "NOT", "(a", "a)", "()", '"a', '""', "*", "a -", "-" * 20 + "a"),
        *("(" * 20 + "a" + ")" * 20, " ".join(["secret"] * 51), "secret" * 500),
    ],
)
def test_words_that_cannot_be_read_are_refused_and_not_shown(text):
    with pytest.raises(InvalidValue) as caught:
        condition(text)
    assert "secret" not in str(caught.value)
    assert "_text" in str(caught.value)


def test_full_text_is_refused_where_no_words_are_kept():
    for name in ("_text", "_content", "organization._content"):
        with pytest.raises(NotSupported, match="FHIRCM_FULL_TEXT"):
            parse_query("Patient", [(name, "a")])
    with pytest.raises(NotSupported):
        condition("a", "_text:exact")
    for on in (True, False):
        with pytest.raises(NotSupported) as caught:
            parse_query("Patient", [("colour", "a")], full_text=on)
        assert ("_content" in str(caught.value)) == on
    assert condition("a", "organization._content").targets[0][1].parameter == "_content"
