"""What a sandbox EHR refuses, before it is put into the words of its vendor.

https://hl7.org/fhir/R4/operationoutcome.html
"""

from __future__ import annotations

from starlette.responses import Response

FHIR = "application/fhir+json"


class Wrong(Exception):
    """A refusal: HTTP status, issue code and text."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


class Answer(Exception):
    """An answer that ends the request early and is sent as it is."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response
