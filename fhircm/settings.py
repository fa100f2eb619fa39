"""Every setting: typed, documented, read from the environment (FHIRCM_…) or from a TOML file.

An environment variable wins over the file; the file is named by FHIRCM_CONFIG, else it is `fhircm.toml` where the process starts.
docs/reference/settings.md lists the same settings, and a test keeps the two equal. Only the command line reads this module: every
room below receives values.
"""

from __future__ import annotations

import os
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AnyHttpUrl, Field, IPvAnyNetwork, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


class Settings(BaseSettings):
    """The settings of one process."""

    model_config = SettingsConfigDict(env_prefix="FHIRCM_", extra="forbid", frozen=True)

    database_url: Annotated[
        str,
        Field(
            pattern=r"^(sqlite:///|postgresql://)",
            description="Where everything is kept: `sqlite:///path` (embedded) or `postgresql://user@host/name` (production).",
        ),
    ] = "sqlite:///var/fhircm.db"
    public_base_url: Annotated[
        AnyHttpUrl,
        Field(description="The address under which others reach this hub; the FHIR base is this plus `/fhir`."),
    ] = AnyHttpUrl("http://127.0.0.1:8080")
    host: Annotated[str, Field(description="The address that `fhircm serve` listens on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="The port that `fhircm serve` listens on.")] = 8080
    processes: Annotated[
        int, Field(ge=1, le=64, description="How many processes `fhircm serve` answers with, on one port; about one a core.")
    ] = 1
    tls_cert: Annotated[
        Path | None,
        Field(
            description="Certificate chain (PEM) with which `fhircm serve` speaks TLS itself; without it, plain HTTP behind a proxy."
        ),
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="The private key (PEM) of that certificate, if it is in a file of its own.")
    ] = None
    trusted_proxies: Annotated[
        list[IPvAnyNetwork],
        Field(
            description='Proxies whose Forwarded or X-Forwarded-For and X-Forwarded-Proto are believed, as JSON: `["10.0.0.0/8"]`;'
            " none by default."
        ),
    ] = []
    cors_origins: Annotated[
        list[str],
        Field(
            description='Origins whose pages may read tokens and records, beside those of the registered clients, as JSON: `["https://app.example"]`.'
        ),
    ] = []
    sign_in_rate: Annotated[
        int,
        Field(
            ge=0,
            description="Requests a minute and address to the pages of sign-in, consent and the own account, for each process; 0: no limit.",
        ),
    ] = 120
    token_rate: Annotated[
        int,
        Field(
            ge=0,
            description="Requests a minute and address to the token, introspection and revocation endpoints, for each process; 0: no limit.",
        ),
    ] = 1200
    register_rate: Annotated[
        int,
        Field(ge=0, description="Requests a minute and address to the registration of clients, for each process; 0: no limit."),
    ] = 30
    refused_rate: Annotated[
        int,
        Field(
            ge=0,
            description="FHIR requests without a good token, a minute and address, before it is made to wait, for each process; 0: no limit.",
        ),
    ] = 600
    fhir_rate: Annotated[int, Field(ge=0, description="FHIR requests a minute and client, for each process; 0: no limit.")] = 0
    connection_limit: Annotated[
        int, Field(ge=1, description="How many connections each process of `fhircm serve` holds; more are answered 503.")
    ] = 2000
    head_limit: Annotated[
        int, Field(ge=1024, description="The largest head of a request, in bytes: its line and all its headers.")
    ] = 32 * 1024
    slow_client: Annotated[
        timedelta,
        Field(
            ge=timedelta(milliseconds=100),
            description="How long a client may take for the head of a request, let its body stand still, or leave an answer unread (ISO 8601 duration).",
        ),
    ] = timedelta(seconds=20)
    keys_dir: Annotated[
        Path,
        Field(description="Folder of the private keys with which the hub signs in at partners; readable by its owner alone."),
    ] = Path("var/keys")
    key_publication: Annotated[
        timedelta,
        Field(
            ge=timedelta(),
            description="How long the hub publishes a new key of a partner before it signs with it: as long as that partner may keep"
            " what it fetched of the hub's JWKS (ISO 8601 duration).",
        ),
    ] = timedelta(days=1)
    spool_dir: Annotated[
        Path,
        Field(
            description="Folder for the files of partners' bulk exports while they are taken in; they hold patients' records, and are removed then."
        ),
    ] = Path("var/spool")
    mappings_dir: Annotated[
        Path | None, Field(description="Folder with one folder for each partner; without it, the partners that fhircm ships.")
    ] = None
    partner_base_urls: Annotated[
        dict[str, AnyHttpUrl],
        Field(description='FHIR base URLs that replace those in partner.yaml, as JSON: `{"lakeside-hospital": "https://…"}`.'),
    ] = {}
    partners: Annotated[
        list[str] | None,
        Field(description="The partners to exchange with, by folder name, as JSON; without it, every folder of `mappings_dir`."),
    ] = None
    organization_name: Annotated[
        str, Field(min_length=1, description="Name of the organisation that coordinates: it owns what is left for a human.")
    ] = "Care coordination"
    time_zone: Annotated[str, Field(description="IANA time zone of the coordinating organisation.")] = "America/Chicago"
    calendar_country: Annotated[
        str, Field(pattern="^[A-Z]{2}$", description="ISO 3166-1 code of the country whose public holidays are no business days.")
    ] = "US"
    calendar_subdivision: Annotated[
        str | None,
        Field(description="ISO 3166-2 code, without the country, of the part of it whose public holidays count, too: `IL`."),
    ] = None
    calendar_closed: Annotated[
        list[date], Field(description='Further days on which the coordinating organisation is closed, as JSON: `["2026-12-24"]`.')
    ] = []
    business_hours: Annotated[
        str,
        Field(
            pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$",
            description="When the coordinating organisation works on a business day, by its own clock; what is due in business hours counts them.",
        ),
    ] = "08:00-17:00"
    transition_window: Annotated[
        timedelta,
        Field(
            description="A discharge that is first seen later than this after it happened opens no transition (ISO 8601 duration)."
        ),
    ] = timedelta(days=30)
    pull_interval: Annotated[
        timedelta,
        Field(
            ge=timedelta(seconds=1), description="How long after a pull the worker pulls that partner again (ISO 8601 duration)."
        ),
    ] = timedelta(minutes=15)
    body_limit: Annotated[int, Field(ge=1024, description="The largest request body that is read, in bytes.")] = 5 * 1024 * 1024
    bundle_limit: Annotated[
        int, Field(ge=1024, description="The largest batch or transaction Bundle that is read, in bytes.")
    ] = 50 * 1024 * 1024
    update_create: Annotated[
        bool, Field(description="Whether an update of what does not exist creates it, under the id that the client chose.")
    ] = False
    conditional_delete_limit: Annotated[
        int,
        Field(ge=1, description="How many resources one conditional delete may delete; at more it deletes none and answers 412."),
    ] = 1
    full_text: Annotated[
        bool,
        Field(
            description="Whether the words of what is written are kept, so that `_text` and `_content` can be searched; each write costs more."
        ),
    ] = False
    push_attempts: Annotated[
        int, Field(ge=1, description="How often a delivery to a partner that does not answer is tried before a human is told.")
    ] = 8
    import_sources: Annotated[
        list[str],
        Field(
            description='From where `$import` may fetch files, as JSON: URL prefixes such as `["https://files.example/exports"]`; '
            "none by default."
        ),
    ] = []
    export_retention: Annotated[
        timedelta,
        Field(
            ge=timedelta(minutes=1),
            description="How long the files of a bulk export, and the errors of a bulk import, are kept after it is done (ISO 8601 duration).",
        ),
    ] = timedelta(hours=24)
    access_grace: Annotated[
        timedelta,
        Field(
            ge=timedelta(),
            description="How long a care relationship still opens a record after it has ended (ISO 8601 duration).",
        ),
    ] = timedelta(days=7)
    mllp_host: Annotated[str, Field(description="Address on which `fhircm mllp` listens for HL7 v2 messages.")] = "127.0.0.1"
    mllp_port: Annotated[
        int, Field(ge=0, le=65535, description="Port on which it listens; with 0 it takes a free one and tells it.")
    ] = 2575
    mllp_tls_cert: Annotated[
        Path | None, Field(description="Certificate chain (PEM) of `fhircm mllp`; without it messages come unencrypted.")
    ] = None
    mllp_tls_key: Annotated[Path | None, Field(description="Its private key (PEM).")] = None
    mllp_client_ca: Annotated[
        Path | None, Field(description="Certificates (PEM) of who signs those of the senders; with it a sender must show one.")
    ] = None
    mllp_connections: Annotated[int, Field(ge=1, description="How many connections `fhircm mllp` has at a time.")] = 100
    lease: Annotated[
        timedelta,
        Field(description="How long a worker that fell silent keeps its claim before another takes over (ISO 8601 duration)."),
    ] = timedelta(seconds=15)
    audit: Annotated[bool, Field(description="Whether every access is recorded; off only to measure what that costs.")] = True
    audit_dir: Annotated[
        Path,
        Field(
            description="Folder of the audit journals, one for each database: on a disk of this machine, the same for all its processes."
        ),
    ] = Path("var/audit")
    audit_limit: Annotated[
        int,
        Field(
            ge=1024 * 1024,
            description="The most that the audit journal holds, in bytes, while the database does not take it; then requests are refused (503).",
        ),
    ] = 1024 * 1024 * 1024
    audit_sync: Annotated[
        timedelta,
        Field(
            ge=timedelta(),
            description="How much of the audit journal a loss of power may take (ISO 8601 duration); with PT0S each line is on the disk"
            " before its request is answered. A process that is killed loses nothing either way.",
        ),
    ] = timedelta(seconds=1)
    allow_private_jwks: Annotated[
        bool,
        Field(
            description="Whether a client's JWKS and files to import may be fetched from a private address, and over plain HTTP"
            " (files only from this machine): for tests, demos and closed networks."
        ),
    ] = False
    access_token_lifetime: Annotated[
        timedelta,
        Field(
            ge=timedelta(minutes=1),
            le=timedelta(hours=1),
            description="How long an access token of an app is good; those of backend systems are for 5 minutes (ISO 8601 duration).",
        ),
    ] = timedelta(minutes=15)
    refresh_lifetime: Annotated[
        timedelta,
        Field(
            ge=timedelta(hours=1),
            description="How long an app with `offline_access` gets new tokens before its person is asked again (ISO 8601 duration).",
        ),
    ] = timedelta(days=90)
    registration_scopes: Annotated[
        str, Field(description="The scopes that clients may get which register themselves, with spaces between them.")
    ] = "openid fhirUser profile launch launch/patient launch/encounter offline_access online_access patient/*.rs user/*.rs"
    session_idle: Annotated[
        timedelta,
        Field(
            ge=timedelta(minutes=1), description="How long a person stays signed in while nobody is there (ISO 8601 duration)."
        ),
    ] = timedelta(minutes=30)
    session_longest: Annotated[
        timedelta,
        Field(ge=timedelta(minutes=1), description="How long a person stays signed in in any case (ISO 8601 duration)."),
    ] = timedelta(hours=12)
    provider_issuer: Annotated[
        str | None,
        Field(
            pattern=r"^https?://\S+$",
            description="Issuer of the organisation's own OpenID Connect provider, at which its people sign in; the hub is registered there"
            " with the redirect URI `/signin/callback` of its public address. None: people sign in with a password.",
        ),
    ] = None
    provider_client_id: Annotated[str, Field(description="The name under which the hub is registered at the provider.")] = (
        "fhircm"
    )
    provider_client_secret: Annotated[
        SecretStr | None,
        Field(
            description="Its secret there. Without one, the hub signs with the key `provider.json` of `keys_dir`, which is made when it does"
            " not exist and published at `/.well-known/jwks.json` (private_key_jwt)."
        ),
    ] = None
    provider_scopes: Annotated[
        str, Field(pattern=r"(^|\s)openid(\s|$)", description="The scopes that the provider is asked for.")
    ] = "openid profile"
    provider_button: Annotated[str, Field(min_length=1, description="What the button that leads to the provider says.")] = (
        "Sign in with your organisation"
    )
    provider_user_claim: Annotated[
        str, Field(description="The claim that names who somebody new is in FHIR: `Practitioner/1`, or the whole address of it.")
    ] = "fhirUser"
    provider_roles_claim: Annotated[str, Field(description="The claim whose values stand for roles.")] = "groups"
    provider_roles: Annotated[
        dict[str, str],
        Field(
            description='The role of the hub for each of those values, as JSON: `{"hub-physicians": "clinician"}`; they replace the roles'
            " that are kept at each sign-in. Empty: the hub's own stay."
        ),
    ] = {}
    provider_organization: Annotated[
        str | None,
        Field(
            description="The Organization whose people the provider knows: `Organization/1`; without it, the one that coordinates."
        ),
    ] = None
    provider_provision: Annotated[
        bool, Field(description="Whether somebody whom the provider vouches for, and the hub does not know yet, is let in.")
    ] = False
    clock_offset: Annotated[
        timedelta,
        Field(description="Moves the clock of deadlines and versions, for demonstrations and rehearsals (ISO 8601 duration)."),
    ] = timedelta()
    metrics_token: Annotated[
        SecretStr | None,
        Field(
            min_length=32,
            description="What a monitoring system shows as its bearer token to read `/metrics`, 32 characters or more; without it, nobody may.",
        ),
    ] = None
    log_level: Annotated[
        str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="How much is logged; never resource bodies, at any level.")
    ] = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the file."""
        file = TomlConfigSettingsSource(settings_cls, Path(os.environ.get("FHIRCM_CONFIG", "fhircm.toml")))
        return init_settings, env_settings, file


class SettingsWrong(Exception):
    """A setting cannot be used; the message names each and what is expected."""


def load() -> Settings:
    """The settings of this process. Raises SettingsWrong."""
    named = os.environ.get("FHIRCM_CONFIG")
    if named and not Path(named).is_file():
        raise SettingsWrong(f"FHIRCM_CONFIG names {named}, which is not a file")
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, issue['loc'])) or 'settings'}: {issue['msg']}" for issue in error.errors(include_input=False)
        ]
        raise SettingsWrong("Settings cannot be used:\n  " + "\n  ".join(lines)) from None
    except ValueError as error:  # a file that is not TOML
        raise SettingsWrong(f"Settings cannot be read: {error}") from None
