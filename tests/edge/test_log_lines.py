"""One event is one line, whatever somebody calls themselves, and no line lets anybody in."""

import asyncio
import gc
import io
import logging

import pytest

from fhircm import correlation
from fhircm.log_lines import clean, log_to


@pytest.fixture
def logged():
    """Logs as a process does; gives the stream."""
    root, before, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    found = {name: getattr(logging, name) for name in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing")}
    stream = io.StringIO()
    log_to(stream, logging.DEBUG)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("fhircm").setLevel(logging.NOTSET)
    for name, value in found.items():
        setattr(logging, name, value)


ATTACKS = [
    "a\n2026-01-01 INFO - fhircm.audit forged",
    "a\r\nforged",
    "\x1b[2J\x1b[31mred",
    "a\x00b",
    "a\u2028forged",
    "a\x85forged",
    "\u202eelif",
    "\x9b31m",
    "tab\tseparated",
]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_what_is_logged_stays_on_its_line_and_steers_no_terminal(logged, attack):
    logging.getLogger("fhircm.x").warning("sign-in of %s refused", attack)
    text = logged.getvalue()
    assert len(text.splitlines()) == 1
    assert text.rstrip("\n").isprintable()
    assert "refused" in text


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer abcDEF123._-~+/=",
        "Authorization: Basic dXNlcjpwYXNz",
        "eyJhbGciOiJFUzM4NCJ9.eyJpc3MiOiJhcHAifQ.c2lnbmF0dXJl",
        "/cb?code=S3cretS3cret&state=S3cretS3cret",
        "client_secret=S3cretS3cret",
        "postgresql://hub:S3cretS3cret@db/hub",
    ],
)
def test_a_secret_that_slipped_into_a_line_does_not_leave(logged, secret):
    logging.getLogger("fhircm.x").error("sent %s", secret)
    for part in ("abcDEF123", "dXNlcjpwYXNz", "eyJ", "S3cret", "c2lnbmF0dXJl"):
        assert part not in logged.getvalue()


def test_what_is_no_secret_stays_readable():
    line = "app GET /fhir/Patient/p1 200 1.2 ms; code:not=x; a token is needed"
    assert clean(line) == line.replace("code:not=x", "code:not=x")


def test_an_exception_is_told_by_kind_and_place_and_not_by_its_text(logged):
    try:
        raise ValueError("birthDate 1971-03-09\nforged")
    except ValueError:
        logging.getLogger("fhircm.x").exception("failed")
    text = logged.getvalue()
    assert "ValueError" in text
    assert "test_log_lines.py" in text
    assert "1971" not in text
    assert "forged" not in text


async def test_a_task_that_fails_unseen_is_told_without_the_text_of_its_error(logged):
    async def failing():
        raise ValueError("birthDate 1971-03-09")

    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(None)
    task = asyncio.create_task(failing())
    await asyncio.wait([task])
    del task
    gc.collect()
    loop.set_exception_handler(handler)
    assert "never retrieved" in logged.getvalue()
    assert "1971" not in logged.getvalue()


def test_libraries_do_not_tell_what_they_send_and_receive(logged):
    for name in ("httpcore.http11", "httpx", "asyncio", "alembic", "authlib", "python_multipart.multipart"):
        logging.getLogger(name).debug("headers: hidden")
        logging.getLogger(name).info("headers: hidden")
    assert logged.getvalue() == ""
    logging.getLogger("fhircm.x").debug("seen")
    assert "seen" in logged.getvalue()


def test_the_request_at_hand_is_in_the_line(logged):
    bound = correlation.current.set("r-17")
    logging.getLogger("fhircm.x").info("in")
    correlation.current.reset(bound)
    logging.getLogger("fhircm.x").info("out")
    assert [line.split()[3] for line in logged.getvalue().splitlines()] == ["r-17", "-"]
