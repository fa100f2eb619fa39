"""Partners: what differs from one EHR to the next, read from mappings/<name>/partner.yaml and checked before anything is sent.

https://hl7.org/fhir/R4/http.html for the base URL, https://hl7.org/fhir/smart-app-launch/backend-services.html for client and scopes.
What follows from the vendor is in a shape (exchange/shapes.py); partner.yaml says which, and what is the partner's own goes before it.
A mistake in either file is found when it is read, and told with file, key and remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import holidays

from fhircm.exchange import (
    breaker,
    bulk_shape,
    credentials,
    hl7v2,
    launch,
    plan,
    pull_types,
    roster,
    schedule,
    shapes,
    subscription_shape,
)
from fhircm.exchange.adt_map import load_adt
from fhircm.exchange.bulk_shape import Bulk
from fhircm.exchange.credentials import Credentials
from fhircm.exchange.launch import Registration
from fhircm.exchange.maps import NONE, Maps, MapWrong, load_maps
from fhircm.exchange.matching import Thresholds, own_thresholds
from fhircm.exchange.plan import Budget
from fhircm.exchange.pull_types import PullType, fill
from fhircm.exchange.roster import Membership
from fhircm.exchange.schedule import WEEKDAYS, Schedule, Window, window
from fhircm.exchange.subscription_shape import Subscriptions
from fhircm.exchange.yaml_keys import Keys, YamlWrong, load
from fhircm.fhir.artefacts import folder as shipped_folder

__all__ = [
    "Calendar",
    "Limits",
    "Organization",
    "Partner",
    "PartnerWrong",
    "PullType",
    "load_partner",
    "load_partners",
]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_ID = roster.ID
_SCOPE = re.compile(r"system/(\*|[A-Z][A-Za-z]+)\.(read|write|\*|(?=[cruds])c?r?u?d?s?)(\?\S+)?")


class PartnerWrong(Exception):
    """A partner.yaml cannot be used; the message names the file, the key and how to mend it."""


@dataclass(frozen=True, slots=True)
class Organization:
    """The organisation that runs the partner's system."""

    id: str  # of its Organization at the partner
    name: str
    npi: str


