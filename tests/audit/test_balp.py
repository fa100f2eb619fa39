"""What BALP asks of each of its patterns, as rules of our own words, and that our events keep them.

https://profiles.ihe.net/ITI/BALP/content.html. Each rule is that of the profiles Read, Query, Create, Update, Delete (with or without a
patient) and of the audit of an access token. Three are not kept, on purpose: one event tells of all patients of a request, where BALP
has one for each; an organisation is an agent also of a delete; and a delete may stand with its X-Request-Id.
"""

import base64
import json
from itertools import product

import pytest

from fhircm.access.audit import audit_event
from fhircm.access.audit_journal import Event
from fhircm.fhir.validation import check

DCM = "http://dicom.nema.org/resources/ontology/DCM"
BASE = "https://hub.example/fhir"
# pattern: codes of the event, its action, the type of the client's agent, that of the server's, of the person's, and of the thing
PATTERNS = {
    "Read": ({"read", "vread"}, "R", "110152", "110153", {"IRCP"}, "4"),
    "Query": ({"search-type", "search-system"}, "E", "110153", "110152", {"IRCP"}, "24"),
    "Create": ({"create"}, "C", "110153", "110152", {"AUT", "INF", "CST"}, "4"),
    "Update": ({"update", "patch"}, "U", "110153", "110152", {"AUT", "INF", "CST"}, "4"),
    "Delete": ({"delete"}, "D", "110150", "custodian", {"AUT", "INF", "CST"}, "4"),
}
CALLERS = {
    "a backend system": {"client": "board"},
    "a person with an app": {
        "client": "app",
        "user": "Practitioner/d",
        "login": "ann",
        "organization": "Organization/o",
        "roles": ("clinician",),
        "purpose": "TREAT",
    },
}


def made(code, caller, request):
    searched = code.startswith("search")
    target = {"search-type": "Goal", "search-system": None, "create": "Goal"}.get(code, "Goal/g")
    event = Event(
        1_772_463_600_123_456,
        code,
        200,
        address="2001:db8::7",
        request=request,
        target=target,
        query="status=active" if searched else None,
        touched=("Goal/g/1",),
        **caller,
    )
    return audit_event(event, ("p",), BASE)


def agents(event, system, codes):
    """The agents of these types."""
    return [
        one for one in event["agent"] for at in one["type"]["coding"] if at["system"].startswith(system) and at["code"] in codes
    ]


@pytest.mark.parametrize(
    ("pattern", "caller", "request_id"), [*product(PATTERNS, CALLERS, (None, "76d148b6-586d-11ec-bf63-0242ac130002"))]
)
def test_an_event_keeps_the_pattern_that_it_follows(pattern, caller, request_id):
    codes, action, client, server, person, thing = PATTERNS[pattern]
    for code in codes:
        event = made(code, CALLERS[caller], request_id)
        assert check(json.dumps(event).encode(), "AuditEvent")
        assert event["type"] == {"system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "rest"}
        assert event["subtype"] == [{"system": "http://hl7.org/fhir/restful-interaction", "code": code}]
        assert (event["action"], event["outcome"], event["recorded"]) == (action, "0", "2026-03-02T15:00:00.123Z")

        (app,) = agents(event, DCM, {client})
        (hub,) = agents(event, "http://", {server})
        assert app["who"] == {"identifier": {"system": "https://fhircm.example/client", "value": CALLERS[caller]["client"]}}
        assert app["network"] == {"address": "2001:db8::7", "type": "2"} and hub["network"] == {"address": BASE, "type": "5"}
        assert event["source"]["observer"] == hub["who"]
        people = agents(event, "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", {"IRCP", "AUT", "INF", "CST"})
        assert len(people) == ("user" in CALLERS[caller])
        for one in people:
            assert one["type"]["coding"][0]["code"] in person and one["requestor"] and "network" not in one
        assert sum(one["requestor"] for one in event["agent"]) == 1
        assert not any("media" in one for one in event["agent"])

        of_type = {}
        for one in event["entity"]:
            of_type.setdefault(one["type"]["code"], []).append(one)
        (patient,), (data,) = of_type["1"], of_type["2"]
        assert (patient["role"]["code"], patient["what"]) == ("1", {"reference": "Patient/p"})
        assert data["role"]["code"] == thing
        if pattern == "Query":
            assert base64.b64decode(data["query"]).decode().endswith("?status=active") and "what" not in data
        else:
            assert data["what"]["reference"].startswith("Goal/g") and "query" not in data
        assert [one["what"]["identifier"]["value"] for one in of_type.get("XrequestId", [])] == (
            [request_id] if request_id else []
        )


@pytest.mark.parametrize(
    "what", ["login", "logout", "token", "consent", "user", "role", "break-glass", "launch", "revoke", "client"]
)
def test_what_happens_to_clients_people_and_grants_is_told_by_dicoms_codes(what):
    caller = CALLERS["a person with an app"]
    event = audit_event(Event(1, f"!{what}", 200, address="192.0.2.1", target="a thing", **caller), (), BASE)
    assert check(json.dumps(event).encode(), "AuditEvent")
    assert event["type"]["system"] == DCM and event["type"]["code"] in ("110113", "110114")
    assert event["entity"] == [
        {
            "type": {"system": "http://terminology.hl7.org/CodeSystem/audit-entity-type", "code": "2"},
            "role": {"system": "http://terminology.hl7.org/CodeSystem/object-role", "code": "13"},
            "name": "a thing",
        }
    ]
    (hub,) = agents(event, "http://terminology.hl7.org/CodeSystem/extra-security-role-type", {"authserver"})
    assert hub["who"] == event["source"]["observer"]


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "0"), (304, "0"), (400, "4"), (401, "8"), (403, "8"), (404, "4"), (503, "12")]
)
def test_the_outcome_tells_refusals_from_mistakes_and_from_what_failed(status, outcome):
    event = audit_event(Event(1, "read", status, client="a", target="Patient/p"), ("p",), BASE)
    assert event["outcome"] == outcome
    assert event.get("outcomeDesc") == (None if status < 400 else str(status))
