"""Secrets that are kept sealed."""

import stat
import subprocess
import sys

import pytest

from fhircm.access.sealing import Seal, SealBroken


def test_what_is_sealed_comes_back_and_does_not_show(tmp_path):
    seal = Seal.open(tmp_path)
    sealed = seal.seal(b"JBSWY3DPEHPK3PXP")
    assert b"JBSWY3DPEHPK3PXP" not in sealed
    assert Seal.open(tmp_path).unseal(sealed) == b"JBSWY3DPEHPK3PXP"


def test_only_the_owner_reads_the_key_file(tmp_path):
    Seal.open(tmp_path / "keys")
    assert stat.S_IMODE((tmp_path / "keys" / "seal.key").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["seal.key"]


def test_processes_that_start_together_use_one_key(tmp_path):
    program = (
        "import sys; from pathlib import Path; from fhircm.access.sealing import Seal; sys.stdin.read();"
        "sys.stdout.buffer.write(Seal.open(Path(sys.argv[1])).seal(b'secret'))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in started:
        process.stdin.close()  # they go on from here
    sealed = [process.stdout.read() for process in started]
    for process in started:
        assert process.wait() == 0
        process.stdout.close()
    assert {Seal.open(tmp_path).unseal(one) for one in sealed} == {b"secret"}


def test_what_was_changed_or_sealed_with_another_key_is_noticed(tmp_path):
    sealed = Seal.open(tmp_path / "a").seal(b"secret")
    with pytest.raises(SealBroken):
        Seal.open(tmp_path / "b").unseal(sealed)
    with pytest.raises(SealBroken):
        Seal.open(tmp_path / "a").unseal(sealed[:-4] + b"AAAA")


def test_a_file_that_holds_no_key_is_told_by_its_name(tmp_path):
    (tmp_path / "seal.key").write_text("not a key")
    with pytest.raises(SealBroken, match=r"seal\.key"):
        Seal.open(tmp_path)
