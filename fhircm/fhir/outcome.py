"""Issues and the errors that carry them: each error knows its HTTP status and its issue code.

https://hl7.org/fhir/R4/operationoutcome.html and https://hl7.org/fhir/R4/http.html#summary

    FhirError
    ├── Malformed            400  the body is not JSON, or not a FHIR resource at all
    ├── Invalid              422  the resource breaks the specification or a profile
    ├── IllegalTransition    422  a workflow state may not follow the one before it
    ├── NotSupported         400  a parameter, header or interaction this server does not have
    ├── NotFound             404
    ├── Gone                 410
    ├── VersionConflict      412  If-Match names a version that is no longer current
    ├── MultipleMatches      412
    ├── Conflict             409
    ├── TooLarge             413
    ├── UnsupportedMediaType 415
    ├── NotAcceptable        406
    ├── MethodNotAllowed     405
    ├── Unauthorized         401
    ├── Forbidden            403
    │   └── NotTheirStep     403  a step of a workflow that somebody else takes
    ├── TooCostly            403
    └── PartnerUnavailable   503  (exchange/) another system does not answer as it should
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong, where, and how to mend it.

    `text` never holds values of a resource, only element names, codes that are allowed and limits: it reaches logs.
    """

    severity: str  # fatal | error | warning | information
    code: str  # https://hl7.org/fhir/R4/valueset-issue-type.html
    text: str
    expression: str | None = None  # FHIRPath of the element, for example Task.status
    resource: tuple[str, str] | None = None  # type and id of what it is about, where several are written at once

    def as_json(self) -> dict[str, Any]:
        """The issue as an element of an OperationOutcome."""
        issue: dict[str, Any] = {"severity": self.severity, "code": self.code, "diagnostics": self.text}
        if self.expression:
            issue["expression"] = [self.expression]
        return issue


def outcome(issues: Iterable[Issue], correlation_id: str | None = None) -> dict[str, Any]:
    """An OperationOutcome of these issues; without any, the one that says all is well."""
    listed = list(issues) or [Issue("information", "informational", "All OK")]
    resource: dict[str, Any] = {"resourceType": "OperationOutcome"}
    if correlation_id:
        resource["id"] = correlation_id
    return {**resource, "issue": [issue.as_json() for issue in listed]}


class FhirError(Exception):
    """An error with an answer. Subclasses are named after the condition and own their status and issue code."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "exception"

    def __init__(self, text: str, expression: str | None = None, *, issues: Iterable[Issue] = ()) -> None:
        super().__init__(text)
        self.issues = list(issues) or [Issue("error", self.code, text, expression)]

    @property
    def headers(self) -> Iterator[tuple[str, str]]:
        """HTTP headers that belong to the answer, for example WWW-Authenticate."""
        return iter(())


class Malformed(FhirError):
    """The body cannot be read as a FHIR resource at all."""

    status, code = 400, "structure"


class Invalid(FhirError):
    """The resource breaks the specification or a profile that applies; `issues` names every place."""

    status, code = 422, "invalid"


class IllegalTransition(FhirError):
    """A workflow state may not follow the one before it; the text names the states that may."""

    status, code = 422, "business-rule"


class NotSupported(FhirError):
    """A parameter, header or interaction that this server does not have; nothing is ever silently ignored."""

    status, code = 400, "not-supported"


class NotFound(FhirError):
    """No such resource, or none that the caller may know of."""

    status, code = 404, "not-found"


class Gone(FhirError):
    """The resource was deleted."""

    status, code = 410, "deleted"


class VersionConflict(FhirError):
    """The version named is no longer the current one."""

    status, code = 412, "conflict"


class MultipleMatches(FhirError):
    """A condition that must match one resource matches several."""

    status, code = 412, "multiple-matches"


class Conflict(FhirError):
    """The write cannot be done as things stand, for example a delete of what others refer to."""

    status, code = 409, "conflict"


class TooLarge(FhirError):
    """The body is over the limit."""

    status, code = 413, "too-long"


class UnsupportedMediaType(FhirError):
    """The body is of a type other than FHIR JSON."""

    status, code = 415, "not-supported"


class NotAcceptable(FhirError):
    """The caller accepts only what this server cannot write."""

    status, code = 406, "not-supported"


class MethodNotAllowed(FhirError):
    """The URL exists, the method on it does not."""

    status, code = 405, "not-supported"


class Unauthorized(FhirError):
    """No token, or one that is not (or no longer) good."""

    status, code = 401, "login"

    @property
    def headers(self) -> Iterator[tuple[str, str]]:
        """RFC 6750 section 3."""
        yield "WWW-Authenticate", 'Bearer realm="fhircm", error="invalid_token"'


class Forbidden(FhirError):
    """The token is good but does not reach this far."""

    status, code = 403, "forbidden"


class NotTheirStep(Forbidden):
    """A step of a workflow that somebody else takes; the text says who, and which steps are open to the caller."""


class TooCostly(FhirError):
    """The answer would be too large; the text says what to ask instead."""

    status, code = 403, "too-costly"