@dataclass(frozen=True, slots=True)
class Calendar:
    """The days and hours in which the partner's organisation works."""

    country: str  # ISO 3166-1
    subdivision: str | None  # ISO 3166-2 without the country
    closed: tuple[date, ...]  # beside the public holidays
    weekend: tuple[int, ...]  # 0 is Monday
    hours: tuple[Window, ...] = ()  # without any, those of an office


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard the partner may be driven. Times in seconds."""

    page_size: int | None = 100  # sent as _count; none: the partner decides
    pages: int = 1000  # of one search
    concurrency: int = 4  # requests in flight
    requests_per_second: float = 20.0
    timeout: float = 30.0  # of one request, from start to last byte
    attempts: int = 4  # of one GET
    patience: float = 60.0  # the longest Retry-After that is waited for; with a longer one the partner counts as unavailable
    body: int = 64 * 1024 * 1024  # bytes of one answer


@dataclass(frozen=True, slots=True)
class Partner:
    """One partner. `name` is the name of its folder."""

    name: str
    folder: Path
    vendor: str
    base_url: str  # of its FHIR API, without a slash at the end
    client_id: str
    algorithm: str  # RS384 or ES384
    scopes: tuple[str, ...]
    organization: Organization
    time_zone: str  # IANA
    calendar: Calendar
    group: str  # id of the Group that is the panel; empty when `panel` says what else it is
    pull: tuple[PullType, ...]
    schedule: Schedule = field(default_factory=Schedule)
    budget: Budget = field(default_factory=Budget)
    credentials: Credentials = field(default_factory=Credentials)
    launch: Registration | None = None
    limits: Limits = field(default_factory=Limits)
    headers: Mapping[str, str] = field(default_factory=dict)
    prefer_handling: str | None = "strict"  # Prefer: handling=… of searches
    deliver: Mapping[str, Any] = field(default_factory=dict)
    panel: Membership | None = None
    shape: str | None = None
    search_parameters: tuple[tuple[str, str], ...] = ()  # sent with every search
    rebase_links: bool = False  # the next page is taken at base_url, whatever address its link names
    outbound: Mapping[str, Any] = field(
        default_factory=dict
    )  # by type, what its vendor wants otherwise; outbound.yaml lies over it
    breaker: breaker.Policy = field(default_factory=breaker.Policy)
    identity: Thresholds | None = None  # where its Patients are linked on more evidence than is usual
    bulk: Bulk | None = None  # how it exports in bulk; none: it does not
    subscriptions: Subscriptions | None = None  # what it notifies of; none: nothing
    maps: Maps = NONE
    hl7v2: hl7v2.Hl7v2 = field(default_factory=hl7v2.Hl7v2)

    @property
    def types(self) -> frozenset[str]:
        """The types that are pulled; Patient always is."""
        return frozenset(one.type for one in self.pull) | {"Patient"}


def load_partners(
    folder: Path | None = None, base_urls: Mapping[str, str] | None = None, names: Sequence[str] | None = None
) -> list[Partner]:
    """The partners of a folder (without one, those that fhircm ships), in order of their names.

    `base_urls` replaces addresses, by name; `names` chooses. Raises PartnerWrong.
    """
    root = folder or shipped_folder("mappings")
    found = sorted(path.parent.name for path in root.glob("*/partner.yaml"))
    unknown = sorted({*(names or ()), *(base_urls or {})} - set(found))
    if unknown:
        raise PartnerWrong(f"{root} has no partner {', '.join(unknown)}; it has: {', '.join(found) or 'none'}")
    return [
        load_partner(root / name / "partner.yaml", (base_urls or {}).get(name))
        for name in found
        if names is None or name in names
    ]


def load_partner(path: Path, base_url: str | None = None) -> Partner:
    """Read one partner.yaml; `base_url` replaces the address in it. Raises PartnerWrong."""
    if not _NAME.fullmatch(path.parent.name):
        raise PartnerWrong(f"{path}: the folder's name must be of small letters, digits and hyphens, such as north-clinic")
    try:
        return _mapped(_partner(load(path), path, base_url))
    except (YamlWrong, MapWrong) as error:
        raise PartnerWrong(str(error)) from None


def _partner(own: Keys, path: Path, base_url: str | None) -> Partner:
    shape = _shape(own, path)
    keys = Keys(own.path, "", own.tree, shape.keys) if shape else own
    keys.known = own.known
    parameters = _parameters(keys, shape)
    written = keys.text("base_url", "the URL of the partner's FHIR API")
    time_zone = _time_zone(keys)
    quirks = keys.keys("quirks", "a mapping of quirks", {})
    membership = roster.read(keys.keys("panel", "group, list, search or roster"), path.parent, parameters)
    signs = credentials.read(keys)
    partner = Partner(
        name=path.parent.name,
        folder=path.parent,
        vendor=keys.text("vendor", "the vendor's name"),
        base_url=_base_url(keys, base_url or fill(keys, "base_url", written, parameters)),
        client_id=keys.text("client_id", "the id under which the partner registered the hub", re.compile(r"\S+")),
        algorithm=signs.algorithm,
        credentials=signs,
        launch=launch.read(keys),
        scopes=_scopes(keys),
        organization=_organization(keys.keys("organization", "id, name and npi of the partner's organisation")),
        time_zone=time_zone,
        calendar=_calendar(keys.keys("calendar", "country, subdivision, closed, weekend and hours")),
        group=membership if isinstance(membership, str) else "",
        panel=None if isinstance(membership, str) else membership,
        pull=pull_types.read(keys, parameters),
        schedule=schedule.read(keys, time_zone),
        budget=plan.read(keys),
        limits=_limits(keys.keys("limits", "a mapping of limits", {})),
        headers=_headers(keys.keys("headers", "a mapping of header names to values", {}), parameters),
        prefer_handling=_handling(quirks),
        bulk=bulk_shape.read(keys.keys("bulk", "how the partner exports in bulk")) if keys.has("bulk") else None,
        subscriptions=subscription_shape.read(keys.keys("subscriptions", "what the partner notifies of"))
        if keys.has("subscriptions")
        else None,
        identity=own_thresholds(keys),
        breaker=breaker.read(keys.keys("breaker", "a mapping of failures, first_wait and longest_wait", {})),
        rebase_links=quirks.choice("next_link", ("as-sent", "rebased"), "as-sent") == "rebased",
        deliver={name: ways for name, ways in _merged(keys, "deliver", "a mapping of occasions to ways").items() if ways != []},
        shape=shape.name if shape else None,
        search_parameters=_search_parameters(keys, parameters),
        outbound=_merged(keys, "outbound", "a mapping of types to what the vendor wants otherwise"),
        hl7v2=hl7v2.read(keys.keys("hl7v2", "whose messages are its", {})),
    )
    quirks.done()
    keys.done()
    return partner


def _shape(keys: Keys, path: Path) -> shapes.Shape | None:
    """The shape that partner.yaml names."""
    root = path.parent.parent
    name = keys.choice("shape", tuple(shapes.shapes(root)), None)
    return shapes.read(name, root) if name else None


def _parameters(keys: Keys, shape: shapes.Shape | None) -> dict[str, str]:
    """What the shape needs to know of the partner, each as partner.yaml gives it."""
    given = keys.keys("parameters", "what the shape needs to know, by name", {})
    wanted = shape.parameters if shape else ()
    values = {one.name: given.text(one.name, one.means, one.pattern) for one in wanted}
    given.done()
    return values


def _merged(keys: Keys, key: str, remedy: str) -> dict[str, Any]:
    """A mapping put together from both files; its inside is checked by whoever uses it."""
    section = keys.keys(key, remedy, {})
    return {str(name): section.take(name, object, "a value") for name in section.names}


def _search_parameters(keys: Keys, parameters: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    section = keys.keys("search_parameters", "a mapping of search parameters to values", {})
    names = [name for name in section.names if not section.says(name, None)]
    return tuple((name, fill(section, name, section.text(name, "a text"), parameters)) for name in names)


def _mapped(partner: Partner) -> Partner:
    """A partner with its map, which goes on from that of its shape."""
    if partner.hl7v2.sending:
        load_adt(partner.folder)  # a mistake in it is told now, not with the first message
    root = partner.folder.parent
    places = [place / "shape" / partner.shape for place in (root, shipped_folder("mappings"))] if partner.shape else []
    maps = load_maps([*[place for place in places if place.is_dir()][:1], partner.folder])
    return replace(partner, maps=maps, pull=tuple(replace(one, map=maps.fingerprint) for one in partner.pull))


def _base_url(keys: Keys, text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or url.username is not None:
        keys.wrong("base_url", "must be an http or https URL without query, fragment or user name")
    return text.rstrip("/")


def _scopes(keys: Keys) -> tuple[str, ...]:
    scopes = keys.take("scopes", list, "a list of SMART scopes such as system/Patient.rs (v2) or system/Patient.read (v1)")
    for number, scope in enumerate(scopes):
        if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
            keys.wrong(
                f"scopes[{number}]", "must be a system scope such as system/Patient.rs; letters in the order c, r, u, d, s"
            )
    return tuple(scopes)


def _organization(keys: Keys) -> Organization:
    npi = keys.text("npi", "the organisation's NPI, ten digits in quotes", re.compile(r"\d{10}"))
    if not _luhn("80840" + npi):
        keys.wrong("npi", "is not an NPI: its check digit is wrong")
    organization = Organization(
        keys.text("id", "the id of its Organization at the partner", _ID), keys.text("name", "its name"), npi
    )
    keys.done()
    return organization


def _luhn(digits: str) -> bool:
    """https://www.cms.gov/regulations-and-guidance/administrative-simplification/nationalprovidentstand: the check digit."""
    doubled = (int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _time_zone(keys: Keys) -> str:
    name = keys.text("time_zone", "an IANA time zone such as America/Chicago")
    try:
        ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        keys.wrong("time_zone", "must be an IANA time zone such as America/Chicago")
    return name


def _calendar(keys: Keys) -> Calendar:
    country = keys.text("country", 'an ISO 3166-1 code in quotes such as "US"', re.compile("[A-Z]{2}"))
    subdivision = keys.text("subdivision", 'an ISO 3166-2 code without the country such as "IL"', default=None)
    supported = holidays.list_supported_countries()
    if country not in supported:
        keys.wrong("country", "is not a country whose public holidays are known")
    if subdivision is not None and subdivision not in supported[country]:
        keys.wrong("subdivision", f"is not one of {country}; known are: {', '.join(supported[country]) or 'none'}")
    closed = keys.take("closed", list, "a list of dates such as 2026-12-24", [])
    for number, day in enumerate(closed):
        if type(day) is not date:
            keys.wrong(f"closed[{number}]", "must be a date such as 2026-12-24, without quotes")
    weekend = keys.take("weekend", list, "a list of days of the week", ["saturday", "sunday"])
    for number, name in enumerate(weekend):
        if name not in WEEKDAYS:
            keys.wrong(f"weekend[{number}]", f"must be one of {', '.join(WEEKDAYS)}")
    if len(set(weekend)) == 7:
        keys.wrong("weekend", "leaves no day to work on")
    hours = tuple(keys.each("hours", "a list of windows with days, from and to", window, []))
    for number, one in enumerate(hours):
        if one.end > timedelta(days=1):
            keys.wrong(
                f"hours[{number}].to", "must be later than from, and no later than 24:00: work over midnight is two windows"
            )
        if one.days <= {WEEKDAYS.index(name) for name in weekend}:
            keys.wrong(f"hours[{number}].days", "are of the weekend only: say which days the weekend is")
    keys.done()
    return Calendar(country, subdivision, tuple(closed), tuple(WEEKDAYS.index(name) for name in weekend), hours)


def _limits(keys: Keys) -> Limits:
    default = Limits()
    limits = Limits(
        page_size=None if keys.says("page_size", "none") else keys.number("page_size", int, 1, 10_000, default.page_size),
        pages=keys.number("pages", int, 1, 1_000_000, default.pages),
        concurrency=keys.number("concurrency", int, 1, 100, default.concurrency),
        requests_per_second=keys.number("requests_per_second", float, 0.01, 10_000, default.requests_per_second),
        timeout=keys.number("timeout", float, 0.1, 600, default.timeout),
        attempts=keys.number("attempts", int, 1, 10, default.attempts),
        patience=keys.number("patience", float, 0, 3600, default.patience),
    )
    keys.done()
    return limits


def _headers(keys: Keys, parameters: Mapping[str, str]) -> dict[str, str]:
    printable = re.compile(r"[\x20-\x7e]+")
    names = [name for name in keys.names if not keys.says(name, None)]
    headers = {name: fill(keys, name, keys.text(name, "a text", printable), parameters) for name in names}
    for name in headers:
        if name.lower() in ("authorization", "accept", "host", "content-type"):
            keys.wrong(name, "is set by fhircm itself: remove it")
    return headers


def _handling(keys: Keys) -> str | None:
    handling = keys.choice("prefer_handling", ("strict", "lenient", "none"), "strict")
    return None if handling == "none" else handling
