"""Organisations that work at the hub itself, each seeing and writing what it may, and requests that they give each other."""

from datetime import timedelta

from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scopes
from fhircm.coordination.acting import act
from fhircm.coordination.codes import own
from fhircm.coordination.distribution import of
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.validation import check_tree
from fhircm.operations.acting import VERBS
from fhircm.store.operations import Put

from .conftest import REACTIONS

SYSTEM = "https://fhircm.example/CodeSystem/coordination"
EXTENSION = "https://fhircm.example/StructureDefinition/distribution"
SCT = "http://snomed.info/sct"
NEED = {"coding": [{"system": SCT, "code": "182813001"}], "text": "Home health"}
REASON = {"coding": [{"system": SYSTEM, "code": "no-capacity"}], "text": "No capacity"}


def ref(text):
    return {"reference": text}


def distributed(how, **parts):
    """The extension of a ServiceRequest."""
    named = {"round": "valuePositiveInt", "respond_by": "valueDateTime"}
    more = [{"url": name.replace("_", "-"), named[name]: value} for name, value in parts.items()]
    return [{"url": EXTENSION, "extension": [{"url": "how", "valueCode": how}, *more]}]


def _newest_last(task):
    replaces = any(one["url"].endswith("task-replaces") for one in task.get("extension", []))
    return of(task).round, replaces, task["id"]


class Network:
    """A hospital `h`, agencies `a`, `b` and `c`, a platform `p` and the patient `x`, over a World."""

    def __init__(self, world):
        self.world, self.store = world, world.store

    async def begin(self):
        names = {"h": "Hospital", "a": "Agency A", "b": "Agency B", "c": "Agency C"}
        trees = [{"resourceType": "Organization", "id": id, "active": True, "name": name} for id, name in names.items()]
        platform = [{"coding": [{"system": SYSTEM, "code": "intermediary"}]}]
        trees.append({"resourceType": "Organization", "id": "p", "active": True, "name": "Platform", "type": platform})
        trees.append({"resourceType": "Patient", "id": "x", "managingOrganization": ref("Organization/h")})
        await self.written(*trees)

    async def react(self):
        """React until nothing is left to do, as far as this is about referrals and their due times."""
        mine = [(name, frozenset(types), function) for name, types, function in REACTIONS if name in ("referral", "deadlines")]
        try:
            while sum([await self.world._react(*one) for one in mine]):
                pass
        except FhirError as error:
            raise AssertionError("a reaction that is refused stands still") from error

    async def written(self, *trees, client="client:x"):
        return await self.store.transact([Put(check_tree(tree)) for tree in trees], origin=client)

    def seen_by(self, organization, roles=("system",), scope="system/*.cruds"):
        """The store as an organisation sees it."""
        name = f"Organization/{organization}"
        principal = Principal(f"{organization}-app", parse_scopes(scope), frozenset(roles), name, known_as=frozenset({name}))
        return GuardedStore(self.store, principal, timedelta(days=7))

    async def order(self, id="s", to=(), how=None, **members):
        """A request of the hospital's."""
        tree = {
            "resourceType": "ServiceRequest",
            "id": id,
            "status": "active",
            "intent": "order",
            "category": [{"coding": [{"system": SCT, "code": "3457005"}]}],
            "code": {"text": "Home health"},
            "subject": ref("Patient/x"),
            "authoredOn": "2026-03-02T08:00:00-06:00",
            "requester": ref("Organization/h"),
            **({"performer": [ref(f"Organization/{one}") for one in to]} if to else {}),
            **({"extension": distributed(how)} if how else {}),
            **members,
        }
        await self.written(tree)
        await self.react()

    async def act(self, who, verb, about, **said):
        """Somebody does something by its operation; what follows has happened after that."""
        return await self.act_as(self.seen_by(who), verb, about, **said)

    async def act_as(self, store, verb, about, **said):
        """The same, as who sees this store."""
        type, id = about.split("/")
        listed = {name: value if isinstance(value, list) else [value] for name, value in said.items()}
        stored = await act(store, VERBS[verb], type, id, listed)
        await self.react()
        return stored.tree

    async def update(self, who, about, *, by_version=True, **members):
        """Somebody writes an update with other members (None: without); what follows has happened after that."""
        store = self.seen_by(who)
        type, id = about.split("/")
        stored = await store.read(type, id)
        tree = {name: value for name, value in {**stored.tree, **members}.items() if value is not None}
        await store.transact([Put(check_tree(tree), stored.version if by_version else None)], [("u", type)])
        await self.react()

    async def created(self, who, tree):
        """Somebody writes something new."""
        store = self.seen_by(who)
        await store.transact([Put(check_tree(tree), 0)], [("c", tree["resourceType"])])
        await self.react()

    async def tasks(self, order="s"):
        """The referrals of an order, by their performer."""
        found = await self.world.find("Task", focus=f"ServiceRequest/{order}")
        referrals = [one for one in found if one.get("code", {}).get("text") == "Fulfil the referral"]
        return {one.get("owner", {}).get("reference", "/").split("/")[1]: one for one in sorted(referrals, key=_newest_last)}

    async def task(self, owner, order="s"):
        """The reference of the referral of a performer: the newest."""
        found = await self.world.find("Task", focus=f"ServiceRequest/{order}")
        theirs = [one for one in found if one.get("owner", {}).get("reference", "") == (f"Organization/{owner}" if owner else "")]
        referrals = [one for one in theirs if one.get("code", {}).get("text") == "Fulfil the referral"]
        return f"Task/{max(referrals, key=_newest_last)['id']}"

    async def states(self, order="s"):
        """Performer: status, and why."""
        return {
            owner: (one["status"], own(one.get("statusReason"))) if own(one.get("statusReason")) else one["status"]
            for owner, one in (await self.tasks(order)).items()
        }

    async def left_to_do(self, all=False):
        """What is left to do for those who ask: code, and the name of who has it; with `all`, also what is done, with its status."""
        found = []
        for one in await self.world.find("Task"):
            code = own(one.get("code"))
            if code in ("choose-performer", "choose-offer", "provide-information", "acknowledge-report"):
                who = one.get("owner", {}).get("display") or one.get("owner", {}).get("reference")
                if all:
                    found.append((code, who, one["status"]))
                elif one["status"] in ("ready", "in-progress"):
                    assert one["restriction"]["period"]["end"], "no open loop without a due time"
                    found.append((code, who))
        return sorted(found)
