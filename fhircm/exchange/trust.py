"""Whom to trust when a connection is made by TLS."""

import ssl
from functools import cache

import httpx


@cache
def trust() -> ssl.SSLContext:
    """The authorities of this machine, read once for all clients: to read them takes longer than a hundred requests."""
    return httpx.create_ssl_context()
