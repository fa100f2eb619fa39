"""How the hub signs in at a partner: the `credentials` of partner.yaml. A secret never stands there, only where it is found.

https://www.rfc-editor.org/rfc/rfc6749#section-2.3 and https://hl7.org/fhir/smart-app-launch/backend-services.html
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fhircm.exchange.client_keys import signing_keys
from fhircm.exchange.errors import PartnerUnavailable
from fhircm.exchange.proof import Client
from fhircm.exchange.yaml_keys import Keys

if TYPE_CHECKING:
    from fhircm.exchange.partners import Partner

log = logging.getLogger("fhircm.exchange.credentials")

ALGORITHMS = ("RS384", "ES384")
METHODS = ("private_key_jwt", "client_secret_basic", "client_secret_post", "none")
SECRETS = ("client_secret_basic", "client_secret_post")
_LIMIT = 4096  # characters of a secret
_OURS = frozenset({"grant_type", "scope", "client_id", "client_secret", "client_assertion", "client_assertion_type"})


class SecretMissing(PartnerUnavailable):
    """The secret is not where partner.yaml says; the message names the place, and nothing was sent."""

    def __init__(self, text: str) -> None:
        super().__init__(text, sent=False)


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is found: a file or an environment variable. It is read anew each time: one that was replaced counts at once."""

    file: Path | None = None
    env: str | None = None

    def read(self) -> str:
        """The secret, without blanks around it. Raises SecretMissing."""
        if self.file is None:
            text, where = os.environ.get(self.env or "", ""), f"The environment variable {self.env}"
        else:
            text, where = self._of_file(self.file), str(self.file)
        text = text.strip()
        if not text or len(text) > _LIMIT or not text.isprintable():
            raise SecretMissing(f"{where} holds no secret: put the client's secret there, on one line")
        return text

    def _of_file(self, file: Path) -> str:
        try:
            text = file.read_text()
            if file.stat().st_mode & 0o007:
                log.warning("%s can be read by everybody: chmod 600 it", file)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise SecretMissing(f"The secret file {file} cannot be read: {why}") from None
        return text


@dataclass(frozen=True, slots=True)
class Credentials:
    """How the hub signs in as a backend service. `parameters` go with each token request, as some vendors want it.

    With the method none it does not: requests carry no token. That is for test servers, and for those that let in whoever reaches them.
    """

    method: str = "private_key_jwt"
    algorithm: str = "RS384"  # of assertions
    secret: Secret | None = None
    token_endpoint: str | None = None  # None: discovery names it
    audience: str | None = None  # of assertions; None: the token endpoint
    parameters: Mapping[str, str] = field(default_factory=dict)


def read(keys: Keys) -> Credentials:
    """The `credentials` of a partner.yaml; what they do not say of `algorithm` stands at its top level. Raises YamlWrong."""
    section = keys.keys("credentials", "a mapping: method, secret, algorithm, token_endpoint, audience, parameters", {})
    method = section.choice("method", METHODS, "private_key_jwt")
    algorithm = section.choice("algorithm", ALGORITHMS, None)
    otherwise = keys.choice("algorithm", ALGORITHMS, ... if method == "private_key_jwt" and algorithm is None else "RS384")
    for name in section.names if method == "none" else ():
        if name != "method":
            section.wrong(name, "is not used without sign-in (method: none): remove it")
    credentials = Credentials(
        method=method,
        algorithm=algorithm or otherwise,
        secret=read_secret(section, needed=method in SECRETS),
        token_endpoint=_url(section, "token_endpoint"),
        audience=section.text("audience", "the aud of assertions, if it is not the token endpoint", default=None),
        parameters=_parameters(section.keys("parameters", "a mapping of further parameters of token requests", {})),
    )
    section.done()
    return credentials


def read_secret(keys: Keys, *, needed: bool) -> Secret | None:
    """Where the secret is found: `secret: {file: PATH}` or `secret: {env: NAME}`; a relative path is one beside partner.yaml."""
    if not needed:
        if "secret" in keys.names:
            keys.wrong("secret", "is not used with this method: remove it, or choose client_secret_basic or client_secret_post")
        keys.known.append("secret")
        return None
    if "secret" in keys.tree and not isinstance(keys.tree["secret"], dict):
        keys.wrong(
            "secret", "must never stand in this file: give {file: PATH} or {env: NAME}, and if it is a real one, have it replaced"
        )
    section = keys.keys("secret", "{file: PATH} or {env: NAME}")
    file = section.text("file", "the path of a file that holds the secret alone", default=None)
    env = section.text("env", "the name of an environment variable", re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), default=None)
    section.done()
    if (file is None) == (env is None):
        keys.wrong("secret", "must have either file or env")
    return Secret(keys.path.parent / file if file else None, env)


def client_at(partner: Partner, keys_dir: Path) -> Client:
    """Who the hub is at the partner's token endpoint."""
    told = partner.credentials
    if told.secret is not None:
        return Client(partner.client_id, told.method, secret=told.secret.read)
    keys = partial(signing_keys, keys_dir, partner.name, partner.algorithm)
    return Client(partner.client_id, told.method, keys, audience=told.audience)


def _url(keys: Keys, name: str) -> str | None:
    text = keys.text(name, "an https URL", re.compile(r"https?://\S+"), default=None)
    if text is not None and (urlsplit(text).username is not None or urlsplit(text).fragment):
        keys.wrong(name, "must be a URL without user name and fragment")
    return text


def _parameters(keys: Keys) -> dict[str, str]:
    parameters = {name: keys.text(name, "a text, in quotes where YAML needs them") for name in keys.names}
    for name in sorted(_OURS & parameters.keys()):
        keys.wrong(name, "is set by fhircm itself: remove it")
    return parameters
