"""Start a sandbox EHR: `python -m fhircm.sandbox --vendor epic --port 8081 …`; it prints one line when it is ready."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from fhircm.sandbox import bulk, subscriptions
from fhircm.sandbox.authorize import App, AppDoor
from fhircm.sandbox.chart import Chart
from fhircm.sandbox.ehr import Ehr, vendor, vendors
from fhircm.sandbox.faults import Fault, Late
from fhircm.sandbox.population import population
from fhircm.sandbox.records import from_bundles
from fhircm.sandbox.signin import Refused, SignIn
from fhircm.sandbox.staff import NotPossible, Staff, known_at_both


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until ended. Listens on loopback only."""
    options = _options(arguments)
    today = date.today()
    try:
        people = from_bundles(options.data, today) if options.data else population(options.seed, options.humans, today)
    except (OSError, ValueError) as error:
        sys.exit(f"{options.data}: {error}")
    habits = vendor(options.vendor)
    server = f"http://127.0.0.1:{options.port}"
    base_url = server + habits["base_path"]
    chart = Chart(people.hospital if habits["chart"] == "hospital" else people.clinic, options.state)
    keys = PublishedKeys(options.jwks_url, options.jwks_file)
    sign_in = SignIn(
        options.client_id,
        keys,
        f"{server}/oauth2/token",
        habits["algorithm"],
        habits["scopes"],
        options.token_lifetime,
        options.client_secret_file.read_text().strip() if options.client_secret_file else "",
        habits["token_auth"],
    )
    if "private_key_jwt" not in habits["token_auth"] and not sign_in.secret:
        sys.exit(f"{options.vendor} wants a secret of its clients: give --client-secret-file")
    door = None
    if options.app_redirect_uri:
        door = AppDoor(App(options.app_client_id, tuple(options.app_redirect_uri)), sign_in, server, base_url)
    app = sandbox(Ehr(habits, base_url, chart, sign_in), Staff(chart, known_at_both(people.truth)), server, door=door)
    print(f"{options.vendor} at {base_url}, token endpoint {server}/oauth2/token, panel Group/panel", flush=True)
    uvicorn.run(Late(app, options.latency), host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


def sandbox(ehr: Ehr, staff: Staff, server: str, routes: Sequence[BaseRoute] = (), door: AppDoor | None = None) -> Starlette:
    """The whole EHR: FHIR API, sign-in, the door of apps, staff door and faults; `routes` go before them."""
    faults: list[Fault] = []
    base_path = ehr.habits["base_path"]

    async def fhir(request: Request) -> Response:
        for fault in faults:
            if fault.fits(request):
                return await fault.happen(request, handle)
        return await handle(request)

    async def handle(request: Request) -> Response:
        return await ehr.answer(request, request.url.path.removeprefix(base_path).strip("/"))

    async def configuration(_: Request) -> Response:
        return JSONResponse(
            {
                "token_endpoint": f"{server}/oauth2/token",
                "token_endpoint_auth_methods_supported": list(ehr.sign_in.methods),
                "token_endpoint_auth_signing_alg_values_supported": [ehr.habits["algorithm"]],
                "grant_types_supported": ["client_credentials"],
                "code_challenge_methods_supported": ["S256"],
                "capabilities": ["client-confidential-asymmetric", f"permission-{ehr.habits['scopes']}"],
                **(door.configuration() if door else {}),
            }
        )

    async def token(request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        try:
            if door and form.get("grant_type") in ("authorization_code", "refresh_token"):
                return JSONResponse(await door.token(form, request.headers.get("authorization", "")))
            return JSONResponse(await ehr.sign_in.token(form, request.headers.get("authorization", "")))
        except Refused as error:
            return JSONResponse({"error": str(error)}, 401 if str(error) == "invalid_client" else 400)

    async def act(request: Request) -> Response:
        try:
            return JSONResponse(staff.act(request.path_params["act"], await request.json()))
        except (NotPossible, KeyError, TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 409)

    async def set_fault(request: Request) -> Response:
        if request.method == "DELETE":
            faults.clear()
        elif request.method == "POST":
            details = await request.json()
            if details.get("action") == "expire-tokens":
                ehr.sign_in.expire_all()
            else:
                faults.append(Fault(**details))
        return JSONResponse([asdict(fault) for fault in faults])

    async def habits(request: Request) -> Response:
        """The vendor changes its mind: what is sent replaces habits of vendors/<name>.yaml."""
        changes = await request.json()
        if unknown := sorted(set(changes) - set(ehr.habits)):
            return JSONResponse({"error": f"no habit: {', '.join(unknown)}"}, 409)
        ehr.habits.update(changes)
        return JSONResponse(sorted(changes))

    notifying: list[Route] = []
    if "subscriptions" in ehr.habits:
        server_of_them = subscriptions.Subscriptions(ehr)
        notifying = subscriptions.routes(server_of_them, base_path)
        ehr.chart.watchers.append(server_of_them.soon)

    async def received(_: Request) -> Response:
        return JSONResponse(ehr.received)

    return Starlette(
        routes=[
            *routes,
            Route("/oauth2/token", token, methods=["POST"]),
            Route(f"{base_path}/.well-known/smart-configuration", configuration),
            *(door.routes() if door else []),
            Route("/staff/received", received),
            Route("/staff/habits", habits, methods=["POST"]),
            Route("/staff/faults", set_fault, methods=["GET", "POST", "DELETE"]),
            Route("/staff/{act}", act, methods=["POST"]),
            *(bulk.routes(bulk.Exports(ehr), base_path) if "bulk" in ehr.habits else ()),
            *notifying,
            Route(base_path, fhir, methods=["GET", "POST"]),
            Route(base_path + "/{path:path}", fhir, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ]
    )


class PublishedKeys:
    """The client's keys, from where it publishes them, asked again after a minute and for every unknown one."""

    def __init__(self, url: str | None, file: Path | None) -> None:
        self._url, self._file = url, file
        self._keys: list[dict[str, Any]] = []
        self._until = 0.0

    async def __call__(self) -> list[dict[str, Any]]:
        if self._file:
            return json.loads(self._file.read_text())["keys"]
        if self._url and time.monotonic() >= self._until:
            async with httpx.AsyncClient(timeout=10) as http:
                self._keys = (await http.get(self._url)).json()["keys"]
            self._until = time.monotonic() + (1 if not self._keys else 5)
        return self._keys


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fhircm sandbox", description="An EHR with a vendor's habits.")
    parser.add_argument("--vendor", choices=vendors(), required=True)
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--client-id", default="fhircm")
    parser.add_argument("--client-secret-file", type=Path, help="the client has this secret and no keys")
    parser.add_argument("--app-client-id", default="fhircm-app")
    parser.add_argument("--app-redirect-uri", action="append", help="of an app that is launched from this EHR")
    parser.add_argument("--jwks-url")
    parser.add_argument("--jwks-file", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--humans", type=int, default=140)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that each answer comes later")
    parser.add_argument("--token-lifetime", type=int, default=300)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
