"""`fhircm partner new`: begin with a new partner."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.exchange import shapes
from fhircm.exchange.check import JWKS_PATH
from fhircm.exchange.new_partner import Facts, PartnerExists, write
from fhircm.exchange.partners import PartnerWrong
from fhircm.settings import load as load_settings


def new(
    name: Annotated[str, typer.Argument(help="The partner's name: of its folder, in small letters, digits and hyphens.")],
    shape: Annotated[
        str,
        typer.Option(
            help="Its vendor's shape: athenahealth, eclinicalworks, epic, hapi, meditech, oracle, r4, or one of your own."
        ),
    ],
    base_url: Annotated[str | None, typer.Option(help="Of its FHIR API, unless the shape knows it.")] = None,
    organization_id: Annotated[str | None, typer.Option(help="The id of its own Organization there.")] = None,
    organization_name: Annotated[str | None, typer.Option(help="What the organisation is called.")] = None,
    npi: Annotated[str | None, typer.Option(help="Its NPI, ten digits.")] = None,
    group: Annotated[str | None, typer.Option(help="The id of the Group that is the panel.")] = None,
    list_: Annotated[str | None, typer.Option("--list", help="Or the id of the List that is the panel.")] = None,
    roster: Annotated[
        str | None, typer.Option(help="Or the name of a roster file, .csv or .ndjson, in the partner's folder.")
    ] = None,
    client_id: Annotated[str, typer.Option(help="Under which the partner registers the hub.")] = "fhircm",
    time_zone: Annotated[str | None, typer.Option(help="IANA time zone; without it, that of the settings.")] = None,
    country: Annotated[str | None, typer.Option(help="ISO 3166-1; without it, that of the settings.")] = None,
    subdivision: Annotated[str | None, typer.Option(help="ISO 3166-2 without the country, such as IL.")] = None,
    secret_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the client's secret, for a vendor that wants one.")
    ] = None,
    secret_file: Annotated[str | None, typer.Option(help="Or the file that holds it.")] = None,
    sign_in: Annotated[bool, typer.Option(help="Whether it wants a sign-in; a test server may not.")] = True,
    parameter: Annotated[
        list[str] | None, typer.Option(help="What the shape needs to know, as name=value; may be repeated.")
    ] = None,
) -> None:
    """Write partner.yaml for a new partner, and tell what to do next. What is not given is asked for at a terminal."""
    settings = load_settings()
    root = settings.mappings_dir
    if root is None:
        raise typer.BadParameter("set FHIRCM_MAPPINGS_DIR to a folder of your own, where partners are written to")
    if shape not in (known := shapes.shapes(root)):
        raise typer.BadParameter(f"{shape} is no shape; there are: {', '.join(sorted(known))}", param_hint="--shape")
    made_for = shapes.read(shape, root)
    given = dict(one.partition("=")[::2] for one in parameter or [])
    for one in made_for.parameters:
        given[one.name] = given.get(one.name) or _asked(f"--parameter {one.name}=…", one.means[0].upper() + one.means[1:])
    facts = Facts(
        shape=shape,
        base_url=base_url or (None if made_for.base_url else _asked("--base-url", "The URL of its FHIR API")),
        client_id=client_id,
        organization_id=organization_id or _asked("--organization-id", "The id of its own Organization there"),
        organization_name=organization_name or _asked("--organization-name", "What the organisation is called"),
        npi=npi or _asked("--npi", "Its NPI, ten digits"),
        time_zone=time_zone or settings.time_zone,
        country=country or settings.calendar_country,
        subdivision=subdivision,
        group=group
        or (None if list_ or roster else _asked("--group, --list or --roster", "The id of the Group that is the panel")),
        list=list_,
        roster=roster,
        parameters=given,
        secret_env=secret_env,
        secret_file=secret_file,
        sign_in=sign_in,
    )
    try:
        partner = write(root, name, facts)
    except PartnerExists as error:
        raise PartnerWrong(str(error)) from None
    keys = f"{wiring.base_url(settings)}{JWKS_PATH}"
    typer.echo(f"{partner.folder / 'partner.yaml'} is written. Next:")
    typer.echo(
        f"  1. Look through it: every key has a comment. Without more, {len(partner.types)} types are pulled as its vendor wants it."
    )
    if partner.credentials.method == "none":
        typer.echo("  2. Nobody signs in there: see that only who may read its records reaches it.")
    else:
        typer.echo(
            f"  2. Register the hub at {facts.organization_name} as client id {partner.client_id}, for SMART backend services,"
        )
        if partner.credentials.secret is None:
            typer.echo(f"     with its public keys at {keys} ({partner.algorithm}) and these scopes:")
        else:
            typer.echo("     with the secret that you are given there put where partner.yaml says, and these scopes:")
        typer.echo(f"     {' '.join(partner.scopes)}")
    typer.echo(f"  3. fhircm partner check {name}    tells what works, what it cannot do, and what to fix")
    typer.echo(f"  4. fhircm pull {name}             reads its panel once; then `fhircm work` goes on by itself")


def _asked(option: str, question: str) -> str:
    """What a human answers at a terminal; without one, the option must be given."""
    if not sys.stdin.isatty():
        raise typer.BadParameter("is missing", param_hint=option)
    return str(typer.prompt(question))
