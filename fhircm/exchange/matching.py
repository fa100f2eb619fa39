"""Whether two Patients are the same human: evidence in bits, rules on top, and vetoes above all.

Fellegi and Sunter, "A Theory for Record Linkage" (1969), https://doi.org/10.1080/01621459.1969.10501049. Pure: two trees in, a
verdict out; every weight, rule and table is in mappings/identity.yaml. A wrong link mixes two lives, so a sum of weights alone
never links: a rule must be met in full, and a conflict of gender, generation or number forbids a link whatever the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from fhircm.exchange.features import Features, Name, Token, features, tables

Decision = Literal["link", "possible", "distinct"]


class Match(NamedTuple):
    """A verdict on two Patients. Holds names of elements and levels only, never values, so it may be told and logged."""

    decision: Decision
    score: float  # bits of evidence that they are one human
    levels: Mapping[str, str]  # "birth-date": "same"; an element that one of the two lacks is absent
    vetoes: tuple[str, ...]  # what forbids a link
    assurance: str | None  # https://hl7.org/fhir/R4/valueset-identity-assuranceLevel.html, of a link


def score(a: dict[str, Any], b: dict[str, Any]) -> Match:
    """Judge two Patient trees; the order does not matter."""
    return compare(features(a), features(b))


def compare(a: Features, b: Features) -> Match:
    """Judge two Patients that were folded before; the order does not matter."""
    levels = _levels(a, b)
    weights = tables()["weights"]
    bits = float(sum(weights[field][level] for field, level in levels.items() if level in weights[field]))
    vetoes = _vetoes(a, b)
    twins = a.multiple or b.multiple
    assurance = _linked(levels, bits, twins)
    decision: Decision
    if assurance and not vetoes:
        decision = "link"
    elif assurance or (not vetoes and bits >= tables()["decision"]["possible"] and _asked(levels)):
        decision, assurance = "possible", None
    else:
        decision = "distinct"
    return Match(decision, bits, MappingProxyType(levels), vetoes, assurance)


def _linked(levels: dict[str, str], bits: float, twins: bool) -> str | None:
    """The assurance of the first rule that is met. What a household shares says nothing of twins."""
    decision = tables()["decision"]
    if bits < decision["link"]:
        return None
    shared = 0 if twins else sum(levels.get(field) == "same" for field in decision["household"])
    met = (rule for rule in decision["rules"] if _meets(levels, rule) and shared >= rule["shared"])
    return next((rule["assurance"] for rule in met), None)


def _asked(levels: dict[str, str]) -> bool:
    return any(_meets(levels, rule) for rule in tables()["decision"]["ask"])


def _meets(levels: dict[str, str], rule: dict[str, Any]) -> bool:
    return all(levels.get(field) in allowed for field, allowed in rule["levels"].items())


def _vetoes(a: Features, b: Features) -> tuple[str, ...]:
    conflicts = {
        "gender": bool(a.gender and b.gender and a.gender != b.gender),
        "suffix": bool(a.suffixes and b.suffixes and not a.suffixes & b.suffixes),
        "birth-order": None not in (a.birth_order, b.birth_order) and a.birth_order != b.birth_order,
        "personal-id": _contradict(a.personal, b.personal),
        "member-id": _contradict(a.member, b.member),
    }
    return tuple(field for field, found in conflicts.items() if found)


def _contradict(a: frozenset[tuple[str, str]], b: frozenset[tuple[str, str]]) -> bool:
    """Whether some system gave both a number and none of those is the same."""
    systems = {system for system, _ in a} & {system for system, _ in b}
    agreed = {system for system, _ in a & b}
    return bool(systems - agreed)


def _levels(a: Features, b: Features) -> dict[str, str]:
    levels = _names(a, b)
    if a.birth_date and b.birth_date:
        levels["birth-date"] = _birth_dates(a.birth_date, b.birth_date)
    if a.gender and a.gender == b.gender:
        levels["gender"] = "same"
    if a.addresses and b.addresses:
        near = "area" if a.areas & b.areas else "differs"
        levels["address"] = "same" if a.addresses & b.addresses else near
    for field, ours, theirs in (("phone", a.phones, b.phones), ("email", a.emails, b.emails)):
        if ours and theirs:
            levels[field] = "same" if ours & theirs else "differs"
    if a.personal & b.personal:
        levels["personal-id"] = "same"
    if a.member & b.member:
        levels["member-id"] = "same"
    return levels


def _birth_dates(a: str, b: str) -> str:
    if a == b:
        return "same"
    ours, theirs = a.split("-"), b.split("-")
    if ours[0] == theirs[0] and ours[1] == theirs[2] and ours[2] == theirs[1]:
        return "close"
    wrong = [(x, y) for x, y in zip(ours, theirs, strict=True) if x != y]
    # A wrong decade or century is rather a parent or grandparent of the same name.
    slip = len(wrong) == 1 and (wrong[0][0][:-1] == wrong[0][1][:-1] or sorted(wrong[0][0]) == sorted(wrong[0][1]))
    return "close" if slip else "differs"


def _names(a: Features, b: Features) -> dict[str, str]:
    """The levels of the best pair of names."""
    weights = tables()["weights"]
    pairs = [levels for x, y in product(a.names, b.names) for levels in (_name(x, y), _swapped(x, y)) if levels]
    # The levels themselves break a tie, so that the order of the two does not.
    best = max(pairs, key=lambda pair: (weights["family"][pair[0]] + weights["given"][pair[1]], pair), default=None)
    return {"family": best[0], "given": best[1]} if best else {}


def _name(a: Name, b: Name) -> tuple[str, str]:
    return _families(a.family, b.family), _givens(a.given, b.given)


def _swapped(a: Name, b: Name) -> tuple[str, str] | None:
    """Family and given name stand in each other's place at one of the two: weaker than names in order."""
    both = _families(a.family, b.given) == _families(a.given, b.family) == "same"
    return ("part", "same") if both else None


