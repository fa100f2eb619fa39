"""Where partners notify the hub: an address for each Subscription, and an answer within a moment.

https://hl7.org/fhir/uv/subscriptions-backport/notifications.html and https://hl7.org/fhir/R4/subscription.html (PUT of a payload).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request, Response

from fhircm.access.sealing import Seal
from fhircm.exchange import notifications
from fhircm.exchange.subscription_shape import Subscriptions
from fhircm.fhir.outcome import NotFound, TooLarge


class Notifier(NamedTuple):
    """A partner that may notify."""

    base_url: str
    shape: Subscriptions


def add_routes(app: FastAPI, notifiers: Mapping[str, Notifier], keys_dir: Path) -> None:
    """Add them to an application whose state has the store."""

    @cache
    def seal() -> Seal:
        return Seal.open(keys_dir)

    async def take(request: Request, partner: str, token: str, named: str | None) -> Response:
        notifier = notifiers.get(partner)
        if notifier is None:
            raise NotFound("There is no such address for notifications")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > notifications.LIMIT:
                raise TooLarge(f"A notification may have {notifications.LIMIT} bytes")
        store = request.app.state.store
        await notifications.receive(
            store, partner, notifier.base_url, notifier.shape, seal(), token, request.headers, bytes(body), named
        )
        return Response(status_code=200)

    @app.post("/notify/{partner}/{token}", summary="A partner's notification", response_class=Response)
    async def notification(request: Request, partner: str, token: str) -> Response:
        """A Bundle of the Subscriptions backport, a resource, or nothing: something changed at the partner."""
        return await take(request, partner, token, None)

    @app.put("/notify/{partner}/{token}/{type}/{id}", summary="A partner's notification with a payload", response_class=Response)
    async def payload(request: Request, partner: str, token: str, type: str, id: str) -> Response:
        """A resource that changed at the partner, as plain R4 sends it. It is not believed, but read from the partner."""
        return await take(request, partner, token, f"{type}/{id}")
