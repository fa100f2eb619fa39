"""The values that the edge needs, with what they are when nobody sets them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EdgeConfig:
    """Everything is off that could refuse a request; the settings turn it on."""

    https: bool = False  # whether the public address is https
    trusted_proxies: tuple[str, ...] = ()  # addresses and networks
    cors_origins: tuple[str, ...] = ()  # beside those of the registered clients
    sign_in_rate: int = 0  # requests a minute and address; 0: without limit
    token_rate: int = 0
    register_rate: int = 0
    refused_rate: int = 0  # requests to the FHIR API a minute and address that bear no good token
    fhir_rate: int = 0  # requests a minute and client
    slow_seconds: float = 0.0  # how long a body may make no headway; 0: without limit


NO_LIMITS = EdgeConfig()
