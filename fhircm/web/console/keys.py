"""The keys with which identity tokens are signed, in the console."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.web.console.asking import add, asked_again, server, told
from fhircm.web.noting import note_done
from fhircm.web.pages import Visit

_DONE = {
    "rotated": "New keys sign from now on.",
    "none": "No key is in use yet: the first is made when an app first asks who a person is.",
}


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    add(app, "/console/keys", show_all)
    add(app, "/console/keys/rotate", rotate, "POST")


async def show_all(visit: Visit) -> Response:
    """Every key that is kept, those that sign first."""
    listed = sorted(await server(visit).keys.listed(), key=lambda key: (key.retired is not None, -key.created, key.kid))
    return visit.page("console/keys.html", keys=listed, told=told(visit, _DONE))


async def rotate(visit: Visit) -> Response:
    """New keys from now on."""
    text = "Apps find the new keys by themselves. Those before stay published as long as tokens that they signed live."
    if page := asked_again(visit, "Sign with new keys?", text, "Sign with new keys", "/console/keys"):
        return page
    kids = await server(visit).keys.rotate()
    note_done(visit, "key", f"signing keys are now {', '.join(kids)}" if kids else "no signing key yet")
    return visit.go(f"/console/keys?done={'rotated' if kids else 'none'}")
