"""The authorization code flow as a client: away to the server with a state, a nonce and a PKCE challenge, and back with a code.

https://www.rfc-editor.org/rfc/rfc6749#section-4.1, PKCE (https://www.rfc-editor.org/rfc/rfc7636), and against mix-up the issuer in the
answer (https://www.rfc-editor.org/rfc/rfc9207).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode


class AnswerRefused(Exception):
    """The answer to a request for authorization is none that can be gone on with; the message is for the log of the operator."""


@dataclass(frozen=True, slots=True)
class Started:
    """A sign-in elsewhere that was begun: where to send the browser, and what must be kept with it for its return."""

    url: str
    kept: dict[str, str]


def begin(endpoint: str, asked: Mapping[str, str]) -> Started:
    """Away to an authorization endpoint. `asked` has client_id, redirect_uri, scope and what else is to be told."""
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    parameters = {
        "response_type": "code",
        **asked,
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    url = f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(parameters, quote_via=quote)}"
    return Started(url, {"state": state, "nonce": nonce, "verifier": verifier})


def code_in(answer: Mapping[str, str], kept: Mapping[str, str], issuer: str | None, *, names_issuer: bool) -> str:
    """The code that came back. `names_issuer`: the server promised to say in its answer who it is. Raises AnswerRefused."""
    if not hmac.compare_digest(answer.get("state", "").encode(), kept["state"].encode()):
        raise AnswerRefused("The answer belongs to another sign-in (state)")
    told = answer.get("iss")
    if told != issuer and (told is not None or names_issuer):
        raise AnswerRefused("The answer comes from another server (iss)")
    if "error" in answer:
        raise AnswerRefused(f"The server answers {plain(answer['error'])}")
    if not answer.get("code"):
        raise AnswerRefused("The answer holds no code")
    return answer["code"]


def redemption(code: str, redirect_uri: str, kept: Mapping[str, str]) -> dict[str, str]:
    """The form that turns a code into tokens, without what proves who the client is."""
    return {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": kept["verifier"],
    }


def plain(text: object) -> str:
    """A code of an answer, safe to be logged."""
    return "".join(letter for letter in str(text)[:64] if letter.isascii() and (letter.isalnum() or letter in "_-"))
