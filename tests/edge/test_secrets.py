"""The whole story at the level DEBUG, and some trouble on top: no log holds a secret, nor anything that is known of a patient."""

import json
import re

import httpx
import pytest

from fhircm.demo import steps
from fhircm.demo.story import CLINIC, HOSPITAL, SCOPES
from tests.faults.stubborn import ENVIRONMENT, Stubborn

GUESSED = "gUeSsEdToKeN0123456789-abcdefghijklmnopqrstuv"


@pytest.fixture
async def told(tmp_path, sqlite_url):
    """The story was told, and somebody made trouble; gives it with the answers to the troublemaker."""
    story = Stubborn(tmp_path, sqlite_url, humans=16, environment={**ENVIRONMENT, "FHIRCM_LOG_LEVEL": "DEBUG"})
    try:
        await story.open()
        story.start_worker()
        transition = await steps.discharge(story)
        referral = await steps.refer(story)
        await story.news(CLINIC, 2)
        await story.accepted(referral)
        await steps.book(story, referral)
        await steps.report(story, referral)
        async with httpx.AsyncClient() as http:
            # A partner in every kind of trouble, with records in its answers.
            for action in ("500", "html", "truncate", "expire-tokens"):
                fault = {"method": "GET", "path": "/Patient", "times": 1, "action": action}
                await http.post(f"{story.doors[HOSPITAL]}/staff/faults", json=fault)
        answers = await trouble(story)
        tokens = [await story.token(client) for client in SCOPES]
        await steps.let_the_deadline_pass(story, transition)
        tokens += [await story.token(client) for client in SCOPES]
        yield story, answers, tokens
    finally:
        story.close()


async def trouble(story):
    """Requests that go wrong, each with what must not be told again."""
    (patient, *_) = await story.find("Patient?_count=1")
    family, born = patient["name"][0]["family"], patient["birthDate"]
    bearer = {"Authorization": f"Bearer {await story.token('reader')}"}
    asked = [
        ("GET", f"/fhir/Patient?family={family}&birthdate={born}&nonsense=1", {}),
        ("GET", f"/fhir/Patient?_filter=name zz {family}", {}),
        ("POST", "/fhir/Patient", {"json": {**patient, "birthDate": f"{born}T", "gender": family}}),
        ("POST", "/fhir/Patient", {"content": json.dumps(patient)[:-40], "headers": {"Content-Type": "application/fhir+json"}}),
        ("POST", "/fhir", {"json": {"resourceType": "Bundle", "type": "batch", "entry": [{"resource": patient}]}}),
        (
            "POST",
            "/oauth/token",
            {"data": {"grant_type": "client_credentials", "client_assertion": GUESSED, "client_id": family}},
        ),
        ("POST", "/oauth/token", {"data": {"grant_type": "password", "username": family, "password": GUESSED}}),
        ("GET", "/fhir/Patient", {"headers": {"Authorization": f"Bearer {GUESSED}"}}),
        ("GET", "/fhir/Patient", {"headers": {"Authorization": f"Basic {GUESSED}"}}),
        ("GET", f"/fhir/Patient?access_token={GUESSED}", {}),
        ("GET", "/nowhere", {"headers": {"Cookie": f"fhircm={GUESSED}"}}),
    ]
    answers = []
    async with httpx.AsyncClient(base_url=story.hub) as http:
        for method, path, more in asked:
            headers = bearer | {"X-Request-Id": "trouble"} | more.pop("headers", {})
            answer = await http.request(method, path, headers=headers, **more)
            assert 400 <= answer.status_code < 500 or path == "/fhir", (path, answer.text)
            answers.append(answer.text)
    return answers


async def known_of_patients(story):
    """What the hub knows of its patients that tells who they are."""
    found = set()
    for patient in await story.find("Patient?_count=500"):
        at_partner = patient["meta"]["source"].rpartition("/")[
            2
        ]  # logs carry ids of resources, and an EHR lists its own as an identifier
        found |= {patient["birthDate"], *(one["value"] for one in patient["identifier"] if one["value"] != at_partner)}
        found |= {part for name in patient["name"] for part in (name["family"], *name.get("given", []))}
        found |= {point["value"] for point in patient.get("telecom", [])}
        found |= {line for address in patient.get("address", []) for line in address.get("line", [])}
    return found


async def test_no_log_holds_a_secret_or_what_is_known_of_a_patient(told):
    story, answers, tokens = told
    keys = [json.loads(path.read_text()) for path in story.folder.rglob("*.json") if '"d"' in path.read_text()]
    secrets = {key["d"] for key in keys} | set(tokens) | {GUESSED}
    assert len(secrets) >= 2 + len(SCOPES) + 1
    known = await known_of_patients(story)
    assert len(known) > 60
    logs = {path.name: path.read_text() for path in (story.folder / "logs").glob("*.log")}
    assert len(logs["worker.log"].splitlines()) > 10
    assert " trouble fhircm." in logs["hub.log"], "the request id is in the log"
    for name in ("hub.log", "worker.log"):
        text = logs[name]
        assert [secret[:4] for secret in secrets if secret in text] == [], name
        assert re.findall(r"eyJ[\w-]+\.[\w-]+|(?i:bearer|basic) [\w.-]{12,}|(?i:set-)?(?i:cookie): ", text) == [], name
        assert [value for value in known if re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", text)] == [], name
    (patient, *_) = await story.find("Patient?_count=1")
    for number, answer in enumerate(answers):
        assert GUESSED not in answer
        if number in (2, 3):  # what is wrong with a resource is told without what it says
            assert patient["name"][0]["family"] not in answer
            assert patient["birthDate"] not in answer
