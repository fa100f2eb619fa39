"""Who may see what, told a second time: in plain loops over all resources, by the words of docs/explanation/access.md."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

CLOSED = frozenset({"ETHUD", "PSY", "HIV", "V"})  # labels that need a consent
PURPOSES = {("patient",): "PATRQT", ("related-person",): "FAMRQT"}  # for what these ask
OPEN = frozenset({"Organization", "Practitioner", "PractitionerRole"})
PAYERS_NOT = frozenset({"List"})  # of this population, what a coverage does not open


def references(tree):
    return set(re.findall(r'"reference": "([A-Za-z]+/[^"]+)"', json.dumps(tree)))


def instant(text, *, end=False):
    moment = datetime.fromisoformat(text if len(text) > 10 else {4: f"{text}-01-01", 7: f"{text}-01", 10: text}[len(text)])
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment + timedelta(days=1) if end and len(text) == 10 else moment


class Oracle:
    """The answers about one population at one time."""

    def __init__(self, trees, now, grace):
        self.trees, self.now, self.grace = trees, now, grace
        self.by_name = {f"{tree['resourceType']}/{tree['id']}": tree for tree in trees}

    def running(self, *periods, ended=False, after=timedelta()):
        """Whether all periods run; the last of them may have ended a grace ago."""
        starts = [instant(one["start"]) for one in periods if one and "start" in one]
        ends = [instant(one["end"], end=True) for one in periods if one and "end" in one]
        end = min([one + after for one in ends], default=None)
        if ended:  # with the version that says so: everything here was written at this moment
            end = min(self.now, end) if end else self.now
        return all(start <= self.now for start in starts) and (
            (end is None or end > self.now - self.grace) and not any(start >= end for start in starts if end)
        )

    def relations(self, me):
        """(whole record?, kind, what) of every relationship that somebody has now."""
        for tree in self.trees:
            yield from self._relations(tree, me)

    def _relations(self, tree, me):
        type, status = tree["resourceType"], tree.get("status")
        patient = next(
            (one for key in ("subject", "patient", "for", "beneficiary") if (one := tree.get(key, {}).get("reference"))), None
        )

        def mine(*elements):
            return any(one.get("reference") in me for one in elements if one)

        if type == "CareTeam" and status in ("active", "inactive"):
            for part in tree["participant"]:
                if mine(part["member"]) and self.running(part.get("period"), tree.get("period"), ended=status == "inactive"):
                    yield True, "care-team", patient
        if type == "Encounter":
            if status in ("in-progress", "planned", "finished"):
                people = [part["individual"] for part in tree.get("participant", [])]
                if mine(tree.get("serviceProvider"), *people) and self.running(tree["period"], ended=status == "finished"):
                    yield True, "encounter", patient
            lately = status in ("in-progress", "finished") and self.running(tree["period"], after=timedelta(days=90))
            if lately and mine(tree.get("hospitalization", {}).get("destination")):
                yield True, "destination", patient
        of = type == "Patient" and mine(tree.get("managingOrganization"), *tree.get("generalPractitioner", []))
        if of and self.running(ended=not tree["active"]):
            yield True, "patient-of", f"Patient/{tree['id']}"
        if type == "Coverage" and mine(*tree["payor"]) and self.running(tree.get("period"), ended=status == "cancelled"):
            yield True, "coverage", patient
        if type == "Group" and mine(tree.get("managingEntity")):
            for member in tree.get("member", []):
                if not member["inactive"]:
                    yield True, "attribution", member["entity"]["reference"]
        if (
            type == "RelatedPerson"
            and f"RelatedPerson/{tree['id']}" in me
            and self.running(tree["period"], ended=not tree["active"])
        ):
            yield True, "kin", patient
        sent = type == "ServiceRequest" and status in ("active", "completed") and mine(tree["requester"], *tree["performer"])
        if sent and self.running(ended=status == "completed"):
            yield from self._named(tree)
        if type == "Task" and status in ("requested", "accepted", "completed"):
            if mine(tree["owner"], tree["requester"]) and self.running(ended=status == "completed"):
                yield from self._named(tree)
            code = tree["code"]["coding"][0]["code"]
            if code == "transition-of-care" and mine(tree["owner"]) and self.running(ended=status == "completed"):
                yield True, "transition", patient
        if type == "Communication" and mine(*tree.get("recipient", [])):
            yield from self._named(tree)

    def _named(self, tree):
        for name in {f"{tree['resourceType']}/{tree['id']}", *references(tree)}:
            yield False, "named", name

    def sees(self, someone, tree):
        """Whether somebody may see a resource, scopes aside."""
        name, type = f"{tree['resourceType']}/{tree['id']}", tree["resourceType"]
        if type in OPEN:
            return True
        named = references(tree)
        patients = {name} if type == "Patient" else {one for one in named if one.startswith("Patient/")}
        own = {someone.user} if (someone.user or "").startswith("Patient/") else set()
        relations = list(self.relations(someone.known_as))
        record = {what for whole, kind, what in relations if whole and not (kind == "coverage" and type in PAYERS_NOT)} | own
        shared = {what for whole, _, what in relations if not whole}
        reason = name in shared or (
            type != "Patient" and any(one in shared for one in named if one.startswith(("Task/", "ServiceRequest/")))
        )
        reason = reason or patients <= record if patients else reason or bool(named & someone.known_as)
        if not reason:
            return False
        if any(self.denied(someone, tree, patient) for patient in patients - own):
            return False
        labels = {one["code"] for one in tree.get("meta", {}).get("security", [])}
        closed = labels & CLOSED if "patient" not in someone.roles else set()
        return (
            not closed
            or bool(named & someone.known_as)
            or all(any(self.permitted(someone, tree, patient, label) for patient in patients) for label in closed)
        )

    def consents(self, patient):
        for tree in self.trees:
            if tree["resourceType"] == "Consent" and tree["status"] == "active" and tree["patient"]["reference"] == patient:
                yield tree

    def rules(self, provision, around=None, path=(1,)):
        """Provisions, nested ones too, each with the limits of the one around it where it has none of its own."""
        whole = {**(around or {}), **provision}
        if around and "period" in around and "period" in provision:
            whole["period"] = {**around["period"], **provision["period"]}
            starts = [one["period"]["start"] for one in (around, provision) if "start" in one["period"]]
            ends = [one["period"]["end"] for one in (around, provision) if "end" in one["period"]]
            whole["period"] = ({"start": max(starts)} if starts else {}) | ({"end": min(ends)} if ends else {})
        yield path, whole
        for number, nested in enumerate(provision.get("provision", [])):
            yield from self.rules(nested, {key: value for key, value in whole.items() if key != "provision"}, (*path, number))

    def applies(self, rule, someone, tree):
        period = rule.get("period", {})
        if "start" in period and instant(period["start"]) > self.now:
            return False
        if "end" in period and instant(period["end"], end=True) <= self.now:
            return False
        if "actor" in rule and not any(one["reference"]["reference"] in someone.known_as for one in rule["actor"]):
            return False
        if "purpose" in rule and PURPOSES.get(someone.roles, "TREAT") not in {one["code"] for one in rule["purpose"]}:
            return False
        if "class" in rule and tree["resourceType"] not in {one["code"] for one in rule["class"]}:
            return False
        labels = {one["code"] for one in tree.get("meta", {}).get("security", [])}
        if "securityLabel" in rule and not labels & {one["code"] for one in rule["securityLabel"]}:
            return False
        if "code" in rule:
            coded = [tree.get("code"), *(one for one in tree.get("category", []) if isinstance(one, dict))]
            if not any(
                coding["code"] == "a" and coding["system"] == "http://example.org/codes"
                for one in coded
                if one
                for coding in one["coding"]
            ):
                return False
        if "dataPeriod" in rule and (when := self.when(tree)) is not None:
            low, high = instant(rule["dataPeriod"]["start"]), instant(rule["dataPeriod"]["end"], end=True)
            if not (when[0] < high and when[1] > low):
                return False
        return True

    def when(self, tree):
        """The time that a resource tells of, in this population."""
        type = tree["resourceType"]
        forever = datetime.max.replace(tzinfo=UTC)
        if type in ("Encounter", "CareTeam") and tree.get("period"):
            period = tree["period"]
            return (
                instant(period["start"]) if "start" in period else datetime.min.replace(tzinfo=UTC),
                instant(period["end"], end=True) if "end" in period else forever,
            )
        text = {
            "Observation": tree.get("effectiveDateTime"),
            "Consent": tree.get("dateTime"),
            "Provenance": tree.get("recorded"),
        }.get(type)
        if text is None:
            return None
        low = instant(text)
        return low, instant(text, end=True) if len(text) == 10 else low + timedelta(seconds=1)

    def denied(self, someone, tree, patient):
        for consent in self.consents(patient):
            rules = [(path, rule) for path, rule in self.rules(consent["provision"]) if self.applies(rule, someone, tree)]
            for path, rule in rules:
                lifted = any(other[: len(path)] == path and other != path and one["type"] == "permit" for other, one in rules)
                if rule["type"] == "deny" and not lifted:
                    return True
        return False

    def permitted(self, someone, tree, patient, label):
        return any(
            rule["type"] == "permit"
            and label in {one["code"] for one in rule.get("securityLabel", [])}
            and self.applies(rule, someone, tree)
            for consent in self.consents(patient)
            for _, rule in self.rules(consent["provision"])
        )

    def within_scope(self, someone, tree):
        """Whether the scopes of somebody are about a resource."""
        type = tree["resourceType"]
        if someone.name == "labs-only":
            return type == "Patient" or (
                type == "Observation"
                and any(coding["code"] == "laboratory" for one in tree["category"] for coding in one["coding"])
            )
        if someone.scope.startswith("patient/") and type not in OPEN:
            if type == "Provenance":
                return False
            patient = f"Patient/{someone.context['patient']}"
            return f"{type}/{tree['id']}" == patient or patient in references(tree)
        return True
