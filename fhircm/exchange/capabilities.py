"""What a partner can do: read from its discovery documents, kept as a snapshot, and compared with what it could do before.

https://hl7.org/fhir/R4/capabilitystatement.html and https://hl7.org/fhir/smart-app-launch/conformance.html. What a partner stops to
support is asked for no more and told to a human (exchange/drift.py); what it starts to support is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused
from fhircm.exchange.granted import allows, understood

NAMESPACE = "capability"
_PLAIN = ("software", "fhir_version", "token_endpoint", "algorithms", "grants")
# What a snapshot that was kept by an older fhircm does not know: None there, and never told as a change.
_LATER = ("system", "operations", "formats", "security", "auth_methods", "smart", "scopes", "granted")
_FLAGS = ("conditionalCreate", "conditionalRead", "conditionalUpdate", "conditionalDelete", "updateCreate", "versioning")
Texts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A snapshot. `types` names for each resource type the interactions (create, update, search-type, …), the search parameters, and
    under `more` its operations ($everything) and flags (conditionalCreate, versioning versioned-update)."""

    software: str
    fhir_version: str
    token_endpoint: str | None
    algorithms: Texts  # that the token endpoint says it verifies; none said is not none
    grants: Texts
    types: dict[str, dict[str, list[str]]]
    system: Texts | None = None  # interactions of the whole: batch, transaction, …
    operations: Texts | None = None  # of the whole
    formats: Texts | None = None
    security: Texts | None = None  # SMART-on-FHIR, …
    auth_methods: Texts | None = None  # of the token endpoint
    smart: Texts | None = None  # SMART capabilities
    scopes: Texts | None = None  # that the server knows
    granted: Texts | None = None  # scopes of the hub's last token; None: not known
    lost: Texts = ()  # what was wanted and there once, and is not now; see exchange/drift.py

    def can(self, type: str, interaction: str) -> bool:
        """Whether the partner says that it has an interaction on a type, and its scopes, as far as they are known, allow it to the hub."""
        return self.declares(type, interaction) and allows(self.granted, type, interaction)

    def declares(self, type: str, interaction: str) -> bool:
        """Whether the partner says that it has an interaction on a type, whoever may use it."""
        return interaction in self.types.get(type, {}).get("interactions", ())

    def search_params(self, type: str) -> frozenset[str]:
        """The search parameters that the partner says it has for a type."""
        return frozenset(self.types.get(type, {}).get("search", ()))

    def has(self, type: str, more: str) -> bool:
        """Whether a type has a flag, such as conditionalCreate, or an operation, such as $everything."""
        return more in self.types.get(type, {}).get("more", ())

    def as_json(self) -> dict[str, Any]:
        """The form in which a snapshot is kept."""
        tree: dict[str, Any] = {
            "software": self.software,
            "fhir_version": self.fhir_version,
            "token_endpoint": self.token_endpoint,
            "algorithms": list(self.algorithms),
            "grants": list(self.grants),
            "types": self.types,
        }
        later = {name: list(value) for name in _LATER if (value := getattr(self, name)) is not None}
        return {**tree, **later, **({"lost": list(self.lost)} if self.lost else {})}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Capabilities:
        """The snapshot that was kept, by this fhircm or an older one."""
        plain = {name: kept[name] for name in ("software", "fhir_version", "token_endpoint", "types")}
        lists = {name: tuple(kept[name]) for name in ("algorithms", "grants", *_LATER, "lost") if name in kept}
        return cls(**plain, **lists)


