"""What a pull came to, in figures and in words. https://hl7.org/fhir/R4/http.html"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fhircm.exchange.mirror import Refusal


@dataclass
class PullReport:
    """What a pull came to. `refused` and `failed` never hold more than types, ids and reasons."""

    partner: str
    panel: int = 0  # patients in it
    patients: int = 0  # read in this pull
    resumed: int = 0  # done by the pull before, which was interrupted
    resources: int = 0
    written: int = 0
    unchanged: int = 0
    gone: int = 0  # not at the partner any more; the copies stay, and say so
    pages: int = 0
    requests: int = 0
    seconds: float = 0.0
    cut: bool = False  # its time or its requests were used up; the next pull goes on from there
    looks: Counter[str] = field(default_factory=Counter)  # of a planned round: types of patients looked at, by reason
    due: int = 0  # looks that were due and that the budget did not reach
    short: float = 0.0  # requests an hour that the budget lacks to keep the longest interval
    missed: Counter[str] = field(default_factory=Counter)  # changes that `_lastUpdated` had not told, by type
    merged: dict[str, str] = field(default_factory=dict)  # patient: into which other
    gaps: list[str] = field(default_factory=list)  # referred to, and not given by the partner
    refused: list[Refusal] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # left for the next pull

    def summary(self) -> str:
        """The figures in one line."""
        figures = f"{self.patients} patients, {self.resources} resources: {self.written} written, {self.unchanged} unchanged"
        more = [f"{len(self.refused)} refused" if self.refused else "", f"{self.gone} gone" if self.gone else ""]
        more += [f"{len(self.failed)} left for the next pull" if self.failed else ""]
        more += [f"{self.resumed} done before" if self.resumed else ""]
        more += [f"{self.due} due looks beyond the budget" if self.due else ""]
        figures += "".join(f", {one}" for one in more if one)
        return f"{figures}; {self.pages} pages, {self.requests} requests, {self.seconds:.1f} s"

    def findings(self) -> list[str]:
        """What a reconciliation brought to light, in words."""
        told = [f"{patient} was merged into {into}" for patient, into in sorted(self.merged.items())]
        told += [f"{one} is referred to, and the partner does not give it" for one in self.gaps]
        told += [f"_lastUpdated of {type} had not told of {number} changes" for type, number in sorted(self.missed.items())]
        told += [f"{self.gone} resources are not there any more"] if self.gone else []
        return told
