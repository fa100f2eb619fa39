"""TLS by the server itself. https://hl7.org/fhir/R4/security.html#http and https://www.rfc-editor.org/rfc/rfc9325 (TLS 1.2 and later)"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from uvicorn import Config

# Of TLS 1.2 only what has forward secrecy and authenticates what it encrypts; those of TLS 1.3 all do.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def context(config: Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """uvicorn's own, but nothing older than TLS 1.2."""
    made = default()
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return made
