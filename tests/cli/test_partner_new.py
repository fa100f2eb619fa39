"""`fhircm partner new` begins with a partner: a whole file or none, and what to do next."""

import pytest
import yaml

from fhircm.exchange.partners import load_partners
from fhircm.exchange.shapes import shapes
from tests.commands import run
from tests.sandbox.ehrs import PARAMETERS

GIVEN = {"organization-id": "o1", "organization-name": 'The "Anne": clinic #1', "npi": "1234567893", "group": "17"}


def new(folder, name="st-anne", shape="epic", **given):
    facts = {**GIVEN, "base-url": "https://ehr.example/fhir", **{key.replace("_", "-"): value for key, value in given.items()}}
    options = [part for key, value in facts.items() if value is not None for part in (f"--{key}", value)]
    return run("partner", "new", name, "--shape", shape, *options, FHIRCM_MAPPINGS_DIR=str(folder))


def test_it_writes_a_file_that_is_good_and_says_what_comes_next(tmp_path):
    done = new(tmp_path / "partners", subdivision="IL", time_zone="America/New_York")
    assert done.returncode == 0
    [partner] = load_partners(tmp_path / "partners")
    assert (partner.name, partner.shape, partner.group) == ("st-anne", "epic", "17")
    assert partner.organization.name == GIVEN["organization-name"]
    assert partner.time_zone == "America/New_York"
    assert "/.well-known/jwks.json (RS384)" in done.stdout
    assert "system/CarePlan.read" in done.stdout
    assert "fhircm partner check st-anne" in done.stdout


def test_a_test_server_may_have_no_sign_in(tmp_path):
    facts = [part for key, value in {**GIVEN, "base-url": "http://127.0.0.1:8090/fhir"}.items() for part in (f"--{key}", value)]
    done = run("partner", "new", "hapi", "--shape", "hapi", *facts, "--no-sign-in", FHIRCM_MAPPINGS_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert load_partners(tmp_path)[0].credentials.method == "none"
    assert "Nobody signs in there" in done.stdout
    assert "Register" not in done.stdout


@pytest.mark.parametrize("shape", sorted(shapes()))
def test_every_shape_can_be_begun_with(shape, tmp_path):
    wanted = [f"{name}={value}" for name, value in PARAMETERS.get(shape, {}).items()]
    options = {"parameter": wanted[0]} if wanted else {}
    options |= {"secret_env": "ST_ANNE_SECRET"} if shape == "meditech" else {}
    done = new(tmp_path, "new-one", shape, base_url=None if shape in PARAMETERS else "https://ehr.example/fhir", **options)
    assert done.returncode == 0, done.stderr
    [partner] = load_partners(tmp_path)
    assert partner.shape == shape
    assert f'base_url: "{partner.base_url}"' in (partner.folder / "partner.yaml").read_text()  # ids are derived from it


def test_what_is_there_is_left_as_it_is(tmp_path):
    new(tmp_path)
    path = tmp_path / "st-anne" / "partner.yaml"
    path.write_text(path.read_text() + "# mine\n")
    done = new(tmp_path)
    assert done.returncode != 0
    assert "exists already and is left as it is" in " ".join(done.stderr.split())
    assert path.read_text().endswith("# mine\n")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"npi": "1234567890"}, "organization.npi is not an NPI"),
        ({"npi": None}, "--npi: is missing"),
        ({"group": None}, "--group, --list or --roster: is missing"),
        ({"base_url": None}, "--base-url: is missing"),
        ({"base_url": "ehr.example"}, "base_url must be an http or https URL"),
        ({"time_zone": "Chicago"}, "time_zone must be an IANA time zone"),
        ({"shape": "cerner"}, "cerner is no shape; there are: athenahealth"),
        ({"shape": "oracle"}, "--parameter tenant=…: is missing"),
        ({"parameter": "tenant=x"}, "parameters.tenant is not a key"),
        ({"name": "St Anne"}, "is no name for a partner"),
        ({"name": "shape"}, "is no name for a partner"),
        ({"shape": "meditech"}, "credentials.secret is missing: give {file: PATH} or {env: NAME}"),
        ({"secret_env": "X"}, "credentials.secret is not used with this method"),
        ({"list": "3"}, "panel.list stands beside group"),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(changes, told, tmp_path):
    done = new(tmp_path, **changes)
    assert done.returncode != 0
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_shape_of_the_operators_own_may_be_named(tmp_path):
    tree = yaml.safe_load(shapes()["r4"].read_text())
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "mine.yaml").write_text(yaml.safe_dump({**tree, "vendor": "mine"}))
    assert new(tmp_path, shape="mine").returncode == 0
    assert load_partners(tmp_path)[0].vendor == "mine"


def test_the_shipped_partners_are_not_written_to(tmp_path):
    done = run("partner", "new", "x", "--shape", "r4")
    assert done.returncode != 0
    assert "FHIRCM_MAPPINGS_DIR" in done.stderr
