"""Reading a body, never more of it than the limit."""

from __future__ import annotations

from starlette.requests import Request

from fhircm.fhir.outcome import TooLarge


async def read_body(request: Request, limit: int) -> bytes:
    """The body. Raises TooLarge as soon as it is known to be too large, also without a Content-Length."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"The body is larger than {limit} bytes")
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(f"The body is larger than {limit} bytes")
        parts.append(part)
    return b"".join(parts)
