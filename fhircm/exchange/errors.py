"""What can go wrong at a partner, and what of its words may be told.

https://hl7.org/fhir/R4/http.html#rejecting-updates and https://www.rfc-editor.org/rfc/rfc9110#section-15. A partner's error text may
quote a patient's record, so only what is known to be harmless passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from time import time

import msgspec

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError, Issue

_TEXT_LIMIT = 240


class PartnerUnavailable(FhirError):
    """The partner does not answer now: no connection, too slow, 5xx or 429. It is worth trying again later.

    `retry_after` is in seconds, when the partner named it. `sent` tells that the request may have arrived and been carried out,
    so that a create must be searched for before it is sent again. `answered` is its HTTP status, when it did answer.
    """

    status, code = 503, "transient"

    def __init__(
        self,
        text: str,
        *,
        retry_after: float | None = None,
        sent: bool = True,
        throttled: bool = False,
        answered: int | None = None,
    ) -> None:
        super().__init__(text)
        self.answered = answered
        self.retry_after, self.sent, self.throttled = retry_after, sent, throttled


class PartnerRefused(FhirError):
    """The partner understood and said no: `answered` is its HTTP status, `told` the codes and harmless words of its reasons."""

    status, code = 502, "processing"

    def __init__(self, text: str, *, answered: int, told: Iterable[Issue] = ()) -> None:
        super().__init__(text)
        self.answered = answered
        self.told = list(told)


class SignInRefused(PartnerRefused):
    """The partner gives no token, or does not take the one that it gave: nothing can be read or written until that is mended."""


class PartnerAnswerBroken(FhirError):
    """The partner answered with what is not FHIR JSON: HTML, XML, a truncated body, another resource than asked for.

    After a create it may still have been carried out.
    """

    status, code = 502, "incomplete"


class AnswerTooLarge(PartnerAnswerBroken):
    """The answer is larger than any that is read; the same question gets the same answer."""

    code = "too-long"


class _Coding(msgspec.Struct):
    system: str = ""
    code: str = ""


class _Details(msgspec.Struct):
    coding: list[_Coding] = []
    text: str = ""


class _Issue(msgspec.Struct):
    severity: str = "error"
    code: str = "processing"
    details: _Details = msgspec.field(default_factory=_Details)
    diagnostics: str = ""
    location: list[str] = []
    expression: list[str] = []


class _Outcome(msgspec.Struct):
    resourceType: str = ""
    issue: list[_Issue] = []


class _Words(msgspec.Struct):
    detail: str = ""
    message: str = ""
    error_description: str = ""
    error: str = ""


_decoder = msgspec.json.Decoder(_Outcome)
_words = msgspec.json.Decoder(_Words)

_QUOTED = re.compile("([\"'`\u2018\u201c\u00ab])(.{0,200}?)([\"'`\u2019\u201d\u00bb])")
_TELLING = re.compile(r"\S+@\S+|\b\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b|\+?\d[\d\-() ]{3,}\d")
_NOT_PLAIN = re.compile(r"[^\x20-\x7e]+")


def issues(body: bytes) -> list[Issue] | None:
    """The issues of an OperationOutcome with harmless texts; None when the body is something else."""
    try:
        outcome = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if outcome.resourceType != "OperationOutcome":
        return None
    return [_issue(issue) for issue in outcome.issue]


def plainly(body: bytes) -> str:
    """The harmless words of an error in a vendor's own JSON, such as {"resource": …, "detail": …}; empty when there are none."""
    try:
        words = _words.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return harmless(words.detail or words.message or words.error_description or words.error)


def _issue(issue: _Issue) -> Issue:
    codes = [word(coding.code) for coding in issue.details.coding[:3] if coding.code]
    text = ", ".join(part for part in (*codes, harmless(issue.details.text), harmless(issue.diagnostics)) if part)
    expression = word((issue.expression or issue.location or [""])[0]) or None
    return Issue(word(issue.severity), word(issue.code), text or "no reason given", expression)


def word(text: str) -> str:
    """A code or a path as it is, anything else as nothing."""
    return text if re.fullmatch(r"[A-Za-z0-9_.:\-\[\]()$/]{1,120}", text) else ""


def harmless(text: str) -> str:
    """A partner's sentence without what may tell of a patient: quoted values, long numbers, dates, addresses of mail."""
    text = _QUOTED.sub(lambda found: found[0] if _known(found[2]) else "'...'", " ".join(text[:4000].split()))
    plain = _TELLING.sub("...", " ".join(_NOT_PLAIN.sub(" ", text).split()))
    return plain if len(plain) <= _TEXT_LIMIT else plain[:_TEXT_LIMIT] + "..."


def summary(found: Iterable[Issue]) -> str:
    """Issues in one line."""
    return "; ".join(f"{issue.text}{' at ' + issue.expression if issue.expression else ''}" for issue in found)[: 2 * _TEXT_LIMIT]


@cache
def _names() -> frozenset[str]:
    known = definitions()
    elements = {part for path in known.elements for part in path.split(".")}
    parameters = {code for codes in known.search_parameters.values() for code in codes}
    return frozenset(elements | parameters | known.resource_types)


def _known(text: str) -> bool:
    return all(part in _names() for part in re.split(r"[.:]", text))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; None without one that can be read."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
