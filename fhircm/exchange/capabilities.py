"""What a partner can do: read from its discovery documents, kept as a snapshot, and compared with what it could do before.

https://hl7.org/fhir/R4/capabilitystatement.html and https://hl7.org/fhir/smart-app-launch/conformance.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken
from fhircm.store.resources import SetState, Store

NAMESPACE = "capability"
CONDITIONAL_CREATE = "conditional-create"  # beside the interactions: it honours If-None-Exist


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A snapshot. `types` names for each resource type the interactions (create, update, search-type, …) and search parameters."""

    software: str
    fhir_version: str
    token_endpoint: str | None
    algorithms: tuple[str, ...]  # that the token endpoint says it verifies; none said is not none
    grants: tuple[str, ...]
    types: dict[str, dict[str, list[str]]]

    def can(self, type: str, interaction: str) -> bool:
        """Whether the partner says that it has an interaction on a type. Saying so is not yet granting it."""
        return interaction in self.types.get(type, {}).get("interactions", ())

    def search_params(self, type: str) -> frozenset[str]:
        """The search parameters that the partner says it has for a type."""
        return frozenset(self.types.get(type, {}).get("search", ()))

    def as_json(self) -> dict[str, Any]:
        """The form in which a snapshot is kept."""
        return {
            "software": self.software,
            "fhir_version": self.fhir_version,
            "token_endpoint": self.token_endpoint,
            "algorithms": list(self.algorithms),
            "grants": list(self.grants),
            "types": self.types,
        }

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Capabilities:
        """The snapshot that was kept."""
        return cls(**{**kept, "algorithms": tuple(kept["algorithms"]), "grants": tuple(kept["grants"])})


async def discover(client: PartnerClient) -> Capabilities:
    """Read the partner's SMART configuration and CapabilityStatement, which need no token. Raises the client's errors."""
    smart = await client.get_json(".well-known/smart-configuration")
    statement = await client.get_json("metadata")
    if statement.get("resourceType") != "CapabilityStatement":
        raise PartnerAnswerBroken("metadata was answered with something else than a CapabilityStatement")
    software = _mapping(statement.get("software"))
    return Capabilities(
        software=" ".join(_texts([software.get("name"), software.get("version")])),
        fhir_version=str(statement.get("fhirVersion", "")),
        token_endpoint=_first(_texts([smart.get("token_endpoint")])),
        algorithms=tuple(_texts(smart.get("token_endpoint_auth_signing_alg_values_supported"))),
        grants=tuple(_texts(smart.get("grant_types_supported"))),
        types=_types(statement),
    )


async def kept(store: Store, partner: str) -> Capabilities | None:
    """The last snapshot of a partner, or None when it was never asked."""
    snapshot = await store.state(NAMESPACE, partner)
    return Capabilities.from_json(snapshot) if snapshot else None


async def refresh(store: Store, client: PartnerClient) -> tuple[Capabilities, list[str]]:
    """Ask the partner anew and keep what it says. Returns the snapshot and how it differs from the one before."""
    before, now = await kept(store, client.partner.name), await discover(client)
    if now != before:
        await store.transact([SetState(NAMESPACE, client.partner.name, now.as_json())], origin="hub")
    return now, drift(before, now) if before else []


def drift(before: Capabilities, now: Capabilities) -> list[str]:
    """How two snapshots differ, a sentence each."""
    told = []
    for name in ("software", "fhir_version", "token_endpoint", "algorithms", "grants"):
        was, is_ = getattr(before, name), getattr(now, name)
        if was != is_:
            told.append(f"{name.replace('_', ' ')}: {_plain(was)} before, {_plain(is_)} now")
    for type in sorted(before.types.keys() | now.types.keys()):
        if type not in now.types:
            told.append(f"{type} is gone")
        elif type not in before.types:
            told.append(f"{type} is new")
        else:
            told += _drift_of(type, before.types[type], now.types[type])
    return told


def _drift_of(type: str, before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    told = []
    for name, what in (("interactions", ""), ("search", "search by ")):
        was, is_ = set(before[name]), set(now[name])
        told += [f"{type}: {what}{one} is gone" for one in sorted(was - is_)]
        told += [f"{type}: {what}{one} is new" for one in sorted(is_ - was)]
    return told


def _types(statement: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    servers = [_mapping(rest) for rest in _list(statement.get("rest")) if _mapping(rest).get("mode", "server") == "server"]
    types: dict[str, dict[str, list[str]]] = {}
    for resource in (_mapping(one) for rest in servers for one in _list(rest.get("resource"))):
        if isinstance(type := resource.get("type"), str):
            types[type] = {
                "interactions": sorted(
                    [
                        *_texts(_mapping(one).get("code") for one in _list(resource.get("interaction"))),
                        *([CONDITIONAL_CREATE] if resource.get("conditionalCreate") is True else []),
                    ]
                ),
                "search": sorted(_texts(_mapping(one).get("name") for one in _list(resource.get("searchParam")))),
            }
    return dict(sorted(types.items()))


def _mapping(tree: Any) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else {}


def _list(tree: Any) -> list[Any]:
    return tree if isinstance(tree, list) else []


def _texts(values: Any) -> list[str]:
    return [value for value in values or () if isinstance(value, str)]


def _first(values: list[str]) -> str | None:
    return values[0] if values else None


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value or "not told")
