"""`fhircm operation`: every operation of the API from the command line, as its OperationDefinition has it.

https://hl7.org/fhir/R4/operations.html. An operation that is added is here, too: list, show and call read the definitions.
"""

from __future__ import annotations

import json as std_json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fhircm import wiring
from fhircm.access.guarded_store import GuardedStore
from fhircm.access.logins import normal
from fhircm.access.person import principal_of
from fhircm.access.principal import Principal, purpose_of, within_roles
from fhircm.access.scopes import parse_scopes
from fhircm.cli_noting import with_store
from fhircm.fhir.artefacts import folder
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import NotFound
from fhircm.fhir.validation import check_tree
from fhircm.operations import OPERATIONS
from fhircm.operations.call import Answer, Call, Searchset
from fhircm.operations.definition import Operation
from fhircm.operations.spelled import read, spelling
from fhircm.rest import bundles
from fhircm.rest.links import PageLinks
from fhircm.settings import Settings
from fhircm.store.credentials import Credentials
from fhircm.store.logins import Logins
from fhircm.store.principals import Principals
from fhircm.store.resources import Store

Tree = dict[str, Any]
app = typer.Typer(
    no_args_is_help=True,
    help="Every operation of the API from here: what there is, how each is called, and calling it.",
    epilog="Start with: fhircm operation list",
)

_NAME = typer.Argument(help="An operation as the list names it, with or without $, for example claim.")
_OPERATOR = "operator"  # as whom the command line writes when nobody else is named


@app.command("list")
def list_() -> None:
    """Name the operations, where each is called, and what it is for."""
    for name in sorted(OPERATIONS, key=lambda one: (OPERATIONS[one].code, one)):
        where = ", ".join(_places(OPERATIONS[name]))
        typer.echo(f"{OPERATIONS[name].code}\t{where}\t{_title(_definition(name))}")


@app.command()
def show(name: Annotated[str, _NAME]) -> None:
    """Teach an operation: what it does, what it takes and how that is written, what it answers, and an example."""
    typer.echo("\n\n".join(_told(one) for one in _named(name)))


@app.command()
def call(
    name: Annotated[str, _NAME],
    given: Annotated[
        list[str] | None,
        typer.Argument(help="Where (TYPE/ID, TYPE, or nothing at all), then name=value for each parameter.", show_default=False),
    ] = None,
    as_: Annotated[
        str | None, typer.Option("--as", help="As this person, with their rights: the name they sign in with.")
    ] = None,
    client: Annotated[str | None, typer.Option(help="Or as this client, with its rights.")] = None,
    if_version: Annotated[int | None, typer.Option(help="Only if this version is the current one, as If-Match does.")] = None,
) -> None:
    """Call an operation, and print what it answers. Ends with 1 when it is refused, and says why.

    Without --as and --client it is done as the hub's own custodian, who sees everything. The audit names the command and your account.
    """
    where, values = _split(given or [])
    if as_ and client:
        raise typer.BadParameter("either --as or --client")

    async def go(settings: Settings, store: Store) -> int:
        type, id = where
        found = _at(name, type, id)
        tree = _parameters(found, values)
        arguments = found.of_body(tree if found.as_sent else check_tree(tree).tree) if tree["parameter"] else found.of_body(None)
        principal = await _principal(store, as_, client)
        links, base_url = await PageLinks.of(store), f"{wiring.base_url(settings)}/fhir"
        asked = Call(
            GuardedStore(store, principal, settings.access_grace),
            base_url,
            type,
            id,
            arguments=arguments,
            url=f"{base_url}/{'/'.join(filter(None, (type, id)))}/${found.code}",
            if_version=if_version,
            sources=wiring.import_sources(settings),
            may_create=settings.update_create and principal.sees_everything,
            links=links,
        )
        answer = await found.function(asked)
        typer.echo(_printed(answer, base_url))
        return int(isinstance(answer, Answer) and answer.status >= 400)

    with_store(go, target="/".join(filter(None, (*where, f"${name.removeprefix('$')}"))))


# --- which operation, and where ------------------------------------------------------------------------------------------------


def _named(name: str) -> list[str]:
    """The definitions of this name or code. Raises NotFound with what there is."""
    code = name.removeprefix("$")
    found = [one for one in sorted(OPERATIONS) if code in (one, OPERATIONS[one].code)]
    if not found:
        known = ", ".join(sorted({one.code for one in OPERATIONS.values()}))
        raise NotFound(f"There is no operation {code[:64]}. There are: {known}")
    return found


def _at(name: str, type: str | None, id: str | None) -> Operation:
    named = [OPERATIONS[one] for one in _named(name)]
    found = next((one for one in named if one.is_at(type, id)), None)
    if found is None:
        where = "/".join(filter(None, (type, id))) or "the whole of the hub"
        places = ", ".join(place for one in named for place in _places(one))
        raise NotFound(f"{name} is not called at {where}, but at: {places}")
    return found


def _places(operation: Operation) -> Iterable[str]:
    for type in sorted(operation.types) or ["TYPE"]:
        yield from (place for level, place in (("type", type), ("instance", f"{type}/ID")) if level in operation.levels)
    if "system" in operation.levels:
        yield "(everything)"


