"""A client that others wrote goes through every grant: Authlib's. https://docs.authlib.org"""

import time

import httpx
import pytest
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc7523 import PrivateKeyJWT

from tests.rest.signing import BASE, KEYS

from .flow import BACK, FHIR, SECRET, VERIFIER, told

TOKEN = f"{BASE}/oauth/token"


def client_of(hub, name, method="none", **options):
    return AsyncOAuth2Client(
        name,
        token_endpoint=TOKEN,
        token_endpoint_auth_method=method,
        code_challenge_method="S256",
        redirect_uri=BACK,
        transport=httpx.ASGITransport(hub.app),
        base_url=BASE,
        **options,
    )


@pytest.mark.parametrize(
    ("name", "method", "secret"),
    [("public", "none", None), ("basic", "client_secret_basic", SECRET), ("post", "client_secret_post", SECRET)],
)
async def test_a_person_lets_an_app_in_and_it_stays(hub, name, method, secret):
    async with client_of(hub, name, method, client_secret=secret, scope="launch/patient patient/*.rs offline_access") as app:
        address, state = app.create_authorization_url(f"{BASE}/oauth/authorize", code_verifier=VERIFIER, aud=FHIR)
        back = await hub.agree(await hub.http.get(address))
        assert told(back)["state"] == state
        token = await app.fetch_token(TOKEN, authorization_response=back, state=state, code_verifier=VERIFIER)
        assert token["patient"] == "pat"
        assert (await app.get("/fhir/Patient/none")).status_code == 404
        again = await app.refresh_token(TOKEN, refresh_token=token["refresh_token"])
        assert again["access_token"] != token["access_token"]
        assert (await app.get("/fhir/Patient/none")).status_code == 404
        with pytest.raises(OAuthError, match="invalid_grant"):
            await app.refresh_token(TOKEN, refresh_token=token["refresh_token"])
        with pytest.raises(OAuthError):  # and with the one that was used again all others end
            await app.refresh_token(TOKEN, refresh_token=again["refresh_token"])


async def test_a_system_signs_in_by_itself(hub):
    key = KEYS["ES384"]
    async with client_of(hub, "app", "private_key_jwt", client_secret=key, scope="system/Patient.rs") as system:
        system.register_client_auth_method(
            PrivateKeyJWT(TOKEN, alg="ES384", headers={"kid": key.kid}, claims={"exp": int(time.time()) + 240})
        )
        token = await system.fetch_token(TOKEN, grant_type="client_credentials")
        assert (token["scope"], token["expires_in"]) == ("system/Patient.rs", 300)
        assert (await system.get("/fhir/Patient")).status_code == 200
