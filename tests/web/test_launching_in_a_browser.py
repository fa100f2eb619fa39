"""A launch from an EHR in a real browser, cookies and redirects included; and what it leads to on a phone, held to the rules of axe."""

import asyncio
import socket
from dataclasses import replace

import pytest
import uvicorn

from fhircm.exchange.launch import EhrLaunches

from ..launching_ehr import LaunchingEhr
from .test_in_a_browser import PHONE, chromium, press, served, sound, window
from .test_launching import copied

__all__ = ["chromium", "served"]


@pytest.fixture
async def ehr(served):
    """An EHR at another host of this machine, so that the browser takes it for another site."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = LaunchingEhr("north", served.state.base, server=f"http://localhost:{port}")
    server = uvicorn.Server(uvicorn.Config(one.app, "127.0.0.1", port, lifespan="off", log_level="error"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield one
    server.should_exit = True
    await task


async def test_a_clinician_opens_the_hub_from_the_ehr_on_a_phone(chromium, served, ehr, tmp_path, time):
    launches = EhrLaunches([ehr.partner()], tmp_path, served.state.base, time)
    served.state.parts = replace(served.state.parts, launches=launches, coordinator="Organization/clinic")
    await copied(served.state.store, ehr, "p-7", "Lake", cared_for_by="p1")
    await copied(served.state.store, ehr, "p-9", "Pond", cared_for_by="p2")
    async with window(chromium, served, viewport=PHONE) as page:

        async def launched(patient):
            launch = ehr.door.launch("Practitioner/p1", patient)
            await page.goto(f"/launch?iss={ehr.base_url}&launch={launch}")

        await page.goto("/launch")
        await sound(page, "launch-chooser")
        await launched("p-7")
        assert await page.inner_text("h1") == "Flo Lake"
        await sound(page, "launch-patient")
        await launched("p-9")
        assert "closed to you" in await page.inner_text("h1")
        await sound(page, "launch-closed")
        await launched("p-404")
        await sound(page, "launch-not-here")
        await press(page, "Ask for this record")
        assert await page.inner_text("h1") == "The record is asked for"
        await sound(page, "launch-asked")
