"""People in the console: who may sign in, as what, for whom; and what helps somebody who cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.people import checked
from fhircm.access.roles import roles
from fhircm.fhir.outcome import Conflict, Invalid
from fhircm.store.logins import Login
from fhircm.web.console.asking import add, asked_again, found_in, part, people, told
from fhircm.web.noting import note_done
from fhircm.web.pages import Problem, Visit
from fhircm.web.parts import parts

_FIELDS = ("username", "name", "user", "organization")
_DONE = {
    "edited": "That is changed.",
    "roles": "These are the roles from now on.",
    "disabled": "This person may not sign in any more, and is signed out everywhere.",
    "enabled": "This person may sign in again.",
    "unlocked": "This person may try again at once.",
    "codes": "No code of an authenticator app is asked for any more.",
}


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    add(app, "/console/people", show_all, "GET", "POST")
    add(app, "/console/people/add", ask_new)
    add(app, "/console/people/add", add_new, "POST")
    add(app, "/console/people/show", show)
    add(app, "/console/people/edit", edit, "POST")
    add(app, "/console/people/roles", set_roles, "POST")
    add(app, "/console/people/disable", disable, "POST")
    add(app, "/console/people/enable", enable, "POST")
    add(app, "/console/people/unlock", unlock, "POST")
    add(app, "/console/people/one-time-code", one_time_code, "POST")
    add(app, "/console/people/totp-reset", reset_totp, "POST")


async def show_all(visit: Visit) -> Response:
    """Everybody, or those in which a text is found. Names are in bodies only."""
    find = visit.field("find")
    found = [
        one
        for one in await parts(visit).logins.all()
        if not find or found_in(find, one.username, one.name, one.fhir_user, one.organization, " ".join(one.roles))
    ]
    now = parts(visit).now()
    return visit.page("console/people.html", part=part(visit, found), find=find, titles=_listed, now=now)


async def ask_new(visit: Visit) -> Response:
    """The form for somebody new."""
    return _new_form(visit, dict.fromkeys(_FIELDS, ""), [])


async def add_new(visit: Visit) -> Response:
    """Somebody new, with a one-time code to choose a password with: shown on the answer, and nowhere again."""
    typed = {name: visit.field(name) for name in _FIELDS}
    codes = visit.form.get("roles", [])
    try:
        login = await people(visit).add(typed["username"], typed["name"], typed["user"], typed["organization"], codes)
    except Invalid as error:
        return _new_form(visit, typed, codes, _errors(error))
    except Conflict as error:
        return _new_form(visit, typed, codes, {"username": f"{error.issues[0].text}."})
    note_done(visit, "user", f"{login.id} added")
    note_done(visit, "role", f"{login.id}: {', '.join(sorted(login.roles))}")
    return await _code(visit, login)


async def show(visit: Visit) -> Response:
    """One person, and what can be changed."""
    return await _page(visit, await _login(visit, visit.asked("login")))


async def edit(visit: Visit) -> Response:
    """Another name, FHIR user or organisation."""
    login = await _login(visit, visit.field("login"))
    _require_other(visit, login, "Another administrator must change who you are.")
    typed = {name: visit.field(name) for name in ("name", "user", "organization")}
    try:
        await people(visit).edit(login, **typed)
    except Invalid as error:
        after = replace(login, name=typed["name"], fhir_user=typed["user"], organization=typed["organization"])
        return await _page(visit, after, _errors(error))
    parts(visit).bearer.forget()
    note_done(visit, "user", f"{login.id} edited")
    return visit.go(_at(login, "edited"))


async def set_roles(visit: Visit) -> Response:
    """Other roles: these and no others."""
    login = await _login(visit, visit.field("login"))
    _require_other(visit, login, "Another administrator must change your own roles.")
    codes = frozenset(visit.form.get("roles", []))
    try:
        checked(replace(login, roles=codes))
    except Invalid as error:
        return await _page(visit, login, _errors(error))
    if gone := sorted(login.roles - codes):
        text = f"{login.name} will not be this any more:"
        if page := asked_again(
            visit, "Take a role away?", text, "Take it away", _at(login), again=[_titles().get(one, one) for one in gone]
        ):
            return page
    await people(visit).set_roles(login, codes)
    parts(visit).bearer.forget()
    note_done(visit, "role", f"{login.id}: {', '.join(sorted(codes))}")
    return visit.go(_at(login, "roles"))


async def disable(visit: Visit) -> Response:
    """No sign-in any more."""
    login = await _login(visit, visit.field("login"))
    _require_other(visit, login, "Another administrator must disable you.")
    text = "They are signed out everywhere at once, and apps that they let in have no access any more within seconds."
    if page := asked_again(visit, f"Let {login.name} sign in no more?", text, "Let them in no more", _at(login)):
        return page
    await people(visit).disable(login)
    parts(visit).bearer.forget()
    note_done(visit, "user", f"{login.id} disabled")
    return visit.go(_at(login, "disabled"))


async def enable(visit: Visit) -> Response:
    """Sign-in again."""
    login = await _login(visit, visit.field("login"))
    await people(visit).enable(login)
    parts(visit).bearer.forget()
    note_done(visit, "user", f"{login.id} enabled")
    return visit.go(_at(login, "enabled"))


async def unlock(visit: Visit) -> Response:
    """The end of a pause after failures."""
    login = await _login(visit, visit.field("login"))
    await people(visit).unlock(login)
    note_done(visit, "user", f"{login.id} unlocked")
    return visit.go(_at(login, "unlocked"))


async def one_time_code(visit: Visit) -> Response:
    """A code to choose a password with, shown once."""
    login = await _login(visit, visit.field("login"))
    _require_other(visit, login, "You change your own password in your account.")
    if login.username is None:
        raise Problem("They sign in elsewhere", "Their organisation's own sign-in keeps their password.", 409)
    text = "Their password is worth nothing from that moment on, and they are signed out everywhere."
    if page := asked_again(visit, f"Let {login.name} choose a new password?", text, "Make a one-time code", _at(login)):
        return page
    return await _code(visit, login)


async def reset_totp(visit: Visit) -> Response:
    """No code of an authenticator app any more, for who lost the phone."""
    login = await _login(visit, visit.field("login"))
    _require_other(visit, login, "You turn your own codes off in your account.")
    text = "Then their password alone lets them in, until they set up codes again. They are signed out everywhere."
    if page := asked_again(visit, f"Ask {login.name} for no code?", text, "Ask for none", _at(login)):
        return page
    await people(visit).reset_totp(login)
    note_done(visit, "user", f"{login.id} is asked for no code")
    return visit.go(_at(login, "codes"))


# --- the pages ---


async def _code(visit: Visit, login: Login) -> Response:
    code = await people(visit).one_time_code(login)
    note_done(visit, "user", f"{login.id} has a one-time code")
    text = f"{login.name} signs in as {login.username} once they have chosen a password with it, at {visit.pages.base_url}/signin/renew, within a day."
    return visit.page("console/once.html", title="One-time code", text=text, secret=code, back=_at(login))


def _new_form(visit: Visit, typed: dict[str, str], codes: list[str], errors: dict[str, str] | None = None) -> Response:
    shown = dict.fromkeys((*_FIELDS, "roles"), "") | (errors or {})
    return visit.page(
        "console/person_add.html", status=422 if errors else 200, typed=typed, ticked=codes, errors=shown, roles=_choices()
    )


async def _page(visit: Visit, login: Login, errors: dict[str, str] | None = None) -> Response:
    at_hand = parts(visit)
    browsers = len(await at_hand.sessions.of(login))
    ways = ["a password"] if login.has_password else []
    ways += ["a code of an authenticator app"] if login.has_password and login.has_totp else []
    ways += [f"{login.issuer}"] if login.subject else []
    facts = [
        ("Signs in as", login.username or "nobody here"),
        ("By", " and ".join(ways) or "a one-time code, once"),
        ("Signed in", ("nowhere", "in one browser")[browsers] if browsers < 2 else f"in {browsers} browsers"),
    ]
    if login.created:
        facts.append(("Since", visit.pages.day(login.created)))
    paused = login.locked_until > at_hand.now()
    if paused:
        facts.append(("Paused until", visit.pages.minute(login.locked_until)))
    return visit.page(
        "console/person.html",
        status=422 if errors else 200,
        told=told(visit, _DONE),
        person=login,
        facts=facts,
        paused=paused or login.failed > 0,
        own=login.id == visit.login.id,
        errors=dict.fromkeys((*_FIELDS, "roles"), "") | (errors or {}),
        roles=_choices(),
    )


async def _login(visit: Visit, id: str) -> Login:
    login = await parts(visit).logins.get(id)
    if login is None:
        raise Problem("There is no such person", "Perhaps they were removed meanwhile.", 404)
    return login


def _require_other(visit: Visit, login: Login, text: str) -> None:
    if login.id == visit.login.id:
        raise Problem("This is you", text, 409)


def _at(login: Login, done: str = "") -> str:
    return f"/console/people/show?login={login.id}" + (f"&done={done}" if done else "")


def _listed(codes: Iterable[str]) -> str:
    return ", ".join(sorted(_titles().get(code, code) for code in codes))


def _titles() -> dict[str, str]:
    return {code: role.title for code, role in roles().items()}


def _choices() -> list[tuple[str, str, str]]:
    return [(code, role.title, role.about) for code, role in roles().items()]


def _errors(error: Invalid) -> dict[str, str]:
    return {one.expression or "username": f"{one.text}." for one in error.issues}
