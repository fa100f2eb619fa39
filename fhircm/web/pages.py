"""How every page is made and kept safe: templates, security headers, the cookie, and forms that must come from a page of ours.

https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html and https://www.w3.org/TR/CSP3/.
A page is a function from a Visit to an answer; `Pages.at` puts it at an address. Nothing here knows what is on a page.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit
from zoneinfo import ZoneInfo

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket
from markupsafe import Markup, escape
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from fhircm import correlation
from fhircm.access.sessions import Session, Sessions, form_token, new_cookie, well_formed
from fhircm.fhir.outcome import FhirError
from fhircm.store.logins import Login
from fhircm.web.rooms import open_to

log = logging.getLogger("fhircm.web")

_HERE = Path(__file__).parent
_FORM_LIMIT = 64 * 1024
_FIELDS = 500
_LOCAL = re.compile(r"/(?:[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*)?")
_TYPES = {".css": "text/css", ".svg": "image/svg+xml"}


def _named(path: Path) -> str:
    """The address of a file, which changes with what is in it."""
    return f"/web/{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}{path.suffix}"


FILES = {_named(path): path for path in sorted((_HERE / "static").iterdir())}


class Problem(Exception):
    """Something that the person must be told instead of the page that was asked for."""

    def __init__(self, title: str, text: str, status: int = 400) -> None:
        super().__init__(title)
        self.title, self.text, self.status = title, text, status


@dataclass
class Visit:
    """One request of a browser: who is there, what the form holds, and what the answer must set."""

    pages: Pages
    request: Request
    cookie: str
    session: Session | None
    form: dict[str, list[str]] = field(default_factory=dict)
    _set: bool = False

    @property
    def login(self) -> Login:
        """Who is signed in. Only for pages that need it."""
        assert self.session is not None
        return self.session.login

    @property
    def launch(self) -> Mapping[str, Any]:
        """What the EHR said that launched this session; empty for one that no EHR did."""
        return self.session.launch if self.session else {}

    def field(self, name: str) -> str:
        """A field of the form, without blanks around it; empty when it was not sent."""
        return self.form.get(name, [""])[0].strip()

    def secret(self, name: str) -> str:
        """A field as it was typed."""
        return self.form.get(name, [""])[0]

    def asked(self, name: str) -> str:
        """A parameter of the address."""
        return self.request.query_params.get(name, "")

    def take(self, cookie: str) -> None:
        """The browser is known by this from now on."""
        self.cookie, self._set = cookie, True

    def forget(self) -> None:
        """The browser is somebody new."""
        self.take(new_cookie())

    def page(self, template: str, *, status: int = 200, form_action: Sequence[str] = (), **values: Any) -> Response:
        """A page. `form_action`: where forms may lead besides this hub, also by a redirect."""
        login = self.session.login if self.session else None
        text = self.pages.render(template, visit=self, login=login, rooms=open_to(login), **values)
        return HTMLResponse(text, status, _headers(form_action))

    def go(self, path: str) -> Response:
        """On to another page of the hub, or (when it is whole) to another address."""
        return RedirectResponse(path, 303, _headers())

    def hidden(self) -> str:
        """What each form must bring along."""
        return form_token(self.cookie)


Handler = Callable[[Visit], Awaitable[Response]]


class _Compiled(BytecodeCache):
    """What templates compile to, for all Pages of this process: to compile one takes ten times as long as to fill it in."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Jinja looks whether it is of the template as it is now."""
        if bucket.key in self._kept:
            bucket.bytecode_from_string(self._kept[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        """For the next."""
        self._kept[bucket.key] = bucket.bytecode_to_string()


_compiled = _Compiled()


class Pages:
    """Makes pages. `base_url` is the public address of the hub, `name` what its organisation is called, `time_zone` where its clocks are."""

    def __init__(self, base_url: str, name: str, time_zone: str, sessions: Sessions) -> None:
        self.base_url, self.name, self.sessions = base_url, name, sessions
        self._zone = ZoneInfo(time_zone)
        parts = urlsplit(base_url)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._secure = parts.scheme == "https"
        self._cookie = "__Host-fhircm" if self._secure else "fhircm"
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            bytecode_cache=_compiled,
        )
        self._environment.globals |= {"hub": name, **{path.stem: address for address, path in FILES.items()}}
        self._environment.filters |= {"day": self.day, "minute": self.minute, "commands": commands}

    def render(self, template: str, **values: Any) -> str:
        """The text of a page. The macros of forms.html are at hand in it as `forms`."""
        forms = self._environment.get_template("forms.html").make_module({"visit": values["visit"]})
        return self._environment.get_template(template).render(forms=forms, **values)

    def day(self, seconds: float) -> str:
        """The day of a time, as people here write it."""
        return f"{datetime.fromtimestamp(seconds, self._zone):%-d %B %Y}"

    def minute(self, seconds: float) -> str:
        """A time to the minute, by the clocks here."""
        return f"{datetime.fromtimestamp(seconds, self._zone):%-d %B %Y, %H:%M}"

    def iso_day(self, seconds: float) -> str:
        """The day of a time as `begins` takes it."""
        return f"{datetime.fromtimestamp(seconds, self._zone):%Y-%m-%d}"

    def begins(self, text: str) -> datetime:
        """The moment when a day begins here, written year-month-day. Raises ValueError."""
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=self._zone)

    async def answer(self, request: Request, handler: Handler, *, signed_in: bool) -> Response:
        """What a handler answers; errors become pages, a form that is not ours is refused before the handler sees it."""
        sent = well_formed(request.cookies.get(self._cookie))
        visit = Visit(self, request, sent or new_cookie(), await self.sessions.find(sent), _set=sent is None)
        try:
            if request.method == "POST":
                visit.form = await self._form(visit, known=sent is not None)
            if signed_in and visit.session is None:
                answer = visit.go(f"/signin?next={quote(back_to(request), safe='')}")
            else:
                answer = await handler(visit)
        except Problem as problem:
            answer = visit.page("problem.html", status=problem.status, title=problem.title, text=problem.text)
        except FhirError as error:
            text = "This cannot be shown to you." if error.status == 403 else error.issues[0].text
            answer = visit.page("problem.html", status=error.status, title="That did not work", text=text)
        except Exception as error:
            id = correlation.current.get()
            log.error("unexpected %s, correlation id %s", type(error).__name__, id, exc_info=log.isEnabledFor(logging.DEBUG))
            text = f"Something went wrong here. Your administrator finds it by {id}."
            answer = visit.page("problem.html", status=500, title="That did not work", text=text)
        if visit._set:
            answer.set_cookie(self._cookie, visit.cookie, path="/", secure=self._secure, httponly=True, samesite="lax")
        return answer

    async def _form(self, visit: Visit, *, known: bool) -> dict[str, list[str]]:
        request = visit.request
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise Problem("This form cannot be read", "Go back and try again.", 415)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _FORM_LIMIT:
                raise Problem("This form is too large", "Go back and type less.", 413)
        form: dict[str, list[str]] = {}
        try:
            for name, value in parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS):
                form.setdefault(name, []).append(value)
        except ValueError:
            raise Problem("This form cannot be read", "Go back and try again.") from None
        if request.headers.get("origin") != self.origin:  # as the browser itself says
            raise Problem("This form was not sent from here", f"Open {self.base_url}/signin and try again.", 403)
        token = form.get("form", [""])[0]
        if not (known and hmac.compare_digest(token.encode(), visit.hidden().encode())):
            raise Problem("This page was open for too long", "Go back, load the page again, and send it once more.", 403)
        return form


