"""Read an implementation guide's package: a gzipped tar archive of JSON files, trusted with nothing.

https://confluence.hl7.org/display/FHIR/NPM+Package+Specification. The archive is read as a stream and never unpacked to disk. What
lies in folders below `package/` (examples, other formats) is not read.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any
from uuid import NAMESPACE_URL, uuid5

from fhircm.fhir import json
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError, Invalid, Issue
from fhircm.fhir.validation import Checked, check

MEMBERS = 20_000
MEMBER_BYTES = 64 * 1024 * 1024
TOTAL_BYTES = 512 * 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+\-]{0,63}")
_TOLD = 20  # definitions that are wrong, named at most
_LINKS_TO_EXAMPLES = frozenset({"ImplementationGuide"})  # it names every example by a reference, and examples are not loaded


class PackageWrong(Invalid):
    """The file is not a package of FHIR R4 definitions; the message names the member."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A definition as it will be stored: checked, without its narrative, under an id that follows from its URL and version."""

    member: str
    url: str
    version: str
    resource: Checked


@dataclass(frozen=True, slots=True)
class Package:
    """What a package says of itself, and its definitions in order of their URLs. `others` are the members that define nothing."""

    name: str
    version: str
    title: str
    dependencies: Mapping[str, str]
    definitions: tuple[Definition, ...]
    others: tuple[str, ...]


class _Counted:
    """Reads no more of a stream than the limit: what a small archive grows to is not known before."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, TOTAL_BYTES

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(block)
        if self._left < 0:
            raise PackageWrong(f"The package is larger than {TOTAL_BYTES // 2**20} MiB when it is unpacked")
        return block


def read_package(file: IO[bytes]) -> Package:
    """Read a package. Raises PackageWrong, with every definition that is wrong."""
    members = dict(_members(file))
    manifest = _tree("package/package.json", members.pop("package/package.json", None))
    name, version = manifest.get("name"), manifest.get("version")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise PackageWrong("package/package.json has no name or no version of the usual form")
    _require_r4(manifest)
    found: dict[str, Definition] = {}
    others: list[str] = []
    wrong: list[Issue] = []
    for member, body in sorted(members.items()):
        try:
            definition = _definition(member, _tree(member, body), version)
        except FhirError as error:
            wrong += [issue if member in issue.text else _in(member, issue) for issue in error.issues]
            continue
        if definition is None:
            others.append(member)
        elif found.setdefault(definition.url, definition) is not definition:
            wrong.append(Issue("error", "duplicate", f"{member} has the same URL as {found[definition.url].member}"))
    if wrong:
        raise PackageWrong(wrong[0].text, issues=wrong[:_TOLD])
    dependencies = manifest.get("dependencies")
    dependencies = dependencies if isinstance(dependencies, dict) else {}
    title = manifest.get("title")
    return Package(
        name,
        version,
        title if isinstance(title, str) else name,
        {str(one): str(which) for one, which in dependencies.items()},
        tuple(found[url] for url in sorted(found)),
        tuple(others),
    )


def stable_id(url: str, version: str) -> str:
    """The id of a definition: packages that carry the same one share it."""
    return str(uuid5(NAMESPACE_URL, f"{url}|{version}"))


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """The JSON files right in `package/`. Raises PackageWrong for whatever no package needs."""
    seen: set[str] = set()
    try:
        with gzip.GzipFile(fileobj=file) as unpacked, tarfile.open(fileobj=_Counted(unpacked), mode="r|") as archive:  # type: ignore[call-overload]
            for number, member in enumerate(archive):
                if number == MEMBERS:
                    raise PackageWrong(f"The package has more than {MEMBERS} members")
                name = _checked_name(member)
                if not member.isfile() or not re.fullmatch(r"package/[^/.][^/]*\.json", name):
                    continue
                if name in seen:
                    raise PackageWrong(f"{name} is in the package twice")
                seen.add(name)
                content = archive.extractfile(member)
                assert content is not None
                yield name, content.read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise PackageWrong(f"The file is not a gzipped tar archive, or it is cut off ({type(error).__name__})") from None


def _checked_name(member: tarfile.TarInfo) -> str:
    shown = member.name[:200].encode("ascii", "backslashreplace").decode()
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
        raise PackageWrong(f"{shown} leads out of the package")
    if not (member.isfile() or member.isdir()):
        raise PackageWrong(f"{shown} is neither a file nor a folder")
    if member.size > MEMBER_BYTES:
        raise PackageWrong(f"{shown} is larger than {MEMBER_BYTES // 2**20} MiB")
    return str(name)


def _tree(member: str, body: bytes | None) -> dict[str, Any]:
    if body is None:
        raise PackageWrong(f"{member} is missing")
    try:
        return json.parse(body.removeprefix(b"\xef\xbb\xbf"))
    except FhirError as error:
        raise PackageWrong(f"{member}: {error}") from None


def _require_r4(manifest: Mapping[str, Any]) -> None:
    versions = manifest.get("fhirVersions", manifest.get("fhir-version-list"))
    listed = [str(one) for one in versions] if isinstance(versions, list) else []
    if not any(one == "4.0" or one.startswith("4.0.") for one in listed):
        told = ", ".join(listed)[:100] or "no version"
        raise PackageWrong(f"package/package.json is for {told} of FHIR, and this server speaks 4.0 (fhirVersions)")


def _definition(member: str, tree: dict[str, Any], version: str) -> Definition | None:
    """The definition that a member is; None for what defines nothing."""
    type, url = tree.get("resourceType"), tree.get("url")
    if type not in definitions().resource_types or type in _LINKS_TO_EXAMPLES or not isinstance(url, str):
        return None
    tree.pop("text", None)  # made from the rest, for a web page
    own = tree.setdefault("version", version)
    tree["id"] = stable_id(url, str(own))
    resource = check(json.dumps(tree))
    return Definition(member, url, str(own), resource)


def _in(member: str, issue: Issue) -> Issue:
    place = f" {issue.expression}" if issue.expression and issue.expression not in issue.text else ""
    return Issue(issue.severity, issue.code, f"{member}:{place} {issue.text}")
