"""`fhircm user`, as an administrator uses it."""

import pytest

from fhircm.store.database import open_database
from fhircm.store.logins import Logins
from tests import commands

PASSWORD = "three calm herons"
WHO = ("--name", "Cleo Example", "--user", "Practitioner/cleo", "--organization", "Organization/clinic")


@pytest.fixture
def user(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, typed="", **settings):
        environment = {
            "FHIRCM_DATABASE_URL": database_url,
            "FHIRCM_KEYS_DIR": str(tmp_path / "keys"),
            "FHIRCM_AUDIT_DIR": str(tmp_path / "audit"),
        } | settings
        return commands.run("user", *arguments, typed=typed, **environment)

    return run


@pytest.fixture
async def logins(database_url):
    database = await open_database(database_url)
    yield Logins(database)
    await database.close()


async def test_somebody_is_added_shown_and_listed(user, logins):
    done = user("add", "Cleo", *WHO, "--role", "clinician", "--role", "nurse", "--password-stdin", typed=f"{PASSWORD}\n")
    assert (done.returncode, done.stdout) == (0, "cleo may sign in\n"), done.stderr
    cleo = await logins.by_username("cleo")
    assert (cleo.roles, cleo.fhir_user, cleo.has_password) == ({"clinician", "nurse"}, "Practitioner/cleo", True)
    kept = (await logins.secrets(cleo.id)).password
    assert kept.startswith("$argon2id$")
    assert user("list").stdout == "cleo\tCleo Example\tPractitioner/cleo\tOrganization/clinic\tclinician,nurse\tmay sign in\n"
    shown = user("show", "cleo").stdout
    assert "signs in\ta password\n" in shown
    assert kept not in shown
    again = user("add", "CLEO", *WHO, "--role", "nurse", "--password-stdin", typed=f"{PASSWORD}\n")
    assert (again.returncode, "already" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "typed", "said"),
    [
        (("--role", "physician"), PASSWORD, "no such role"),
        (("--role", "clinician", "--user", "Organization/1"), PASSWORD, "is no reference"),
        (("--role", "clinician", "--organization", "Clinic"), PASSWORD, "is no reference"),
        (("--role", "clinician"), "too short", "at least 12"),
        (("--role", "clinician"), "cleo cleo cleo", "user name"),
        (("--role", "clinician", "--subject", "1"), PASSWORD, "FHIRCM_PROVIDER_ISSUER"),
    ],
)
async def test_what_cannot_be_is_told_and_adds_nobody(user, logins, arguments, typed, said):
    done = user("add", "cleo", *WHO, "--password-stdin", *arguments, typed=f"{typed}\n")
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert typed not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert await logins.by_username("cleo") is None


async def test_an_administrator_disables_unlocks_and_recovers(user, logins):
    user("add", "cleo", *WHO, "--role", "clinician", "--password-stdin", typed=f"{PASSWORD}\n")
    id = (await logins.by_username("cleo")).id
    await logins.set_totp(id, b"sealed", 1)
    for _ in range(5):
        await logins.attempt(id, 2**33)
    assert "paused until\t2242" in user("show", "cleo").stdout
    for command, check in (
        (("disable", "cleo"), lambda one: one.disabled),
        (("enable", "cleo"), lambda one: not one.disabled),
        (("unlock", "cleo"), lambda one: one.failed == one.locked_until == 0),
        (("totp-reset", "cleo"), lambda one: not one.has_totp),
        (("roles", "cleo", "nurse", "social-worker"), lambda one: one.roles == {"nurse", "social-worker"}),
    ):
        assert not check(await logins.by_username("cleo"))
        done = user(*command)
        assert done.returncode == 0, done.stderr
        assert check(await logins.by_username("cleo"))
    before = (await logins.secrets(id)).password
    assert user("password", "cleo", "--password-stdin", typed="four quiet otters\n").returncode == 0
    assert (await logins.secrets(id)).password != before
    assert user("roles", "cleo", "physician").returncode == 1
    for command in ("show", "disable", "enable", "unlock", "totp-reset"):
        unknown = user(command, "nobody")
        assert (unknown.returncode, "Nobody signs in as nobody" in unknown.stderr) == (1, True)


async def test_somebody_of_the_organisation_s_own_provider_needs_no_password(user, logins):
    issuer = "https://login.clinic.example"
    done = user("add", "mira", *WHO, "--role", "nurse", "--subject", "248", FHIRCM_PROVIDER_ISSUER=issuer)
    assert done.returncode == 0, done.stderr
    mira = await logins.by_identity(issuer, "248")
    assert (mira.username, mira.has_password) == ("mira", False)
    assert f"signs in\t{issuer} as 248\n" in user("show", "mira").stdout
