"""How the authorization server says no: https://www.rfc-editor.org/rfc/rfc6749#section-5.2 and https://www.rfc-editor.org/rfc/rfc7591#section-3.2.2"""

from __future__ import annotations

_STATUS = {"invalid_client": 401, "invalid_token": 401, "insufficient_scope": 403}


class TokenRefused(Exception):
    """A request of a client is refused; `error` is one of the codes of OAuth. `scheme`: how the client tried to prove who it is."""

    def __init__(self, error: str, description: str, *, scheme: str | None = None) -> None:
        super().__init__(description)
        self.error, self.description, self.scheme = error, description, scheme

    @property
    def status(self) -> int:
        return _STATUS.get(self.error, 400)


def invalid_client(description: str, *, scheme: str | None = None) -> TokenRefused:
    """The client did not prove who it is."""
    return TokenRefused("invalid_client", description, scheme=scheme)
