"""Signing in and out: a user name and a password, a code, or the organisation's own provider.

https://www.w3.org/WAI/WCAG22/Understanding/accessible-authentication-minimum: every field can be filled by a password manager.
"""

from __future__ import annotations

import logging
import re

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.logins import PasswordUnfit, SignInRefused, normal
from fhircm.smart.authorize import Pending
from fhircm.smart.clients import find
from fhircm.smart.provider import ProviderRefused, ProviderUnavailable
from fhircm.store.logins import Login
from fhircm.web.noting import note
from fhircm.web.pages import Problem, Visit, at, local, sources
from fhircm.web.parts import parts
from fhircm.web.provisioning import NotKnown, login_of

log = logging.getLogger("fhircm.web")

_FLOW = re.compile(r"/oauth/authorize/([A-Za-z0-9_-]+)")


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    at(app, "/signin", show, signed_in=False)
    at(app, "/signin", by_password, ["POST"], signed_in=False)
    at(app, "/signin/code", ask_code, signed_in=False)
    at(app, "/signin/code", by_code, ["POST"], signed_in=False)
    at(app, "/signin/renew", ask_password, signed_in=False)
    at(app, "/signin/renew", new_password, ["POST"], signed_in=False)
    at(app, "/signin/provider", to_provider, signed_in=False)
    at(app, "/signin/callback", from_provider, signed_in=False)
    at(app, "/signout", sign_out, ["POST"], signed_in=False)
    at(app, "/signed-out", signed_out, signed_in=False)


async def show(visit: Visit) -> Response:
    """The form, or on to where somebody who is signed in wanted to go."""
    onward = local(visit.asked("next"))
    if visit.session is not None and not await _must_sign_in_anew(visit, onward):
        return visit.go(onward)
    return await _form(visit, onward)


async def by_password(visit: Visit) -> Response:
    """The form was sent."""
    onward, username, password = local(visit.field("next")), visit.field("username"), visit.secret("password")
    errors = {}
    if not username:
        errors["username"] = "Type your user name."
    if not password:
        errors["password"] = "Type your password."  # noqa: S105 a sentence
    if errors:
        return await _form(visit, onward, username, errors=errors, status=422)
    try:
        login = await parts(visit).sign_in.by_password(username, password)
    except SignInRefused as refused:
        note(visit, "login", await parts(visit).logins.by_username(normal(username)), status=401)
        return await _form(visit, onward, username, refused=str(refused), status=401)
    if login.has_totp:
        visit.take(await parts(visit).sessions.begin_pending({"login": login.id, "next": onward}, visit.cookie))
        return visit.go("/signin/code")
    return await _signed_in(visit, login, ("pwd",), onward)


async def ask_code(visit: Visit) -> Response:
    """The second step."""
    pending = await parts(visit).sessions.pending(visit.cookie)
    if pending is None or "login" not in pending:
        return visit.go("/signin")
    return await _code_form(visit, pending["next"])


async def by_code(visit: Visit) -> Response:
    """The code was sent."""
    pending = await parts(visit).sessions.pending(visit.cookie)
    if pending is None or "login" not in pending:
        return visit.go("/signin")
    onward, code = pending["next"], visit.field("code")
    if not code:
        return await _code_form(visit, onward, "Type the six digits.", status=422)
    try:
        login = await parts(visit).sign_in.by_code(pending["login"], code)
    except SignInRefused as refused:
        note(visit, "login", await parts(visit).logins.get(pending["login"]), status=401)
        return await _code_form(visit, onward, str(refused), status=401)
    return await _signed_in(visit, login, ("pwd", "otp", "mfa"), onward)


async def ask_password(visit: Visit) -> Response:
    """The form for who has a one-time code of their administrator."""
    return _renew_form(visit)


async def new_password(visit: Visit) -> Response:
    """A password was chosen: now sign-in begins."""
    username, code, fresh = visit.field("username"), visit.field("once"), visit.secret("new")
    errors = {}
    if not username:
        errors["username"] = "Type your user name."
    if not code:
        errors["once"] = "Type the code."
    if fresh != visit.secret("again"):
        errors["again"] = "These two are not the same."
    if errors:
        return _renew_form(visit, username, code, errors=errors)
    try:
        login = await parts(visit).codes.use(username, code, fresh)
    except SignInRefused as refused:
        known = await parts(visit).logins.by_username(normal(username))
        note(visit, "user", known, status=401, target="a password was not chosen with a one-time code")
        return _renew_form(visit, username, refused=str(refused))
    except PasswordUnfit as unfit:
        return _renew_form(visit, username, code, errors={"new": str(unfit)})
    note(visit, "user", login, target="a password was chosen with a one-time code")
    return visit.go("/signin")


