"""Tell the story: run its steps in order and print what each came to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
from rich.console import Console

from fhircm.demo import steps
from fhircm.demo.processes import DidNotStart
from fhircm.demo.story import CLINIC, HOSPITAL, DidNotHappen, Story

FOLDER = Path("var/demo")


async def tell(*, once: bool, data: Path | None, database_url: str | None, out: Console) -> int:
    """Tell the story from a clean start; returns the exit status.

    A database that is named by its URL is used as it is; without one, a new SQLite file under var/demo/.
    """
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    story = Story(FOLDER.resolve(), database_url or f"sqlite:///{(FOLDER / 'fhircm.db').resolve()}", data=data)
    telling = Telling(story, out)
    begun = monotonic()
    try:
        await telling.all()
        out.print(
            f"\n[green]The story is told[/green] in {monotonic() - begun:.0f} s: both loops are closed. Logs: {FOLDER / 'logs'}"
        )
        if not once:
            await telling.stay()
    except (DidNotStart, DidNotHappen, httpx.HTTPError) as error:
        out.print(f"[red]The story stopped:[/red] {error}", highlight=False, soft_wrap=True)
        return 1
    finally:
        story.close()
    return 0


class Telling:
    """The story with its figures, on a console."""

    def __init__(self, story: Story, out: Console) -> None:
        self.story, self.out, self.number = story, out, 0

    async def all(self) -> None:
        """Every step in order."""
        story = self.story
        with self.step("Two EHRs and the hub start, each a process of its own"):
            await story.open()
            for name, base in story.bases.items():
                self.say(f"{name}: {base}")
            self.say(f"hub: {story.hub}/fhir")
        with self.step("The hub connects: discovery, capabilities, keys, token"):
            for name in (HOSPITAL, CLINIC):
                await story.command("partner", "check", name)
        with self.step("It pulls the panels"):
            await story.command("pull")
        with self.step("A second pull of unchanged data writes nothing"):
            await story.command("pull")
        with self.step("The same human in both EHRs is linked"):
            await story.command("work", "--until-idle")
            linked = await steps.linked(story)
            self.say(f"{linked.people} people have a record at both; {linked.doubtful} pairs are left for a human to judge")
        story.start_worker()
        with self.step("A discharge happens at the hospital"):
            transition = await steps.discharge(story)
            self.tasks(transition.tasks)
        with self.step("A referral goes out to the clinic, and comes back closed"):
            referral = await steps.refer(story)
            self.say(f"delivered to the clinic as: {', '.join(referral.delivered)}")
            await steps.accept(story, referral)
            self.say("accepted by the clinic's app at the hub")
            await steps.book(story, referral)
            self.say("scheduled: the clinic booked a visit, and the hub saw it on its next pull")
            closed = await steps.report(story, referral)
            self.say(f"closed with a consult note; the hospital was given: {', '.join(closed.delivered)}")
        with self.step("A referral that nobody can deliver is listed for a human"):
            for reason in await steps.refer_a_stranger(story):
                self.say(reason)
        with self.step("A deadline passes (the clock moves)"):
            escalated = await steps.let_the_deadline_pass(story, transition)
            self.say(f"the clock stands {escalated.moved.days} days ahead; '{escalated.task}' went from {escalated.before} to")
            self.say(f"{escalated.after}, {escalated.messages} message about it")
        with self.step("The patient's timeline, from resources alone"):
            since = f"{datetime.now(UTC) - timedelta(days=30):%Y-%m-%d}"
            for patient in dict.fromkeys((transition.patient, referral.patient)):
                self.say(f"{patient}, since {since}")
                await story.command("timeline", patient.partition("/")[2], "--since", since)

    async def stay(self) -> None:
        """Serve on until interrupted, with what one needs to look around."""
        hub, token = self.story.hub, await self.story.token("reader")
        self.out.print(
            f"\nThe hub serves on at [bold]{hub}/fhir[/bold] until Ctrl-C. A token of the client `reader`, good for 5 minutes:\n"
        )
        self.out.print(f"  export TOKEN={token}\n", soft_wrap=True, highlight=False)
        for query in ("Task?status=requested,accepted,in-progress", "Person?_count=3", "Provenance?_sort=-recorded&_count=5"):
            self.out.print(f"  curl -H \"Authorization: Bearer $TOKEN\" '{hub}/fhir/{query}'", soft_wrap=True, highlight=False)
        key = self.story.folder / "clients/reader/reader.json"
        self.out.print(f"\nA new token: fhircm client token reader --key {key} --url {hub}", soft_wrap=True, highlight=False)
        self.story.processes.running["hub"].wait()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print a title, and how long it took."""
        self.number += 1
        self.out.print(f"\n[bold]{self.number}. {title}[/bold]")
        begun = monotonic()
        yield
        self.out.print(f"   [dim]{monotonic() - begun:.1f} s[/dim]")

    def say(self, line: str) -> None:
        """One line of the story."""
        self.out.print(f"   {line}", highlight=False, soft_wrap=True)

    def tasks(self, tasks: list[dict[str, Any]]) -> None:
        """Tasks with their owners and due times."""
        for task in sorted(tasks, key=lambda task: task["restriction"]["period"]["end"]):
            due = datetime.fromisoformat(task["restriction"]["period"]["end"])
            self.say(f"due {due:%a %Y-%m-%d %H:%M}  {task['owner']['display']}: {task['code']['text']}")
