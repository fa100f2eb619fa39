"""A few harmless requests that show a partner's habits, beside what it declares and what its shape says.

https://hl7.org/fhir/R4/search.html. Only searches of one patient, a page of one or two entries each; nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin

from fhircm.exchange.capabilities import Capabilities
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerRefused
from fhircm.exchange.pages import within
from fhircm.exchange.partners import PullType
from fhircm.fhir.outcome import FhirError

UNKNOWN = "fhircm-probe"  # a search parameter that no server knows
FUTURE = "ge2999-01-01"  # nothing was changed there


@dataclass(frozen=True, slots=True)
class Habit:
    """Something that a partner was seen to do. `wrong`: its file does not reckon with it; then `remedy` says what to change."""

    text: str
    wrong: bool = False
    remedy: str = ""


async def habits(client: PartnerClient, capabilities: Capabilities, patient: str, types: Sequence[PullType]) -> list[Habit]:
    """What is seen with the first patient, of types whose search works. What does not answer is passed over."""
    seen: list[Habit] = []
    honest: list[str] = []
    unused: list[str] = []
    several: tuple[PullType, dict[str, Any]] | None = None
    for one in types:
        bundle = await _asked(client, one, patient, [("_count", "1")])
        if bundle is None or isinstance(bundle, int) or not _matches(bundle):
            continue
        told = await _last_updated(client, capabilities, one, patient)
        if isinstance(told, bool):
            (honest if told else unused).append(one.type)
        elif told is not None:
            seen.append(told)
        if several is None or (_next(bundle) and not _next(several[1])):
            several = one, bundle
    if honest:
        seen.append(Habit(f"_lastUpdated is honest: {', '.join(honest)}"))
    if unused:
        seen.append(Habit(f"_lastUpdated is honest, and not used: {', '.join(unused)}; see last_updated in pull"))
    if several is not None:
        seen += _page(client, *several)
        seen += await _unknown(client, several[0], patient)
    return seen


async def _last_updated(client: PartnerClient, capabilities: Capabilities, one: PullType, patient: str) -> Habit | bool | None:
    """Whether it is used, when it is honest; else what is wrong with it, if it is used or declared."""
    declared = "_lastUpdated" in capabilities.search_params(one.type)
    uses = one.last_updated or (one.if_declared and declared)
    if not uses and not declared:
        return None
    answer = await _asked(client, one, patient, [("_count", "1"), ("_lastUpdated", FUTURE)])
    where = f"pull, type {one.type}, last_updated"
    if isinstance(answer, dict) and not _matches(answer):
        return uses
    if isinstance(answer, dict):
        text = f"{one.type}: _lastUpdated is passed over: a search for what changed in a future year finds what there is"
        return Habit(text, uses, f"Set {where} to false: changes are then found by comparing")
    if isinstance(answer, int) and uses:
        return Habit(f"{one.type}: _lastUpdated is refused ({answer})", True, f"Set {where} to false")
    return None


async def _unknown(client: PartnerClient, one: PullType, patient: str) -> list[Habit]:
    answer = await _asked(client, one, patient, [("_count", "1"), (UNKNOWN, "1")])
    if answer is None:
        return []
    if isinstance(answer, int):
        return [Habit(f"A search parameter that it does not know is refused ({answer})")]
    return [Habit("A search parameter that it does not know is passed over: a misspelt one finds too much")]


def _page(client: PartnerClient, one: PullType, bundle: dict[str, Any]) -> list[Habit]:
    """What a page that was asked to have one entry tells."""
    matches, seen = _matches(bundle), []
    if len(matches) > 1:
        seen.append(Habit(f"_count is not honoured: a page of one {one.type} has {len(matches)}"))
    else:
        seen.append(Habit("_count is honoured"))
    if len(matches) < len(_entries(bundle)):
        seen.append(Habit("Search results carry an OperationOutcome entry, which is left out"))
    if not any("lastUpdated" in (match.get("meta") or {}) for match in matches):
        seen.append(Habit("Resources carry no meta.lastUpdated"))
    following = _next(bundle)
    if following and bundle.get("total") == len(matches):
        seen.append(Habit("Bundle.total is the size of the page; it is not believed"))
    if following and not within(client.partner.base_url, urljoin(f"{client.partner.base_url}/{one.type}", following)):
        text = "Links to the next page name another address than base_url"
        rebased = client.partner.rebase_links
        handled = f"{text}; they are taken at base_url"
        seen.append(
            Habit(handled if rebased else text, not rebased, "Set quirks, next_link to rebased, if that is its own proxy")
        )
    return seen


async def _asked(client: PartnerClient, one: PullType, patient: str, more: list[tuple[str, str]]) -> dict[str, Any] | int | None:
    """The Bundle of one search, the status with which it was refused, or None when there was no answer that says anything."""
    search = [(name, value.replace("{patient}", patient)) for name, value in one.searches[0]]
    query = urlencode([*search, *client.partner.search_parameters, *more])
    try:
        return await client.get_json(f"{one.type}?{query}", signed_in=True, headers=client.handling)
    except PartnerRefused as error:
        return error.answered
    except FhirError:
        return None


def _entries(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    entries = bundle.get("entry")
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


def _matches(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    resources = [one.get("resource") for one in _entries(bundle) if (one.get("search") or {}).get("mode") != "outcome"]
    return [one for one in resources if isinstance(one, dict) and one.get("resourceType") != "OperationOutcome"]


def _next(bundle: dict[str, Any]) -> str:
    links = bundle.get("link")
    found = (
        (one.get("url") for one in links if isinstance(one, dict) and one.get("relation") == "next")
        if isinstance(links, list)
        else ()
    )
    return next((url for url in found if isinstance(url, str)), "")