def _renew_form(
    visit: Visit, username: str = "", code: str = "", *, refused: str = "", errors: dict[str, str] | None = None
) -> Response:
    shown = {"username": "", "once": "", "new": "", "again": "", **(errors or {})}
    status = 401 if refused else 422 if errors else 200
    return visit.page("renew.html", status=status, username=username, code=code, refused=refused, errors=shown)


async def to_provider(visit: Visit) -> Response:
    """Off to the organisation's own provider."""
    provider, onward = parts(visit).provider, local(visit.asked("next"))
    if provider is None:
        raise Problem("There is nothing here", "Check the address, or start from your account.", 404)
    if visit.session is not None and not await _must_sign_in_anew(visit, onward):
        return visit.go(onward)
    try:
        started = await provider.start(anew=visit.session is not None)
    except ProviderUnavailable as error:
        log.warning("sign-in at the provider could not begin: %s", error)
        return await _form(visit, onward, refused=_UNAVAILABLE, status=503)
    visit.take(await parts(visit).sessions.begin_pending({"provider": started.kept, "next": onward}, visit.cookie))
    return visit.go(started.url)


async def from_provider(visit: Visit) -> Response:
    """Back from the provider, with its word for who that is. What was kept for this return is good once."""
    provider = parts(visit).provider
    pending = await parts(visit).sessions.take_pending(visit.cookie)
    if provider is None or pending is None or "provider" not in pending:
        raise Problem("This sign-in was begun elsewhere, or too long ago", "Start again from the sign-in page.", 400)
    onward = pending["next"]
    try:
        identity = await provider.finish(pending["provider"], dict(visit.request.query_params))
        login = await login_of(identity, provider.settings, parts(visit).logins, int(parts(visit).now()))
    except ProviderRefused as error:
        log.warning("the provider vouched for nobody: %s", error)
        note(visit, "login", None, status=401)
        return await _form(visit, onward, refused="Your organisation's sign-in did not let you in. Try again.", status=401)
    except ProviderUnavailable as error:
        log.warning("sign-in at the provider could not end: %s", error)
        return await _form(visit, onward, refused=_UNAVAILABLE, status=503)
    except NotKnown as error:
        note(visit, "login", None, status=403)
        return await _form(visit, onward, refused=str(error), status=403)
    return await _signed_in(visit, login, ("fed",), onward)


async def sign_out(visit: Visit) -> Response:
    """End the session."""
    if visit.session is not None:
        await parts(visit).sessions.end(visit.session.digest)
        note(visit, "logout", visit.login)
    visit.forget()
    return visit.go("/signed-out")


async def signed_out(visit: Visit) -> Response:
    """After that."""
    return visit.page("signed_out.html")


_UNAVAILABLE = "Your organisation's sign-in does not answer at the moment. Try again in a few minutes."


async def _signed_in(visit: Visit, login: Login, how: tuple[str, ...], onward: str) -> Response:
    note(visit, "login", login)
    agent = visit.request.headers.get("user-agent", "")
    visit.take(await parts(visit).sessions.begin(login, how, visit.cookie, agent))
    return visit.go(onward)


async def _form(
    visit: Visit,
    onward: str,
    username: str = "",
    *,
    refused: str = "",
    errors: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    provider = parts(visit).provider
    app_name, leads_to = await _flow(visit, onward)
    return visit.page(
        "signin.html",
        status=status,
        form_action=leads_to,
        next=onward,
        username=username,
        refused=refused,
        errors={"username": "", "password": "", **(errors or {})},
        provider=provider.settings.button if provider else "",
        app_name=app_name,
    )


async def _code_form(visit: Visit, onward: str, error: str = "", status: int = 200) -> Response:
    _, leads_to = await _flow(visit, onward)
    return visit.page("code.html", status=status, form_action=leads_to, error=error)


async def _flow(visit: Visit, onward: str) -> tuple[str, list[str]]:
    """The name of the app that waits for this sign-in, and where it will be answered to."""
    pending = await _pending(visit, onward)
    if pending is None:
        return "", []
    client = await find(parts(visit).credentials, pending.client_id)
    return client.name if client else "", sources(pending.redirect_uri)


async def _must_sign_in_anew(visit: Visit, onward: str) -> bool:
    """Whether an app asks for that."""
    pending = await _pending(visit, onward)
    return pending is not None and pending.needs_sign_in(visit.session.signed_in if visit.session else None)


async def _pending(visit: Visit, onward: str) -> Pending | None:
    found = _FLOW.fullmatch(onward)
    return await parts(visit).authorizations.pending(found[1]) if found else None
