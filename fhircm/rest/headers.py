"""HTTP headers as FHIR uses them.

https://hl7.org/fhir/R4/http.html#mime-type and #versioning
"""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fhircm.fhir.outcome import NotAcceptable, NotSupported, UnsupportedMediaType
from fhircm.store.stored import Stored

FHIR_JSON = "application/fhir+json"
_JSON = frozenset({FHIR_JSON, "application/json", "text/json"})
_VERSION = re.compile(r'(?:W/)?"(\d{1,18})"|(\d{1,18})')


def require_acceptable(request: Request) -> None:
    """Raises NotAcceptable when the caller takes no JSON. `_format` wins over Accept."""
    format = request.query_params.get("_format")
    if format is not None:
        if format.replace(" ", "+") not in _JSON | {"json"}:
            raise NotAcceptable("This server writes JSON only; ask with _format=json")
        return
    accept = request.headers.get("accept", "")
    if not accept:
        return
    ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    if not any(one in _JSON or one in ("*/*", "application/*") for one in ranges):
        raise NotAcceptable(f"This server writes JSON only; send Accept: {FHIR_JSON}")


def require_json_body(request: Request) -> None:
    """Raises UnsupportedMediaType."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() not in _JSON:
        raise UnsupportedMediaType(f"The body must be sent as Content-Type: {FHIR_JSON}")
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("The body must be in UTF-8")
        if name.lower() == "fhirversion" and value.strip('"') != "4.0":
            raise UnsupportedMediaType("This server speaks FHIR 4.0")


def if_match(request: Request) -> int | None:
    """The version that If-Match names. Raises NotSupported for what is no version of this server's."""
    return version_of(request.headers.get("if-match"))


def version_of(value: str | None) -> int | None:
    """The version in the value of an If-Match, None for none or any. Raises NotSupported."""
    if value is None or value.strip() == "*":
        return None
    found = _VERSION.fullmatch(value.strip())
    if not found:
        raise NotSupported('If-Match must name one version, as W/"3"')
    return int(found[1] or found[2])


def of_version(stored: Stored) -> dict[str, str]:
    """ETag and Last-Modified."""
    return {"ETag": f'W/"{stored.version}"', "Last-Modified": http_date(stored.last_updated)}


def formatted(response: Response) -> Response:
    """The answer with its JSON laid out for people; every value stays as it is written."""
    kept = {name: value for name, value in response.headers.items() if name != "content-length"}
    return Response(msgspec.json.format(bytes(response.body), indent=2), response.status_code, kept)


def http_date(at: datetime) -> str:
    """The time as HTTP writes it."""
    return _http_date(at.replace(microsecond=0))


@lru_cache(maxsize=4096)
def _http_date(at: datetime) -> str:
    return format_datetime(at, usegmt=True)


def preferences(request: Request) -> dict[str, str]:
    """The Prefer header: return and handling."""
    found: dict[str, str] = {}
    for part in re.split(r"[;,]", request.headers.get("prefer", "")):
        name, _, value = part.strip().partition("=")
        found[name.lower()] = value.strip('"')
    return found
