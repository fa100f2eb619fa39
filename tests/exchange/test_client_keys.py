"""The hub's keys: only it can read them, each partner finds the next before it signs, and none is refused while they take turns."""

import base64
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import httpx
import pytest

from fhircm.exchange.backend_auth import BackendAuth
from fhircm.exchange.client_keys import KeyWrong, public_jwks, retire, rotate, signing_key, signing_keys
from fhircm.exchange.proof import Client
from fhircm.sandbox.signin import Refused, SignIn

TOKEN_URL = "https://ehr.example/token"


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    first = signing_key(tmp_path / "keys", "a", "ES384")
    again = signing_key(tmp_path / "keys", "a", "ES384")
    assert first.thumbprint() == again.thumbprint()
    assert stat.S_IMODE((tmp_path / "keys" / "a.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["a.json"]


def test_public_keys_hold_nothing_private(tmp_path):
    for name, algorithm in (("a", "RS384"), ("b", "ES384")):
        signing_key(tmp_path, name, algorithm)
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "jwks.public.json").write_text(json.dumps(public_jwks(tmp_path)))
    keys = public_jwks(tmp_path)["keys"]
    assert [(key["kty"], key["alg"], key["use"]) for key in keys] == [("RSA", "RS384", "sig"), ("EC", "ES384", "sig")]
    assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & {member for key in keys for member in key}
    assert len({key["kid"] for key in keys}) == 2
    assert public_jwks(tmp_path / "nowhere") == {"keys": []}


def test_an_rsa_key_is_long_enough(tmp_path):
    signing_key(tmp_path, "a", "RS384")
    [key] = public_jwks(tmp_path)["keys"]
    assert len(key["n"]) * 6 >= 3072


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kty":"oct","k":"abc"}', '{"kty":"EC"}', "\x00"])
def test_a_file_that_is_no_key_is_told(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(KeyWrong, match=r"a\.json is not a private key"):
        signing_key(tmp_path, "a", "ES384")


def test_a_key_for_another_algorithm_is_told(tmp_path):
    signing_key(tmp_path, "a", "ES384")
    with pytest.raises(KeyWrong, match="is a key for ES384, and RS384 is wanted"):
        signing_key(tmp_path, "a", "RS384")
    with pytest.raises(KeyWrong, match="not an algorithm of SMART"):
        signing_key(tmp_path, "b", "HS256")


def test_several_that_make_a_key_at_once_get_one(tmp_path):
    gate = Barrier(6)

    def kid(_):
        gate.wait(10)
        return signing_key(tmp_path, "a", "ES384").kid

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(kid, range(6)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# --- keys that take turns ---

DAY = 86_400.0


class Partner:
    """The sandbox's sign-in, which keeps the JWKS that it fetched for an hour, with a hub that runs all the while."""

    def __init__(self, folder, algorithm="ES384"):
        self.now, self.folder, self.fetched, self.keys, self.asked = 1_800_000_000.0, folder, 0.0, [], []
        self.sign_in = SignIn("fhircm", self.published, TOKEN_URL, algorithm, "v2", 100)
        keys = partial(signing_keys, folder, "north-clinic", algorithm, lambda: self.now)
        self.auth = BackendAuth(
            "https://ehr.example",
            Client("fhircm", keys=keys),
            ["system/Patient.rs"],
            name="north-clinic",
            token_url=TOKEN_URL,
            transport=httpx.MockTransport(self.answer),
            now=lambda: self.now,
            monotonic=lambda: self.now,
        )

    async def published(self):
        if self.now >= self.fetched + 3600:
            self.fetched, self.keys = self.now, public_jwks(self.folder)["keys"]
        return self.keys

    async def answer(self, request):
        form = dict(httpx.QueryParams(request.content.decode()))
        header = json.loads(base64.urlsafe_b64decode(form["client_assertion"].split(".")[0] + "=="))
        try:
            answer = httpx.Response(200, json=await self.sign_in.token(form))
        except Refused as error:
            answer = httpx.Response(400, json={"error": str(error)})
        self.asked.append((header["kid"], answer.status_code))
        return answer

    async def go_on(self, hours):
        """The hub works on: a new token every quarter of an hour."""
        for _ in range(int(hours * 4)):
            self.now += 900
            await self.auth.token()


@pytest.fixture
def partner(tmp_path, monkeypatch):
    one = Partner(tmp_path)
    monkeypatch.setattr("fhircm.sandbox.signin.time.time", lambda: one.now)
    return one


async def test_a_rotation_under_a_running_client_has_no_request_refused(partner, tmp_path):
    await partner.go_on(2)
    old = signing_key(tmp_path, "north-clinic", "ES384").kid
    new = rotate(tmp_path, "north-clinic", "ES384", DAY, lambda: partner.now)
    assert {key["kid"] for key in public_jwks(tmp_path)["keys"]} == {old, new.kid}
    await partner.go_on(23)
    assert {kid for kid, _ in partner.asked} == {old}
    await partner.go_on(3)
    assert partner.asked[-1][0] == new.kid
    assert [one.kid for one in retire(tmp_path, "north-clinic", "ES384", lambda: partner.now)] == [old]
    await partner.go_on(3)
    assert {status for _, status in partner.asked} == {200}
    assert [key["kid"] for key in public_jwks(tmp_path)["keys"]] == [new.kid]


async def test_a_new_key_that_is_refused_lets_the_one_before_sign_and_is_told(partner, tmp_path, caplog):
    await partner.go_on(0.5)
    old = signing_key(tmp_path, "north-clinic", "ES384").kid
    new = rotate(tmp_path, "north-clinic", "ES384", 0, lambda: partner.now).kid  # with --now, and the partner has not looked yet
    await partner.go_on(0.5)
    assert partner.asked[-3:] == [(new, 400), (old, 200), (old, 200)]  # and it is not tried at once again
    assert f"the key {new} is refused" in caplog.text
    assert partner.auth._held.refused_key == new
    await partner.go_on(2)
    assert partner.asked[-1] == (new, 200)
    assert partner.auth._held.refused_key is None


def test_a_key_waits_its_turn_and_no_two_wait(tmp_path):
    now = 1_800_000_000.0
    first = signing_key(tmp_path, "a", "ES384").kid
    waiting = rotate(tmp_path, "a", "ES384", DAY, lambda: now)
    assert stat.S_IMODE(waiting.path.stat().st_mode) == 0o600
    assert waiting.path.name == "a.2.json"
    with pytest.raises(KeyWrong, match="waits already"):
        rotate(tmp_path, "a", "ES384", DAY, lambda: now)
    assert rotate(tmp_path, "a", "ES384", 0, lambda: now + 60).kid == waiting.kid
    assert [key.kid for key in signing_keys(tmp_path, "a", "ES384", lambda: now + 60)] == [waiting.kid, first]
    assert rotate(tmp_path, "a", "ES384", DAY, lambda: now + 120).path.name == "a.3.json"


def test_the_key_before_stays_while_its_assertions_may_be_on_their_way(tmp_path):
    now = 1_800_000_000.0
    signing_key(tmp_path, "a", "ES384")
    with pytest.raises(KeyWrong, match="No key for a can be retired"):
        retire(tmp_path, "a", "ES384", lambda: now)
    rotate(tmp_path, "a", "ES384", DAY, lambda: now)
    with pytest.raises(KeyWrong, match="No key for a can be retired"):
        retire(tmp_path, "a", "ES384", lambda: now + 60)
    with pytest.raises(KeyWrong, match="may still be on their way: retire it in 381 seconds"):
        retire(tmp_path, "a", "ES384", lambda: now + DAY + 100)
    assert len(retire(tmp_path, "a", "ES384", lambda: now + DAY + 500)) == 1


def test_another_algorithm_takes_its_turn_too(tmp_path):
    now = 1_800_000_000.0
    old = signing_key(tmp_path, "a", "ES384").kid
    rotate(tmp_path, "a", "RS384", DAY, lambda: now)
    assert [key.kid for key in signing_keys(tmp_path, "a", "ES384", lambda: now + 2 * DAY)] == [old]
    assert len(signing_keys(tmp_path, "a", "RS384", lambda: now + 2 * DAY)) == 1
    with pytest.raises(KeyWrong, match=r"partner\.yaml says ES384"):
        retire(tmp_path, "a", "ES384", lambda: now + 2 * DAY)


def test_what_is_published_tells_nothing_of_turns_and_partners_are_told_apart(tmp_path):
    signing_key(tmp_path, "north", "ES384")
    signing_key(tmp_path, "north-clinic", "ES384")
    rotate(tmp_path, "north", "ES384", DAY)
    assert len(public_jwks(tmp_path)["keys"]) == 3
    assert not {"iat", "nbf", "d"} & {member for key in public_jwks(tmp_path)["keys"] for member in key}
    assert len(signing_keys(tmp_path, "north-clinic", "ES384", lambda: 1e12)) == 1
