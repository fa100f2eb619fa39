"""The account of a person: codes, passwords, browsers that are signed in."""

import re
from html import unescape

import pytest

from fhircm.access import totp
from fhircm.access.logins import PasswordUnfit
from fhircm.access.passwords import fault

from .conftest import PASSWORD, Browser

RFC_SECRET = b"12345678901234567890"


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_codes_are_those_of_the_test_vectors_of_rfc_6238(at, expected):
    assert totp.code(RFC_SECRET, at // 30) == expected
    assert totp.matching_step(RFC_SECRET, f"{expected[:3]} {expected[3:]}", at) == at // 30


def test_the_clock_of_a_phone_may_be_one_step_off_and_no_more():
    now = 1_700_000_015
    for steps, good in ((-2, False), (-1, True), (0, True), (1, True), (2, False)):
        code = totp.code(RFC_SECRET, now // 30 + steps)
        assert (totp.matching_step(RFC_SECRET, code, now) is not None) == good
    assert totp.matching_step(RFC_SECRET, "", now) is None
    assert totp.matching_step(RFC_SECRET, "١٢٣٤٥٦", now) is None


@pytest.fixture
async def secret(browser, parts, time):
    """The key of an authenticator app that cleo has set up, by the pages."""
    await browser.sign_in()
    page = await browser.get("/account/codes")
    spelled = re.search(r'<code id="key">([A-Z2-7 ]+)</code>', page.text)[1]
    import base64

    secret = base64.b32decode(spelled.replace(" ", ""))
    fields = {
        "secret": unescape(re.search(r'name="secret" value="([^"]+)"', page.text)[1]),
        "code": totp.code(secret, int(time()) // 30),
        "current": PASSWORD,
    }
    wrong = await browser.send_form("/account/codes", {**fields, "code": "000000"}, page)
    assert (wrong.status_code, 'aria-describedby="error-code"' in wrong.text) == (422, True)
    refused = await browser.send_form("/account/codes", {**fields, "current": "wrong"}, page)
    assert (refused.status_code, 'aria-describedby="error-current"' in refused.text) == (422, True)
    assert not (await parts.logins.by_username("cleo")).has_totp
    answer = await browser.send_form("/account/codes", fields, page)
    assert answer.headers["location"] == "/account?done=codes"
    time.now += 60
    return secret


async def test_the_picture_holds_the_key_that_is_spelled(browser):
    await browser.sign_in()
    page = await browser.get("/account/codes")
    assert page.text.count("<svg") == 2  # the mark of the hub, and the code
    assert "<path" in page.text.partition('class="qr"')[2].partition("</p>")[0]


async def test_who_set_up_codes_is_asked_for_one(hub, secret, time):
    async with Browser(hub) as phone:
        answer = await phone.sign_in(onward="/account/password")
        assert answer.headers["location"] == "/signin/code"
        assert (await phone.get("/account")).status_code == 303  # the password alone lets nobody in
        page = await phone.get("/signin/code")
        wrong = await phone.send_form("/signin/code", {"code": "000000"}, page)
        assert (wrong.status_code, 'aria-describedby="error-code"' in wrong.text) == (401, True)
        half = phone.cookies["fhircm"]
        answer = await phone.send_form("/signin/code", {"code": totp.code(secret, int(time()) // 30)}, page)
        assert answer.headers["location"] == "/account/password"
        assert phone.cookies["fhircm"] != half
        assert (await phone.get("/account")).status_code == 200


async def test_a_code_is_good_once_whichever_process_sees_it(hub, secret, time, parts):
    code = totp.code(secret, int(time()) // 30)
    for expected in (303, 401):
        async with Browser(hub) as one:
            await one.sign_in()
            answer = await one.send_form("/signin/code", {"code": code}, await one.get("/signin/code"))
            assert answer.status_code == expected
    id = (await parts.logins.by_username("cleo")).id
    assert not await parts.logins.use_code(id, int(time()) // 30 - 1)  # nor is one before it


async def test_the_code_that_set_it_up_does_not_sign_in(hub, browser, time, secret):
    async with Browser(hub) as one:
        await one.sign_in()
        time.now -= 60
        answer = await one.send_form(
            "/signin/code", {"code": totp.code(secret, int(time()) // 30)}, await one.get("/signin/code")
        )
        assert answer.status_code == 401


async def test_wrong_codes_pause_sign_in_and_the_right_password_does_not_start_over(hub, secret, time, parts):
    async with Browser(hub) as one:
        await one.sign_in()
        page = await one.get("/signin/code")
        for _ in range(3):
            await one.send_form("/signin/code", {"code": "000000"}, page)
        await one.sign_in()
        page = await one.get("/signin/code")
        for _ in range(2):
            await one.send_form("/signin/code", {"code": "000000"}, page)
        assert (await parts.logins.by_username("cleo")).locked_until > time()
        right = await one.send_form("/signin/code", {"code": totp.code(secret, int(time()) // 30)}, page)
        assert right.status_code == 401


async def test_a_sign_in_that_was_begun_must_be_ended_within_ten_minutes(hub, secret, time):
    async with Browser(hub) as one:
        await one.sign_in()
        page = await one.get("/signin/code")
        time.now += 601
        answer = await one.send_form("/signin/code", {"code": totp.code(secret, int(time()) // 30)}, page)
        assert answer.headers["location"] == "/signin"
        assert (await one.get("/account")).status_code == 303


async def test_codes_are_turned_off_with_the_password(hub, secret, browser, parts):
    page = await browser.get("/account/codes")
    assert (await browser.send_form("/account/codes/off", {"current": "wrong"}, page)).status_code == 422
    answer = await browser.send_form("/account/codes/off", {"current": PASSWORD}, page)
    assert answer.headers["location"] == "/account?done=no-codes"
    async with Browser(hub) as one:
        assert (await one.sign_in()).headers["location"] == "/account"


async def test_the_secret_is_sealed_in_the_database(hub, secret, parts):
    kept = (await parts.logins.secrets((await parts.logins.by_username("cleo")).id)).totp
    assert secret not in bytes(kept)
    assert parts.seal.unseal(bytes(kept)) == secret


async def test_another_password_needs_the_one_before_and_signs_out_everybody_else(hub, browser):
    await browser.sign_in()
    async with Browser(hub) as other:
        await other.sign_in()
        page = await browser.get("/account/password")
        fields = {"current": PASSWORD, "new": "four quiet otters", "again": "four quiet otters"}
        for change, field in (
            ({"current": "x"}, "current"),
            ({"again": "x"}, "again"),
            ({"new": "short", "again": "short"}, "new"),
        ):
            answer = await browser.send_form("/account/password", fields | change, page)
            assert (
                answer.status_code,
                f'aria-describedby="{"hint-new " if field == "new" else ""}error-{field}"' in answer.text,
            ) == (
                422,
                True,
            )
            assert "otters" not in answer.text  # what was typed does not come back
        answer = await browser.send_form("/account/password", fields, page)
        assert answer.headers["location"] == "/account?done=password"
        assert (await browser.get("/account")).status_code == 200
        assert (await other.get("/account")).status_code == 303
        assert (await other.sign_in()).status_code == 401
        assert (await other.sign_in(password="four quiet otters")).status_code == 303


@pytest.mark.parametrize(
    ("password", "word"),
    [
        ("eleven char", "12 characters"),
        ("x" * 1001, "1000"),
        ("I am Cleopatra indeed", "user name"),
        ("PASSWORD1234", "first"),
        ("ｐａｓｓｗｏｒｄ1234", "first"),
        ("aaaaaaaaaaaabbbb", "first"),
    ],
)
def test_passwords_that_are_easily_guessed_are_refused_with_a_reason(password, word):
    assert word in fault(password, "cleopatra")


@pytest.mark.parametrize("password", ["twelve chars", "correct horse battery", "ällebälle und trälle", "123456 123 98765"])
def test_any_other_password_will_do(password):
    assert fault(password, "cleopatra") is None


async def test_an_unfit_password_is_not_set(parts):
    cleo = await parts.logins.by_username("cleo")
    with pytest.raises(PasswordUnfit):
        await parts.sign_in.new_password(cleo, "too short")
    assert await parts.sign_in.by_password("cleo", PASSWORD)


async def test_browsers_are_listed_and_signed_out_one_by_one_or_all(hub, browser):
    await browser.sign_in()
    agents = {
        "Firefox on Linux": "Mozilla/5.0 (X11; Linux x86_64) Firefox/130.0",
        "Safari on iPhone": "(iPhone) Version/17 Safari/604",
    }
    others = [Browser(hub) for _ in agents]
    for one, agent in zip(others, agents.values(), strict=True):
        one.headers["User-Agent"] = agent
        await one.sign_in()
    page = await browser.get("/account")
    assert all(name in page.text for name in agents)
    (first, second) = re.findall(r'name="which" value="([0-9a-f]{64})"', page.text)
    await browser.send_form("/account/sessions", {"which": first}, page)
    assert sorted([(await one.get("/account")).status_code for one in others]) == [200, 303]
    await browser.send_form("/account/sessions", {"which": "others"}, page)
    assert [(await one.get("/account")).status_code for one in others] == [303, 303]
    assert (await browser.get("/account")).status_code == 200
    assert second
    for one in others:
        await one.aclose()


async def test_nobody_signs_out_somebody_else(hub, browser):
    await browser.sign_in()
    async with Browser(hub) as other:
        await other.sign_in("ada")
        from fhircm.access.sessions import digest

        theirs = digest(other.cookies["fhircm"]).hex()
        await browser.send_form("/account/sessions", {"which": theirs}, await browser.get("/account"))
        assert (await other.get("/account")).status_code == 200


async def test_what_happened_is_told_in_words_of_ours_only(browser):
    await browser.sign_in()
    assert "The app has no access any more." in (await browser.get("/account?done=app")).text
    assert "You won" not in (await browser.get("/account?done=You+won")).text
