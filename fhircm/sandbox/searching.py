"""Searches of a sandbox EHR: which parameters it wants, refuses or passes over, and how its pages follow one another.

https://hl7.org/fhir/R4/search.html, as far as the vendor keeps to it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

from starlette.requests import Request

from fhircm.fhir.extract import search_values
from fhircm.fhir.ranges import date_range
from fhircm.fhir.values import SearchValue, Span, Target, Text, Token, Uri
from fhircm.sandbox.chart import Chart, Tree, identifiers
from fhircm.sandbox.wrong import Wrong

Parameters = list[tuple[str, str]]
_CONTROLS = {"_count", "_format", "_id", "_summary", "_total", "_sort"}
_UNKNOWN = {"refused": True, "ignored": False}


def parameters(served: Tree) -> set[str]:
    """The names of the search parameters that a type declares."""
    return {name for needed in served.get("one_of", []) for name in needed} | set(served.get("search", []))


class Searching:
    """The searches of one EHR."""

    def __init__(self, habits: Tree, base_url: str, chart: Chart) -> None:
        self.habits, self.base_url, self.chart = habits, base_url, chart
        self._remembered: dict[str, tuple[str, list[Tree], Parameters]] = {}
        self._values: dict[tuple[str, str, str], list[SearchValue]] = {}

    def search(self, request: Request, type: str, served: Tree) -> Tree:
        """The page of a search that a request asks for. Raises Wrong."""
        paging = self.habits["paging"]
        sent = parse_qsl(request.url.query)
        start, place = 0, dict(sent).get(paging["parameter"])
        if place is not None:
            sent, start = self._place(place, [one for one in sent if one[0] != paging["parameter"]])
        self._check(request, type, served, sent)
        found = self._found(type, served, sent)
        return self._page(type, found, sent, start)

    def remembered(self, request: Request) -> Tree:
        """A further page of a search that is known by its number alone. Raises Wrong."""
        query = request.query_params
        if query["_getpages"] not in self._remembered:
            raise Wrong(410, "expired", "the search is not known any more")
        type, found, sent = self._remembered[query["_getpages"]]
        return self._page(type, found, sent, int(query.get("_getpagesoffset", "0")), query["_getpages"])

    def history(self, type: str, id: str) -> Tree:
        """Every version of a resource, the newest first. Raises Wrong."""
        versions = self.chart.versions(type, id)
        if not versions:
            raise Wrong(404, "not-found", "resource not found")
        entries = [{"fullUrl": f"{self.base_url}/{type}/{id}", "resource": self.shown(one)} for one in reversed(versions)]
        return {"resourceType": "Bundle", "type": "history", "total": len(entries), "entry": entries}

    def matching(self, type: str, query: str) -> list[Tree]:
        """What a search criterion of a conditional interaction finds."""
        found = self.chart.of_type(type)
        for name, value in parse_qsl(query):
            found = [one for one in found if self._fits(one, name, value)]
        return found

    def shown(self, tree: Tree) -> Tree:
        """A resource as this EHR sends it."""
        if self.habits["shows_last_updated"]:
            return tree
        return {**tree, "meta": {name: value for name, value in tree["meta"].items() if name != "lastUpdated"}}

    # --- what is asked -------------------------------------------------------------------------------------------------------

    def _check(self, request: Request, type: str, served: Tree, sent: Parameters) -> None:
        names = {name for name, _ in sent}
        if not any(set(needed) <= names for needed in served["one_of"]):
            wanted = " or ".join("+".join(needed) for needed in served["one_of"])
            raise Wrong(400, "required", f"a search for {type} needs {wanted}")
        if self._refuses_unknown(request):
            known = _CONTROLS | parameters(served) | {self.habits["tenancy"]["parameter"]}
            known |= {"_lastUpdated"} if served.get("last_updated") else set()
            for name in sorted(names):
                if name.split(":")[0] not in known:
                    raise Wrong(400, "not-supported", f"unknown parameter {name}")
        for name in served.get("pairs", []):
            given = [value[:2] for other, value in sent if other == name]
            if given and sorted(given) not in (["ge", "lt"], ["ge", "le"], ["gt", "lt"]):
                raise Wrong(400, "invalid", f"{name} must be given twice, with ge and with lt")
        for name, values in served.get("only", {}).items():
            asked = {one.rpartition("|")[2] for other, value in sent if other == name for one in value.split(",")}
            if asked - set(values):
                raise Wrong(400, "invalid", f"{name} may be {' or '.join(values)}")
        if served.get("single_id") and any(name == "_id" and "," in value for name, value in sent):
            raise Wrong(400, "invalid", "one _id at a time")
        count = self.habits["count"]
        if count["beyond"] == "refused" and self._asked_size(sent) > count["most"]:
            raise Wrong(400, "invalid", f"_count may be {count['most']} at most")
        self._check_tenancy(sent)

    def _refuses_unknown(self, request: Request) -> bool:
        habit = self.habits["unknown_parameters"]
        return "handling=strict" in request.headers.get("prefer", "") if habit == "by-prefer" else _UNKNOWN[habit]

    def _check_tenancy(self, sent: Parameters) -> None:
        tenancy = self.habits["tenancy"]
        given = dict(sent).get(tenancy["parameter"])
        if tenancy["value"] and given is not None and given != tenancy["value"]:
            raise Wrong(403, "forbidden", f"{tenancy['parameter']} is not one of this client's")

    def _asked_size(self, sent: Parameters) -> int:
        text = dict(sent).get("_count", "")
        return int(text) if text.isdecimal() else self.habits["count"]["default"]

    # --- what is found -------------------------------------------------------------------------------------------------------

    def _found(self, type: str, served: Tree, sent: Parameters) -> list[Tree]:
        patient = next((value.removeprefix("Patient/") for name, value in sent if name in ("patient", "subject")), None)
        found = self.chart.of_patient(type, patient) if patient is not None else self.chart.of_type(type)
        known = parameters(served) | {"_id"} | ({"_lastUpdated"} if served.get("last_updated") is True else set())
        for name, value in sent:
            if name in known and name not in ("patient", "subject"):
                found = [one for one in found if self._fits(one, name, value)]
        names = {name for name, _ in sent}
        for name, codes in served.get("apart", {}).items():
            if name not in names:
                found = [one for one in found if not set(codes) & self._codes(one, name)]
        tenancy = self.habits["tenancy"]
        if tenancy["value"] and tenancy["parameter"] not in names:
            found += [{**one, "id": f"elsewhere-{one['id']}"[:64]} for one in found]
        return found

    def _fits(self, tree: Tree, name: str, value: str) -> bool:
        name = name.split(":")[0]
        if name == "_id":
            return tree["id"] in value.split(",")
        if name == "_lastUpdated":
            low, high = date_range(tree["meta"]["lastUpdated"])
            return _in_time(low, high, value)
        values = [one for one in self._values_of(tree) if one.parameter == name]
        if name == "identifier":  # those of what it names as related count too
            return any(_is_identifier(tree, one) for one in value.split(","))
        return any(_is(one, asked) for one in values for asked in value.split(","))

    def _codes(self, tree: Tree, name: str) -> set[str]:
        return {one.code for one in self._values_of(tree) if isinstance(one, Token) and one.parameter == name}

    def _values_of(self, tree: Tree) -> list[SearchValue]:
        key = (tree["resourceType"], tree["id"], tree["meta"]["versionId"])
        if key not in self._values:
            self._values[key] = search_values(tree)
        return self._values[key]

    # --- pages ---------------------------------------------------------------------------------------------------------------

    def _page(self, type: str, found: list[Tree], sent: Parameters, start: int, number: str | None = None) -> Tree:
        count, paging = self.habits["count"], self.habits["paging"]
        counted = any(name == "_count" for name, _ in sent)
        by_id = any(name == "_id" for name, _ in sent)
        size = count["default"] if by_id and count["with_id"] == "ignored" else min(self._asked_size(sent), count["most"])
        if dict(sent).get("_summary") == "count" or size == 0:
            return {"resourceType": "Bundle", "type": "searchset", "total": len(found)}
        shown = [self._entry(type, one) for one in found[start : start + size]]
        if paging["repeats"] and start:  # the last entry of the page before stands here once more
            shown.insert(0, self._entry(type, found[start - 1]))
        if self.habits["outcome_entry"]:
            issue = {"severity": "information", "code": "informational", "details": {"text": "search finished"}}
            shown.append({"resource": {"resourceType": "OperationOutcome", "issue": [issue]}, "search": {"mode": "outcome"}})
        bundle: Tree = {"resourceType": "Bundle", "type": "searchset", "link": []}
        if start + size < len(found):
            bundle["link"] = [{"relation": "next", "url": self._next(type, found, sent, start + size, number)}]
        if self.habits["total"] != "none":
            bundle["total"] = len(found[start : start + size]) if self.habits["total"] == "page" and counted else len(found)
        return {**bundle, "entry": shown} if shown else bundle

    def _entry(self, type: str, tree: Tree) -> Tree:
        return {"fullUrl": f"{self.base_url}/{type}/{tree['id']}", "resource": self.shown(tree), "search": {"mode": "match"}}

    def _next(self, type: str, found: list[Tree], sent: Parameters, start: int, number: str | None) -> str:
        """The link to the page that begins at a place, in the form that the vendor gives it."""
        paging = self.habits["paging"]
        base = paging["host"] or self.base_url
        if paging["form"] == "remembered":
            number = number or uuid4().hex
            self._remembered[number] = (type, found, sent)
            return f"{base}?{urlencode({'_getpages': number, '_getpagesoffset': start, '_bundletype': 'searchset'})}"
        if paging["form"] == "readable":
            return f"{base}/{type}?{urlencode([*sent, (paging['parameter'], str(start))])}"
        token = base64.urlsafe_b64encode(json.dumps({"sent": sent, "start": start}).encode()).decode()
        kept = sent if paging["form"] == "beside" else []
        return f"{base}/{type}?{urlencode([*kept, (paging['parameter'], token)])}"

    def _place(self, place: str, sent: Parameters) -> tuple[Parameters, int]:
        """The search and the place in it that a next link named."""
        if self.habits["paging"]["form"] == "readable":
            return sent, int(place)
        try:
            kept = json.loads(base64.urlsafe_b64decode(place))
            return [(str(name), str(value)) for name, value in kept["sent"]], int(kept["start"])
        except (ValueError, KeyError, TypeError):
            raise Wrong(400, "invalid", "this is no page of a search") from None


def _is(value: SearchValue, asked: str) -> bool:
    """Whether a value of a resource is what a parameter asks for."""
    match value:
        case Token():
            system, bar, code = asked.rpartition("|")
            return value.code == code.lower() or value.code == code if not bar else (system, code) == (value.system, value.code)
        case Target():
            return asked in (value.target_id, f"{value.target_type}/{value.target_id}")
        case Text():
            return value.normalised.startswith(asked.lower())
        case Span():
            return _in_time(value.low, value.high, asked)
        case Uri():
            return value.uri == asked
    return False


def _in_time(low: int, high: int, asked: str) -> bool:
    prefix = asked[:2] if asked[:2] in ("ge", "gt", "le", "lt", "eq") else ""
    try:
        start, end = date_range(asked.removeprefix(prefix))
    except ValueError:
        raise Wrong(400, "invalid", "a date cannot be read") from None
    match prefix:
        case "ge":
            return high > start
        case "gt":
            return high > end
        case "le":
            return low < end
        case "lt":
            return low < start
    return low < end and high > start


def _is_identifier(tree: Tree, asked: str) -> bool:
    system, _, value = asked.rpartition("|")
    return any(value == own and (not system or system == named) for named, own in identifiers(tree))


def bundle_of(type: str, entries: Iterable[Tree]) -> Tree:
    """A Bundle of responses."""
    return {"resourceType": "Bundle", "type": type, "entry": list(entries)}
