"""$import: start a Bulk Data import of NDJSON files that another system offers.

https://github.com/smart-on-fhir/bulk-import/blob/master/import.md. The parameters are also understood as HAPI and Microsoft have them. Without
`Prefer: respond-async` an import is started all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Forbidden, Invalid, NotSupported
from fhircm.jobs.bulk_import import Input, start_import
from fhircm.operations.call import Answer, Argument, Call

INPUTS = 1000  # files
_FORMATS = ("application/fhir+ndjson", "application/ndjson", "application/x-ndjson", "ndjson")
_STORES = ("https", "aws-s3", "gcp-bucket", "azure-blob")
_MODES = ("InitialLoad", "IncrementalLoad")
_ENCODINGS = ("gzip", "identity")


async def bulk_import(call: Call) -> Answer:
    """Check what is asked, and start the job. Raises NotSupported, Invalid, Forbidden."""
    _one_of("inputFormat", call.one("inputFormat", _FORMATS[0]), _FORMATS)
    _one_of("mode", call.one("mode", _MODES[0]), _MODES)
    for detail in _parts(call, "storageDetail"):
        _one_of("storageDetail.type", _value(detail, "type"), _STORES)
        for encoding in (part.value for part in detail.parts if part.name == "contentEncoding"):
            _one_of("storageDetail.contentEncoding", encoding, _ENCODINGS)
    inputs = [_input(call, part) for part in _parts(call, "input")]
    if len(inputs) > INPUTS:
        raise NotSupported(f"One import takes at most {INPUTS} files")
    if len({one.url for one in inputs}) < len(inputs):
        raise Invalid("A file is named twice", "Parameters.parameter")
    id = await start_import(
        call.store.store,
        call.store.principal.account,
        inputs,
        source=call.one("inputSource"),
        request=f"{call.base_url}/$import",
    )
    return Answer(status=202, headers={"Content-Location": f"{call.base_url}/$import-status/{id}"})


def _parts(call: Call, name: str) -> Iterator[Argument]:
    return (argument for argument in call.arguments if argument.name == name)


def _value(argument: Argument, name: str) -> Any:
    return next((part.value for part in argument.parts if part.name == name), None)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise NotSupported(f"{name} may be: {', '.join(allowed)}")


def _input(call: Call, part: Argument) -> Input:
    """A file that the caller may import from, of a type that it may write."""
    etag = _value(part, "etag") or ""
    quoted = etag if not etag or etag.endswith('"') else f'"{etag}"'
    one = Input(_value(part, "type"), _value(part, "url"), quoted)
    if one.type not in definitions().resource_types:
        raise NotSupported("input.type must be a resource type of FHIR R4")
    if not call.store.principal.sees_everything:
        raise Forbidden("An import writes whatever its files hold: it is for systems in the role of custodian")
    for verb in "cu":
        call.store.principal.require(verb, one.type)
    call.sources.check(one.url)
    return one
