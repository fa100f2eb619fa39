"""Try out a partner and tell in plain words what works, what it cannot do, and what to fix.

https://hl7.org/fhir/smart-app-launch/backend-services.html and https://hl7.org/fhir/R4/http.html. Every statement comes from a real request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from fhircm.exchange.capabilities import Capabilities, discover, granted
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.credentials import SecretMissing
from fhircm.exchange.discovery import elsewhere
from fhircm.exchange.drift import GIVEN_BACK, note_granted, refresh
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable, SignInRefused
from fhircm.exchange.granted import allows
from fhircm.exchange.mapping import Source, referred
from fhircm.exchange.members import members, named
from fhircm.exchange.mirror import Refusal
from fhircm.exchange.pages import Received
from fhircm.exchange.partners import PullType
from fhircm.exchange.probe import habits
from fhircm.exchange.roster import RosterWrong
from fhircm.exchange.schedule import Schedule
from fhircm.exchange.shapes import recognised
from fhircm.exchange.tokens import told
from fhircm.fhir.outcome import FhirError
from fhircm.store.resources import Store

TOLD = 10  # lines of a roster that are named one by one
JWKS_PATH = "/.well-known/jwks.json"
_WRITES = ("create", "update", "patch")


class Level(StrEnum):
    """What a finding means for the operator."""

    OK = "ok"
    CANNOT = "cannot"  # the partner does not have it: nothing to be done, the hub works around it
    CHANGED = "changed"  # since the partner was asked before
    ADVICE = "advice"  # it works, and could be better
    FIX = "fix"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and for `fix` what to do."""

    level: Level
    text: str
    remedy: str = ""


