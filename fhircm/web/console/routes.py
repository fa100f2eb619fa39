"""Every page of the console at its address."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.web.console import app_grants, clients, keys, organizations, partners, people
from fhircm.web.console.asking import add
from fhircm.web.pages import Visit


def add_routes(app: Starlette) -> None:
    """Put them there."""
    add(app, "/console", begin)
    for module in (clients, people, organizations, keys, app_grants, partners):
        module.add_routes(app)


async def begin(visit: Visit) -> Response:
    """The console begins with the clients."""
    return visit.go("/console/clients")