def _split(given: Sequence[str]) -> tuple[tuple[str | None, str | None], list[str]]:
    """Where, and the values."""
    if not given or "=" in given[0]:
        return (None, None), list(given)
    type, _, id = given[0].partition("/")
    if type not in definitions().resource_types:
        raise typer.BadParameter(f"'{given[0]}' is neither TYPE/ID nor name=value")
    return (type, id or None), list(given[1:])


# --- what it is called with ----------------------------------------------------------------------------------------------------


def _parameters(operation: Operation, values: Sequence[str]) -> Tree:
    """The Parameters that these values spell. Raises Invalid, NotSupported."""
    listed: list[Tree] = []
    for one in values:
        name, equals, text = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{one}' is no name=value")
        text = Path(text[1:]).read_text() if text.startswith("@") else text
        parameter = operation.parameter(name)
        value = read(name, parameter.type, text)
        if parameter.parts:
            listed += operation.of_plain({name: value})["parameter"]
        elif parameter.type == "Resource" or parameter.type in definitions().resource_types:
            listed.append({"name": name, "resource": value})
        else:
            listed.append({"name": name, f"value{parameter.type[:1].upper()}{parameter.type[1:]}": value})
    return {"resourceType": "Parameters", "parameter": listed}


async def _principal(store: Store, login: str | None, client: str | None) -> Principal:
    """Who calls. Raises NotFound."""
    principals = Principals(store.database)
    if login is not None:
        person = await Logins(store.database).by_username(normal(login))
        if person is None or person.disabled:
            raise NotFound(f"Nobody may sign in as {login}; fhircm user list names those who may")
        return await principal_of(person, principals)
    if client is None:
        roles = frozenset({"custodian"})
        return Principal(_OPERATOR, within_roles(parse_scopes("system/*.cruds"), roles), roles)
    registration = await Credentials(store.database).client(client)
    if registration is None or registration.get("disabled"):
        raise NotFound(f"No client {client} may sign in; fhircm client list names those that may")
    roles = frozenset(registration.get("roles") or ["system"])
    known_as = await principals.known_as(filter(None, [registration.get("organization")]))
    return Principal(
        client,
        within_roles(parse_scopes(registration["scope"]), roles),
        roles,
        organization=registration.get("organization"),
        purpose=registration.get("purpose") or purpose_of(roles),
        known_as=known_as,
        relationships=await principals.count_relationships(known_as),
    )


# --- what is told --------------------------------------------------------------------------------------------------------------


def _definition(name: str) -> Tree:
    tree: Tree = std_json.loads((folder("profiles") / "operation" / f"{name}.json").read_text())
    return tree


def _title(tree: Tree) -> str:
    """What it is for in few words: its title, else the first sentence about it."""
    return str(tree.get("title") or tree["description"].partition(".")[0])


def _told(name: str) -> str:
    tree, operation = _definition(name), OPERATIONS[name]
    taken = [one for one in tree.get("parameter", ()) if one["use"] == "in"]
    given = [one for one in tree.get("parameter", ()) if one["use"] == "out"]
    lines = [f"${operation.code}: {_title(tree)}", "", tree["description"], "", f"Called at: {', '.join(_places(operation))}"]
    lines += ["", "Takes:", *(line for one in taken for line in _lines(one))] if taken else ["", "Takes nothing."]
    lines += ["", "Answers:", *(line for one in given for line in _lines(one, written=False))] if given else []
    return "\n".join([*lines, "", "Example:", f"  {_example(operation, taken)}"])


def _lines(one: Tree, *, written: bool = True) -> Iterable[str]:
    need = "needed" if one["min"] else "optional"
    again = "" if one["max"] == "1" else ", may be given again"
    kind = one.get("type", "group")
    yield f"  {one['name']} ({kind}{f', {need}{again}' if written else ''})"
    if one.get("documentation"):
        yield f"      {one['documentation']}"
    if written:
        yield f"      Written as {spelling(one.get('type', '')).how}: {one['name']}={_quoted(_value(one))}"


def _value(one: Tree) -> str:
    """An example of a value."""
    if "part" in one:
        return std_json.dumps({part["name"]: _value(part) for part in one["part"]})
    return spelling(one.get("type", "")).example


def _quoted(text: str) -> str:
    return f"'{text}'" if set(text) & set(' |$"{') else text


def _example(operation: Operation, taken: Sequence[Tree]) -> str:
    place = next(iter(sorted(_places(operation), key=lambda one: not one.endswith("ID"))))
    where = "" if place == "(everything)" else f" {place.replace('TYPE', 'Patient')}"
    shown = [one for one in taken if one["min"]]
    values = "".join(f" {one['name']}={_quoted(_value(one))}" for one in shown)
    return f"fhircm operation call {operation.code}{where}{values} --as ann"


def _printed(answer: Answer | Searchset, base_url: str) -> str:
    """The resource that was answered; without one, where the answer is or that all is well."""
    if isinstance(answer, Searchset):
        entries = [
            bundles.Entry(f"{base_url}/{one.type}/{one.id}", one.body, {"search": search}) for one, search in answer.entries
        ]
        links = [("self", answer.self_url), *([("next", answer.next_url)] if answer.next_url else [])]
        return _pretty(bundles.bundle("searchset", entries, links, answer.total))
    if answer.body:
        return _pretty(answer.body)
    return "\n".join(f"{name}: {value}" for name, value in answer.headers.items()) or "It is done"


def _pretty(body: bytes) -> str:
    return msgspec.json.format(body, indent=2).decode()
