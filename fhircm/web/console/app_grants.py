"""What people let apps do, in the console: by person or by client, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.smart.clients import Client
from fhircm.store.grants import Grant
from fhircm.web.console.asking import add, asked_again, found_in, part, told
from fhircm.web.noting import note_done
from fhircm.web.pages import Visit
from fhircm.web.parts import parts

_DONE = {"ended": "It is ended, with all its tokens.", "gone": "It was ended already."}


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    add(app, "/console/grants", show_all, "GET", "POST")
    add(app, "/console/grants/revoke", revoke, "POST")


@dataclass(frozen=True, slots=True)
class Given:
    """A grant, with what its app and its person are called."""

    grant: Grant
    app: str
    person: str


async def show_all(visit: Visit) -> Response:
    """Those that are alive, the newest first. For which patient each is is not told."""
    find = visit.field("find")
    found = [
        one
        for one in await _given(visit)
        if not find or found_in(find, one.app, one.person, one.grant.client_id, one.grant.scope)
    ]
    return visit.page("console/grants.html", part=part(visit, found), find=find, told=told(visit, _DONE))


async def revoke(visit: Visit) -> Response:
    """End one."""
    at_hand, id = parts(visit), visit.field("grant")
    found = next((one for one in await _given(visit) if one.grant.id == id), None)
    if found is None:
        return visit.go("/console/grants?done=gone")
    text = f"{found.app} has no access any more for {found.person}, at once. It is asked again when the app comes again."
    if page := asked_again(visit, "Take back access?", text, "Take it back", "/console/grants"):
        return page
    done = await at_hand.grants.revoke(id, int(at_hand.now()))
    at_hand.bearer.forget()
    note_done(visit, "revoke", f"grant {id} to {found.grant.client_id}")
    return visit.go(f"/console/grants?done={'ended' if done else 'gone'}")


async def _given(visit: Visit) -> list[Given]:
    at_hand = parts(visit)
    names = {client_id: Client(client_id, one).name for client_id, one in (await at_hand.credentials.clients()).items()}
    logins = {one.id: one.name for one in await at_hand.logins.all()}
    return [
        Given(one, names.get(one.client_id, one.client_id), logins.get(one.login_id or "", "nobody"))
        for one in await at_hand.grants.grants(int(at_hand.now()))
    ]
