"""The tables of docs/explanation/transitions.md say what the data says, word for word."""

from pathlib import Path

import yaml

from fhircm.coordination.deadlines import Span
from fhircm.coordination.protocol import Condition, Pathway, Step, load_pathways
from fhircm.coordination.transition.document import layout
from fhircm.coordination.transition.flags import rules
from fhircm.coordination.transition.notices import words
from fhircm.coordination.transition.wholes import EVENTS, RECEIVED
from fhircm.fhir.artefacts import folder

PAGE = Path(__file__).parent.parent.parent / "docs/explanation/transitions.md"


def span(within: Span | None) -> str:
    return str(within) if within is not None else "no later than the visit"


def when(condition: Condition) -> str:
    values = " or ".join(sorted(condition.values))
    return f"{condition.variable} is {'not ' if condition.negated else ''}{values}"


def step_row(pathway: Pathway, step: Step) -> str:
    conditions = ", ".join(map(when, step.conditions)) or "always"
    return f"| `{pathway.url.rpartition('/')[2]}` | {step.title} | {span(step.within)} | {conditions} | {step.role['text']} |"


def tables() -> dict[str, list[str]]:
    """Every table of the page, by its heading line."""
    pathways = sorted((one for one in load_pathways() if one.event in (*EVENTS, RECEIVED)), key=lambda one: one.url)
    dispositions = yaml.safe_load((folder("profiles") / "transition" / "dispositions.yaml").read_bytes())["dispositions"]
    return {
        "| pathway | starts with | when | what it is |": [
            f"| `{one.url.rpartition('/')[2]}` | {one.event} | {', '.join(map(when, one.whole.conditions)) or 'always'} | {one.whole.title} |"
            for one in pathways
        ],
        "| pathway | step | due within | when | whose |": [step_row(one, step) for one in pathways for step in one.steps],
        "| disposition | means | NUBC | HL7 v2 table 0112 | FHIR |": [
            f"| {name} | {one['title']} | {' '.join(one.get('nubc', []))} | {' '.join(one.get('v2', []))} | {' '.join(one.get('fhir', []))} |"
            for name, one in dispositions.items()
        ],
        "| flag | means |": [f"| `{one['code']}` | {one['title']} |" for one in rules()],
        "| told | in words |": [f"| {one['title']} | … {one['happened']} |" for one in words()["events"].values()],
        "| section | code | when there is nothing |": [
            f"| {one.title} | {one.code['code']} | {one.empty} |" for one in layout().sections
        ],
    }


def test_every_table_says_what_the_data_says():
    lines = PAGE.read_text().splitlines()
    for heading, rows in tables().items():
        at = lines.index(heading)
        found = lines[at + 2 : at + 2 + len(rows)]
        assert found == rows, f"{heading}\n" + "\n".join(rows)
        assert not lines[at + 2 + len(rows)].startswith("|"), f"{heading} has rows that are nowhere in the data"
