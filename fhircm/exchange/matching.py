"""Whether two Patients are the same human: evidence in bits, rules on top, and vetoes above all.

Fellegi and Sunter, "A Theory for Record Linkage" (1969), https://doi.org/10.1080/01621459.1969.10501049. Pure: two trees in, a
verdict out; every weight, rule and table is in mappings/identity.yaml. What agrees in a rare name weighs more than in a common one. A wrong
link mixes two lives, so a sum of weights alone never links: a rule must be met in full, and a conflict of gender, generation or number
forbids a link whatever the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from math import inf, log2
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from rapidfuzz.distance import OSA

from fhircm.exchange.features import Features, Name, Token, features, tables
from fhircm.exchange.yaml_keys import Keys

_GENERATION = 12  # years between two birth dates: more is rather a parent than two digits in each other's place
Decision = Literal["link", "possible", "distinct"]


class Match(NamedTuple):
    """A verdict on two Patients. Holds names of elements and levels only, never values, so it may be told and logged."""

    decision: Decision
    score: float  # bits of evidence that they are one human
    levels: Mapping[str, str]  # "birth-date": "same"; an element that one of the two lacks is absent
    vetoes: tuple[str, ...]  # what forbids a link
    assurance: str | None  # https://hl7.org/fhir/R4/valueset-identity-assuranceLevel.html, of a link

    @property
    def contradicts(self) -> bool:
        """Whether the two cannot be one human, even when a third is linked to each of them."""
        if self.decision == "link" or self.vetoes:
            return self.decision != "link"
        told = tables()["decision"]["contradict"]
        return self.levels.get("personal-id") != "same" and any(self.levels.get(field) in told[field] for field in told)


def levels_of(a: Features, b: Features) -> dict[str, str]:
    """How far each element agrees, without a verdict."""
    return _levels(a, b)[0]


class Thresholds(NamedTuple):
    """Bits of evidence from which a pair is linked, and from which a human is asked; infinity: never."""

    link: float
    possible: float


def own_thresholds(keys: Keys) -> Thresholds | None:
    """The `identity` part of a partner.yaml: bits, or `never`, for links and questions; it can only ask for more than is usual."""
    usual = tables()["decision"]
    own = keys.keys("identity", "link and possible, in bits of evidence", {})
    found = {}
    for name in ("link", "possible"):
        if own.tree.get(name) == "never":
            own.take(name, str, "never")
            found[name] = inf
        else:
            found[name] = own.number(name, float, usual[name], 100, float(usual[name]))
    own.done()
    return Thresholds(**found) if found != {name: usual[name] for name in found} else None


def score(a: dict[str, Any], b: dict[str, Any]) -> Match:
    """Judge two Patient trees; the order does not matter."""
    return compare(features(a), features(b))


def compare(a: Features, b: Features, own: Iterable[Thresholds] = ()) -> Match:
    """Judge two Patients that were folded before; the order does not matter. `own`: of their partners, of which the stricter counts."""
    levels, rarity = _levels(a, b)
    weights = tables()["weights"]
    bits = round(sum(weights[field][level] for field, level in levels.items() if level in weights[field]) + rarity, 2)
    vetoes = _vetoes(a, b)
    usual = tables()["decision"]
    limits = [*own, Thresholds(usual["link"], usual["possible"])]
    rule = _rule(levels, bits, a.multiple or b.multiple, max(one.link for one in limits))
    assurance = rule["assurance"] if rule else None
    decision: Decision
    if rule and set(vetoes) <= set(rule.get("despite", ())):
        decision = "link"
    elif (assurance or (not vetoes and _asked(levels, _shared(levels)))) and bits >= max(one.possible for one in limits):
        decision, assurance = "possible", None
    else:
        decision, assurance = "distinct", None
    return Match(decision, bits, MappingProxyType(levels), vetoes, assurance)


def _rule(levels: dict[str, str], bits: float, twins: bool, least: float) -> dict[str, Any] | None:
    """The rule that is met and forgives most, the first of equals. What a household shares says nothing of twins."""
    decision = tables()["decision"]
    if bits < least:
        return None
    shared = _shared(levels)
    if twins:  # then one with no second name is either of them, too
        shared = 0 if levels.get("personal-id") == "same" else -1
    met = [
        rule for rule in decision["rules"] if _meets(levels, rule) and shared >= rule["shared"] and bits >= rule.get("bits", -inf)
    ]
    return max(met, key=lambda rule: (len(rule.get("despite", ())), rule["assurance"]), default=None)


def _shared(levels: dict[str, str]) -> int:
    """How much of what a household shares is the same."""
    return sum(levels.get(field) == "same" for field in tables()["decision"]["household"])


def _asked(levels: dict[str, str], shared: int) -> bool:
    return any(_meets(levels, rule) and shared >= rule.get("shared", 0) for rule in tables()["decision"]["ask"])


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


def _levels(a: Features, b: Features) -> tuple[dict[str, str], float]:
    """How far each element agrees, and the bits that a rare name adds or a common one takes."""
    levels, rarity = _names(a, b)
    if a.birth_date and b.birth_date:
        levels["birth-date"] = _birth_dates(a.birth_date, b.birth_date)
    if a.gender and a.gender == b.gender:
        levels["gender"] = "same"
    if a.addresses and b.addresses:
        levels["address"] = _addresses(a, b)
    for field, ours, theirs in (("phone", a.phones, b.phones), ("email", a.emails, b.emails)):
        if ours and theirs:
            near = "close" if field == "phone" and any(_one_slip(x, y) for x, y in product(ours, theirs)) else "differs"
            levels[field] = "same" if ours & theirs else near
    if a.personal & b.personal:
        levels["personal-id"] = "same"
    elif any(x[0] == y[0] and _one_slip(x[1], y[1]) for x, y in product(a.personal, b.personal)):
        levels["personal-id"] = "close"
    if a.member & b.member:
        levels["member-id"] = "same"
    return levels, rarity


def _addresses(a: Features, b: Features) -> str:
    if a.addresses & b.addresses:
        return "same"
    near = any(x[0] == y[0] and _one_slip(x[1], y[1]) for x, y in product(a.addresses, b.addresses))
    return "close" if near else "area" if a.areas & b.areas else "differs"


def _birth_dates(a: str, b: str) -> str:
    if a == b:
        return "same"
    ours, theirs = a.split("-"), b.split("-")
    if ours[0] == theirs[0] and ours[1] == theirs[2] and ours[2] == theirs[1]:
        return "slip"
    wrong = [(x, y) for x, y in zip(ours, theirs, strict=True) if x != y]
    if abs(int(ours[0]) - int(theirs[0])) > _GENERATION:
        return "differs"
    # A wrong decade or century is rather a parent or grandparent of the same name.
    slip = len(wrong) == 1 and (wrong[0][0][:-1] == wrong[0][1][:-1] or sorted(wrong[0][0]) == sorted(wrong[0][1]))
    return "differs" if not slip else "slip" if ours[0] == theirs[0] else "close"


def _names(a: Features, b: Features) -> tuple[dict[str, str], float]:
    """The levels of the best pair of names, and what the rarity of what agrees in them weighs."""
    weights = tables()["weights"]
    pairs = [
        (weights["family"][levels[0]] + weights["given"][levels[1]], levels, _rarity(levels, x, y))
        for x, y in product(a.names, b.names)
        for levels in (_name(x, y), _swapped(x, y))
        if levels
    ]
    # The levels themselves break a tie, so that the order of the two does not.
    _, best, rarity = max(pairs, default=(0, None, 0.0))
    return ({"family": best[0], "given": best[1]}, rarity) if best else ({}, 0.0)


def _rarity(levels: tuple[str, str], a: Name, b: Name) -> float:
    """Bits that equal names add, as far as they are rarer than equal names are on the average; below zero for common ones."""
    bits = 0.0
    for part, level, ours, theirs in (("family", levels[0], a.family, b.family), ("given", levels[1], a.given[:1], b.given[:1])):
        if level == "same":
            borne = max(_frequency(part, ours), _frequency(part, theirs))
            bits += log2(tables()["frequencies"]["agree"][part] / borne)
    return bits


def _frequency(part: str, tokens: tuple[Token, ...]) -> float:
    """How many of 100,000 people bear a name, as far as the table says; names that it does not know are rare."""
    table, rare = tables()["frequencies"][part], tables()["frequencies"]["rare"][part]
    together = 100_000.0
    for token in _bare(tokens):
        together *= max(table.get(spelling, rare) for spelling in token) / 100_000
    return max(together, rare)


def _name(a: Name, b: Name) -> tuple[str, str]:
    return _families(a.family, b.family), _givens(a.given, b.given)


def _swapped(a: Name, b: Name) -> tuple[str, str] | None:
    """Family and given name stand in each other's place at one of the two: weaker than names in order."""
    levels = {_families(a.family, b.given), _families(a.given, b.family)}  # a middle name makes a part of one
    return ("part", "same") if levels <= {"same", "part"} and "same" in levels else None


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
    if equal := _joined(a) & _joined(b):
        return "same" if any(len(name) > 1 for name in equal) else "initial"
    first, other = a[0], b[0]
    level = _first_names(first, other)
    if level == "close" and any(min(map(len, x)) > 1 and x & y for x, y in product(a[1:], b[1:])):
        return "slip"
    if level in ("close", "differs") and (any(first & token for token in b[1:]) or any(other & token for token in a[1:])):
        return "middle"
    if level in ("same", "nickname", "variant", "initial") and a[1:] and b[1:] and not _middles_agree(a[1:], b[1:]):
        return "conflict"
    return level


def _first_names(a: Token, b: Token) -> str:
    if any(len(name) > 1 for name in a & b):
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
    return OSA.distance(a, b, score_cutoff=1) <= 1
