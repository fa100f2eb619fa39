"""Log lines that cannot be forged and that hold no secret: one event is one line, whatever somebody calls themselves.

https://owasp.org/www-community/attacks/Log_Injection. Who logs takes care of what it tells; this is the last door. An exception is told by
its kind and where it happened: its text may quote a resource or a statement with the values of one.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from types import TracebackType
from typing import TextIO

from fhircm import correlation

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SECRET = re.compile(
    r"(?i)(\b(?:bearer|basic) +)[\w.~+/=-]{6,}"
    r"|(\b(?:access_token|refresh_token|id_token|token|code|code_verifier|client_secret|client_assertion|password|state|launch)=)[^&\s\"']+"
)
_JWT = re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?")
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+]*://[^/\s:@]*:)[^@/\s]+@")
Caught = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def clean(text: str) -> str:
    """A text without what would begin a line of its own, steer a terminal, or let somebody in."""
    lowered = text.lower()  # most lines hold nothing of the kind, and that is found out in a twentieth of the time
    if "=" in text or "bearer " in lowered or "basic " in lowered:
        text = _SECRET.sub(lambda found: f"{found[1] or found[2]}…", text)
    if "eyJ" in text:
        text = _JWT.sub("…", text)
    if "://" in text:
        text = _URL_PASSWORD.sub(r"\1…@", text)
    return text if text.isprintable() else _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Lines(logging.Formatter):
    """Time, level, request, logger and message on one line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(request)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line."""
        record.request = correlation.current.get()
        if record.name == "asyncio":  # of a task that failed unseen it quotes the error behind its first line
            record.message = record.message.partition("\n")[0]
        return clean(super().formatMessage(record))

    def formatException(self, ei: Caught) -> str:
        """Kind and place, without the text."""
        kind, _, where = ei
        frames = [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(where)]
        return "\n".join([*frames, f"  {kind.__name__ if kind else 'unknown'}"])


def log_to(stream: TextIO, level: int) -> None:
    """Log the hub's own lines from a level on, and those of its libraries from WARNING on: below that they tell of headers and values."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("fhircm").setLevel(level)
    # What a line does not show is not to be found out: https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None  # type: ignore[attr-defined]
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def log_to_stderr(level: int) -> None:
    """`log_to` where a process tells its operator."""
    log_to(sys.stderr, level)
