"""Every setting is documented with its default, and a wrong one is told in plain words."""

import json
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fhircm.settings import Settings, SettingsWrong, load

PAGE = Path(__file__).parent.parent / "docs/reference/settings.md"


def test_the_page_lists_exactly_the_settings_with_their_defaults_and_meanings():
    documented = dict(re.findall(r"^\| `FHIRCM_(\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if default is None:
            written = "(none)"
        else:
            value = TypeAdapter(type(default)).dump_python(default, mode="json")
            written = f"`{value if isinstance(value, str) else json.dumps(value)}`"
        expected[name.upper()] = f"{written} | {field.description}"
    assert documented == expected


def test_the_environment_wins_over_the_file(tmp_path, monkeypatch):
    file = tmp_path / "hub.toml"
    file.write_text('port = 9000\nhost = "127.0.0.2"\n')
    monkeypatch.setenv("FHIRCM_CONFIG", str(file))
    monkeypatch.setenv("FHIRCM_PORT", "9001")
    settings = load()
    assert (settings.port, settings.host) == (9001, "127.0.0.2")


@pytest.mark.parametrize(
    ("text", "named"),
    [('port = "many"', "port"), ("prot = 1", "prot"), ("port = ", "read"), ('database_url = "mysql://x"', "database_url")],
)
def test_a_wrong_file_is_told_with_the_place_and_without_the_value(tmp_path, monkeypatch, text, named):
    file = tmp_path / "hub.toml"
    file.write_text(text)
    monkeypatch.setenv("FHIRCM_CONFIG", str(file))
    with pytest.raises(SettingsWrong, match=named) as told:
        load()
    assert "many" not in str(told.value)


def test_a_config_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("FHIRCM_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsWrong, match="not a file"):
        load()