def commands(text: str) -> Markup:
    """A sentence in which what stands between backquotes is to be typed as it is."""
    pieces = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(one) if number % 2 else escape(one) for number, one in enumerate(pieces)
    )


def at(app: Starlette, path: str, handler: Handler, methods: Iterable[str] = ("GET",), *, signed_in: bool = True) -> None:
    """Put a page at an address. The pages themselves are in `app.state.pages`, which is there once the application has started."""

    async def endpoint(request: Request) -> Response:
        return await request.app.state.pages.answer(request, handler, signed_in=signed_in)

    app.router.add_route(path, endpoint, methods=list(methods), include_in_schema=False)


def serve_files(app: Starlette) -> None:
    """The style sheet and the mark of the hub, under names that change with them."""
    kept = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}

    def at_hand(path: Path) -> Callable[[Request], Awaitable[Response]]:
        content, type = path.read_bytes(), _TYPES[path.suffix]

        async def file(request: Request) -> Response:
            return Response(content, media_type=type, headers=kept)

        return file

    for address, path in FILES.items():
        app.router.add_route(address, at_hand(path), methods=["GET"], include_in_schema=False)


def local(path: str, otherwise: str = "/account") -> str:
    """A path of this hub to go on to, or another one when that is none: nobody is sent elsewhere by a link to our sign-in page."""
    return path if _LOCAL.fullmatch(path) else otherwise


def back_to(request: Request) -> str:
    """The page to come back to after signing in: for what a form was sent to, the page that it stands on."""
    path = request.url.path
    if request.method in ("GET", "HEAD"):
        return path
    flow = re.match(r"/oauth/authorize/[^/]+", path)
    return flow[0] if flow else "/" + path.split("/")[1]


def _headers(form_action: Sequence[str] = ()) -> dict[str, str]:
    forms = " ".join(["'self'", *form_action])
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src 'self'; img-src 'self'; form-action {forms};"
        " frame-ancestors 'none'; base-uri 'none'",
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",  # with no-referrer a browser hides where a form comes from, also from us
        "Cache-Control": "no-store",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    }


def sources(uri: str) -> list[str]:
    """By what a content security policy names where an address leads; nothing for one that cannot be named safely.

    A form whose answer redirects to an app is held to the policy of the page that it stands on: https://www.w3.org/TR/CSP3/#directive-form-action
    """
    parts = urlsplit(uri)
    source = f"{parts.scheme}://{parts.netloc}" if parts.netloc else f"{parts.scheme}:"
    return [source] if re.fullmatch(r"[a-z][a-z0-9+.-]*:(//[A-Za-z0-9.:\[\]-]+)?", source) else []
