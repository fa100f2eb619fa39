"""Dead letters and the planner's reasons, as an operator meets them."""

import asyncio
from datetime import UTC, datetime

import pytest

from fhircm.exchange.capabilities import NAMESPACE, Capabilities
from fhircm.exchange.dead_letters import letters
from fhircm.exchange.mapping import hub_id
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Put, SetState, Store
from tests import commands

PARTNER = "lakeside-hospital"
BASE = "http://127.0.0.1:9101/api/FHIR/R4"
PATIENT = hub_id(BASE, "Patient/p")


@pytest.fixture
def fhircm(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        environment = {"FHIRCM_DATABASE_URL": database_url, "FHIRCM_KEYS_DIR": str(tmp_path / "keys")}
        return commands.run(*arguments, **environment, FHIRCM_AUDIT_DIR=str(tmp_path / "audit"))

    return run


def stored(database_url, *operations):
    async def put():
        await migrate(database_url)
        store = Store(await open_database(database_url), clock=lambda: datetime.now(UTC))
        await store.transact(operations, origin="test")
        found = await letters(store, PARTNER)
        await store.close()
        return found

    return asyncio.run(put())


def dead(number, why):
    row = {"reason": "It could not be told", "why": why, "type": "Communication", "id": "m", "version": 1, "occasion": "message"}
    times = {"first": "2026-03-02T15:00:00Z", "last": "2026-03-02T16:00:00Z", "attempts": 3}
    return SetState(
        f"parked:push:{PARTNER}", f"Communication/m/message/{number}", {**row, **times, "number": number, "patient": None}
    )


MESSAGE = {
    "resourceType": "Communication",
    "id": "m",
    "status": "completed",
    "subject": {"reference": f"Patient/{PATIENT}"},
    "recipient": [{"reference": f"Patient/{PATIENT}"}],
    "payload": [{"contentString": "Marker-Text"}],
}
RECORD = {"resourceType": "Patient", "id": PATIENT, "meta": {"source": f"{BASE}/Patient/p"}}
CAN = Capabilities("EHR", "4.0.1", None, (), (), {"DocumentReference": {"interactions": ["create"], "search": []}})


def test_dead_letters_are_listed_shown_tried_again_and_let_go(fhircm, database_url):
    stored(
        database_url,
        Put(check_tree(RECORD)),
        Put(check_tree(MESSAGE)),
        dead(1, "refused"),
        dead(2, "conflict"),
        dead(3, "refused"),
    )
    listed = fhircm("dead-letters", "list").stdout
    first = f"{PARTNER}\tCommunication/m/message/1\trefused\t2026-03-02T15:00:00Z\t2026-03-02T16:00:00Z\t3x\tIt could not be told"
    assert first in listed and listed.count("\n") == 3
    assert fhircm("dead-letters", "list", PARTNER, "--kind", "conflict").stdout.count("\n") == 1
    assert "is no kind" in fhircm("dead-letters", "list", "--kind", "other").stderr
    assert "hub and partner changed the same" in fhircm("dead-letters", "show", PARTNER, "Communication/m/message/2").stdout
    assert "1 in line again" in fhircm("dead-letters", "replay", PARTNER, "Communication/m/message/2", "--prefer", "hub").stdout
    assert "2 in line again" in fhircm("dead-letters", "replay", PARTNER, "--kind", "refused").stdout
    assert fhircm("dead-letters", "replay", PARTNER).returncode != 0, "nothing is chosen"
    let_go = fhircm("dead-letters", "discard", PARTNER, "Communication/m/message/3", "--reason", "Told by telephone")
    assert "will not be told" in let_go.stdout
    assert sorted(stored(database_url)) == ["Communication/m/message/1", "Communication/m/message/2"]
    assert "Nothing waits" in fhircm("dead-letters", "show", PARTNER, "Communication/m/message/3").stderr


def test_the_ladder_is_explained(fhircm, database_url):
    stored(database_url, Put(check_tree(RECORD)), Put(check_tree(MESSAGE)))
    assert "never asked what it can do" in fhircm("partner", "explain", PARTNER, "Communication/m").stderr
    stored(database_url, SetState(NAMESPACE, PARTNER, CAN.as_json()))
    told = fhircm("partner", "explain", PARTNER, "Communication/m").stdout.splitlines()
    assert told[0].startswith("message, 1: not due")
    assert told[1].split() == ["not", "taken", "message", "it", "takes", "no", "new", "Communication"]
    assert told[2].startswith("  taken       letter")
    assert "Marker-Text" not in "".join(told)
    assert "no news of a Goal" in fhircm("partner", "explain", PARTNER, "Patient/" + PATIENT).stdout.replace("Patient", "Goal")
