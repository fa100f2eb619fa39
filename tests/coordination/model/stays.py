"""Stays in hospital and visits to the emergency department: begun, over, late, repeated, corrected, taken back; and the transitions of
care that follow from how they stand. docs/explanation/transitions.md"""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from fhircm.fhir.validation import check_tree
from fhircm.store.operations import Put

from .hub import ENDED, Hub, code_of, extension, id_of, is_open

PICK = st.integers(0, 11)
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
NUBC = "http://www.nubc.org/patient-discharge"
ANXIOUS = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "F41.1"}]}  # calls for a follow-up
# Where a discharge leads to, and what follows from it; None: the patient has died.
HOME = {"01": "transition-of-care", "06": "transition-of-care", "07": "transition-of-care"}
FOLLOWS = {**HOME, "03": "post-acute-transition", "02": "hospital-transfer", "50": "hospice-transition", "20": None}
TRANSITIONS = {"emergency-follow-up", "hospital-admission", "transition-of-care"}
HERE, HAPPENED = {"in-progress"}, {"in-progress", "finished"}
EVENTS = st.sampled_from(
    ["leave", "leave", "leave", "take back", "leave for elsewhere", "move", "correct", "cancel", "mistake", "again", "repeat"]
)
FRESH = timedelta(days=2)


class Stays(Hub):
    """The patient comes, moves within the house, and leaves; the hospital's clerks are late and make mistakes."""

    def __init__(self):
        self.stays = []
        self.heard = {}  # (stay, "start" or "end"): when the hub heard that it began or was over, as far as that still holds
        self.under_way = {}  # stay: when the hub first saw it under way
        super().__init__()

    @initialize(klass=st.sampled_from(["IMP", "IMP", "OBSENC"]), ago=st.sampled_from([0, 30]))
    def first_stay(self, klass, ago):
        self.admit(klass, ago, None)
        self.run(self.react())

    @precondition(lambda self: len(self.stays) < 3)
    @rule(
        klass=st.sampled_from(["IMP", "IMP", "IMP", "OBSENC", "EMER"]),
        ago=st.sampled_from([0, 0, 3, 30]),
        over=st.sampled_from([None, None, None, None, "01", "03"]),
    )
    def admit(self, klass, ago, over):
        """The patient is there, since some hours; or was, and has left when the hub first hears of it."""
        id = f"stay-{len(self.stays)}"
        self.stays.append(id)
        start = self.now - timedelta(hours=ago)
        tree = {
            "resourceType": "Encounter",
            "id": id,
            "meta": {"source": f"https://hospital.test/r4/Encounter/{id}"},
            "status": "in-progress",
            "class": {"system": ACT, "code": klass},
            "subject": {"reference": "Patient/p"},
            "serviceProvider": {"reference": "Organization/north"},
            "period": {"start": start.isoformat(timespec="seconds")},
        }
        if klass == "EMER":
            tree["reasonCode"] = [ANXIOUS]
        self.write({**tree, **(left(tree, start + timedelta(hours=ago / 2), over) if over else {})}, 0)
        self.caught[f"admit {klass}"] += 1

    @rule(
        events=st.lists(
            st.tuples(PICK, EVENTS, st.sampled_from([0, 1, 6]), st.sampled_from([*FOLLOWS, *HOME, "03"])), min_size=1, max_size=4
        ),
        seen=st.booleans(),
    )
    def happening(self, events, seen):
        self.happens(events, seen)

    def happens(self, events, seen):
        """Something happens at the hospital, or its clerk corrects what was said; the worker sees each, or how it ends."""
        for one in events:
            self.event(*one)
            if seen:
                self.run(self.react())

    def event(self, pick, what, hours, code):
        there = self.get("Encounter", self.stays[pick % len(self.stays)])
        tree, before = {**there.tree}, there.tree["status"]
        start = datetime.fromisoformat(tree["period"]["start"])
        at = max(start, self.now - timedelta(hours=hours))
        if what == "leave" and before == "in-progress":
            tree |= left(tree, at, code)
        elif what == "take back" and before == "finished":
            tree |= {"status": "in-progress", "period": {"start": tree["period"]["start"]}}
            tree.pop("hospitalization", None)
        elif what == "leave for elsewhere" and before == "finished":
            tree |= left(tree, datetime.fromisoformat(tree["period"]["end"]), code)
        elif what == "move":
            tree["location"] = [{"location": {"display": f"Ward {hours}"}}]
        elif what == "correct":
            earlier = (start - timedelta(hours=hours)).isoformat(timespec="seconds")
            tree["period"] = {**tree["period"], "start": earlier}
        elif what in ("cancel", "mistake") and before == "in-progress":
            tree["status"] = {"cancel": "cancelled", "mistake": "entered-in-error"}[what]
        elif what == "again" and before == "cancelled":
            tree["status"] = "in-progress"
        self.write(tree, there.version)
        self.caught[what] += tree != there.tree

    def write(self, tree, version):
        """As it comes from the hospital's system, which may take back anything."""
        self.run(self.store.transact([Put(check_tree(tree), version)], origin="partner:hospital"))
        if tree["status"] == "in-progress":
            self.under_way.setdefault(tree["id"], self.now)
        for name, states in (("start", HAPPENED), ("end", {"finished"})):
            if tree["status"] not in states:
                self.heard.pop((tree["id"], name), None)
            else:
                self.heard.setdefault((tree["id"], name), (self.now, version))

    @rule(pick=PICK, reached=st.booleans())
    def call(self, pick, reached):
        """Somebody tries to reach the patient, who leaves if nobody has to be called so far."""
        found = [one for one in self.find("Task", ("code", "contact")) if is_open(one)]
        if not found:
            return self.happens([(pick, "leave", 0, "01")], True)
        self.caught["called"] += self.act("north", "task-record-contact", found[pick % len(found)], reached=reached)

    # --- what must hold ----------------------------------------------------------------------------------------------------------

    async def check(self, tasks):
        await super().check(tasks)
        stays = {one.id: one.tree for one in [await self.context.get("Encounter", id) for id in self.stays]}
        self.dead = any(code == "20" and tree["status"] == "finished" for tree in stays.values() for code in [went(tree)])
        for id, tree in stays.items():
            mine = [one for one in tasks if id_of(one.tree, "encounter") == id]
            standing = [one for one in mine if is_open(one)]
            if tree["status"] in ("cancelled", "entered-in-error"):
                assert not standing, f"{id} was called off, and {[code_of(one) for one in standing]} is open"
            whole = [one for one in standing if code_of(one) in TRANSITIONS]
            assert len(whole) <= 1, f"one transition of a stay: {[one.tree['instantiatesUri'] for one in whole]}"
            assert not (self.dead and whole), "nothing goes on after a death"
            for one in whole:
                complete(one, [each for each in tasks if f"Task/{one.id}" in str(each.tree.get("partOf"))])
            self.what_follows(id, tree, mine, [other for other in stays.items() if other[0] != id])

    def what_follows(self, id, tree, mine, others):
        """There is what should follow from how a stay stands, and nothing else; only where there is no doubt about the other stays."""
        made = [one for one in mine if code_of(one) in TRANSITIONS and "called-off" not in str(one.tree.get("statusReason"))]
        kinds = {one.tree["instantiatesUri"].rpartition("/")[2].partition("#")[0] for one in made}
        open_kinds = {one.tree["instantiatesUri"].rpartition("/")[2].partition("#")[0] for one in made if is_open(one)}
        bed = [other for _, other in others if klass(other) != "EMER" and other["status"] in HAPPENED]
        if self.dead or tree["status"] not in HAPPENED:
            return
        name = "end" if tree["status"] == "finished" else "start"
        at, (seen, version) = datetime.fromisoformat(tree["period"][name]), self.heard[id, name]
        if klass(tree) == "EMER":
            follows = "emergency-follow-up" if name == "end" else None
        else:
            follows = FOLLOWS[went(tree)] if name == "end" else "hospital-admission"
        assert open_kinds <= {follows}, f"{id} is {tree['status']} ({went(tree)}), and {open_kinds} goes on"
        if in_hospital_again(tree, bed):
            assert not open_kinds, f"{id}: the patient is in hospital again, and {open_kinds} goes on"
        in_time = (name == "end" and version) or seen - at <= FRESH
        if not bed and follows and in_time and at <= seen:
            assert follows in kinds, f"{id} is {tree['status']} ({went(tree)}), and there is {kinds} instead of {follows}"


