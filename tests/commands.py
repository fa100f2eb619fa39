"""Commands in the process of the test: starting Python for each takes a second."""

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from fhircm.cli import main


@dataclass(frozen=True)
class Done:
    """As subprocess tells it."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments, typed="", **environment):
    """Run `fhircm ARGUMENTS` in a thread of its own, for commands bring their own event loop."""
    with ThreadPoolExecutor(1) as one:
        return one.submit(_run, list(map(str, arguments)), typed, environment).result()


def _run(arguments, typed, environment):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        patch.dict(os.environ, environment),
        patch.object(sys, "argv", ["fhircm", *arguments]),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode()))),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as error:
            status = error.code or 0
    return Done(status, out.getvalue(), err.getvalue())
