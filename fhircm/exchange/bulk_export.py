"""Have a partner export in bulk and take in what it exports: hours or weeks of waiting that survive every restart.

https://hl7.org/fhir/uv/bulkdata/export.html. An export is a row of the store: its phase, when to go on, where the partner tells how far it is.
Each call of `advance` does the next thing and returns; nobody sleeps through a Retry-After of hours. What the partner was asked for stays
asked for until all of it is written: only then does the next export ask for what is newer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from uuid import uuid4

from fhircm.exchange import bulk_due, human
from fhircm.exchange.bulk_due import LAST, Errand, namespace
from fhircm.exchange.bulk_intake import Intake
from fhircm.exchange.bulk_request import RESPOND_ASYNC, Manifest, kick_off, manifest
from fhircm.exchange.bulk_shape import Bulk
from fhircm.exchange.bulk_spool import Spool
from fhircm.exchange.bulk_state import FIRST_WAIT, Export, Phase, Restart, cleared, files_at, keep, kept, renew
from fhircm.exchange.client import FHIR_JSON, Got, PartnerClient
from fhircm.exchange.errors import (
    PartnerAnswerBroken,
    PartnerRefused,
    PartnerUnavailable,
    SignInRefused,
    harmless,
    issues,
    retry_after,
    summary,
)
from fhircm.exchange.members import members as panel_members
from fhircm.exchange.pull import PullRunning
from fhircm.fhir.outcome import FhirError, Issue
from fhircm.store.resources import ClearStates, Op, SetState, Store

log = logging.getLogger("fhircm.exchange.bulk_export")

LONGEST_WAIT = 1800.0
STARTS = 3  # of one export that the partner loses or breaks off, before it has failed
PAGES = 1000  # of one manifest
UNTOLD_FAILURES = 3  # in a row, before a human is told
BUSY = timedelta(seconds=30)  # while a pull writes the same records


@dataclass(frozen=True, slots=True)
class Advanced:
    """What a call came to: whether something was done, the export that is under way, and since when the next thing may be done."""

    did: bool
    export: Export | None = None
    due: datetime | None = None
    finished: dict[str, Any] | None = None  # the figures of an export that ended in this call


async def advance(
    store: Store,
    client: PartnerClient,
    bulk: Bulk,
    spool_dir: Path,
    *,
    members: Callable[[PartnerClient], Awaitable[list[str]]] = panel_members,
    owner: str | None = None,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
    lease_seconds: float = 30.0,
) -> Advanced:
    """Do the next thing of a partner's exports, if one is due. `owner`: who is told of what fails again and again.

    Two processes may call it: one works, the other finds nothing to do. Raises OSError when the spool cannot be written, and the store's errors.
    """
    name, holder = f"bulk:{client.partner.name}", str(uuid4())
    if not await store.lease(name, holder, lease_seconds):
        return Advanced(False, await kept(store, client.partner.name))
    work = asyncio.create_task(_Run(store, client, bulk, spool_dir, members, owner, tell, lease_seconds).next())
    renewal = asyncio.create_task(renew(store, name, holder, lease_seconds))
    try:
        await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else Advanced(False)
    finally:
        for task in (work, renewal):
            task.cancel()
        await asyncio.gather(work, renewal, return_exceptions=True)
        await store.release(name, holder)


async def cancel(store: Store, client: PartnerClient, spool_dir: Path) -> bool:
    """End the export that is under way, at the partner too; what was written stays. Returns whether there was one."""
    export = await kept(store, client.partner.name)
    if export is None:
        return False
    await _end_there(client, export)
    Spool(spool_dir, client.partner.name, export.id).remove()
    await store.transact(cleared(client.partner.name), origin="hub")
    return True


async def _end_there(client: PartnerClient, export: Export) -> bool:
    """Tell the partner that its export may be removed. Returns whether it heard."""
    if export.status_url is None:
        return True
    try:
        got = await client.ask("DELETE", export.status_url, {"Accept": FHIR_JSON})
    except FhirError:
        return False
    return got.status < 500 and got.status != 429


class _Run:
    """One call of `advance`."""

    def __init__(
        self,
        store: Store,
        client: PartnerClient,
        bulk: Bulk,
        spool_dir: Path,
        members: Callable[[PartnerClient], Awaitable[list[str]]],
        owner: str | None,
        tell: Callable[[str, int, int], None],
        lease_seconds: float,
    ) -> None:
        self.store, self.client, self.bulk, self.partner = store, client, bulk, client.partner
        self.spool_dir, self.members, self.owner = spool_dir, members, owner
        self.intake = Intake(store, client, bulk, spool_dir, self._go_on, tell, lease_seconds)

    async def next(self) -> Advanced:
        export = await kept(self.store, self.partner.name)
        if export is None:
            export = await self._new()
            if export is None:
                return Advanced(False)
        due = datetime.fromisoformat(export.due)
        if due > self.store.clock():
            return Advanced(False, export, due)
        before = (export.phase, export.files)
        try:
            figures = await self._step(export)
        except Restart as why:
            figures = await self._again(export, str(why))
        except (PartnerRefused, PartnerAnswerBroken) as error:
            figures = await self._refused(export, error)
        except (PartnerUnavailable, PullRunning) as error:
            await self._later(export, error)
            figures = None
        except OSError as error:
            await self._later(export, PartnerUnavailable(f"The spool folder cannot be used: {error.strerror}", retry_after=60.0))
            figures = None
        if figures is not None:
            return Advanced(True, None, None, figures)
        due = datetime.fromisoformat(export.due)
        return Advanced(due <= self.store.clock() or before != (export.phase, export.files), export, due)

    async def _new(self) -> Export | None:
        """The export that is due, as a row; nothing was sent yet."""
        if not await bulk_due.is_due(self.store, self.partner, self.bulk):
            return None
        present = None
        if self.bulk.level == "group" or self.bulk.members_only:
            present = tuple(sorted(set(await self.members(self.client))))
        errand = await bulk_due.next_errand(self.store, self.partner, self.bulk, present)
        if errand is None:
            return None
        now = self.store.clock().isoformat()
        since = errand.since.isoformat() if errand.since else None
        patients = list(errand.patients) if errand.patients is not None else None
        export = Export(
            str(uuid4()), list(errand.types), since, patients, list(present) if present is not None else None, now, now
        )
        await self._save(export)
        return export

    async def _step(self, export: Export) -> dict[str, Any] | None:
        if self.store.clock() - datetime.fromisoformat(export.begun) > self.bulk.give_up and export.phase in (
            Phase.KICK_OFF,
            Phase.RUNNING,
        ):
            raise PartnerRefused(f"The export did not come to its end within {self.bulk.give_up.days} days", answered=202)
        match export.phase:
            case Phase.KICK_OFF:
                await self._kick_off(export)
            case Phase.RUNNING:
                await self._poll(export)
            case Phase.FETCHING:
                await self.intake.fetch(export)
            case Phase.SORTING:
                await self.intake.sort(export)
            case Phase.WRITING:
                await self.intake.write(export)
            case Phase.ENDING:
                return await self._end(export)
        return None

    async def _save(self, export: Export, *more: Op) -> None:
        await self.store.transact([keep(self.partner.name, export), *more], origin="hub")

    async def _go_on(self, export: Export, phase: Phase, seconds: float = 0.0, *more: Op) -> None:
        """The next phase, after so many seconds."""
        export.phase, export.failures = phase, 0
        export.due = (self.store.clock() + timedelta(seconds=seconds)).isoformat()
        await self._save(export, *more)

    def _wait(self, got: Got) -> float:
        """The seconds that the partner asks to be left alone, within what partner.yaml allows."""
        asked = retry_after(got.headers)
        return min(max(asked if asked is not None else self.bulk.poll_least, self.bulk.poll_least), self.bulk.poll_most)

    # --- when it does not go on ----------------------------------------------------------------------------------------------

    async def _later(self, export: Export, error: PartnerUnavailable | PullRunning) -> None:
        export.failures += 1
        wait = min(FIRST_WAIT * 2 ** min(export.failures - 1, 10), LONGEST_WAIT)
        if isinstance(error, PartnerUnavailable):
            wait = min(max(wait, error.retry_after or 0.0), self.bulk.poll_most)
            if not error.sent and export.phase is Phase.KICK_OFF:
                export.asked = None
        else:
            wait = BUSY.total_seconds()
        log.info("%s: the export waits %.0f s: %s", self.partner.name, wait, error)
        export.progress = str(error)
        export.due = (self.store.clock() + timedelta(seconds=wait)).isoformat()
        await self._save(export)

    async def _again(self, export: Export, why: str) -> dict[str, Any] | None:
        """Start anew, or give up after some starts."""
        export.tell(why)
        if export.starts >= STARTS:
            export.fail(export.types, why)
            return await self._close(export)
        Spool(self.spool_dir, self.partner.name, export.id).remove()
        export.status_url = export.following = export.transaction_time = export.asked = None
        export.pages = export.files = export.parts = export.written = 0
        export.mend, export.failed, export.content = [], {}, {}
        await self._go_on(export, Phase.KICK_OFF, FIRST_WAIT, ClearStates(files_at(self.partner.name)))
        return None

    async def _refused(self, export: Export, error: PartnerRefused | PartnerAnswerBroken) -> dict[str, Any] | None:
        """The partner said no: the types of this export are asked for again another time."""
        if isinstance(error, SignInRefused) and export.phase is not Phase.KICK_OFF:  # its export goes on while the key is mended
            await self._later(export, PartnerUnavailable(str(error), retry_after=300.0))
            return None
        export.tell(str(error))
        export.fail(export.types, str(error))
        return await self._close(export)

    # --- at the partner ------------------------------------------------------------------------------------------------------

    async def _kick_off(self, export: Export) -> None:
        if export.asked is not None:
            export.lost_answers += 1
            export.tell("The answer to a kick-off was lost: that export, if there is one, is left to the partner")
        since = datetime.fromisoformat(export.since) if export.since else None
        sent = kick_off(self.partner, self.bulk, export.types, since, export.patients)
        export.asked, export.starts = self.store.clock().isoformat(), export.starts + 1
        await self._save(export)
        headers = {"Accept": FHIR_JSON, **RESPOND_ASYNC} | ({"Content-Type": FHIR_JSON} if sent.body else {})
        got = await self.client.ask(sent.method, sent.url, headers, sent.body)
        here = urljoin(sent.url, got.headers.get("Content-Location", ""))
        if got.status == 202 and got.headers.get("Content-Location"):
            await self._started(export, here, self._wait(got))
        elif got.status == 429:  # one at a time, and another one is running: perhaps ours, whose answer was lost
            export.asked, export.starts = None, export.starts - 1
            if got.headers.get("Content-Location") and export.lost_answers:
                await self._started(export, here, self._wait(got))
                return
            export.progress = "The partner does one export at a time, and another one is running"
            await self._go_on(export, Phase.KICK_OFF, max(self._wait(got), FIRST_WAIT))
        else:
            _raise_for(got, self.partner.name)
            raise PartnerAnswerBroken(f"{got.where} was answered {got.status} without a Content-Location")

    async def _started(self, export: Export, status_url: str, wait: float) -> None:
        export.status_url, export.asked, export.progress = status_url, None, ""
        await self._go_on(export, Phase.RUNNING, wait)

    async def _poll(self, export: Export) -> None:
        url = export.following or export.status_url
        assert url is not None
        got = await self.client.ask("GET", url, {"Accept": "application/json"})
        if got.status == 202:
            export.progress = harmless(got.headers.get("X-Progress", ""))
            await self._go_on(export, Phase.RUNNING, self._wait(got))
        elif got.status == 200:
            await self._manifest(export, manifest(got.body, url))
        elif got.status in (404, 410):
            raise Restart("The partner knows nothing of its export any more")
        elif got.status >= 500 and _is_final(got.body):
            raise Restart(f"The partner broke its export off: {summary(issues(got.body) or [])}")
        else:
            _raise_for(got, self.partner.name)
            raise PartnerAnswerBroken(f"{got.where} was answered {got.status}")

    async def _manifest(self, export: Export, told: Manifest) -> None:
        """Take a page of the manifest; the files are fetched once all pages are here."""
        if export.pages == 0:
            if told.request and not self._is_ours(export, told.request):
                await _end_there(self.client, export)
                raise Restart("The export that was running was another one than the one that was asked for")
            export.transaction_time = told.transaction_time.isoformat() if told.transaction_time else None
            if export.transaction_time is None:
                export.tell("The manifest has no transactionTime: the next export is a whole one")
        rows: list[Op] = []
        for one in told.files:
            place = self.bulk.place(self.partner.base_url, one.url)
            row = {"kind": one.kind, "type": one.type, "url": one.url, "count": one.count, "attempts": 0}
            row |= {"token": told.requires_token and place is not None and place.token, "allowed": place is not None}
            rows.append(SetState(files_at(self.partner.name), f"{export.files:06}", row))
            export.files += 1
        export.pages += 1
        if told.following is not None and export.pages < PAGES:
            export.following = told.following
            await self._go_on(export, Phase.RUNNING, 0.0, *rows)
            return
        export.following = None
        await self._go_on(export, Phase.FETCHING, 0.0, *rows)

    def _is_ours(self, export: Export, request: str) -> bool:
        """Whether a manifest answers the kick-off that was sent; what cannot be compared is believed."""
        since = datetime.fromisoformat(export.since) if export.since else None
        ours = kick_off(self.partner, self.bulk, export.types, since, export.patients)
        adopted = export.lost_answers
        return not adopted or ours.method == "POST" or urlsplit(request).query == urlsplit(ours.url).query

    # --- the end -------------------------------------------------------------------------------------------------------------

    async def _end(self, export: Export) -> dict[str, Any]:
        if not await _end_there(self.client, export):
            export.tell("The partner did not take the order to remove its export")
        return await self._close(export)

    async def _close(self, export: Export) -> dict[str, Any]:
        """The end, as one fact: how each type stands now, and what this export came to."""
        since = datetime.fromisoformat(export.since) if export.since else None
        members = tuple(export.members) if export.members is not None else None
        errand = Errand(tuple(export.types), since, tuple(export.patients) if export.patients is not None else None, members)
        facts = await bulk_due.finished(self.store, self.partner, self.bulk, errand, export.transaction_time, export.failed)
        figures = {
            **{name: value for name, value in export.content.items() if name not in ("failed", "some_refused")},
            "refusals": export.content.get("some_refused", []),
            "types": export.types,
            "since": export.since,
            "files": export.files,
            "begun": export.begun,
            "finished": self.store.clock().isoformat(),
            "failed": export.failed,
            "told": export.told,
        }
        task = await self._human(export)
        last = SetState(namespace(self.partner.name), LAST, figures)
        await self.store.transact([*facts, last, *task, *cleared(self.partner.name)], origin="hub")
        Spool(self.spool_dir, self.partner.name, export.id).remove()
        log.info("%s: %s", self.partner.name, told(figures))
        return figures

    async def _human(self, export: Export) -> list[Op]:
        """A Task for a human when the same types fail again and again; its end when they do not."""
        parts = ("bulk", self.partner.name)
        known = await bulk_due.standings(self.store, self.partner.name)
        stubborn = sorted(type for type in export.failed if known.get(type, bulk_due.Standing()).failures + 1 >= UNTOLD_FAILURES)
        if not stubborn:
            return list(await human.take_back(self.store, parts, "The export came to its end")) if not export.failed else []
        why = export.failed[stubborn[0]]
        reason = f"The bulk export of {', '.join(stubborn)} at {self.partner.name} failed {UNTOLD_FAILURES} times or more: {why}"
        return list(
            await human.tell(
                self.store, parts, "parked", "An exchange was given up", reason, focus=self.owner, patient=None, owner=self.owner
            )
        )


def told(figures: dict[str, Any]) -> str:
    """What an export came to, in one line."""
    texts = [
        f"{figures.get('patients', 0)} patients, {figures.get('resources', 0)} resources: {figures.get('written', 0)} written"
    ]
    texts.append(f"{figures.get('unchanged', 0)} unchanged")
    texts += [f"{figures[name]} {name}" for name in ("refused", "held", "gone") if figures.get(name)]
    texts += [f"{', '.join(sorted(figures['failed']))} to be asked for again"] if figures["failed"] else []
    return ", ".join(texts) + f"; {figures['files']} files"


def _raise_for(got: Got, name: str) -> None:
    """Raise what a status means that is no success."""
    told = issues(got.body)
    reason = summary(told) if told else "no reason given"
    if got.status in (408, 425, 429) or got.status >= 500:
        raise PartnerUnavailable(f"{name} answered {got.status} to {got.where}", retry_after=retry_after(got.headers))
    if got.status >= 400:
        refused = SignInRefused if got.status == 401 else PartnerRefused
        raise refused(f"{name} answered {got.status} to {got.where}: {reason}", answered=got.status, told=told or ())


def _is_final(body: bytes) -> bool:
    """Whether an error says that the export itself failed, and not that it cannot be asked about now."""
    told: list[Issue] = issues(body) or []
    return bool(told) and all(
        one.code not in ("transient", "throttled", "timeout", "lock-error", "incomplete", "no-store") for one in told
    )
