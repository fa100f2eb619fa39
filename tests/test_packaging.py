"""The lock files are complete and plain, and what must stay out stays out."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = sorted(ROOT.glob("requirements*.lock"))


def test_httpx2_is_absent():
    """Authlib and Starlette would silently prefer it, and respx cannot see it."""
    assert importlib.util.find_spec("httpx2") is None
    assert not any(re.search(r"^httpx2\b", lock.read_text(), re.MULTILINE) for lock in LOCKS)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_hashes_and_no_index_is_named(lock):
    text = lock.read_text()
    packages = re.findall(r"^[a-z0-9][\w.-]*==.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)*", text, re.MULTILINE)
    assert packages
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in text


def test_rules_between_rooms_cover_every_module():
    """import-linter keeps the layers (`make test` runs it); a new room must be named there."""
    contracts = (ROOT / "pyproject.toml").read_text()
    rooms = {path.stem for path in (ROOT / "fhircm").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    unnamed = {room for room in rooms - {"__init__"} if f"fhircm.{room}" not in contracts}
    assert unnamed == set()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which fhircm was installed from a wheel, far from the source tree."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(ROOT)], check=True)
    wheel = next(place.glob("fhircm-*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place / "site"), str(wheel)], check=True)
    return place / "site"


def test_what_is_data_is_found_from_an_installed_wheel(installed):
    run = {"cwd": installed.parent, "env": {**os.environ, "PYTHONPATH": str(installed)}, "capture_output": True, "text": True}
    look = "import fhircm.fhir.artefacts as a; print(a.folder('profiles'), a.folder('mappings'))"
    found = subprocess.run([sys.executable, "-c", look], **run, check=True)
    assert found.stdout.split() == [str(installed / "fhircm" / name) for name in ("profiles", "mappings")]
    partners = subprocess.run([sys.executable, "-m", "fhircm.cli", "partner", "list"], **run, check=True)
    assert [line.split()[0] for line in partners.stdout.splitlines()] == ["lakeside-hospital", "riverbend-clinic"]
    for folder in ("profiles", "mappings"):
        shipped = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {
            path.relative_to(installed / "fhircm" / folder) for path in (installed / "fhircm" / folder).rglob("*.*")
        } >= shipped
    task = '{"resourceType": "Task", "status": "requested", "intent": "order", "meta": {"profile": [PROFILE]}}'
    profile = next(path for path in (ROOT / "profiles").rglob("*.json") if '"type": "Task"' in path.read_text())
    body = task.replace("PROFILE", json.dumps(json.loads(profile.read_text())["url"]))
    checked = subprocess.run([sys.executable, "-c", f"from fhircm.fhir.validation import check; check({body.encode()!r})"], **run)
    assert checked.returncode == 1
    assert "Invalid: Task." in checked.stderr, "the profile that it claims was found and applied"


def test_the_index_of_decisions_names_every_page():
    pages = {path.name for path in (ROOT / "docs/decisions").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs/decisions/README.md").read_text()))
