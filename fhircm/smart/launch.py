"""EHR launches: what the hub knows when it opens an app, kept until the app comes back with the `launch` parameter that stands for it.

https://hl7.org/fhir/smart-app-launch/app-launch.html#launch-app-ehr-launch, https://hl7.org/fhir/smart-app-launch/task-launch.html and
https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#launch-context-arrives-with-your-access_token
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from fhircm.fhir.references import parse_reference
from fhircm.smart.clients import Client, find
from fhircm.smart.context import TOLD
from fhircm.smart.introspect import with_scope
from fhircm.smart.refusal import TokenRefused
from fhircm.smart.scopes import LAUNCHER
from fhircm.store.credentials import Credentials
from fhircm.store.grants import Grants
from fhircm.store.principals import Principals

LIFETIME = 300  # seconds between the launch and the app's request
CODES = "http://hl7.org/fhir/smart-app-launch/CodeSystem/smart-codes"
_FLAGS = {"need_patient_banner": bool, "fhirContext": list}

# https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#smart-app-styling-experimental: its address is its version
STYLE_VERSION = 1
STYLE = {
    "color_background": "#ffffff",
    "color_error": "#b3261e",
    "color_highlight": "#0b5cad",
    "color_modal_backdrop": "#00000080",
    "color_success": "#1b6e3c",
    "color_text": "#1c1b1f",
    "dim_border_radius": "4px",
    "dim_font_size": "16px",
    "dim_spacing_size": "16px",
    "font_family_body": "system-ui, sans-serif",
    "font_family_heading": "system-ui, sans-serif",
}


class LaunchWrong(Exception):
    """An app cannot be launched so; the message says why."""


@dataclass(frozen=True, slots=True)
class TaskLaunch:
    """What a Task asks to be launched: by the hub (`ehr`), or by the person (standalone)."""

    application: str
    ehr: bool
    context: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Launches:
    """Makes launches. `issuer` is the address of the hub, `fhir_base` that of its FHIR API."""

    issuer: str
    fhir_base: str
    grants: Grants
    credentials: Credentials
    principals: Principals

    async def answer(self, authorization: str | None, body: bytes) -> dict[str, Any]:
        """A launch for a registered launcher (an EHR or portal with the scope `launcher`): who signs in is who is launched for.

        Raises TokenRefused.
        """
        await with_scope(self.principals, authorization, LAUNCHER)
        try:
            asked = json.loads(body)
            client_id = asked.pop("client_id")
            launch = await self.create(client_id if isinstance(client_id, str) else "", None, asked)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise TokenRefused("invalid_request", "The body is a JSON object with client_id and a launch context") from None
        except LaunchWrong as error:
            raise TokenRefused("invalid_request", str(error)) from None
        return {"launch": launch, "iss": self.fhir_base, "expires_in": LIFETIME}

    async def create(self, client_id: str, login_id: str | None, context: Mapping[str, Any]) -> str:
        """A launch of a client for a person (None: for whoever signs in), good once and for five minutes. Raises LaunchWrong."""
        client = await find(self.credentials, client_id)
        if client is None:
            raise LaunchWrong("The app is not registered, or may no longer sign in")
        if "authorization_code" not in client.grant_types:
            raise LaunchWrong("The app is not registered to sign people in")
        told = _checked(context)
        told.setdefault("smart_style_url", f"{self.issuer}/oauth/style/{STYLE_VERSION}.json")
        if "patient" in told:
            told.setdefault("need_patient_banner", True)
        launch = secrets.token_urlsafe(32)
        now = int(time.time())
        payload = {"client_id": client_id, "login": login_id, "context": told}
        await self.grants.add_launch(launch, payload, now + LIFETIME, now)
        return launch

    async def url(self, client_id: str, login_id: str | None, context: Mapping[str, Any]) -> str:
        """Where to send the browser of a person to launch a client. Raises LaunchWrong."""
        client = await find(self.credentials, client_id)
        if client is None or client.launch_uri is None:
            raise LaunchWrong("The app is not registered with a launch_uri")
        launch = await self.create(client_id, login_id, context)
        return _with(client.launch_uri, {"iss": self.fhir_base, "launch": launch})

    async def url_for_task(self, task: Mapping[str, Any], login_id: str) -> str:
        """Where to send the browser of a person who does what a Task asks for. Raises LaunchWrong."""
        asked = task_launch(task, self.fhir_base)
        client = await self._of(asked.application)
        if asked.ehr:
            return await self.url(client.id, login_id, asked.context)
        return asked.application

    async def _of(self, application: str) -> Client:
        """The client whose launch address a Task names: no other address is opened."""
        registered = [Client(client_id, one) for client_id, one in (await self.credentials.clients()).items()]
        found = [client for client in registered if client.launch_uri == application and not client.disabled]
        if len(found) != 1:
            raise LaunchWrong(f"{len(found)} registered apps have the address that the Task names; exactly one must")
        return found[0]


def task_launch(task: Mapping[str, Any], fhir_base: str) -> TaskLaunch:
    """What a Task of the profile task-ehr-launch or task-standalone-launch asks for. Raises LaunchWrong."""
    codes = _codes(task.get("code"))
    ehr = "launch-app-ehr" in codes
    if not ehr and "launch-app-standalone" not in codes:
        raise LaunchWrong("The Task does not ask for the launch of an app")
    inputs = {code: one for one in task.get("input") or [] for code in _codes(one.get("type"))}
    application = inputs.get("smartonfhir-application", {})
    address = application.get("valueUrl") or application.get("valueUri") or application.get("valueString")
    if not isinstance(address, str):
        raise LaunchWrong("The Task does not name the address of an app (input smartonfhir-application)")
    context = context_of(task, fhir_base)
    told = inputs.get("smartonfhir-appcontext", {}).get("valueString")
    if isinstance(told, str):
        context["appContext"] = told
    return TaskLaunch(address, ehr, context)


def context_of(task: Mapping[str, Any], fhir_base: str) -> dict[str, Any]:
    """The launch context of an app with which a Task is worked on: its patient, its encounter, and the Task itself."""
    context: dict[str, Any] = {}
    for name, element, type in (("patient", "for", "Patient"), ("encounter", "encounter", "Encounter")):
        text = (task.get(element) or {}).get("reference")
        found = parse_reference(text, fhir_base) if isinstance(text, str) else None
        if found is not None and found.kind == "local" and found.type == type and found.id:
            context[name] = found.id
    if task.get("id"):
        context["fhirContext"] = [{"reference": f"Task/{task['id']}"}]
    return context


def _codes(concept: Any) -> set[str]:
    codings = concept.get("coding") if isinstance(concept, Mapping) else None
    return {str(one.get("code")) for one in codings or [] if one.get("system") == CODES}


def _checked(context: Mapping[str, Any]) -> dict[str, Any]:
    """A launch context that says nothing but what SMART knows. Raises LaunchWrong."""
    if unknown := set(context) - set(TOLD):
        raise LaunchWrong(f"A launch context has no {', '.join(sorted(unknown))}")
    told = {name: value for name, value in context.items() if value is not None}
    for name, value in told.items():
        if not isinstance(value, _FLAGS.get(name, str)):
            raise LaunchWrong(f"{name} of a launch context is not a {_FLAGS.get(name, str).__name__}")
    for one in told.get("fhirContext", []):
        if not isinstance(one, Mapping) or not {"reference", "canonical", "identifier"} & one.keys():
            raise LaunchWrong("Each element of fhirContext has a reference, a canonical or an identifier")
        type = str(one.get("reference", "")).rpartition("/")[0].rpartition("/")[2] or one.get("type")
        if type in ("Patient", "Encounter") and one.get("role", "launch") == "launch":
            raise LaunchWrong("The patient and the encounter of a launch are not told in fhirContext")
    if len(json.dumps(told)) > 16_384:
        raise LaunchWrong("The launch context is too large")
    return told


def _with(uri: str, parameters: Mapping[str, str]) -> str:
    return f"{uri}{'&' if '?' in uri else '?'}{urlencode(parameters)}"