async def discover(client: PartnerClient) -> Capabilities:
    """Read the partner's SMART configuration and CapabilityStatement, which need no token. Raises the client's errors.

    A partner without the first, as R4 servers may be, says the less of sign-in.
    """
    try:
        smart = await client.get_json(".well-known/smart-configuration")
    except PartnerRefused:
        smart = {}
    statement = await client.get_json("metadata")
    if statement.get("resourceType") != "CapabilityStatement":
        raise PartnerAnswerBroken("metadata was answered with something else than a CapabilityStatement")
    software = _mapping(statement.get("software"))
    servers = [_mapping(rest) for rest in _list(statement.get("rest")) if _mapping(rest).get("mode", "server") == "server"]
    return Capabilities(
        software=" ".join(_texts([software.get("name"), software.get("version")])),
        fhir_version=str(statement.get("fhirVersion", "")),
        token_endpoint=_first(_texts([smart.get("token_endpoint")])),
        algorithms=tuple(_texts(smart.get("token_endpoint_auth_signing_alg_values_supported"))),
        grants=tuple(_texts(smart.get("grant_types_supported"))),
        types=_types(servers),
        system=_sorted(code for rest in servers for code in _members(rest.get("interaction"), "code")),
        operations=_sorted(f"${name.lstrip('$')}" for rest in servers for name in _members(rest.get("operation"), "name")),
        formats=_sorted(_texts(_list(statement.get("format")))),
        security=_sorted(code for rest in servers for code in _security(_mapping(rest.get("security")))),
        auth_methods=_sorted(_texts(_list(smart.get("token_endpoint_auth_methods_supported")))),
        smart=_sorted(_texts(_list(smart.get("capabilities")))),
        scopes=_sorted(_texts(_list(smart.get("scopes_supported")))),
        granted=granted(client),
    )


def granted(client: PartnerClient) -> Texts | None:
    """The scopes of the client's last token; None when it has none yet, or the partner did not say what it granted in words of SMART."""
    return understood(getattr(client.auth, "granted", None))


def drift(before: Capabilities, now: Capabilities) -> list[str]:
    """How two snapshots differ, a sentence each."""
    told = []
    for name in _PLAIN:
        was, is_ = getattr(before, name), getattr(now, name)
        if was != is_:
            told.append(f"{name.replace('_', ' ')}: {_plain(was)} before, {_plain(is_)} now")
    for name in _LATER:
        was, is_ = getattr(before, name), getattr(now, name)
        if was is not None and is_ is not None:
            told += _differences(f"{name.replace('_', ' ')}: ", was, is_)
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
    for name, what in (("interactions", ""), ("search", "search by "), ("more", "")):
        if name in before:
            told += _differences(f"{type}: {what}", before[name], now.get(name, []))
    return told


def _differences(what: str, before: Any, now: Any) -> list[str]:
    was, is_ = set(before), set(now)
    return [f"{what}{one} is gone" for one in sorted(was - is_)] + [f"{what}{one} is new" for one in sorted(is_ - was)]


def _types(servers: list[dict[str, Any]]) -> dict[str, dict[str, list[str]]]:
    types: dict[str, dict[str, list[str]]] = {}
    for resource in (_mapping(one) for rest in servers for one in _list(rest.get("resource"))):
        if isinstance(type := resource.get("type"), str):
            types[type] = {
                "interactions": sorted(_members(resource.get("interaction"), "code")),
                "search": sorted(_members(resource.get("searchParam"), "name")),
                "more": sorted(
                    [*_flags(resource), *(f"${name.lstrip('$')}" for name in _members(resource.get("operation"), "name"))]
                ),
            }
    return dict(sorted(types.items()))


def _flags(resource: dict[str, Any]) -> list[str]:
    """conditionalCreate, versioning versioned-update, …: those that promise something."""
    told = ((name, resource.get(name)) for name in _FLAGS)
    return [
        name if value is True else f"{name} {value}"
        for name, value in told
        if value is True or (isinstance(value, str) and value)
    ]


def _security(security: dict[str, Any]) -> list[str]:
    services = [_mapping(one) for one in _list(security.get("service"))]
    return [code for one in services for code in _members(one.get("coding"), "code")]


def _members(tree: Any, name: str) -> list[str]:
    return _texts(_mapping(one).get(name) for one in _list(tree))


def _mapping(tree: Any) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else {}


def _list(tree: Any) -> list[Any]:
    return tree if isinstance(tree, list) else []


def _texts(values: Any) -> list[str]:
    return [value for value in values or () if isinstance(value, str)]


def _sorted(values: Any) -> Texts:
    return tuple(sorted(set(values)))


def _first(values: list[str]) -> str | None:
    return values[0] if values else None


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value or "not told")
