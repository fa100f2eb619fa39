"""Launched by an EHR: away to its authorization server and back, and on to the page of the patient who is open there.

https://hl7.org/fhir/smart-app-launch/app-launch.html#launch-app-ehr-launch. It opens in a window or tab of its own, or in the EHR's own
browser: no page of the hub is shown within another (clickjacking), and its cookies are not sent there (SameSite=Lax). What is kept of
a launch that is under way has a cookie of its own, so that two launches in two tabs, or one that somebody else's link began, disturb
neither each other nor the session.
"""

from __future__ import annotations

import hashlib
import logging

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.sessions import PENDING, well_formed
from fhircm.exchange.launch import Launched, LaunchRefused, LaunchUnavailable, ask_for
from fhircm.web.noting import note, note_done
from fhircm.web.pages import Problem, Visit, at
from fhircm.web.parts import parts
from fhircm.web.provisioning import NotKnown, launched_login
from fhircm.web.records import name_of

log = logging.getLogger("fhircm.web")

_LONGEST = 4096  # characters of a launch


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    at(app, "/launch", begin, signed_in=False)
    at(app, "/launch/callback/{partner}", come_back, signed_in=False)
    at(app, "/launch/ask", ask, ["POST"])


async def begin(visit: Visit) -> Response:
    """From the EHR (iss and launch), or started here (partner). Without either: which EHRs there are."""
    launches, iss, launch, name = parts(visit).launches, visit.asked("iss"), visit.asked("launch"), visit.asked("partner")
    if not iss and not name and launches.names():
        return visit.page("launch.html", partners=launches.names())
    partner = launches.by_address(iss) if iss else launches.by_name(name)
    if partner is None:
        log.warning("a launch was turned away: it names no partner that may launch the hub")
        text = "The launch names an EHR that may not open this hub. Ask your administrator: its address (iss) must be that of a partner."
        raise Problem("This EHR is not known here", text)
    if iss and not 0 < len(launch) <= _LONGEST:
        raise Problem("This launch is not complete", "Open it again from the EHR.")
    try:
        started = await launches.start(partner, launch if iss else None, iss or None)
    except LaunchUnavailable as error:
        log.warning("a launch could not begin: %s", error)
        raise _unavailable(partner.organization.name) from None
    cookie = await parts(visit).sessions.begin_pending({"launch": started.kept}, None)
    answer = visit.go(started.url)
    secure = visit.pages.base_url.startswith("https:")
    answer.set_cookie(
        _cookie(visit, started.kept["state"]), cookie, PENDING, path="/", secure=secure, httponly=True, samesite="lax"
    )
    return answer


async def come_back(visit: Visit) -> Response:
    """Back from the EHR with its word for who that is. What was kept for this return is good once, in this browser, for this partner."""
    name = _cookie(visit, visit.asked("state"))
    pending = await parts(visit).sessions.take_pending(well_formed(visit.request.cookies.get(name)))
    kept = pending.get("launch") if pending else None
    if kept is None or kept["partner"] != visit.request.path_params["partner"]:
        raise Problem("This launch was begun elsewhere, or too long ago", "Open it again from the EHR.")
    partner = parts(visit).launches.by_name(kept["partner"])
    there = partner.organization.name if partner else "the EHR"
    try:
        launched = await parts(visit).launches.finish(kept, dict(visit.request.query_params))
        login = await launched_login(launched, await _copied_name(visit, launched), parts(visit).logins, int(parts(visit).now()))
    except LaunchRefused as error:
        log.warning("%s vouched for nobody: %s", kept["partner"], error)
        note(visit, "login", None, status=401, target=f"launch from {kept['partner']}")
        raise Problem(
            f"{there} did not let you in", "Open it again from the EHR; if that does not help, ask your administrator.", 401
        ) from None
    except LaunchUnavailable as error:
        log.warning("a launch could not end: %s", error)
        raise _unavailable(there) from None
    except NotKnown as error:
        note(visit, "login", None, status=403, target=f"launch from {kept['partner']}")
        raise Problem("You cannot be let in yet", str(error), 403) from None
    told = {
        "partner": launched.partner.name,
        "there": launched.patient,
        "patient": launched.hub_patient,
        "banner": launched.banner,
    }
    note(visit, "login", login, patient=launched.hub_patient, target=f"launch from {launched.partner.name}")
    agent = visit.request.headers.get("user-agent", "")
    visit.take(await parts(visit).sessions.begin(login, ("fed",), visit.cookie, agent, told))
    answer = visit.go(f"/patients/{launched.hub_patient}" if launched.hub_patient else "/account")
    answer.delete_cookie(name, path="/", secure=visit.pages.base_url.startswith("https:"), httponly=True, samesite="lax")
    return answer


async def ask(visit: Visit) -> Response:
    """The record of the patient in context is not copied: somebody is told that it is wanted."""
    partner, there = parts(visit).launches.by_name(visit.launch.get("partner", "")), visit.launch.get("there")
    if partner is None or not there:
        raise Problem("There is nothing to ask for", "Open it again from the EHR.", 409)
    await ask_for(parts(visit).store, partner, there, parts(visit).coordinator)
    note_done(visit, "launch", f"asked {partner.name} for a record that is not copied", patient=visit.launch.get("patient"))
    return visit.page("launch_asked.html", there=partner.organization.name)


async def _copied_name(visit: Visit, launched: Launched) -> str:
    """By the hub's copy of the practitioner, if it has one."""
    kind, _, id = (launched.fhir_user or "").partition("/")
    found = (await parts(visit).store.read_many([(kind, id)])).get((kind, id)) if kind == "Practitioner" else None
    return name_of(found.tree) if found else ""


def _cookie(visit: Visit, state: str) -> str:
    """The name of the cookie of one launch: whoever comes back brings the state along."""
    prefix = "__Host-fhircm-launch" if visit.pages.base_url.startswith("https:") else "fhircm-launch"
    return f"{prefix}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"


def _unavailable(there: str) -> Problem:
    return Problem(f"{there} does not answer", "Its sign-in does not work at the moment. Try again in a few minutes.", 503)
