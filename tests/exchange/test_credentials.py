"""The credentials of partner.yaml: a secret is found, never written there, and each mistake is told."""

import pytest

from fhircm.exchange.credentials import Credentials, Secret, SecretMissing, client_at, read
from fhircm.exchange.partners import load_partner
from fhircm.exchange.yaml_keys import Keys, YamlWrong
from fhircm.fhir import artefacts


def keys(tmp_path, section):
    return Keys(tmp_path / "partner.yaml", "", {"credentials": section} if section is not None else {"algorithm": "ES384"})


def test_without_the_section_the_hub_signs(tmp_path):
    assert read(keys(tmp_path, None)) == Credentials(algorithm="ES384")


def test_every_key_is_read(tmp_path):
    told = {
        "method": "client_secret_post",
        "secret": {"file": "secrets/north"},
        "token_endpoint": "https://login.ehr.example/token",
        "parameters": {"resource": "urn:x"},
    }
    found = read(keys(tmp_path, told))
    assert found.secret == Secret(file=tmp_path / "secrets/north")
    assert (found.method, found.token_endpoint) == ("client_secret_post", "https://login.ehr.example/token")
    assert found.parameters == {"resource": "urn:x"}
    assert read(keys(tmp_path, {"algorithm": "ES384", "audience": "urn:ehr"})).algorithm == "ES384"


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"algorithm": None}, "credentials.algorithm must be one of RS384, ES384"),
        ({}, "partner.yaml: algorithm is missing"),
        ({"method": "password"}, "credentials.method must be one of private_key_jwt"),
        ({"method": "client_secret_basic"}, "credentials.secret is missing"),
        ({"method": "client_secret_basic", "secret": "hunter2"}, "credentials.secret must never stand in this file"),
        ({"method": "client_secret_basic", "secret": {}}, "credentials.secret must have either file or env"),
        ({"method": "client_secret_basic", "secret": {"file": "a", "env": "B"}}, "must have either file or env"),
        ({"method": "client_secret_basic", "secret": {"env": "NOT A NAME"}}, "credentials.secret.env must be"),
        ({"algorithm": "RS384", "secret": {"env": "X"}}, "credentials.secret is not used with this method"),
        ({"method": "none", "secret": {"env": "X"}}, "credentials.secret is not used without sign-in"),
        ({"method": "none", "token_endpoint": "https://x/token"}, "credentials.token_endpoint is not used without sign-in"),
        ({"algorithm": "HS256"}, "credentials.algorithm must be one of RS384, ES384"),
        ({"algorithm": "RS384", "token_endpoint": "login"}, "credentials.token_endpoint must be an https URL"),
        (
            {"algorithm": "RS384", "token_endpoint": "https://me:pw@x/token"},
            "credentials.token_endpoint must be a URL without user name",
        ),
        (
            {"algorithm": "RS384", "parameters": {"client_secret": "x"}},
            "credentials.parameters.client_secret is set by fhircm itself",
        ),
        ({"algorithm": "RS384", "colour": "red"}, "credentials.colour is not a key"),
    ],
)
def test_each_mistake_is_told_with_its_place_and_without_the_secret(tmp_path, section, told):
    with pytest.raises(YamlWrong, match=told) as error:
        read(keys(tmp_path, section))
    assert "hunter2" not in str(error.value)


def test_a_secret_that_is_not_there_is_told_without_being_told(tmp_path, monkeypatch):
    file = tmp_path / "secret"
    with pytest.raises(SecretMissing, match="secret cannot be read: No such file"):
        Secret(file).read()
    for text in ("", " \n", "two\nlines", "x" * 5000):
        file.write_text(text)
        with pytest.raises(SecretMissing, match="holds no secret"):
            Secret(file).read()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SecretMissing, match="it is not text"):
        Secret(file).read()
    monkeypatch.delenv("NORTH_SECRET", raising=False)
    with pytest.raises(SecretMissing, match="The environment variable NORTH_SECRET holds no secret"):
        Secret(env="NORTH_SECRET").read()
    monkeypatch.setenv("NORTH_SECRET", "right")
    assert Secret(env="NORTH_SECRET").read() == "right"


def test_a_file_that_everybody_can_read_is_told(tmp_path, caplog):
    file = tmp_path / "secret"
    file.write_text("right\n")
    file.chmod(0o644)
    assert Secret(file).read() == "right"
    assert "can be read by everybody: chmod 600 it" in caplog.text
    caplog.clear()
    file.chmod(0o640)
    Secret(file).read()
    assert not caplog.text


@pytest.mark.parametrize("name", ["lakeside-hospital", "riverbend-clinic"])
def test_a_partner_of_any_shape_may_have_a_secret_and_be_launched_from(tmp_path, name):
    shipped = (artefacts.folder("mappings") / name / "partner.yaml").read_text()
    file = tmp_path / name / "partner.yaml"
    file.parent.mkdir()
    file.write_text(
        f"{shipped}\ncredentials:\n  method: client_secret_basic\n  secret: {{file: secret}}\n  parameters: {{resource: 'urn:x'}}\n"
        "launch:\n  client_id: the-app\n  roles: [nurse]\n"
    )
    partner = load_partner(file)
    assert partner.credentials.secret == Secret(file=tmp_path / name / "secret")
    assert client_at(partner, tmp_path / "keys").method == "client_secret_basic"
    assert not (tmp_path / "keys").exists()  # a key is made only for who signs
    assert partner.launch is not None
    assert partner.launch.roles == {"nurse"}
