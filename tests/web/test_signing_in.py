"""Signing in with a password: who gets in, who does not, and what nobody learns from the answer."""

import asyncio

import httpx
import pytest

from fhircm.access.passwords import Passwords
from fhircm.access.sessions import digest

from .conftest import BASE, PASSWORD, Browser, quick, running


async def test_who_knows_the_password_gets_on_to_the_account(browser):
    answer = await browser.sign_in()
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    assert "Cleo Example" in (await browser.get("/account")).text


async def test_a_page_that_needs_somebody_signed_in_comes_back_after_it(browser):
    answer = await browser.get("/account/password")
    assert (answer.status_code, answer.headers["location"]) == (303, "/signin?next=%2Faccount%2Fpassword")
    answer = await browser.sign_in(onward="/account/password")
    assert answer.headers["location"] == "/account/password"


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/%2F/evil.example",
        "javascript:alert(1)",
        "/account\r\nSet-Cookie: a=b",
        "/account?next=//evil.example",
        "account",
        "/./\t/evil.example",
        "///evil.example",
    ],
)
async def test_nobody_is_sent_elsewhere_by_a_link_to_the_sign_in_page(browser, elsewhere):
    answer = await browser.sign_in(onward=elsewhere)
    assert answer.headers["location"] == "/account"
    signed_in_already = await browser.get("/signin", params={"next": elsewhere})
    assert signed_in_already.headers["location"] == "/account"


async def test_a_name_is_the_same_in_any_case(browser):
    assert (await browser.sign_in(" CLEO ")).status_code == 303


async def test_a_wrong_password_and_an_unknown_name_are_answered_alike(browser, parts):
    await parts.logins.set_disabled((await parts.logins.by_username("custos")).id, True)
    answers = [await browser.sign_in(name, "not the password") for name in ("cleo", "nobody", "custos")]
    answers.append(await browser.sign_in("custos", PASSWORD))
    assert {answer.status_code for answer in answers} == {401}
    texts = set()
    for answer, name in zip(answers, ("cleo", "nobody", "custos", "custos"), strict=True):
        texts.add(answer.text.replace(f'value="{name}"', 'value="NAME"'))
    assert len(texts) == 1
    assert "not the password" not in answers[0].text


async def test_an_unknown_name_costs_the_same_work(parts, monkeypatch):
    checked = []
    verify = Passwords._matches
    monkeypatch.setattr(Passwords, "_matches", lambda self, kept, password: checked.append(kept) or verify(self, kept, password))
    for name in ("cleo", "nobody"):
        with pytest.raises(Exception, match="not right"):
            await parts.sign_in.by_password(name, "not the password")
    assert len(checked) == 2
    assert [one.rpartition("$")[0].rpartition("$")[0] for one in checked[:1]] == [
        one.rpartition("$")[0].rpartition("$")[0] for one in checked[1:]
    ]  # the same parameters


async def test_empty_fields_are_told_at_the_fields(browser):
    page = await browser.send_form("/signin", {"username": "", "password": "", "next": "/account"})
    assert page.status_code == 422
    for name in ("username", "password"):
        assert f'id="error-{name}"' in page.text
        assert f'aria-describedby="error-{name}"' in page.text
        assert 'aria-invalid="true"' in page.text


async def test_after_five_failures_sign_in_pauses_in_every_process(hub, database_url, clock, tmp_path, time, browser, parts):
    async with running(database_url, clock, tmp_path, time) as other, Browser(other) as elsewhere:
        for n in range(5):
            assert (await (browser, elsewhere)[n % 2].sign_in(password="wrong")).status_code == 401
        refused = [await one.sign_in() for one in (browser, elsewhere)]
        assert {answer.status_code for answer in refused} == {401}
        time.now += 59
        assert (await browser.sign_in()).status_code == 401
        time.now += 1
        assert (await elsewhere.sign_in()).status_code == 303
    assert (await parts.logins.by_username("cleo")).failed == 0


