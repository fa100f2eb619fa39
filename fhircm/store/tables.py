"""Every table, declared once; `migrations/` brings a database to this shape. Times are microseconds since the epoch, UTC.

The search tables have no foreign keys: only store/search.py writes them, always in the transaction of the version that they belong to.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, LargeBinary, PrimaryKeyConstraint, Text, text
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, SQLModel

_Key = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts only an INTEGER PRIMARY KEY
# Compared byte by byte, as SQLite does: prefixes are then found by the index.
_Plain = Text().with_variant(Text(collation="C"), "postgresql")
_CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}


def declared(name: str | None, *_: Any) -> bool:
    """Whether a table or an index is one of those below: for Alembic, which would take the index of full text for a stray."""
    return not (name or "").startswith("search_text_index")


def _column(type: TypeEngine[Any], **options: Any) -> Any:
    return Field(sa_column=Column(type, nullable=False, **options))


def _perhaps(type: Any) -> Any:
    return Field(sa_column=Column(type, nullable=True))


class Resource(SQLModel, table=True):
    """Each resource once: which version is current. `key` never changes, so the order of pages does not either."""

    __table_args__ = (
        Index("resource_identity", "type", "id", unique=True),
        Index("resource_newest", "type", "key"),
        Index("resource_updated", "type", "last_updated", "key"),
        {"sqlite_autoincrement": True},
    )
    key: int = _column(_Key, primary_key=True, autoincrement=True)
    type: str = _column(_Plain)
    id: str = _column(_Plain)
    version: int = _column(BigInteger)
    last_updated: int = _column(BigInteger)
    deleted: bool = _column(Boolean)


class Version(SQLModel, table=True):
    """Every version, with the bytes that are served."""

    __table_args__ = (PrimaryKeyConstraint("resource_key", "version"),)
    resource_key: int = _column(BigInteger)
    version: int = _column(BigInteger)
    method: str = _column(_Plain)
    last_updated: int = _column(BigInteger)
    body: bytes = _column(LargeBinary)


class Change(SQLModel, table=True):
    """What happened, in order of (transaction, number): docs/decisions/change-numbers-in-order.md."""

    __table_args__ = (
        Index("change_order", "tx", "number"),
        Index("change_type", "type", "tx", "number"),
        {"sqlite_autoincrement": True},
    )
    number: int = _column(_Key, primary_key=True, autoincrement=True)
    tx: int = _column(BigInteger)
    type: str = _column(_Plain)
    id: str = _column(_Plain)
    version: int = _column(BigInteger)
    method: str = _column(_Plain)
    origin: str = _column(_Plain)
    at: int = _column(BigInteger)


class Timer(SQLModel, table=True):
    """Something that is due: a deadline, a reminder, a retry. Claimed until `leased_until`, under the fencing token `token`."""

    __table_args__ = (Index("timer_due", "due"),)
    key: str = _column(_Plain, primary_key=True)
    kind: str = _column(_Plain)
    due: int = _column(BigInteger)
    payload: str = _column(Text)
    attempts: int = _column(BigInteger, server_default=text("0"))
    token: int = _column(BigInteger, server_default=text("0"))
    leased_until: int = _column(BigInteger, server_default=text("0"))


class Cursor(SQLModel, table=True):
    """How far a reaction or a partner has read the changes."""

    name: str = _column(_Plain, primary_key=True)
    tx: int = _column(BigInteger)
    number: int = _column(BigInteger)


class State(SQLModel, table=True):
    """Small durable facts by namespace and key: progress of a pull, hashes of the mirror, capability snapshots."""

    __table_args__ = (PrimaryKeyConstraint("namespace", "key"), _CLUSTERED)
    namespace: str = _column(_Plain)
    key: str = _column(_Plain)
    value: str = _column(Text)


class Lease(SQLModel, table=True):
    """Who works with a partner at the moment."""

    name: str = _column(_Plain, primary_key=True)
    holder: str = _column(_Plain)
    until: int = _column(BigInteger)


class Quarantine(SQLModel, table=True):
    """What a partner sent and the hub could not take, as it came; `batch`: the patient in whose batch it came (Patient/id there)."""

    __table_args__ = (PrimaryKeyConstraint("partner", "name"),)
    partner: str = _column(_Plain)
    name: str = _column(_Plain)
    kind: str = _column(_Plain)
    batch: str = _column(_Plain)
    digest: str = _column(_Plain)
    reason: str = _column(Text)
    body: bytes = _column(LargeBinary)
    first_seen: int = _column(BigInteger)
    last_seen: int = _column(BigInteger)
    times: int = _column(BigInteger)


class JobPart(SQLModel, table=True):
    """A piece of a file that a job writes: lines of NDJSON, compressed (raw DEFLATE that ends on a byte)."""

    __tablename__ = "job_part"
    __table_args__ = (PrimaryKeyConstraint("job", "file", "part"),)
    job: str = _column(_Plain)
    file: int = _column(Integer)
    part: int = _column(Integer)
    body: bytes = _column(LargeBinary)


class JobTarget(SQLModel, table=True):
    """What a job is about, or came across: the Patients of an export, and what their records refer to."""

    __tablename__ = "job_target"
    __table_args__ = (PrimaryKeyConstraint("job", "type", "id"), _CLUSTERED)
    job: str = _column(_Plain)
    type: str = _column(_Plain)
    id: str = _column(_Plain)


class Client(SQLModel, table=True):
    """A registered SMART client: its keys (a JWKS, or where it publishes one), scopes and organisation, as JSON."""

    client_id: str = _column(_Plain, primary_key=True)
    registration: str = _column(Text)


class AccessToken(SQLModel, table=True):
    """An access token by the SHA-256 of its text; the text itself is nowhere. `context`: what its principal has beside scopes, as JSON."""

    __tablename__ = "access_token"
    __table_args__ = (Index("access_token_expires", "expires"), Index("access_token_grant", "grant_id"))
    digest: bytes = _column(LargeBinary, primary_key=True)
    client_id: str = _column(_Plain)
    scope: str = _column(Text)
    expires: int = _column(BigInteger)
    grant_id: str | None = _perhaps(_Plain)
    context: str = _column(Text, server_default=text("'{}'"))


class UsedAssertion(SQLModel, table=True):
    """The jti of a client assertion, kept until it has expired, so that no process accepts it again."""

    __tablename__ = "used_assertion"
    __table_args__ = (PrimaryKeyConstraint("client_id", "jti"), Index("used_assertion_expires", "expires"))
    client_id: str = _column(_Plain)
    jti: str = _column(_Plain)
    expires: int = _column(BigInteger)


class AuthorizationGrant(SQLModel, table=True):
    """What a person let an app do: codes, refresh tokens and access tokens of one grant end together."""

    __tablename__ = "authorization_grant"
    __table_args__ = (Index("authorization_grant_client", "client_id"), Index("authorization_grant_login", "login_id"))
    id: str = _column(_Plain, primary_key=True)
    client_id: str = _column(_Plain)
    login_id: str | None = _perhaps(_Plain)
    scope: str = _column(Text)
    context: str = _column(Text)
    created: int = _column(BigInteger)
    expires: int = _column(BigInteger)
    revoked: int | None = _perhaps(BigInteger)


class AuthorizationRequest(SQLModel, table=True):
    """A checked request of an app that waits for its person: to sign in, to choose a patient, to consent."""

    __tablename__ = "authorization_request"
    __table_args__ = (Index("authorization_request_expires", "expires"),)
    id: str = _column(_Plain, primary_key=True)
    client_id: str = _column(_Plain)
    payload: str = _column(Text)
    expires: int = _column(BigInteger)


class AuthorizationCode(SQLModel, table=True):
    """A code by its SHA-256; kept after its use, so that a second use is noticed."""

    __tablename__ = "authorization_code"
    __table_args__ = (Index("authorization_code_expires", "expires"),)
    digest: bytes = _column(LargeBinary, primary_key=True)
    grant_id: str = _column(_Plain)
    payload: str = _column(Text)
    expires: int = _column(BigInteger)
    used: int | None = _perhaps(BigInteger)


class RefreshToken(SQLModel, table=True):
    """A refresh token by its SHA-256; kept after its use, so that a second use is noticed. `session`: it ends with that one."""

    __tablename__ = "refresh_token"
    __table_args__ = (Index("refresh_token_expires", "expires"), Index("refresh_token_grant", "grant_id"))
    digest: bytes = _column(LargeBinary, primary_key=True)
    grant_id: str = _column(_Plain)
    session: bytes | None = _perhaps(LargeBinary)
    expires: int = _column(BigInteger)
    used: int | None = _perhaps(BigInteger)


class Launch(SQLModel, table=True):
    """The context of an EHR launch, by the SHA-256 of the `launch` parameter that stands for it."""

    __table_args__ = (Index("launch_expires", "expires"),)
    digest: bytes = _column(LargeBinary, primary_key=True)
    payload: str = _column(Text)
    expires: int = _column(BigInteger)


class RememberedConsent(SQLModel, table=True):
    """The scopes that a person agreed to for an app, so that the same need not be asked again."""

    __tablename__ = "remembered_consent"
    __table_args__ = (PrimaryKeyConstraint("login_id", "client_id"),)
    login_id: str = _column(_Plain)
    client_id: str = _column(_Plain)
    scope: str = _column(Text)
    given: int = _column(BigInteger)


class SigningKey(SQLModel, table=True):
    """A key with which identity tokens are signed: the private part sealed, the public part as a JWK."""

    __tablename__ = "signing_key"
    kid: str = _column(_Plain, primary_key=True)
    algorithm: str = _column(_Plain)
    public: str = _column(Text)
    private: bytes = _column(LargeBinary)
    created: int = _column(BigInteger)
    retired: int | None = _perhaps(BigInteger)


class Login(SQLModel, table=True):
    """A person who may sign in: who that is in FHIR, of which organisation, in which roles, and how it is proved."""

    __table_args__ = (
        Index("login_username", "username", unique=True),
        Index("login_external", "issuer", "subject", unique=True),
    )
    id: str = _column(_Plain, primary_key=True)
    username: str | None = _perhaps(_Plain)
    name: str = _column(Text)
    fhir_user: str = _column(_Plain)
    organization: str = _column(_Plain)
    roles: str = _column(Text)
    password: str | None = _perhaps(Text)
    totp: bytes | None = _perhaps(LargeBinary)
    totp_used: int | None = _perhaps(BigInteger)
    issuer: str | None = _perhaps(_Plain)
    subject: str | None = _perhaps(_Plain)
    failed: int = _column(Integer, server_default=text("0"))
    locked_until: int = _column(BigInteger, server_default=text("0"))
    disabled: bool = _column(Boolean)
    created: int = _column(BigInteger)


class Session(SQLModel, table=True):
    """A browser in which somebody is signed in, by the SHA-256 of its cookie."""

    __table_args__ = (Index("session_expires", "expires"), Index("session_login", "login_id"))
    digest: bytes = _column(LargeBinary, primary_key=True)
    login_id: str | None = _perhaps(_Plain)
    payload: str = _column(Text)
    created: int = _column(BigInteger)
    last_seen: int = _column(BigInteger)
    expires: int = _column(BigInteger)


class AuditLink(SQLModel, table=True):
    """The chain of audit events: each hash is of the one before it and of the bytes of the AuditEvent of this id."""

    __tablename__ = "audit_link"
    __table_args__ = (Index("audit_link_id", "id", unique=True),)
    number: int = _column(BigInteger, primary_key=True, autoincrement=False)
    id: str = _column(_Plain)
    recorded: int = _column(BigInteger)
    hash: bytes = _column(LargeBinary)


class CareRelationship(SQLModel, table=True):
    """Who may see what because a resource says so, within [low, high): a whole patient's record, or only one resource.

    `param` stands for the kind of relationship.
    """

    __tablename__ = "care_relationship"
    __table_args__ = (
        PrimaryKeyConstraint("type", "id", "grantee", "resource_key", "param", "low"),
        Index("care_relationship_grantee", "grantee", "type", "id"),
        Index("care_relationship_resource", "resource_key"),
        _CLUSTERED,
    )
    resource_key: int = _column(BigInteger)
    param: int = _column(Integer)
    grantee: str = _column(_Plain)
    type: str = _column(_Plain)
    id: str = _column(_Plain)
    whole: bool = _column(Boolean)
    low: int = _column(BigInteger)
    high: int = _column(BigInteger)


class ConsentRule(SQLModel, table=True):
    """A provision of an active Consent, with what it is about as lists between bars (`|TREAT|HPAYMT|`; empty: anything).

    `path` tells where it is nested: 1, 1.2, 1.2.1.
    """

    __tablename__ = "consent_rule"
    __table_args__ = (
        PrimaryKeyConstraint("patient_id", "resource_key", "path"),
        Index("consent_rule_resource", "resource_key"),
        _CLUSTERED,
    )
    resource_key: int = _column(BigInteger)
    param: int = _column(Integer)
    patient_id: str = _column(_Plain)
    path: str = _column(_Plain)
    permit: bool = _column(Boolean)
    low: int = _column(BigInteger)
    high: int = _column(BigInteger)
    actors: str = _column(Text)
    purposes: str = _column(Text)
    classes: str = _column(Text)
    labels: str = _column(Text)
    codes: str = _column(Text)
    things: str = _column(Text)
    data_low: int = _column(BigInteger)
    data_high: int = _column(BigInteger)


class WorkLine(SQLModel, table=True):
    """An open Task in one work list, in the order of that list: fhircm/fhir/work_list.py. `param` tells whether of an owner or of a role."""

    __tablename__ = "work_line"
    __table_args__ = (
        PrimaryKeyConstraint("list", "due", "priority", "resource_key"),
        Index("work_line_priority", "list", "priority", "due", "resource_key"),
        Index("work_line_resource", "resource_key"),
        _CLUSTERED,
    )
    resource_key: int = _column(BigInteger)
    param: int = _column(Integer)
    list: str = _column(_Plain)
    due: int = _column(BigInteger)
    priority: int = _column(Integer)
    patient: str = _column(_Plain)
    status: str = _column(_Plain)
    hidden: int = _column(BigInteger)
    why: str = _column(_Plain)


class PatientRisk(SQLModel, table=True):
    """What a RiskAssessment says of its Patient: the newest counts."""

    __tablename__ = "patient_risk"
    __table_args__ = (
        PrimaryKeyConstraint("patient", "at", "resource_key"),
        Index("patient_risk_resource", "resource_key"),
        _CLUSTERED,
    )
    resource_key: int = _column(BigInteger)
    param: int = _column(Integer)
    patient: str = _column(_Plain)
    at: int = _column(BigInteger)
    level: int = _column(Integer)


class SearchToken(SQLModel, table=True):
    """Codes, identifiers, booleans. Keys by resource right behind the code: the newest come straight from the index."""

    __tablename__ = "search_token"
    __table_args__ = (
        PrimaryKeyConstraint("param", "code", "resource_key", "system"),
        Index("search_token_resource", "resource_key"),
        _CLUSTERED,
    )
    param: int = _column(Integer)
    code: str = _column(_Plain)
    resource_key: int = _column(BigInteger)
    system: str = _column(_Plain)


class SearchReference(SQLModel, table=True):
    """References; param 0 holds every local one, which tells whether a resource may be deleted."""

    __tablename__ = "search_reference"
    __table_args__ = (
        PrimaryKeyConstraint("param", "target_id", "resource_key", "target_type"),
        Index("search_reference_resource", "resource_key"),
        _CLUSTERED,
    )
    param: int = _column(Integer)
    target_id: str = _column(_Plain)
    resource_key: int = _column(BigInteger)
    target_type: str = _column(_Plain)


class SearchString(SQLModel, table=True):
    """Names, addresses and other strings, as written and normalised; `start` is what the index holds."""

    __tablename__ = "search_string"
    __table_args__ = (
        Index("search_string_start", "param", "start", "resource_key"),
        Index("search_string_resource", "resource_key"),
    )
    __mapper_args__ = {"primary_key": ["param", "start", "resource_key", "exact"]}
    param: int = _column(Integer)
    start: str = _column(_Plain)
    resource_key: int = _column(BigInteger)
    normalised: str = _column(_Plain)
    exact: str = _column(_Plain)


class SearchDate(SQLModel, table=True):
    """Dates and periods as [low, high)."""

    __tablename__ = "search_date"
    __table_args__ = (
        PrimaryKeyConstraint("param", "low", "high", "resource_key"),
        Index("search_date_high", "param", "high", "resource_key"),
        Index("search_date_resource", "resource_key"),
        _CLUSTERED,
    )
    param: int = _column(Integer)
    low: int = _column(BigInteger)
    high: int = _column(BigInteger)
    resource_key: int = _column(BigInteger)


class SearchQuantity(SQLModel, table=True):
    """Numbers and quantities as the range that their precision means."""

    __tablename__ = "search_quantity"
    __table_args__ = (
        Index("search_quantity_low", "param", "low", "resource_key"),
        Index("search_quantity_high", "param", "high", "resource_key"),
        Index("search_quantity_resource", "resource_key"),
    )
    __mapper_args__ = {"primary_key": ["param", "low", "resource_key", "code"]}
    param: int = _column(Integer)
    low: float = _column(Double)
    high: float = _column(Double)
    resource_key: int = _column(BigInteger)
    system: str = _column(_Plain)
    code: str = _column(_Plain)
    unit: str = _column(_Plain)


class SearchText(SQLModel, table=True):
    """The words of resources, for full text; store/full_text.py tells what stands on it: `search_text_index`."""

    __tablename__ = "search_text"
    __table_args__ = (Index("search_text_resource", "resource_key"),)
    key: int = _column(_Key, primary_key=True, autoincrement=True)
    resource_key: int = _column(BigInteger)
    param: int = _column(Integer)
    words: str = _column(_Plain)


class SearchUri(SQLModel, table=True):
    """URIs and canonicals."""

    __tablename__ = "search_uri"
    __table_args__ = (
        PrimaryKeyConstraint("param", "uri", "resource_key"),
        Index("search_uri_resource", "resource_key"),
        _CLUSTERED,
    )
    param: int = _column(Integer)
    uri: str = _column(_Plain)
    resource_key: int = _column(BigInteger)


class SearchPosition(SQLModel, table=True):
    """Places as unit vectors from the centre of the earth."""

    __tablename__ = "search_position"
    __table_args__ = (
        Index("search_position_box", "param", "z", "x", "y", "resource_key"),
        Index("search_position_resource", "resource_key"),
    )
    __mapper_args__ = {"primary_key": ["param", "resource_key"]}
    param: int = _column(Integer)
    resource_key: int = _column(BigInteger)
    x: float = _column(Double)
    y: float = _column(Double)
    z: float = _column(Double)


_CODED = text("low IS NULL")  # the rows that a search begins with; those of quantities have a code, too: their unit


class SearchComposite(SQLModel, table=True):
    """The components of composite parameters, in the columns of their kinds; `at` is the same for those of one element."""

    __tablename__ = "search_composite"
    __table_args__ = (
        Index("search_composite_code", "param", "code", "resource_key", sqlite_where=_CODED, postgresql_where=_CODED),
        Index("search_composite_resource", "resource_key", "at"),
    )
    __mapper_args__ = {"primary_key": ["param", "resource_key", "at"]}
    param: int = _column(Integer)
    resource_key: int = _column(BigInteger)
    at: int = _column(Integer)
    code: str | None = _perhaps(_Plain)
    system: str | None = _perhaps(_Plain)
    target_id: str | None = _perhaps(_Plain)
    target_type: str | None = _perhaps(_Plain)
    start: str | None = _perhaps(_Plain)
    normalised: str | None = _perhaps(_Plain)
    exact: str | None = _perhaps(_Plain)
    low: float | None = _perhaps(Double)
    high: float | None = _perhaps(Double)
    unit: str | None = _perhaps(_Plain)
