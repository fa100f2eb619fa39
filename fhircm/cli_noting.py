"""What an operator does to clients, people and organisations is in the audit, as what is done in the console is.

https://profiles.ihe.net/ITI/BALP. The event names the command and what it was done to, and the account of the operating system.
"""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile

from fhircm import wiring
from fhircm.access import audit
from fhircm.access.audit_journal import Journal
from fhircm.settings import Settings
from fhircm.settings import load as load_settings
from fhircm.store.resources import Store


def with_store(work: Callable[[Settings, Store], Awaitable[int | None]], *, note: bool = True, target: str | None = None) -> None:
    """Carry out a command over the store, written down unless it only looks at what tells of nobody; ends with its exit status.

    `target`: what it was done to, when that is not the word behind the command.
    """
    settings = load_settings()

    async def go() -> int:
        async with wiring.open_store(settings) as store:
            return await work(settings, store) or 0

    raise SystemExit(noted(settings, lambda: asyncio.run(go()), target) if note else asyncio.run(go()))


def noted(settings: Settings, work: Callable[[], int | None], target: str | None = None) -> int:
    """Carry out the command that was given, and write it down; returns its exit status. Raises what it raises, and AuditUnavailable."""
    status = 1
    try:
        status = work() or 0
        return status
    finally:
        if settings.audit:
            what, given = _given(sys.argv[1:])
            journal = Journal(wiring.audit_folder(settings), settings.audit_limit)
            audit.record_security(journal, what, status=400 if status else 200, login=operator(), target=target or given)
            journal.close_segment()


def _given(words: Sequence[str]) -> tuple[str, str | None]:
    """The command, of two words, and what it is done to when that follows right behind: options may hold secrets and are not told."""
    plain = list(takewhile(lambda word: not word.startswith("-"), words))
    return "-".join(plain[:2]) or "command", plain[2] if len(plain) > 2 else None


def operator() -> str:
    """The account of the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # one without a name, as in a container
        return "operator"
