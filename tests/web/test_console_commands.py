"""Everything that the console does, the command line does: the list of both, and the commands that the console asked for."""

import json
import re

import pytest
from starlette.routing import Route
from typer.main import get_command

from fhircm.access.audit_drain import Drain
from fhircm.cli import app as cli
from fhircm.coordination import emergency
from fhircm.fhir.query import parse_query
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from fhircm.store.logins import Logins
from fhircm.store.resources import Store
from tests import commands

from .conftest import login, populate

# What each form of the rooms for administrators and privacy officers does, as a command.
COMMANDS = {
    "/console/clients": "client list",
    "/console/clients/add": "client add",
    "/console/clients/edit": "client edit",
    "/console/clients/disable": "client disable",
    "/console/clients/enable": "client enable",
    "/console/clients/rotate-secret": "client rotate-secret",
    "/console/clients/initial-token": "client initial-token",
    "/console/people": "user list",
    "/console/people/add": "user add",
    "/console/people/edit": "user edit",
    "/console/people/roles": "user roles",
    "/console/people/disable": "user disable",
    "/console/people/enable": "user enable",
    "/console/people/unlock": "user unlock",
    "/console/people/one-time-code": "user one-time-code",
    "/console/people/totp-reset": "user totp-reset",
    "/console/organizations": "organization list",
    "/console/organizations/add": "organization add",
    "/console/organizations/edit": "organization edit",
    "/console/organizations/disable": "organization disable",
    "/console/organizations/enable": "organization enable",
    "/console/keys/rotate": "keys rotate",
    "/console/grants": "grant list",
    "/console/grants/revoke": "grant revoke",
    "/console/partners": "partner status",
    "/privacy": "emergency list",
    "/privacy/reviewed": "emergency list",
    "/privacy/emergency/accept": "emergency accept",
    "/privacy/emergency/review": "emergency review",
    "/privacy/trail": "audit trail",
    "/privacy/disclosures": "audit disclosures",
}
# What is only shown there.
SHOWN = {
    "/console": "client list",
    "/console/clients/show": "client show",
    "/console/people/show": "user show",
    "/console/organizations/show": "organization list",
    "/console/keys": "keys list",
    "/console/partners/show": "partner status",
    "/privacy/emergency": "emergency list",
}


def test_each_thing_that_the_console_does_is_a_command(hub):
    command = get_command(cli)
    known = {f"{group} {name}" for group, one in command.commands.items() for name in getattr(one, "commands", {})}
    rooms = [route for route in hub.routes if isinstance(route, Route) and re.match(r"/(console|privacy)\b", route.path)]
    forms = {route.path for route in rooms if "POST" in route.methods}
    shown = {route.path for route in rooms} - forms
    assert (forms, shown) == (set(COMMANDS), set(SHOWN))
    assert {*COMMANDS.values(), *SHOWN.values()} <= known


@pytest.fixture
def fhircm(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        environment = {
            "FHIRCM_DATABASE_URL": database_url,
            "FHIRCM_KEYS_DIR": str(tmp_path / "keys"),
            "FHIRCM_AUDIT_DIR": str(tmp_path / "audit"),
        }
        done = commands.run(*arguments, **environment)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


@pytest.fixture
async def database(database_url):
    opened = await open_database(database_url)
    yield opened
    await opened.close()


async def test_clients_are_edited_and_nothing_else_of_them_changes(fhircm, database, tmp_path):
    fhircm(
        "client", "add", "web", "--auth", "client_secret_post", "--scope", "openid", "--scope", "patient/*.rs",
        "--redirect-uri", "https://web.example/back", "--launch-uri", "https://web.example/launch",
    )  # fmt: skip
    clients = Credentials(database)
    before = await clients.client("web")
    assert fhircm("client", "edit", "web", "--scope", "openid", "--name", "Web") == "web is registered so\n"
    after = await clients.client("web")
    assert after == before | {"scope": "openid", "client_name": "Web"}
    fhircm("client", "edit", "web", "--launch-uri", "", "--redirect-uri", "https://web.example/other")
    after = await clients.client("web")
    assert ("launch_uri" in after, after["redirect_uris"]) == (False, ["https://web.example/other"])
    assert "not known" in fhircm("client", "edit", "nobody", "--name", "x", status=1)
    assert "is no role" in fhircm("client", "edit", "web", "--role", "king", status=1)
    assert "nothing is to be changed" in fhircm("client", "edit", "web", status=2)
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [{"kty": "EC", "kid": "1", "d": "x"}]}))
    assert "private key" in fhircm("client", "edit", "web", "--jwks-file", str(keys), status=1)
    assert await clients.client("web") == after


