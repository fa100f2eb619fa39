"""What of a Patient tells one human from another, folded so that the habits of registration desks do not show.

https://hl7.org/fhir/R4/patient.html. Every table is in mappings/identity.yaml. What desks fill in when nobody knows better
(a birth date of 1900, a phone number of zeros, "Baby Boy") counts as absent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fhircm.fhir.artefacts import folder, read_yaml

Token = frozenset[str]  # the spellings of one part of a name: {"muller", "mueller"}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class Name(NamedTuple):
    """One name of a human: both parts as tokens, in the order written."""

    family: tuple[Token, ...]
    given: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """What is compared. An empty member says that nothing is known."""

    names: tuple[Name, ...]
    suffixes: frozenset[str]  # generations: jr, sr, 3 …
    birth_date: str  # YYYY-MM-DD or ""
    gender: str  # male, female, other or ""
    addresses: frozenset[tuple[str, str]]  # (postal code or town, house)
    areas: frozenset[str]  # postal codes
    phones: frozenset[str]
    emails: frozenset[str]
    personal: frozenset[tuple[str, str]]  # (system, value)
    member: frozenset[tuple[str, str]]
    multiple: bool  # known to be a twin or triplet
    birth_order: int | None


@cache
def tables() -> dict[str, Any]:
    """mappings/identity.yaml as it was written."""
    return read_yaml(folder("mappings") / "identity.yaml")


def features(patient: dict[str, Any]) -> Features:
    """Fold a Patient tree. Unknown elements are passed over; the tree is not changed."""
    parts = [_name(name) for name in patient.get("name", []) if name.get("use") not in ("temp", "anonymous")]
    telecom = [point for point in patient.get("telecom", []) if point.get("use") not in ("old", "work") and point.get("value")]
    addresses = [address for address in patient.get("address", []) if address.get("postalCode") or address.get("city")]
    identifiers = [
        identifier
        for identifier in patient.get("identifier", [])
        if identifier.get("use") != "old" and "end" not in identifier.get("period", {}) and identifier.get("system")
    ]
    kinds = tables()["identifiers"]
    gender = patient.get("gender", "")
    birth_date = patient.get("birthDate", "")
    order = patient.get("multipleBirthInteger")
    return Features(
        names=_whole([name for name, _ in parts]),
        suffixes=frozenset(suffix for _, found in parts for suffix in found),
        birth_date=birth_date if _DATE.fullmatch(birth_date) and birth_date not in _placeholders("birth-dates") else "",
        gender=gender if gender in ("male", "female", "other") else "",
        addresses=frozenset(where for address in addresses if (where := place(address))),
        areas=frozenset(code for address in addresses if (code := _postal_code(address))),
        phones=frozenset(number for point in telecom if point.get("system") in ("phone", "sms") and (number := telephone(point))),
        emails=frozenset(point["value"].strip().casefold() for point in telecom if point.get("system") == "email"),
        personal=frozenset(_numbers(identifiers, kinds["personal"])),
        member=frozenset(_numbers(identifiers, kinds["member"])),
        multiple=patient.get("multipleBirthBoolean") is True or order is not None,
        birth_order=order,
    )


def spellings(word: str) -> Token:
    """The ways to write one part of a name in plain Latin letters; empty for what holds no letter."""
    letters = _letters()
    composed = unicodedata.normalize("NFC", word.casefold())
    return frozenset(form for which in (0, -1) if (form := _plain("".join(letters.get(c, (c,))[which] for c in composed))))


def _plain(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if c.isalnum())


@cache
def _letters() -> dict[str, tuple[str, ...]]:
    return {letter: tuple(forms) for letter, forms in tables()["letters"].items()}


@cache
def _placeholders(kind: str) -> frozenset[str]:
    return frozenset(tables()["placeholders"][kind])


@cache
def _suffixes() -> dict[str, str]:
    return {form: generation for generation, forms in tables()["suffixes"].items() for form in forms}


_APART = re.compile(r"[\s,;./\-]+")
_APOSTROPHES = str.maketrans("", "", "'\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}`")


def _words(text: str) -> list[str]:
    return [word for word in _APART.split(text.translate(_APOSTROPHES)) if word]


def _name(name: dict[str, Any]) -> tuple[Name, set[str]]:
    """The parts of a HumanName without titles and placeholders, and the generations it tells."""
    family, given = name.get("family", ""), " ".join(part for part in name.get("given", []) if part)
    if not family and not given and (text := name.get("text", "")):
        before, comma, after = text.partition(",")
        given, _, family = text.rpartition(" ") if not comma else (after, "", before)
    behind = [_plain(word.casefold()) for suffix in name.get("suffix", []) if suffix for word in _words(suffix)]
    suffixes = {_suffixes()[word] for word in behind if word in _suffixes()}
    family_words, given_words = _words(family), _words(given)
    for words in (family_words, given_words):
        # One letter or digit behind a name is rather an initial.
        while len(words) > 1 and len(end := _plain(words[-1].casefold())) > 1 and end in _suffixes():
            suffixes.add(_suffixes()[end])
            words.pop()
    return Name(_tokens(family_words), _tokens(given_words)), suffixes


def _tokens(words: list[str]) -> tuple[Token, ...]:
    if " ".join(words).casefold() in _placeholders("names"):
        return ()
    kept = [word for word in words if word.casefold() not in tables()["titles"]] or words
    return tuple(token for word in kept if (token := spellings(word)) and not token & _placeholders("names"))


def _whole(names: list[Name]) -> tuple[Name, ...]:
    """A maiden or a pet name often comes without its other part: take that from the first whole name."""
    whole = next((name for name in names if name.family and name.given), None)
    if whole is None:
        return ()
    return tuple(dict.fromkeys(Name(name.family or whole.family, name.given or whole.given) for name in names))


def _postal_code(address: dict[str, Any]) -> str:
    return _plain(address.get("postalCode", "").casefold())[:5]


def place(address: dict[str, Any]) -> tuple[str, str] | None:
    """Where the house is and which; the flat is left out because half the desks do not ask for it."""
    line = re.sub(r"#", " # ", " ".join(part for part in address.get("line", []) if part))
    streets, units = tables()["address"]["words"], tables()["address"]["units"]
    words = [streets.get(word, word) for word in (_plain(w.casefold()) or w for w in _words(line))]
    unit = next((at for at, word in enumerate(words) if word in units), len(words))
    house = " ".join(words[:unit])
    town = _postal_code(address) or _plain(address.get("city", "").casefold())
    return (town, house) if house and town else None


def telephone(point: dict[str, Any]) -> str:
    """The digits of a number without those of the country; nothing for what a form is filled with."""
    digits = re.sub(r"\D", "", point["value"].split("x")[0])[-10:]
    return digits if len(digits) >= 7 and not _filler(digits) else ""


def _filler(number: str) -> bool:
    return len(set(number)) == 1 or number in _placeholders("numbers")


def _numbers(identifiers: list[dict[str, Any]], kind: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    for identifier in identifiers:
        codes = {coding.get("code") for coding in identifier.get("type", {}).get("coding", [])}
        value = _plain(identifier.get("value", "").casefold())
        shape = tables()["identifiers"]["shapes"].get(identifier["system"], {})
        if not re.fullmatch(shape.get("valid", ".*"), value):
            continue  # half of a number, as XXX-XX-1930, is many people's
        if (identifier["system"] in kind.get("systems", ()) or codes & set(kind["types"])) and value and not _filler(value):
            yield identifier["system"], value
