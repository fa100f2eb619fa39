"""The account of a person: the apps that were let in, the browsers that are signed in, the password and the codes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import segno
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access import totp
from fhircm.access.logins import PasswordUnfit, SignInRefused
from fhircm.access.roles import roles
from fhircm.access.sealing import SealBroken
from fhircm.access.sessions import Session
from fhircm.smart.clients import Client
from fhircm.web.noting import note
from fhircm.web.pages import Problem, Visit, at
from fhircm.web.parts import parts
from fhircm.web.scope_words import Asked, Told, told

_BROWSERS = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrom", "Chrome"), ("Safari", "Safari"))
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS", "Mac"),
    ("Linux", "Linux"),
)
_TOLD = {
    "app": "The app has no access any more.",
    "session": "That browser is signed out.",
    "sessions": "All other browsers are signed out.",
    "password": "Your password is changed. All other browsers are signed out.",
    "codes": "From now on a code is asked for when you sign in.",
    "no-codes": "No code is asked for any more.",
}


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    at(app, "/account", show)
    at(app, "/account/apps", withdraw, ["POST"])
    at(app, "/account/sessions", end_session, ["POST"])
    at(app, "/account/password", ask_password)
    at(app, "/account/password", change_password, ["POST"])
    at(app, "/account/codes", ask_codes)
    at(app, "/account/codes", set_up_codes, ["POST"])
    at(app, "/account/codes/off", turn_codes_off, ["POST"])


@dataclass(frozen=True, slots=True)
class AppAccess:
    """What an app may do for a person."""

    client_id: str
    name: str
    told: Told
    since: int
    until: int


@dataclass(frozen=True, slots=True)
class Browser:
    """A browser that is signed in."""

    id: str
    name: str
    session: Session
    this: bool


async def show(visit: Visit) -> Response:
    """Everything on one page."""
    login = visit.login
    titles = [roles()[code].title for code in sorted(login.roles) if code in roles()]
    assert visit.session is not None
    browsers = [
        Browser(one.digest.hex(), _browser(str(one.payload.get("agent", ""))), one, one.digest == visit.session.digest)
        for one in await parts(visit).sessions.of(login)
    ]
    return visit.page(
        "account.html",
        told=_TOLD.get(visit.asked("done"), ""),
        roles=titles,
        apps=await _apps(visit),
        browsers=sorted(browsers, key=lambda one: not one.this),
    )


async def withdraw(visit: Visit) -> Response:
    """An app has no access any more, from this moment on."""
    at_hand, now = parts(visit), int(parts(visit).now())
    client_id = visit.field("client")
    for grant in await at_hand.grants.grants(now, client_id=client_id, login_id=visit.login.id):
        await at_hand.grants.revoke(grant.id, now, login_id=visit.login.id)
    await at_hand.grants.forget(visit.login.id, client_id)
    at_hand.bearer.forget()
    note(visit, "revoke", visit.login, client=client_id)
    return visit.go("/account?done=app")


async def end_session(visit: Visit) -> Response:
    """Another browser is signed out, or all others are."""
    sessions = parts(visit).sessions
    if visit.field("which") == "others":
        await sessions.end_all(visit.login, but=visit.session)
        return visit.go("/account?done=sessions")
    for session in await sessions.of(visit.login):  # only one's own can be ended
        if session.digest.hex() == visit.field("which"):
            await sessions.end(session.digest)
    return visit.go("/account?done=session")


async def ask_password(visit: Visit) -> Response:
    """The form for another password."""
    return _password_form(visit)


async def change_password(visit: Visit) -> Response:
    """Another password; whoever knew the old one is signed out."""
    at_hand, fresh = parts(visit), visit.secret("new")
    errors = {}
    if fresh != visit.secret("again"):
        errors["again"] = "These two are not the same."
    if why := await _not_proved(visit):
        errors["current"] = why
    if not errors:
        try:
            await at_hand.sign_in.new_password(visit.login, fresh)
        except PasswordUnfit as unfit:
            errors["new"] = str(unfit)
    if errors:
        return _password_form(visit, errors)
    await at_hand.sessions.end_all(visit.login, but=visit.session)
    note(visit, "user", visit.login)
    return visit.go("/account?done=password")


async def ask_codes(visit: Visit) -> Response:
    """The form to set up an authenticator app, or to do without it again."""
    if not visit.login.has_password:
        raise _no_password()
    if visit.login.has_totp:
        return visit.page("codes_off.html", error="")
    return _codes_form(visit, parts(visit).sign_in.new_secret())


async def set_up_codes(visit: Visit) -> Response:
    """The app shows a code of the secret, and the password is right: from now on codes are asked for."""
    at_hand, sealed = parts(visit), visit.field("secret")
    if not visit.login.has_password or visit.login.has_totp:
        return visit.go("/account/codes")
    errors = {}
    if why := await _not_proved(visit):
        errors["current"] = why
    try:
        if not errors and not await at_hand.sign_in.set_up_codes(visit.login, sealed, visit.field("code")):
            errors["code"] = "This is not the code that the app shows now. Check that the clock of your phone is right."
        if errors:
            return _codes_form(visit, sealed, errors)
        note(visit, "user", visit.login)
        return visit.go("/account?done=codes")
    except (SealBroken, ValueError):
        return visit.go("/account/codes")


async def turn_codes_off(visit: Visit) -> Response:
    """No codes any more, for whoever knows the password."""
    if why := await _not_proved(visit):
        return visit.page("codes_off.html", status=422, error=why)
    await parts(visit).sign_in.forget_codes(visit.login)
    note(visit, "user", visit.login)
    return visit.go("/account?done=no-codes")


async def _not_proved(visit: Visit) -> str | None:
    """Why the password that was typed does not prove who is there: also a browser that was left open changes nothing by itself."""
    username = visit.login.username
    if username is None or not visit.login.has_password:
        raise _no_password()
    try:
        await parts(visit).sign_in.by_password(username, visit.secret("current"))
    except SignInRefused:
        return "This is not your password. After five failures in a row you must wait for a while."
    return None


def _no_password() -> Problem:
    return Problem("You sign in elsewhere", "Your organisation's own sign-in keeps your password and your codes.", 404)


def _password_form(visit: Visit, errors: dict[str, str] | None = None) -> Response:
    if not visit.login.has_password:
        raise _no_password()
    shown = {"current": "", "new": "", "again": "", **(errors or {})}
    return visit.page("password.html", status=422 if errors else 200, errors=shown)


def _codes_form(visit: Visit, sealed: str, errors: dict[str, str] | None = None) -> Response:
    secret = parts(visit).sign_in.opened(sealed)
    address = totp.uri(secret, visit.login.username or visit.login.name, visit.pages.name)
    drawing = segno.make(address, error="m").svg_inline(scale=1, border=2, omitsize=True, dark="#000", light="#fff")
    spelled = totp.spelled(secret)
    return visit.page(
        "codes.html",
        status=422 if errors else 200,
        drawing=Markup(drawing),  # noqa: S704 made here, of squares only
        spelled=" ".join(spelled[at : at + 4] for at in range(0, len(spelled), 4)),
        secret=sealed,
        errors={"code": "", "current": "", **(errors or {})},
    )


async def _apps(visit: Visit) -> list[AppAccess]:
    at_hand = parts(visit)
    by_client: dict[str, AppAccess] = {}
    for grant in await at_hand.grants.grants(int(at_hand.now()), login_id=visit.login.id):
        registration = await at_hand.credentials.client(grant.client_id) or {}
        words = told(grant.scope.split(), visit.pages.day(grant.expires))
        known = by_client.get(grant.client_id)
        if known is None:
            name = Client(grant.client_id, registration).name
            by_client[grant.client_id] = AppAccess(grant.client_id, name, words, grant.created, grant.expires)
        else:
            merged = Told(*(_merged(getattr(known.told, part), getattr(words, part)) for part in Told.__dataclass_fields__))
            by_client[grant.client_id] = AppAccess(
                known.client_id, known.name, merged, min(known.since, grant.created), max(known.until, grant.expires)
            )
    return list(by_client.values())


def _merged(one: list[Asked], other: list[Asked]) -> list[Asked]:
    return [*one, *(asked for asked in other if asked not in one)]


def _browser(agent: str) -> str:
    browser = next((name for mark, name in _BROWSERS if mark in agent), "A browser")
    system = next((name for mark, name in _SYSTEMS if re.search(mark, agent)), "")
    return f"{browser} on {system}" if system else browser
