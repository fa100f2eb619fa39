"""A new partner's file, with a comment at every key, from a shape and the few facts that are the partner's own.

https://hl7.org/fhir/smart-app-launch/backend-services.html for what has to be registered there afterwards. The file is tried out before
it takes its place, so that a half-written one never stops the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

from fhircm.exchange import shapes
from fhircm.exchange.partners import Partner, PartnerWrong, load_partner
from fhircm.exchange.yaml_keys import YamlWrong

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class PartnerExists(Exception):
    """There is a folder of this name already; it is left as it is."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a partner is asked for. Texts are written as they are and checked like any partner.yaml."""

    shape: str
    base_url: str | None  # none: where the shape says
    client_id: str
    organization_id: str
    organization_name: str
    npi: str
    time_zone: str
    country: str
    subdivision: str | None = None
    group: str | None = None
    list: str | None = None
    roster: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    secret_env: str | None = None  # the variable of the environment that holds the client's secret, for a vendor that wants one
    secret_file: str | None = None
    sign_in: bool = True  # without it, the server lets in whoever reaches it


def write(root: Path, name: str, facts: Facts) -> Partner:
    """Write root/name/partner.yaml, whole or not at all. Raises PartnerExists, and PartnerWrong for facts that cannot be used."""
    if not _NAME.fullmatch(name) or name == "shape":
        raise PartnerWrong(f"{name} is no name for a partner: use small letters, digits and hyphens, such as north-clinic")
    if facts.shape not in (known := shapes.shapes(root)):
        raise PartnerWrong(f"{facts.shape} is no shape; there are: {', '.join(sorted(known))}")
    folder = root / name
    if folder.exists():
        raise PartnerExists(f"{folder} exists already and is left as it is; take another name, or edit {folder / 'partner.yaml'}")
    try:
        text = _text(name, facts, shapes.read(facts.shape, root))
    except YamlWrong as error:
        raise PartnerWrong(str(error)) from None
    _try_out(root, name, text)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise PartnerExists(f"{folder} was made meanwhile, and is left as it is") from None
    draft = folder / ".partner.yaml"
    draft.write_text(text, "utf-8")
    draft.rename(folder / "partner.yaml")
    return load_partner(folder / "partner.yaml")


def _try_out(root: Path, name: str, text: str) -> None:
    """Read the file at another place, beside the same shapes. Raises PartnerWrong, as if it stood where it will."""
    with TemporaryDirectory() as elsewhere:
        draft = Path(elsewhere) / name / "partner.yaml"
        draft.parent.mkdir()
        draft.write_text(text, "utf-8")
        if (root / "shape").is_dir():
            copytree(root / "shape", Path(elsewhere) / "shape")
        try:
            load_partner(draft)
        except PartnerWrong as error:
            raise PartnerWrong(str(error).replace(elsewhere, str(root))) from None


def _text(name: str, facts: Facts, shape: shapes.Shape) -> str:
    lines = [
        f"# {facts.organization_name}: what is its own. What follows from the vendor is in the shape, {shape.path.name}; whatever is said here",
        "# goes before it. mappings/shape/r4.yaml explains every key of a shape, and all of them may stand here too.",
        "",
        f"shape: {facts.shape}",
    ]
    lines.append(f"base_url: {_quoted(_address(facts, shape))}   # of its FHIR API; FHIRCM_PARTNER_BASE_URLS replaces it")
    if shape.parameters or facts.parameters:
        lines.append("parameters:")
        means = {one.name: one.means for one in shape.parameters}
        lines += [f"  {key}: {_quoted(value)}   # {means.get(key, '')}".rstrip(" #") for key, value in facts.parameters.items()]
    lines += [
        f"client_id: {_quoted(facts.client_id)}   # under which the partner registered the hub",
        *_credentials(facts),
        "",
        "organization:                       # that runs the system",
        f"  id: {_quoted(facts.organization_id)}   # of its Organization there",
        f"  name: {_quoted(facts.organization_name)}",
        f"  npi: {_quoted(facts.npi)}",
        f"time_zone: {_quoted(facts.time_zone)}   # of its business days, working hours and maintenance",
        "calendar:",
        f"  country: {_quoted(facts.country)}   # public holidays, by ISO 3166",
        f"  subdivision: {_quoted(facts.subdivision)}" if facts.subdivision else "  # subdivision: IL",
        "  # closed: [2026-12-24]            # further days",
        '  # hours: [{days: [monday, tuesday, wednesday, thursday, friday], from: "08:00", to: "17:00"}]   # of business; without it, these',
        "",
        "panel:                              # who is pulled: one of group, list, search and roster",
        *_panel(facts),
        "",
        "# schedule:                         # without it: around the clock, every FHIRCM_PULL_INTERVAL",
        "#   every: PT15M                    # from one pull of changes to the next",
        "#   full: P7D                       # from one full reconciliation to the next",
        '#   hours: [{days: [monday, tuesday, wednesday, thursday, friday], from: "19:00", to: "06:00"}]   # the only times at which it is pulled',
        '# maintenance: [{days: [sunday], from: "01:00", to: "04:00"}]   # nothing is asked and nothing is sent',
        "",
        "# limits:                           # what the shape says is careful; ask the partner before it gets more",
        "#   requests_per_second: 10",
        "#   concurrency: 4",
        "",
        "# pull:                             # types of the shape that are to be pulled otherwise, or not at all",
        "#   - {type: Coverage, leave_out: true}",
        "# deliver:                          # occasions of the shape on which it is told otherwise, or nothing",
        "#   message: []",
    ]
    return "\n".join(lines) + "\n"


def _credentials(facts: Facts) -> list[str]:
    if not facts.sign_in:
        return ["credentials: {method: none}   # no sign-in: for test servers only"]
    given = [("env", facts.secret_env), ("file", facts.secret_file)]
    where = ", ".join(f"{kind}: {_quoted(value)}" for kind, value in given if value)
    return (
        [f"credentials: {{secret: {{{where}}}}}   # where the client's secret is found; it must never stand here"]
        if where
        else []
    )


def _address(facts: Facts, shape: shapes.Shape) -> str:
    """The base URL as it is to stay: ids at the hub are derived from it, so that it stands in the file even when the shape knows it."""
    url = facts.base_url or shape.base_url or ""
    for name, value in facts.parameters.items():
        url = url.replace(f"{{{name}}}", value)
    return url


def _panel(facts: Facts) -> list[str]:
    given = [("group", facts.group), ("list", facts.list), ("roster", facts.roster)]
    says = [f"  {kind}: {_quoted(value)}" for kind, value in given if value]
    return [
        *says,
        "  # group: 17                       # the id of the Group whose members they are",
        "  # list: 17                        # the id of the List that names them",
        "  # search: {general-practitioner: Practitioner/17}   # whoever it finds; with another type, whom its matches are about",
        "  # roster: patients.csv            # a file in this folder with a heading line: id, or system,value",
    ]


def _quoted(text: str) -> str:
    """As a YAML scalar: a JSON text is one."""
    return json.dumps(text, ensure_ascii=False)