def _joined(tokens: tuple[Token, ...]) -> Token:
    """All parts as one word, in each spelling; Mary Ann is Maryann."""
    return frozenset("".join(which(token) for token in tokens) for which in (min, max))


def _bare(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """A family name without de, van, bin …, which half the desks leave out."""
    return tuple(token for token in tokens if not token & _particles()) or tokens


@cache
def _particles() -> frozenset[str]:
    return frozenset(tables()["particles"])


def _families(a: tuple[Token, ...], b: tuple[Token, ...]) -> str:
    if _joined(a) & _joined(b):
        return "same"
    a, b = _bare(a), _bare(b)
    if _joined(a) & _joined(b) or (len(a) == len(b) and _covers(a, b) and _covers(b, a)):
        return "same"
    if _covers(a, b) or _covers(b, a):
        return "part"
    near = any(min(len(x), len(y)) >= 5 and _one_slip(x, y) for x, y in product(_joined(a), _joined(b)))
    return "close" if near else "differs"


def _covers(whole: tuple[Token, ...], parts: tuple[Token, ...]) -> bool:
    return all(any(part & token for token in whole) for part in parts)


def _givens(a: tuple[Token, ...], b: tuple[Token, ...]) -> str:
    if _joined(a) & _joined(b):
        return "same"
    first, other = a[0], b[0]
    level = _first_names(first, other)
    if level in ("close", "differs") and (any(first & token for token in b[1:]) or any(other & token for token in a[1:])):
        return "middle"
    if level in ("same", "nickname", "variant", "initial") and a[1:] and b[1:] and not _middles_agree(a[1:], b[1:]):
        return "conflict"
    return level


def _first_names(a: Token, b: Token) -> str:
    if a & b:
        return "same"
    if any(len(min(x, y, key=len)) == 1 for x, y in product(a, b)):
        return "initial" if {x[0] for x in a} & {y[0] for y in b} else "differs"
    for kind in ("nickname", "variant"):
        if any(y in _related(kind).get(x, ()) for x, y in product(a, b)):
            return kind
    near = any(min(len(x), len(y)) >= 4 and _one_slip(x, y) for x, y in product(a, b))
    return "close" if near else "differs"


def _middles_agree(a: tuple[Token, ...], b: tuple[Token, ...]) -> bool:
    return any(_first_names(x, y) in ("same", "initial", "nickname", "variant") for x, y in product(a, b))


@cache
def _related(kind: str) -> dict[str, set[str]]:
    related: dict[str, set[str]] = {}
    for line in tables()[f"{kind}s"]:
        for name in line:
            related.setdefault(name, set()).update(line)
    return related


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter left out, put in, changed, or two neighbours swapped make one word of the other."""
    if abs(len(a) - len(b)) > 1:
        return False
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[at:], b[at:]
    swapped = rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:]
    return rest_a[1:] == rest_b[1:] or rest_a[1:] == rest_b or rest_a == rest_b[1:] or swapped