async def test_each_further_failure_doubles_the_pause_up_to_an_hour(parts, time):
    id = (await parts.logins.by_username("cleo")).id
    pauses = []
    for _ in range(14):
        assert await parts.logins.attempt(id, int(time()))
        until = (await parts.logins.get(id)).locked_until
        pauses.append(max(0, until - int(time())))
        assert not pauses[-1] or not await parts.logins.attempt(id, int(time()))
        time.now = max(time.now, until)
    assert pauses == [0, 0, 0, 0, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]


async def test_of_many_guesses_at_once_five_are_looked_at(parts):
    guesses = [parts.sign_in.by_password("cleo", "wrong") for _ in range(12)]
    assert all(isinstance(one, Exception) for one in await asyncio.gather(*guesses, return_exceptions=True))
    assert (await parts.logins.by_username("cleo")).failed == 5


async def test_a_hash_of_other_parameters_is_made_anew_at_sign_in(browser, parts):
    from argon2 import PasswordHasher

    id = (await parts.logins.by_username("cleo")).id
    await parts.logins.set_password(id, PasswordHasher(time_cost=2, memory_cost=32, parallelism=1).hash(PASSWORD))
    assert (await browser.sign_in()).status_code == 303
    kept = (await parts.logins.secrets(id)).password
    assert "m=64,t=1" in kept
    assert await quick().verify(kept, PASSWORD)


async def test_a_session_has_an_id_of_its_own_after_signing_in(hub, browser, parts):
    await browser.get("/signin")
    before = browser.cookies["fhircm"]
    await browser.sign_in()
    after = browser.cookies["fhircm"]
    assert after != before
    async with Browser(hub) as thief:  # who planted the first cookie
        thief.cookies.set("fhircm", before, domain="hub.example")
        assert (await thief.get("/account")).status_code == 303
    second = await browser.post("/signout", data={"form": "0"}, headers={"Origin": BASE})
    assert second.status_code == 403  # not without the token


async def test_a_cookie_that_somebody_else_made_up_signs_nobody_in(hub):
    async with Browser(hub) as one:
        for planted in ("A" * 43, "short", "x" * 5000, "../../etc"):
            one.cookies.set("fhircm", planted, domain="hub.example")
            assert (await one.get("/account")).status_code == 303
            one.cookies.clear()


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(browser):
    cookie = (await browser.sign_in()).headers["set-cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=lax"} <= {part.strip() for part in cookie.split(";")}
    assert "Domain" not in cookie


async def test_over_https_the_cookie_belongs_to_this_host_alone(database_url, clock, tmp_path, time):
    secure = "https://hub.example"
    async with running(database_url, clock, tmp_path, time, base=secure) as app, Browser(app, secure) as one:
        cookie = (await one.get("/signin")).headers["set-cookie"]
        assert cookie.startswith("__Host-fhircm=")
        assert "Secure" in cookie


async def test_a_session_ends_when_nobody_is_there_for_half_an_hour(browser, time):
    await browser.sign_in()
    for _ in range(3):
        time.now += 29 * 60
        assert (await browser.get("/account")).status_code == 200
    time.now += 30 * 60
    assert (await browser.get("/account")).status_code == 303


async def test_a_session_ends_after_twelve_hours_in_any_case(browser, time):
    await browser.sign_in()
    for _ in range(12 * 4 - 1):
        time.now += 15 * 60
        assert (await browser.get("/account")).status_code == 200
    time.now += 15 * 60
    assert (await browser.get("/account")).status_code == 303


