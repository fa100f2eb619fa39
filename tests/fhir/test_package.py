"""Packages of guides: what is read, and what a hostile archive gets told. https://confluence.hl7.org/display/FHIR/NPM+Package+Specification"""

import gzip
import io
import json
import tarfile

import pytest

from fhircm.fhir import package as packages
from fhircm.fhir.package import PackageWrong, read_package, stable_id
from tests.packages import BASE, GUIDE, RACE_PARAMETER, archive, package

MANIFEST = ("package/package.json", json.dumps({"name": "a", "version": "1", "fhirVersions": ["4.0.1"]}).encode())


def refused(file):
    with pytest.raises(PackageWrong) as caught:
        read_package(file)
    return " ".join(issue.text for issue in caught.value.issues)


def test_definitions_are_read_without_their_narrative_under_ids_of_their_own():
    told = {**RACE_PARAMETER, "id": "race", "text": {"status": "generated", "div": "<script/>"}}
    example = ("package/example/Patient-x.json", b"{not json")
    other = ("package/Patient-x.json", b'{"resourceType": "Patient"}')
    found = read_package(package(told, more=[example, other, ("package/.index.json", b"[")], dependencies={"b": "2"}))
    assert (found.name, found.version, found.title, found.dependencies) == ("example.guide", "1.0.0", "A guide", {"b": "2"})
    (definition,) = found.definitions
    assert (definition.url, definition.version) == (RACE_PARAMETER["url"], "1.0.0")
    assert definition.resource.id == stable_id(RACE_PARAMETER["url"], "1.0.0")
    assert definition.resource.tree == {**RACE_PARAMETER, "id": definition.resource.id, "version": "1.0.0"}
    assert found.others == ("package/Patient-x.json",)


def test_two_packages_that_carry_the_same_definition_share_its_id():
    one, other = (read_package(package(GUIDE[0], name=name, version="3")).definitions[0] for name in ("a", "b"))
    assert one.resource.id == other.resource.id
    assert read_package(package(GUIDE[0], version="4")).definitions[0].resource.id != one.resource.id


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([], "package/package.json is missing"),
        ([("package/package.json", b"[]")], "package/package.json"),
        ([("package/package.json", b'{"name": "../a", "version": "1"}')], "package/package.json has no name"),
        ([("package/package.json", b'{"name": "a", "version": 1}')], "package/package.json has no name"),
        ([("package/package.json", b'{"name": "a", "version": "1", "fhirVersions": ["5.0.0"]}')], "5.0.0"),
        ([("package/package.json", b'{"name": "a", "version": "1"}')], "fhirVersions"),
        ([MANIFEST, MANIFEST], "package/package.json is in the package twice"),
        ([MANIFEST, ("package/../../etc/x.json", b"{}")], "package/../../etc/x.json leads out"),
        ([MANIFEST, ("/etc/x.json", b"{}")], "/etc/x.json leads out"),
        ([MANIFEST, ("package\\x.json", b"{}")], "leads out"),
        ([MANIFEST, ("package/x.json", b"{")], "package/x.json"),
        ([MANIFEST, ("package/x.json", b'{"resourceType": "SearchParameter", "url": "a:b"}')], "package/x.json"),
    ],
)
def test_what_is_wrong_is_told_with_the_member(members, told):
    assert told in refused(archive(members))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_files_and_folders(kind):
    link = tarfile.TarInfo("package/link.json")
    link.type, link.linkname = kind, "/etc/passwd"
    assert "package/link.json is neither" in refused(archive([MANIFEST, (link, None)]))


def test_every_wrong_definition_is_named_and_two_of_the_same_url():
    text = refused(package({**RACE_PARAMETER, "colour": 1}, {**GUIDE[1], "status": "odd"}, GUIDE[2], GUIDE[2]))
    assert "package/SearchParameter-0.json" in text
    assert "package/StructureDefinition-1.json: StructureDefinition.status must be one of" in text
    assert "package/StructureDefinition-3.json has the same URL as package/StructureDefinition-2.json" in text


def test_a_small_archive_that_grows_without_end_is_left(monkeypatch):
    monkeypatch.setattr(packages, "TOTAL_BYTES", 1_000_000)
    bomb = archive([MANIFEST, *((f"package/other/{n}.txt", bytes(100_000)) for n in range(20))])
    assert len(bomb.getvalue()) < 50_000
    assert "larger than" in refused(bomb)
    monkeypatch.setattr(packages, "MEMBER_BYTES", 1_000)
    assert "package/big.txt is larger" in refused(archive([MANIFEST, ("package/big.txt", bytes(1_001))]))
    monkeypatch.setattr(packages, "MEMBERS", 5)
    assert "more than 5 members" in refused(archive([MANIFEST, *((f"x/{n}", b"") for n in range(9))]))


def test_what_is_no_archive_or_is_cut_off():
    whole = package(*GUIDE).getvalue()
    assert "not a gzipped tar archive" in refused(io.BytesIO(b"nothing of the kind"))
    assert "not a gzipped tar archive" in refused(io.BytesIO(gzip.compress(b"x" * 2000)))
    for length in (0, 10, len(whole) // 2, len(whole) - 20):
        assert refused(io.BytesIO(whole[:length])), length


def test_a_version_of_its_own_counts():
    found = read_package(package({**RACE_PARAMETER, "version": "7"}))
    assert found.definitions[0].version == "7"
    assert found.definitions[0].resource.id == stable_id(f"{BASE}/SearchParameter/Patient-race", "7")
