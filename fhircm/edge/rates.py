"""How many requests somebody may send: a bucket of tokens for each caller, refilled as time goes by.

https://www.rfc-editor.org/rfc/rfc6585#section-4. Each process counts for itself, so with several processes each caller may send several
times as much; passwords are counted in the database as well. The number of buckets is bounded: the one used least recently goes first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from time import monotonic
from typing import ClassVar

from fhircm.fhir.outcome import FhirError

BUCKETS = 20_000  # of one rate; some 200 bytes each


class TooManyRequests(FhirError):
    """The caller must wait; the answer says how long."""

    status: ClassVar[int] = 429
    code: ClassVar[str] = "throttled"

    def __init__(self, wait: float) -> None:
        self.retry_after = max(1, math.ceil(wait))
        super().__init__(f"Too many requests; ask again in {self.retry_after} s")

    @property
    def headers(self) -> Iterator[tuple[str, str]]:
        """Retry-After in seconds."""
        yield "Retry-After", str(self.retry_after)


class Rate:
    """So many requests a minute for each caller, as many at once. 0 is without limit."""

    def __init__(self, per_minute: int, now: Callable[[], float] = monotonic) -> None:
        self.per_minute, self._now = per_minute, now
        self._full: OrderedDict[str, float] = OrderedDict()  # when the caller's bucket will be full again

    def take(self, caller: str) -> None:
        """Take one token. Raises TooManyRequests when there is none."""
        if not self.per_minute:
            return
        now, each = self._now(), 60.0 / self.per_minute
        full = max(self._full.pop(caller, now), now)
        self._full[caller] = full
        if (wait := full + each - now - 60.0) > 1e-9:
            raise TooManyRequests(wait)
        self._full[caller] = full + each
        if len(self._full) > BUCKETS:
            self._full.popitem(last=False)

    def left(self, caller: str) -> None:
        """Raises TooManyRequests when there is no token, and takes none."""
        if self.per_minute and (wait := self._full.get(caller, 0.0) + 60.0 / self.per_minute - self._now() - 60.0) > 1e-9:
            raise TooManyRequests(wait)

    def __len__(self) -> int:
        return len(self._full)


@lru_cache(maxsize=4096)
def caller(address: str) -> str:
    """What one caller is counted by: an IPv4 address, or the network of 64 bits that one household or host has of IPv6."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        return str(found.ipv4_mapped or IPv6Address(int(found) >> 64 << 64))
    return address
