"""The rooms among the pages: which of them is open to whom. Roles say so: profiles/role."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response

from fhircm.access.roles import roles
from fhircm.store.logins import Login

if TYPE_CHECKING:
    from fhircm.web.pages import Visit

    Handler = Callable[[Visit], Awaitable[Response]]


class Room(NamedTuple):
    """A room: where it begins, and what it is called."""

    path: str
    title: str


ROOMS = {
    "worklist": Room("/worklist", "Work list"),
    "emergency": Room("/emergency", "Emergency access"),
    "privacy": Room("/privacy", "Privacy"),
    "console": Room("/console", "Console"),
}


def open_to(login: Login | None) -> list[Room]:
    """The rooms that somebody may enter."""
    known = [roles()[code] for code in (login.roles if login else ()) if code in roles()]
    names = {page for role in known for page in role.pages}
    if any(role.emergency for role in known):
        names.add("emergency")
    return [room for name, room in ROOMS.items() if name in names]


def in_room(name: str, handler: Handler) -> Handler:
    """The same page, for those who may enter its room."""
    from fhircm.web.noting import require_room
    from fhircm.web.pages import Problem

    async def entered(visit: Visit) -> Response:
        if ROOMS[name] not in open_to(visit.login):
            raise Problem("This is not for you", f"Your roles do not open “{ROOMS[name].title}”. Ask your administrator.", 403)
        require_room(visit)
        return await handler(visit)

    return entered
