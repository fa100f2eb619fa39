"""Backend systems, which sign in by themselves."""

from tests.rest.signing import assertion, form


async def system_token(hub, http, scope, alg="ES384", client="system"):
    signed = assertion(alg, client=client, aud=f"{hub.base}/oauth/token")
    answer = await http.post("/oauth/token", data=form(signed, scope))
    assert answer.status_code == 200, answer.text
    return answer.json()["access_token"]