def left(tree, at, code):
    """The members of an Encounter of a patient who has left."""
    return {
        "status": "finished",
        "period": {**tree["period"], "end": at.isoformat(timespec="seconds")},
        "hospitalization": {"dischargeDisposition": {"coding": [{"system": NUBC, "code": code}]}},
    }


def in_hospital_again(tree, others):
    """Whether another stay follows one that led home; where else it leads to, that may be it."""
    if tree["status"] != "finished" or went(tree) not in HOME or klass(tree) == "EMER":
        return False
    bed = [one for one in others if klass(one) != "EMER" and one["status"] in HAPPENED]
    return any(datetime.fromisoformat(one["period"]["start"]) >= datetime.fromisoformat(tree["period"]["end"]) for one in bed)


def went(tree):
    return tree.get("hospitalization", {}).get("dischargeDisposition", {"coding": [{}]})["coding"][0].get("code")


def klass(tree):
    return tree["class"]["code"]


def complete(whole, steps):
    """A whole says how complete it is."""
    counted = [one for one in steps if one.tree["status"] not in ("cancelled", "entered-in-error")]
    said = extension(whole.tree, "completeness")
    done = sum(one.tree["status"] == "completed" for one in counted)
    told = said["done"]["valueInteger"], said["of"]["valueInteger"]
    assert told == (done, len(counted)), f"Task/{whole.id} says {told}, and {done} of {len(counted)} are done"
    assert not counted or {one.tree["status"] for one in counted} - ENDED, f"Task/{whole.id} is open, and its steps are not"
