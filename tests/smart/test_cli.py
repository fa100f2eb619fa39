"""Clients, keys and grants from the command line: what an operator does there holds in the running hub at once."""

import asyncio
import json
import re
import time

import pytest
from typer.testing import CliRunner

from fhircm.cli import app
from tests.rest.signing import assertion, form

from .flow import BACK, CLIENTS, JWKS, told


@pytest.fixture
def fhircm(database_url, tmp_path, monkeypatch):
    monkeypatch.setenv("FHIRCM_DATABASE_URL", database_url)
    monkeypatch.setenv("FHIRCM_KEYS_DIR", str(tmp_path / "keys"))
    monkeypatch.setenv("FHIRCM_AUDIT_DIR", str(tmp_path / "audit"))

    async def run(*arguments, status=0):
        done = await asyncio.to_thread(CliRunner().invoke, app, list(map(str, arguments)))
        assert done.exit_code == status, done.stderr
        return done.stderr if status else done.stdout

    return run


async def test_apps_are_added_listed_shown_disabled_and_enabled(hub, fhircm):
    mine = ["client", "add", "mine", "--scope", "openid", "--scope", "launch/patient", "--scope", "patient/*.rs"]
    await fhircm(*mine, "--redirect-uri", BACK, "--auth", "none", "--name", "My app", "--id-token-alg", "ES384")
    CLIENTS["mine"] = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none"}
    try:
        token = (await hub.tokens("mine", scope="openid launch/patient patient/*.rs"))["access_token"]
        listed = [line.split() for line in (await fhircm("client", "list")).splitlines()]
        scopes = ["openid", "launch/patient", "patient/*.rs"]
        assert ["mine", "enabled", "none", "authorization_code,refresh_token", *scopes] in listed
        assert json.loads(await fhircm("client", "show", "mine"))["client_name"] == "My app"
        await fhircm("client", "disable", "mine")
        assert not await hub.is_good(token)
        assert (await hub.ask("mine")).status_code == 400
        await fhircm("client", "enable", "mine")
        assert await hub.is_good(token)
    finally:
        del CLIENTS["mine"]


async def test_a_system_is_added_by_its_keys_and_gets_a_token(hub, fhircm, tmp_path):
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(JWKS))
    added = ["client", "add", "board", "--scope", "system/Task.rs", "--scope", "introspect", "--organization", "Organization/1"]
    assert "board may sign in at" in await fhircm(*added, "--jwks-file", keys)
    answer = await hub.http.post("/oauth/token", data=form(assertion(client="board"), "system/*.rs introspect"))
    assert answer.json()["scope"] == "system/Task.rs introspect"
    kept = json.loads(await fhircm("client", "show", "board"))
    assert (kept["organization"], kept["roles"], kept["grant_types"]) == ("Organization/1", ["system"], ["client_credentials"])


async def test_a_secret_is_printed_once_and_rotated(hub, fhircm):
    told_once = await fhircm(
        "client", "add", "conf", "--scope", "user/*.rs", "--redirect-uri", BACK, "--auth", "client_secret_post"
    )
    first = re.search(r"not told again: (\S+)", told_once)[1]
    form = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "conf"}

    async def proves(secret):
        answer = await hub.http.post("/oauth/token", data=form | {"client_secret": secret})
        return answer.json()["error"] == "invalid_grant"

    assert await proves(first)
    second = (await fhircm("client", "rotate-secret", "conf")).strip()
    assert (await proves(first), await proves(second)) == (False, True)
    assert first not in await fhircm("client", "show", "conf")
    assert "sha256" not in await fhircm("client", "show", "conf")
    assert "has no secret" in await fhircm("client", "rotate-secret", "public", status=1)


async def test_what_cannot_be_added_is_told(fhircm, tmp_path):
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(JWKS))
    add = ["client", "add", "x", "--scope", "system/*.rs", "--jwks-file", keys]
    assert "give one, such as Organization" in await fhircm(*add, status=1)
    assert "is no role" in await fhircm(*add, "--role", "king", status=1)
    assert "redirect URI is https" in await fhircm(
        *add, "--organization", "Organization/1", "--redirect-uri", "ftp://x", status=1
    )
    assert "client_credentials needs" in await fhircm("client", "add", "x", "--scope", "user/*.rs", "--auth", "none", status=1)
    assert "--jwks-url" in await fhircm("client", "add", "x", "--scope", "user/*.rs", status=2)
    assert "without spaces" in await fhircm("client", "add", "a b", "--scope", "user/*.rs", "--auth", "none", status=2)
    keys.write_text(json.dumps({"keys": [{"kty": "RSA", "kid": "a", "d": "x"}]}))
    assert "private key" in await fhircm(*add, "--organization", "Organization/1", status=1)
    for command in ("show", "disable", "enable", "rotate-secret"):
        assert "nobody is not known" in await fhircm("client", command, "nobody", status=1)


async def test_a_token_for_registration(hub, fhircm):
    bearer = {"Authorization": f"Bearer {(await fhircm('client', 'initial-token', '--hours', 1)).strip()}"}
    asked = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none"}
    answer = await hub.http.post("/oauth/register", json=asked, headers=bearer)
    assert answer.status_code == 201
    assert answer.json()["client_id"] in await fhircm("client", "list")


async def test_keys_are_rotated_and_listed(hub, fhircm):
    assert "No key is in use yet" in await fhircm("keys", "rotate")
    await hub.tokens()
    before = (await fhircm("keys", "list")).split()[0]
    fresh = (await fhircm("keys", "rotate", "--algorithm", "ES384")).strip()
    rows = {line.split()[0]: line for line in (await fhircm("keys", "list")).splitlines()}
    assert rows[before].split()[1] == "ES384"
    assert "retired" in rows[before]
    assert rows[fresh].endswith("signs")
    await hub.tokens()  # signs with the new one, without a restart
    assert "none of" in await fhircm("keys", "rotate", "--algorithm", "HS256", status=1)


async def test_grants_are_listed_and_revoked(hub, fhircm):
    answer = await hub.tokens(scope="offline_access user/Task.rs")
    (line,) = (await fhircm("grant", "list", "--client", "public", "--login", "anna")).splitlines()
    grant, client, login, until, scope = line.split(maxsplit=4)
    assert (client, login, scope) == ("public", "anna", "offline_access user/Task.rs")
    assert until.startswith(time.strftime("%Y-", time.gmtime(time.time() + 90 * 86_400)))
    await fhircm("grant", "revoke", grant)
    assert not await hub.is_good(answer["access_token"])
    assert (await hub.refresh(answer["refresh_token"])).json()["error"] == "invalid_grant"
    assert await fhircm("grant", "list") == ""
    assert "is not known" in await fhircm("grant", "revoke", grant, status=1)


async def test_what_was_remembered_of_a_consent_ends_with_its_grant(hub):
    grants, now = hub.server.tokens.grants, int(time.time())
    await grants.remember("anna", "public", "user/Task.rs", now)
    await grants.remember("anna", "public", "user/*.rs", now)
    assert await grants.remembered("anna", "public") == "user/*.rs"
    await hub.tokens(scope="user/Task.rs")
    (grant,) = await grants.grants(now, login_id="anna")
    assert not await grants.revoke(grant.id, now, login_id="ben")
    assert await grants.revoke(grant.id, now, login_id="anna")
    assert await grants.remembered("anna", "public") is None
    await grants.remember("anna", "public", "user/*.rs", now)
    await grants.forget("anna", "public")
    assert await grants.remembered("anna", "public") is None
    assert told(await hub.agree(await hub.ask()))["code"]
