"""Sign in as a backend client, by a real assertion."""

import time
from uuid import uuid4

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database

BASE = "http://hub.example"
KEYS = {
    "ES384": ECKey.generate_key("P-384", {"kid": "es"}, private=True),
    "RS384": RSAKey.generate_key(2048, {"kid": "rs"}, private=True),
}


def assertion(alg="ES384", key=None, kid=None, client="app", **changes):
    now = int(time.time())
    claims = {"iss": client, "sub": client, "aud": f"{BASE}/oauth/token", "exp": now + 240, "jti": str(uuid4())} | changes
    header = {"alg": alg, "kid": kid or KEYS[alg].kid, "typ": "JWT"}
    return jwt.encode(
        header, {name: value for name, value in claims.items() if value is not None}, key or KEYS[alg], algorithms=[alg]
    )


def form(signed, scope="system/*.cruds"):
    return {
        "grant_type": "client_credentials",
        "scope": scope,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": signed,
    }


async def register(database_url, client_id, scope):
    database = await open_database(database_url)
    jwks = {"keys": [key.as_dict(private=False) for key in KEYS.values()]}
    await Credentials(database).add_client(client_id, {"scope": scope, "jwks": jwks, "roles": ["custodian"]})
    await database.close()


async def signed_in(http, client="app", scope="system/*.cruds"):
    request = http.build_request("POST", "/oauth/token", data=form(assertion(client=client), scope))
    request.headers.pop("Authorization", None)  # of who asks the FHIR API; here the assertion says who it is
    answer = await http.send(request)
    assert answer.status_code == 200, answer.text
    return answer.json()["access_token"]
