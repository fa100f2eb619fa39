"""Codes of an authenticator app, six digits that change every 30 seconds. https://www.rfc-editor.org/rfc/rfc6238"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from urllib.parse import quote, urlencode

PERIOD = 30  # seconds
DIGITS = 6
_SKEW = 1  # steps by which the clock of a phone may differ, either way


def new_secret() -> bytes:
    """A secret as long as the hash, as https://www.rfc-editor.org/rfc/rfc4226#section-4 asks for."""
    return secrets.token_bytes(20)


def code(secret: bytes, step: int) -> str:
    """The code of a time step."""
    digest = hmac.new(secret, step.to_bytes(8, "big"), hashlib.sha1).digest()
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**DIGITS:0{DIGITS}d}"


def matching_step(secret: bytes, given: str, now: float) -> int | None:
    """The time step whose code was given, of those that the skew of clocks allows; None: of none."""
    text = "".join(given.split())
    current = int(now) // PERIOD
    steps = [step for step in range(current - _SKEW, current + _SKEW + 1) if step >= 0]
    right = [step for step in steps if hmac.compare_digest(code(secret, step).encode(), text.encode())]
    return max(right, default=None)


def spelled(secret: bytes) -> str:
    """The secret as a person types it, in base32."""
    return base64.b32encode(secret).decode().rstrip("=")


def uri(secret: bytes, account: str, issuer: str) -> str:
    """What the QR code holds: https://github.com/google/google-authenticator/wiki/Key-Uri-Format"""
    named = quote(f"{issuer}:{account}", safe="")
    return f"otpauth://totp/{named}?{urlencode({'secret': spelled(secret), 'issuer': issuer}, quote_via=quote)}"
