"""docs/tutorial/write-a-smart-app.md, line by line: its files, its commands with what they print, and its app in a browser."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest

from fhircm.demo.processes import free_port

from .conftest import listening
from .window import Window

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "write-a-smart-app.md"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = shlex.quote(sys.executable)


class Reader:
    """Somebody who does what the page says, in a folder of their own and with ports that are free."""

    def __init__(self, folder):
        self.folder, self.running = folder, []
        self.ports = [free_port(), free_port()]  # the hub's and the app's, in the order in which they are started
        self.hub, self.app = f"http://127.0.0.1:{self.ports[0]}", f"http://localhost:{self.ports[1]}"
        text = PAGE.read_text().replace("8080", str(self.ports[0])).replace("8000", str(self.ports[1]))
        self.sections = dict(re.findall(r"^## (\d)\.[^\n]*\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL))
        self.environment = os.environ | {"FHIRCM_PORT": str(self.ports[0]), "FHIRCM_PUBLIC_BASE_URL": self.hub, "COLUMNS": "300"}

    async def follow(self, *sections):
        """Do everything in these sections; what they say is printed, is."""
        for number in sections:
            printed = None
            for kind, name, body in BLOCK.findall(self.sections[number]):
                if kind == "serve":
                    self.running.append(self.start(body))
                    await listening(self.ports[len(self.running) - 1], self.running[-1])
                elif kind == "sh":
                    printed = await asyncio.to_thread(self.run, body)
                elif kind == "text":
                    assert printed == body
                else:
                    (self.folder / name).write_text(body)

    def start(self, command):
        command = command.replace("fhircm serve", f"{PYTHON} -m fhircm.cli serve").replace("python3 ", f"{PYTHON} ")
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(shlex.split(command), cwd=self.folder, env=self.environment, **quiet)

    def run(self, commands):
        """What commands print; each must succeed."""
        script = f'fhircm() {{ {PYTHON} -m fhircm.cli "$@"; }}\n{commands}'
        command = [shutil.which("bash"), "-e", "-o", "pipefail", "-c", script]
        told = subprocess.run(command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, check=True, timeout=120)
        return told.stdout.decode()

    def shown(self):
        """The name, the problems and the last line that the app shows, as the page has it."""
        quoted = re.search(r"(?:^>.*\n)+", self.sections["4"], re.MULTILINE)[0]
        lines = [line.lstrip("> ").strip() for line in quoted.splitlines()]
        return lines[0].strip("*"), [line[2:] for line in lines if line.startswith("- ")], lines[-1]

    def end(self):
        for process in self.running:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture
def reader(tmp_path):
    one = Reader(tmp_path)
    yield one
    one.end()


async def test_who_follows_the_tutorial_has_an_app(reader, chromium):
    context = await chromium.new_context(reduced_motion="reduce")
    window = await Window.open(context, None)
    page = window.page
    name, problems, status = reader.shown()
    try:
        await reader.follow("1", "2", "3")
        await page.goto(f"{reader.app}/launch.html")
        await window.sign_in("cleo")
        assert await page.locator("li.pick strong").count() == 1
        await window.press("Ada Abbott")
        await window.press("Allow access")
        await page.get_by_role("status").get_by_text(status).wait_for()
        assert await page.locator("h1").inner_text() == name
        assert sorted(await page.locator("li").all_inner_texts()) == sorted(problems)
        assert "404" in (await window.run("() => client.request('Patient/cy')"))["error"]
        assert (await window.tokens())["expires_in"] == 15 * 60
        await reader.follow("4", "5")
        launched = json.loads((reader.folder / "launch.json").read_text())
        file = reader.folder / "app" / "launch.html"
        file.write_text(file.read_text().replace("launch/patient ", "launch "))
        await page.goto(f"{reader.app}/launch.html?{urlencode({'iss': launched['iss'], 'launch': launched['launch']})}")
        await window.press("Allow access")
        await page.get_by_role("status").get_by_text(status).wait_for()
        assert (await window.tokens())["intent"] == "review"
    finally:
        await context.close()