async def test_signing_out_ends_the_session_and_its_refresh_tokens(hub, browser, parts):
    await browser.sign_in()
    cookie = browser.cookies["fhircm"]
    kept = digest(cookie)
    async with hub.state.store.database.writing() as connection:
        for name, session in ((b"mine", kept), (b"offline", None)):
            await connection.execute(
                "INSERT INTO refresh_token (digest, grant_id, session, expires) VALUES ($1, $2, $3, $4)",
                name,
                "g",
                session,
                2**40,
            )
    page = await browser.get("/account")
    answer = await browser.send_form("/signout", {}, page)
    assert answer.headers["location"] == "/signed-out"
    async with hub.state.store.database.reading() as connection:
        assert [bytes(row["digest"]) for row in await connection.fetch("SELECT digest FROM refresh_token")] == [b"offline"]
    async with Browser(hub) as thief:
        thief.cookies.set("fhircm", cookie, domain="hub.example")
        assert (await thief.get("/account")).status_code == 303


async def test_who_is_disabled_is_signed_out_at_once(browser, parts):
    await browser.sign_in()
    await parts.logins.set_disabled((await parts.logins.by_username("cleo")).id, True)
    assert (await browser.get("/account")).status_code == 303


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": BASE}, 303),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://hub.example:81"}, 403),
        ({"Origin": "https://hub.example"}, 403),
        ({"Origin": "http://hub.example.evil.example"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Referer": f"{BASE}/signin"}, 403),
        ({}, 403),
    ],
)
async def test_a_form_must_come_from_a_page_of_the_hub_itself(hub, headers, status):
    async with Browser(hub) as one:
        page = await one.get("/signin")
        token = page.text.partition('name="form" value="')[2].partition('"')[0]
        fields = {"form": token, "username": "cleo", "password": PASSWORD, "next": "/account"}
        assert (await one.post("/signin", data=fields, headers=headers)).status_code == status


async def test_the_token_of_another_browser_is_worth_nothing(hub, browser):
    await browser.sign_in()
    async with Browser(hub) as other:
        page = await other.get("/signin")
        assert (await browser.send_form("/signout", {}, page)).status_code == 403
        assert (await browser.get("/account")).status_code == 200


async def test_a_form_without_any_cookie_is_refused(hub):
    async with Browser(hub) as one:
        page = await one.get("/signin")
        one.cookies.clear()
        assert (await one.send_form("/signin", {"username": "cleo", "password": PASSWORD}, page)).status_code == 403


async def test_what_is_no_form_is_refused(browser):
    await browser.get("/signin")
    headers = {"Origin": BASE, "Content-Type": "application/json"}
    assert (await browser.post("/signin", content=b"{}", headers=headers)).status_code == 415
    large = await browser.post("/signin", data={"username": "x" * 70_000}, headers={"Origin": BASE})
    assert large.status_code == 413
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    for body in (b"\xff=\xfe", b"&".join(b"a=1" for _ in range(600))):
        assert (await browser.post("/signin", content=body, headers=headers)).status_code == 400


@pytest.mark.parametrize("path", ["/signin", "/account", "/signed-out", "/oauth/authorize/unknown", "/signin/callback"])
async def test_every_page_forbids_frames_scripts_sniffing_and_keeping(browser, path):
    answer = await browser.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "base-uri 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert "<script" not in answer.text
    assert " style=" not in answer.text


async def test_the_style_sheet_is_kept_by_browsers_and_named_by_its_content(browser):
    page = await browser.get("/signin")
    path = page.text.partition('rel="stylesheet" href="')[2].partition('"')[0]
    style = await browser.get(path)
    assert style.status_code == 200
    assert style.headers["content-type"].startswith("text/css")
    assert "immutable" in style.headers["cache-control"]


async def test_an_unexpected_error_shows_a_correlation_id_and_nothing_else(browser, parts, monkeypatch, caplog):
    async def broken(*_):
        raise RuntimeError("password of cleo")

    monkeypatch.setattr(type(parts.sign_in), "by_password", broken)
    answer = await browser.sign_in()
    assert answer.status_code == 500
    assert "password of cleo" not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text


def test_pages_are_not_part_of_the_described_api(hub):
    assert not [path for path in hub.openapi()["paths"] if path.startswith(("/signin", "/account", "/web"))]
    assert httpx.URL(BASE).host == "hub.example"
