"""The lock files are complete and plain, and what must stay out stays out."""

import importlib.util
import re
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