async def test_a_one_time_code_is_printed_and_ends_the_password(fhircm, database):
    who = ("--name", "Nia New", "--user", "Practitioner/nia", "--organization", "Organization/1", "--role", "nurse")
    told = fhircm("user", "add", "nia", *who, "--one-time-code")
    assert re.search(r"not told again: [A-Z2-7]{5}(-[A-Z2-7]{5}){3}\n", told)
    assert re.fullmatch(r"[A-Z2-7]{5}(-[A-Z2-7]{5}){3}\n", fhircm("user", "one-time-code", "nia"))
    assert not (await Logins(database).by_username("nia")).has_password
    assert fhircm("user", "edit", "nia", "--name", "Nia Newer") == "nia is Nia Newer, Practitioner/nia of Organization/1\n"
    assert "is no reference" in fhircm("user", "edit", "nia", "--user", "Organization/1", status=1)


async def test_organisations_are_added_listed_edited_and_disabled(fhircm, database):
    reference = fhircm("organization", "add", "Lakeside", "--npi", "1234567893").strip()
    assert f"{reference}\tLakeside\t1234567893\tactive\n" in fhircm("organization", "list", "--find", "Lake")
    fhircm("organization", "edit", reference, "--name", "Lakeside Hospital", "--npi", "")
    fhircm("organization", "disable", reference)
    assert fhircm("organization", "list", "--find", "Lake") == f"{reference}\tLakeside Hospital\t-\tinactive\n"
    fhircm("organization", "enable", reference)
    assert f"{reference}\tLakeside Hospital\t-\tactive\n" in fhircm("organization", "list")
    assert "ten digits" in fhircm("organization", "add", "X", "--npi", "1", status=1)
    fhircm("organization", "edit", "nothing", "--name", "x", status=1)


async def test_emergency_accesses_are_listed_and_reviewed(fhircm, database, clock):
    store = Store(database, clock=clock)
    await populate(store)
    from fhircm.access.guarded_store import GuardedStore
    from fhircm.access.person import principal_of
    from fhircm.store.principals import Principals

    principal = await principal_of(login("cleo"), Principals(database))
    task = await emergency.open_record(GuardedStore(store, principal), "bo", "Unconscious in the emergency room")
    listed = fhircm("emergency", "list", "--as", "prio")
    assert listed.split("\t")[0] == task.id
    assert "Practitioner/cleo\tPatient/bo\trequested\tUnconscious in the emergency room" in listed
    assert fhircm("emergency", "accept", task.id, "--as", "prio") == "Priya Officer reviews it\n"
    assert "characters or more" in fhircm("emergency", "review", task.id, "--as", "prio", "--found", "fine", status=1)
    fhircm("emergency", "review", task.id, "--as", "prio", "--found", "It was an emergency.")
    assert fhircm("emergency", "list", "--as", "prio") == "None waits for a review\n"
    assert task.id in fhircm("emergency", "list", "--as", "prio", "--reviewed")
    assert (await store.read("Task", task.id)).tree["note"][0]["text"] == "It was an emergency."
    fhircm("emergency", "list", "--as", "root", status=1)  # the administrator sees none
    fhircm("emergency", "list", "--as", "nobody", status=1)
    trail = fhircm("audit", "trail", "Patient/bo")
    assert trail.startswith("Patient/bo")
    (found,) = (await store.search(parse_query("Task", [("code", "break-glass")]))).matches
    assert found.tree["status"] == "completed"


async def test_what_an_operator_does_is_in_the_audit(fhircm, store, tmp_path):
    fhircm("organization", "add", "Lakeside", "--npi", "1234567893")
    fhircm("client", "add", "web", "--auth", "none", "--scope", "openid", "--redirect-uri", "https://web.example/back")
    fhircm("client", "disable", "web")
    fhircm("client", "disable", "nobody", status=1)
    (journal,) = (tmp_path / "audit").iterdir()
    await Drain(store, journal, "http://hub.example/fhir").drain()
    query = parse_query("AuditEvent", [("_sort", "date"), ("_count", "50")])
    events = [one.tree for one in (await store.search(query)).matches]
    told = [(one["subtype"][-1]["code"], one["outcome"], one["entity"][-1].get("name")) for one in events]
    assert told == [
        ("organization-add", "0", "Lakeside"),
        ("client-add", "0", "web"),
        ("client-disable", "0", "web"),
        ("client-disable", "4", "nobody"),
    ], events
