"""Start, watch and end the processes of a story; each logs to a file of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO, Any

import httpx

from fhircm.exchange.trust import trust


class DidNotStart(Exception):
    """A process ended or never answered; the message names its log."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Processes:
    """The running processes of a story, by name."""

    logs: Path
    environment: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start `python -m ARGUMENTS` under a name; what it prints goes to NAME.log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        whole = {**os.environ, **self.environment, **(environment or {})}
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = self.launch(*arguments, environment=whole, output=log)
        return self.running[name]

    @staticmethod
    def launch(
        *arguments: str, environment: Mapping[str, str], output: IO[bytes] | int | None = None, folder: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `python -m ARGUMENTS` in a folder; what it prints goes to `output`, or to where this process prints."""
        command = [sys.executable, "-m", *arguments]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        return subprocess.Popen(command, env=environment, cwd=folder, **streams)  # noqa: S603 our own modules

    async def answering(self, name: str, url: str, seconds: float = 60) -> None:
        """Wait until a URL answers 200. Raises DidNotStart."""
        end = monotonic() + seconds
        async with httpx.AsyncClient(timeout=5, verify=trust()) as http:
            while monotonic() < end and self.running[name].poll() is None:
                try:
                    if (await http.get(url)).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass  # not listening yet
                await asyncio.sleep(0.05)
        raise DidNotStart(f"{name} does not answer at {url}; its log: {self.logs / f'{name}.log'}")

    def kill(self, name: str) -> None:
        """SIGKILL: no goodbye."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL for one that stays."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """End everything that this story started, the last started first."""
        for name in reversed(list(self.running)):
            self.stop(name)
