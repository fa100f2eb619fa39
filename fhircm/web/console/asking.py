"""What the pages of the console share: pages of lists, and asking again before something is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.people import People
from fhircm.smart.registry import Registry
from fhircm.smart.server import AuthorizationServer
from fhircm.web.pages import Handler, Visit, at
from fhircm.web.parts import parts
from fhircm.web.rooms import in_room

One = TypeVar("One")
PAGE = 25


@dataclass(frozen=True, slots=True)
class Part(Generic[One]):
    """A page of a list: of `pages`, the first is 1."""

    ones: Sequence[One]
    page: int
    pages: int
    total: int


def part(visit: Visit, ones: Sequence[One]) -> Part[One]:
    """The page that the form asks for."""
    pages = max(1, -(-len(ones) // PAGE))
    text = visit.field("page")
    page = min(max(int(text), 1), pages) if text.isascii() and text.isdigit() and len(text) < 7 else 1
    return Part(ones[(page - 1) * PAGE : page * PAGE], page, pages, len(ones))


def add(app: Starlette, path: str, handler: Handler, *methods: str, room: str = "console") -> None:
    """Put a page of a room at an address."""
    at(app, path, in_room(room, handler), methods or ["GET"])


def asked_again(visit: Visit, title: str, text: str, button: str, back: str, *, again: Sequence[str] = ()) -> Response | None:
    """The page that asks whether this is meant, or None when it was answered with yes. `again` lists what will be gone."""
    if visit.field("sure") == "yes":
        return None
    fields = [(name, value) for name, values in visit.form.items() for value in values if name not in ("form", "sure")]
    action = visit.request.url.path
    return visit.page("sure.html", title=title, text=text, button=button, back=back, fields=fields, action=action, again=again)


def told(visit: Visit, sentences: dict[str, str]) -> str:
    """What was done before this page, in words of ours."""
    return sentences.get(visit.asked("done"), "")


def server(visit: Visit) -> AuthorizationServer:
    """The authorization server."""
    found: AuthorizationServer = visit.request.app.state.authorization
    return found


def registry(visit: Visit) -> Registry:
    """The clients, as an operator keeps them."""
    return Registry(parts(visit).credentials, parts(visit).grants)


def people(visit: Visit) -> People:
    """The people, as an administrator keeps them."""
    at_hand = parts(visit)
    return People(at_hand.logins, at_hand.sign_in, at_hand.sessions, at_hand.codes, at_hand.now)


def found_in(text: str, *values: object) -> bool:
    """Whether what was searched for stands in one of these values."""
    return any(text.casefold() in str(value).casefold() for value in values if value)
