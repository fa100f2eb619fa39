"""What people do while it storms: at the EHRs' screens, at the hub, and to clocks and servers."""

from __future__ import annotations

from datetime import timedelta

from fhircm.exchange import push
from fhircm.exchange.dead_letters import letters
from fhircm.exchange.mapping import hub_id
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.systems import DELIVERY, REFERRAL
from fhircm.fhir.validation import check_tree
from fhircm.sandbox.staff import NotPossible
from fhircm.store.resources import Put

HOSPITAL, CLINIC = "lakeside-hospital", "riverbend-clinic"
EDITED = ("CarePlan", "Goal", "Encounter", "Condition", "CareTeam", "Coverage")
NOTE = "https://ehr.example/note"
ACTS = (
    "edit", "edit", "edit", "edit", "remove", "discharge", "order", "book", "note", "clock", "capability", "spoil", "mend_one",
    "duplicate", "merge", "meddle", "meddle", "consent", "message", "message", "decide",
)  # fmt: skip


class People:
    """Everybody who acts in one storm."""

    def __init__(self, storm) -> None:
        self.storm, self.random, self.counted = storm, storm.random, storm.weather.happened
        self.broken: dict[tuple[str, str, str], dict] = {}  # partner, type, id: as it was before
        self.touched: set[tuple[str, str, str, str]] = set()  # partner, type, id and member that somebody changed there
        self.interactions = {
            (name, type): list(served["interactions"])
            for name, ehr in storm.ehrs.items()
            for type, served in ehr.habits["types"].items()
        }
        self.number = 0

    async def act(self, hub) -> None:
        """Something at an EHR, at the hub, or to a clock, or to what an EHR can do."""
        for _ in range(self.random.randrange(1, 5)):
            act = self.random.choice(ACTS)
            doing = getattr(self, f"_{act}")(self.random.choice([HOSPITAL, CLINIC]), hub)
            if doing is not None:
                await hub.tried(doing)

    def mend(self) -> None:
        """Every EHR can do again what it could."""
        for (name, type), kept in self.interactions.items():
            self.storm.ehrs[name].habits["types"][type]["interactions"] = list(kept)
        for key in list(self.broken):
            if self.random.random() < 0.5:
                self._mend(key)

    # --- at the EHRs -----------------------------------------------------------------------------------------------------------

    def _any(self, name, *types, where=lambda one: True):
        chart = self.storm.ehrs[name].chart
        found = [
            one for type in types for one in chart.of_type(type) if where(one) and (name, type, one["id"]) not in self.broken
        ]
        return self.random.choice(sorted(found, key=lambda tree: (tree["resourceType"], tree["id"]))) if found else None

    def _write(self, name, tree):
        return self.storm.ehrs[name].chart.write({key: value for key, value in tree.items() if key != "meta"}, tree.get("id"))

    def _edit(self, name, hub):
        one = self._any(name, *EDITED)
        self.touched.add((name, one["resourceType"], one["id"], "extension"))
        self._write(name, {**one, "extension": [{"url": NOTE, "valueString": f"changed {self.random.randrange(10**9)}"}]})

    def _remove(self, name, hub):
        one = self._any(name, "Goal", "Condition")
        if one is not None and self.random.random() < 0.3:
            self.storm.ehrs[name].chart.delete(one["resourceType"], one["id"])
            self.counted["deletions at an EHR"] += 1

    def _discharge(self, name, hub):
        self._at_the_screen(HOSPITAL, "discharge", {"disposition": "home"})

    def _order(self, name, hub):
        self._at_the_screen(HOSPITAL, "order-referral", {"known_at_clinic": self.random.random() < 0.8})

    def _book(self, name, hub):
        for number, patient in self._letters():
            at = self.storm.now.isoformat()
            self._at_the_screen(CLINIC, "book", {"referral_number": number, "patient": patient, "at": at}, number)

    def _note(self, name, hub):
        for number, patient in self._letters():
            details = {"referral_number": number, "patient": patient, "text": "Seen."}
            self._at_the_screen(CLINIC, "consult-note", details, number)

    def _letters(self):
        """One referral that the clinic heard of, sometimes."""
        chart = self.storm.ehrs[CLINIC].chart
        found = {
            (one["value"], (tree.get("subject") or tree["for"])["reference"].removeprefix("Patient/"))
            for type in ("DocumentReference", "Task", "ServiceRequest")
            for tree in chart.of_type(type)
            for one in tree.get("identifier", [])
            if one.get("system") == REFERRAL and (tree.get("subject") or tree.get("for"))
        }
        return [self.random.choice(sorted(found))] if found else []

    def _at_the_screen(self, name, what, details, key=None):
        try:
            self.storm.staff[name].act(what, {"key": key or f"{self.random.randrange(10**9)}", **details})
            self.counted[what] += 1
        except (NotPossible, KeyError, IndexError):
            self.counted["nothing to do"] += 1

    def _spoil(self, name, hub):
        """A resource becomes one that is no FHIR."""
        one = self._any(name, "Condition", "Goal", "Coverage")
        if one is not None and not _is_the_hubs(one):
            self.broken[name, one["resourceType"], one["id"]] = one
            self._write(name, {**one, "extension": "this is no list"})
            self.counted["invalid resources"] += 1

    def _mend_one(self, name, hub):
        for key in sorted(self.broken)[:1]:
            self._mend(key)

    def _mend(self, key):
        name, type, id = key
        tree = self.broken.pop(key)
        if self.storm.ehrs[name].chart.get(type, id) is not None:
            self._write(name, tree)
            self.counted["mended resources"] += 1

    def _duplicate(self, name, hub):
        """Somebody gets a second record at the same EHR."""
        chart = self.storm.ehrs[name].chart
        one = self._any(name, "Patient", where=lambda tree: "link" not in tree)
        id = f"{one['id']}-d"
        if chart.get("Patient", id) is None:
            self._write(name, {**one, "id": id, "identifier": one["identifier"][1:]})
            text = {
                "resourceType": "Condition",
                "id": f"{id}-c",
                "code": {"text": "Cough"},
                "subject": {"reference": f"Patient/{id}"},
            }
            status = {"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}
            self._write(name, {**text, "clinicalStatus": {"coding": [status]}})
            panel = chart.get("Group", "panel")
            self._write(name, {**panel, "member": [*panel["member"], {"entity": {"reference": f"Patient/{id}"}}]})
            self.counted["duplicate records"] += 1

    def _merge(self, name, hub):
        """The two records of somebody become one."""
        chart = self.storm.ehrs[name].chart
        one = self._any(name, "Patient", where=lambda tree: tree["id"].endswith("-d") and "link" not in tree)
        if one is None:
            return
        kept = chart.get("Patient", one["id"].removesuffix("-d"))
        self._write(name, {**one, "active": False, "link": [_link(kept, "replaced-by")]})
        self._write(name, {**kept, "link": [_link(one, "replaces")]})
        for tree in chart.of_patient("Condition", one["id"]):
            if (name, "Condition", tree["id"]) not in self.broken:
                self._write(name, {**tree, "subject": {"reference": f"Patient/{kept['id']}"}})
        self.counted["merged records"] += 1

    def _meddle(self, name, hub):
        """Somebody changes what the hub keeps at their EHR."""
        one = self._any(name, "CarePlan", "Goal", "CareTeam", "ServiceRequest", "Task", where=_is_the_hubs)
        if one is None:
            return
        member = self.random.choice(["note", "note", "description", "title", "status"])
        if (member == "status" and "status" not in one) or (
            member in ("title", "description") and one["resourceType"] != "CarePlan"
        ):
            member = "note"
        text = f"by hand {self.random.randrange(10**9)}"
        value = {"note": [{"text": text}], "status": "on-hold" if one.get("status") != "on-hold" else "active"}.get(member, text)
        if member == "status" and one["resourceType"] in ("CareTeam",):
            value = "suspended"
        self.touched.add((name, one["resourceType"], one["id"], member))
        self._write(name, {**one, member: value})
        self.counted["the hub's resources edited there"] += 1

    # --- to clocks and servers -------------------------------------------------------------------------------------------------

    def _clock(self, name, hub):
        by = timedelta(minutes=self.random.choice([-90, -5, 1, 30, 600]))
        self.storm.now += by
        self.storm.there += max(by, -timedelta(minutes=5))  # an EHR's clock is set back by less than reads overlap
        self.counted["clock jumps"] += 1

    def _capability(self, name, hub):
        habits = self.storm.ehrs[name].habits["types"]
        type = self.random.choice(sorted(habits))
        kept = self.interactions[name, type]
        lacks = set(kept) - set(habits[type]["interactions"])
        gone = self.random.choice(kept)
        habits[type]["interactions"] = list(kept) if lacks else [one for one in kept if one != gone]
        self.counted["capability changes"] += 1

    # --- at the hub ------------------------------------------------------------------------------------------------------------

    async def _here(self, hub, type, where=lambda name, one: True):
        """One of an EHR's resources that the hub has, as (partner, hub id)."""
        names = [
            (name, one["id"]) for name, ehr in self.storm.ehrs.items() for one in ehr.chart.of_type(type) if where(name, one)
        ]
        if not names:
            return None
        name, id = self.random.choice(sorted(names))
        there = hub_id(self.storm.partners[name].base_url, f"{type}/{id}")
        return there if (type, there) in await hub.store.read_many([(type, there)]) else None

    async def _consent(self, name, hub):
        """A patient forbids that anything is told, or allows it again."""
        patient = await self._here(hub, "Patient")
        if patient is None:
            return
        id = f"consent-{patient[:40]}"
        found = (await hub.store.read_many([("Consent", id)])).get(("Consent", id))
        if found is None and self.random.random() < 0.6:
            return
        status = "inactive" if found and found.tree["status"] == "active" else "active"
        scope = {"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}
        tree = {
            "resourceType": "Consent",
            "id": id,
            "status": status,
            "scope": {"coding": [scope]},
            "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
            "patient": {"reference": f"Patient/{patient}"},
            "policyRule": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]},
            "provision": {"type": "deny"},
        }
        await hub.store.transact([Put(check_tree(tree))], origin="client:console")
        self.counted["consents"] += 1

    async def _message(self, name, hub):
        """Somebody at the hub writes to somebody at an EHR."""
        patient = await self._here(hub, "Patient")
        to = await self._here(hub, "Practitioner")
        if patient is None or to is None:
            return
        self.number += 1
        tree = {
            "resourceType": "Communication",
            "id": f"message-{self.storm.seed}-{self.number}",
            "status": "in-progress",
            "subject": {"reference": f"Patient/{patient}"},
            "recipient": [{"reference": f"Practitioner/{to}"}],
            "topic": {"text": f"Question {self.number}"},
            "payload": [{"contentString": f"How is the patient, asked for the {self.number}th time?"}],
        }
        await hub.store.transact([Put(check_tree(tree))], origin="client:console")
        self.counted["messages"] += 1

    async def _decide(self, name, hub):
        """Somebody looks at a dead letter, and has it tried again; in a conflict they say who is right."""
        waiting = {key: row for key, row in (await letters(hub.store, name)).items() if row["why"] != "withheld"}
        if not waiting:
            return
        key = self.random.choice(sorted(waiting))
        prefer = self.random.choice(["hub", "partner"]) if waiting[key]["why"] == "conflict" else None
        try:
            await push.replay(hub.store, name, key, prefer)
            self.counted["dead letters decided"] += 1
        except FhirError:
            self.counted["nothing to do"] += 1


def _is_the_hubs(tree):
    return any(one.get("system") == DELIVERY for one in tree.get("identifier", []))


def _link(tree, type):
    return {"other": {"reference": f"Patient/{tree['id']}"}, "type": type}