@dataclass
class CheckReport:
    """All findings about a partner, in the order in which they were made."""

    partner: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing must be fixed."""
        return not any(finding.level is Level.FIX for finding in self.findings)

    def render(self) -> str:
        """The report as text, a line each."""
        lines = [self.partner]
        for finding in self.findings:
            lines.append(f"  {finding.level:<8}{finding.text}")
            if finding.remedy:
                lines.append(f"  {'':<8}-> {finding.remedy}")
        fixes = sum(finding.level is Level.FIX for finding in self.findings)
        lines.append(f"  {'nothing to fix' if not fixes else f'{fixes} to fix'}")
        return "\n".join(lines)

    def add(self, level: Level, text: str, remedy: str = "") -> None:
        """One more finding."""
        self.findings.append(Finding(level, text, remedy))


async def check(
    client: PartnerClient, store: Store | None = None, public_base_url: str = "", owner: str | None = None
) -> CheckReport:
    """Try everything that the hub will want of a partner. With a store, the capabilities are kept and compared with those before.

    `public_base_url` is the hub's own, to name where its keys are published. Raises nothing of the partner's.
    """
    report = CheckReport(client.partner.name)
    _schedule(report, client, store.clock() if store else datetime.now(UTC))
    capabilities = await _discovery(report, client, store, owner)
    if capabilities is None:
        return report
    _shape(report, client, capabilities)
    _sign_in_promises(report, client, capabilities)
    patients = await _panel(report, client, store, public_base_url)
    capabilities = await _granted(report, client, store, capabilities, owner)
    if patients:
        await _types(report, client, capabilities, patients)
    _give_back(report, capabilities)
    if (launch := client.partner.launch) is not None:
        back = f"{public_base_url}/launch/callback/{client.partner.name}"
        report.add(
            Level.OK, f"May launch the hub as {launch.client_id}: registered there with {public_base_url}/launch and {back}"
        )
    return report


def _schedule(report: CheckReport, client: PartnerClient, now: datetime) -> None:
    schedule = client.partner.schedule
    if schedule.every or schedule.full or schedule.hours or schedule.maintenance:
        often = [
            f"changes every {_time(schedule.every)}" if schedule.every else "",
            f"everything every {_time(schedule.full)}" if schedule.full else "",
        ]
        often += ["within its hours" if schedule.hours else "", "not while it is maintained" if schedule.maintenance else ""]
        report.add(Level.OK, f"Schedule: {', '.join(part for part in often if part)}; next {_local(schedule, now)}")
    if schedule.maintained(now):
        report.add(
            Level.CANNOT, f"It is maintained now, so what follows may fail; nothing is asked of it until {_local(schedule, now)}"
        )


def _time(duration: timedelta) -> str:
    """A duration for people: 15 min, 12 h, 7 days."""
    seconds = int(duration.total_seconds())
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _local(schedule: Schedule, now: datetime) -> str:
    """When the partner is next open, in its own time."""
    return f"{schedule.next(None, now).astimezone(ZoneInfo(schedule.time_zone)):%Y-%m-%d %H:%M %Z}"


def _shape(report: CheckReport, client: PartnerClient, capabilities: Capabilities) -> None:
    """Whether another shape is made for what it presents itself as."""
    partner = client.partner
    fitting = recognised(capabilities.software, partner.folder.parent)
    if fitting and partner.shape not in fitting:
        said = f"shape: {partner.shape}" if partner.shape else "no shape"
        report.add(
            Level.ADVICE,
            f"It presents itself as {capabilities.software}, and {partner.folder / 'partner.yaml'} says {said}",
            f"Set shape to {' or '.join(fitting)}: it knows this vendor's rules",
        )


async def _discovery(report: CheckReport, client: PartnerClient, store: Store | None, owner: str | None) -> Capabilities | None:
    partner = client.partner
    try:
        capabilities, drift = await refresh(store, client, owner) if store else (await discover(client), [])
    except PartnerUnavailable as error:
        here = f"is {partner.base_url} its address? Set another with FHIRCM_PARTNER_BASE_URLS"
        report.add(Level.FIX, f"Not reachable: {error}", f"Is the partner up, and {here}")
        return None
    except FhirError as error:
        remedy = f"{partner.base_url} must be the base of its FHIR API: see base_url in {partner.folder / 'partner.yaml'}"
        report.add(Level.FIX, f"Discovery does not work: {error}", remedy)
        return None
    report.add(
        Level.OK,
        f"Reachable at {partner.base_url}: {capabilities.software or 'software not told'}, FHIR {capabilities.fhir_version}",
    )
    if not capabilities.fhir_version.startswith("4.0"):
        report.add(Level.FIX, f"It speaks FHIR {capabilities.fhir_version or 'of a version not told'}", "Ask for its R4 address")
    for text in drift:
        report.add(Level.CHANGED, text)
    return capabilities


def _sign_in_promises(report: CheckReport, client: PartnerClient, capabilities: Capabilities) -> None:
    partner = client.partner
    if partner.credentials.method == "none":
        told = f"{partner.folder / 'partner.yaml'} says credentials.method: none: no sign-in, whoever reaches it reads everything"
        report.add(Level.ADVICE, told, "For test servers only: where patients' records are, have the hub registered and sign in")
        return
    if sentence := elsewhere(partner.credentials.token_endpoint or capabilities.token_endpoint, partner.base_url):
        report.add(Level.OK, sentence)
    if partner.credentials.method != "private_key_jwt":
        return
    if capabilities.algorithms and partner.algorithm not in capabilities.algorithms:
        offered = ", ".join(capabilities.algorithms)
        remedy = f"Set algorithm in {partner.folder / 'partner.yaml'} to one of these that fhircm has (RS384, ES384)"
        report.add(Level.FIX, f"It verifies assertions signed with {offered}, and not with {partner.algorithm}", remedy)
    if capabilities.grants and "client_credentials" not in capabilities.grants:
        report.add(Level.CANNOT, "It does not say that it has the grant client_credentials (SMART backend services)")


async def _panel(report: CheckReport, client: PartnerClient, store: Store | None, public_base_url: str) -> list[str] | None:
    """Sign in and read the panel: the first request that needs a token."""
    partner, what = client.partner, named(client)
    wrong: list[Refusal] = []
    try:
        patients = await members(client, store, wrong.append)
    except RosterWrong as error:
        report.add(Level.FIX, str(error), "Put the file beside partner.yaml, or name another as panel, roster")
        return None
    except SignInRefused as error:
        keys = f"{public_base_url}{JWKS_PATH}"
        proof = f"the keys at {keys}" if partner.credentials.method == "private_key_jwt" else "the secret that partner.yaml names"
        remedy = f"Register the client id {partner.client_id} at the partner with {proof}, and its scopes"
        if partner.credentials.method == "none":
            remedy = f"It wants a sign-in: say how in credentials, {partner.folder / 'partner.yaml'}"
        report.add(Level.FIX, f"Sign-in does not work: {error}", remedy)
        return None
    except PartnerRefused as error:
        if partner.credentials.method != "none":
            report.add(Level.OK, "Signed in")
        remedy = f"Ask the partner what the panel is and for a scope to read it: {what} is what partner.yaml says"
        if partner.group:
            remedy = f"Ask the partner for the id of the panel's Group and for a scope to read it: panel.group is {partner.group}"
        report.add(Level.FIX, f"The panel cannot be read: {error}", remedy)
        return None
    except SecretMissing as error:
        report.add(Level.FIX, f"Sign-in does not work: {error}", f"See credentials.secret in {partner.folder / 'partner.yaml'}")
        return None
    except FhirError as error:
        report.add(Level.FIX, f"The panel cannot be read: {error}", "Try again; if it stays so, ask the partner")
        return None
    how = partner.credentials.method
    if how != "none":
        report.add(Level.OK, f"Signed in with {partner.algorithm if how == 'private_key_jwt' else how} as {partner.client_id}")
    for sentence in await told(store, partner.name) if store else []:
        report.add(Level.CHANGED, sentence)
    for refusal in wrong[:TOLD]:
        report.add(Level.FIX, f"Panel: {refusal}", f"Correct {what}: nobody is guessed")
    if len(wrong) > TOLD:
        report.add(Level.FIX, f"Panel: {len(wrong) - TOLD} more like these", f"Correct {what}")
    if patients:
        report.add(Level.OK, f"Panel {what}: {len(patients)} patients")
        return patients
    report.add(Level.FIX, f"Panel {what} has no patients", "Ask the partner to fill the panel")
    return None


async def _granted(
    report: CheckReport, client: PartnerClient, store: Store | None, capabilities: Capabilities, owner: str | None
) -> Capabilities:
    """What of the scopes that were asked for was given, and what of the things that are wanted they do not reach."""
    scopes = granted(client)
    if scopes is None:
        return capabilities
    capabilities = replace(capabilities, granted=scopes)
    if store is not None:
        kept, drift = await note_granted(store, client, owner)
        for text in drift:
            report.add(Level.CHANGED, text)
        capabilities = kept or capabilities
    if missing := [scope for scope in client.partner.scopes if scope not in scopes]:
        report.add(Level.CANNOT, f"Asked for and not granted: {' '.join(missing)}")
    read = [(one.type, "search-type") for one in client.partner.pull if one.searches]
    read += [(one.type, "read") for one in client.partner.pull if one.by_reference]
    written = [(type, how) for type in GIVEN_BACK for how in _WRITES if capabilities.declares(type, how)]
    if beyond := _beyond(scopes, read):
        report.add(Level.CANNOT, f"Not within the granted scopes, and so not asked for: {beyond}")
    if beyond := _beyond(scopes, written):
        report.add(Level.CANNOT, f"It takes more than the granted scopes reach: {beyond}")
    return capabilities


def _beyond(scopes: Sequence[str], wanted: Sequence[tuple[str, str]]) -> str:
    """What scopes do not reach, by type."""
    by_type: dict[str, list[str]] = {}
    for type, how in wanted:
        if not allows(scopes, type, how):
            by_type.setdefault(type, []).append(how.removesuffix("-type"))
    return "; ".join(f"{type} ({', '.join(how)})" for type, how in by_type.items())


async def _types(report: CheckReport, client: PartnerClient, capabilities: Capabilities, patients: list[str]) -> None:
    """One real request for each type that is pulled."""
    seen: list[Received] = []
    patient = patients[0]
    works: list[PullType] = []
    if (received := await _try_read(report, client, Source("Patient", patient))) is not None:
        seen.append(received)
    for one in client.partner.pull:
        if one.searches and allows(capabilities.granted, one.type, "search-type"):
            found = await _try_search(report, client, capabilities, one, patient)
            works += [one] if found else []
            seen += found or []
    targets = {target for received in seen for target in referred(client.partner.base_url, received.body)}
    for one in client.partner.pull:
        if not one.searches:
            example = min((target for target in targets if target.type == one.type), default=None)
            if example is not None:
                received = await _try_read(report, client, example)
                targets |= referred(client.partner.base_url, received.body) if received else set()
            elif not capabilities.declares(one.type, "read"):
                report.add(Level.CANNOT, f"{one.type}: the partner does not have it")
            else:
                report.add(Level.OK, f"{one.type}: not tried, the first patient's record refers to none")
    for habit in await habits(client, capabilities, patient, works):
        report.add(Level.FIX if habit.wrong else Level.OK, habit.text, habit.remedy if habit.wrong else "")


async def _try_read(report: CheckReport, client: PartnerClient, one: Source) -> Received | None:
    try:
        received = await client.read(one.type, one.id)
    except FhirError as error:
        report.add(Level.FIX, f"{one.type} cannot be read: {error}", _remedy(client, one.type, error))
        return None
    report.add(Level.OK, f"{one.type}: read by id")
    return received


async def _try_search(
    report: CheckReport, client: PartnerClient, capabilities: Capabilities, one: PullType, patient: str
) -> list[Received]:
    if not capabilities.declares(one.type, "search-type"):
        text = f"{one.type}: the partner does not say that it can be searched"
        report.add(Level.CANNOT, text)
    for name in _undeclared(capabilities, one):
        report.add(Level.CANNOT, f"{one.type}: search by {name} is not declared and may be ignored")
    found: list[Received] = []
    try:
        for search in one.searches:
            async for page in client.search(one.type, [(name, value.replace("{patient}", patient)) for name, value in search]):
                found += page
                break  # the first page tells whether it works
    except FhirError as error:
        report.add(Level.FIX, f"{one.type} cannot be searched: {error}", _remedy(client, one.type, error))
        return []
    report.add(Level.OK, f"{one.type}: search works ({len(found)} on the first page for the first patient)")
    return found


def _undeclared(capabilities: Capabilities, one: PullType) -> Iterator[str]:
    declared = capabilities.search_params(one.type)
    asked = [name.split(":")[0] for search in one.searches for name, _ in search] + ["_lastUpdated"] * one.last_updated
    for name in dict.fromkeys(asked):
        if declared and name not in declared:
            yield name


def _remedy(client: PartnerClient, type: str, error: FhirError) -> str:
    file = client.partner.folder / "partner.yaml"
    if isinstance(error, PartnerRefused) and error.answered == 403:
        return f"Ask the partner to grant the client id {client.partner.client_id} access to {type}, and see scopes in {file}"
    if isinstance(error, PartnerRefused):
        return f"See pull, type {type}, in {file}: another search, or leave the type out"
    if isinstance(error, PartnerAnswerBroken):
        return "Tell the partner: its answer is not FHIR"
    return "Try again; if it stays so, ask the partner"


def _give_back(report: CheckReport, capabilities: Capabilities) -> None:
    """What can be written back, and what must reach the partner in another way."""
    takes = [f"{type} ({', '.join(how)})" for type in GIVEN_BACK if (how := _writes(capabilities, type))]
    takes_not = [type for type in GIVEN_BACK if not _writes(capabilities, type)]
    if takes:
        report.add(Level.OK, f"Takes back: {'; '.join(takes)}")
    if takes_not:
        report.add(
            Level.CANNOT, f"Takes no {', '.join(takes_not)}: it gets what it can take in their place, see deliver in partner.yaml"
        )
    if "Subscription" not in capabilities.types:
        report.add(Level.CANNOT, "Offers no Subscription: changes are noticed by pulling")


def _writes(capabilities: Capabilities, type: str) -> list[str]:
    return [how for how in _WRITES if capabilities.can(type, how)]
