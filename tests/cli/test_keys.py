"""`fhircm keys`: an operator has the hub sign in with another key, without a request that is refused."""

from datetime import UTC, datetime

from .. import commands


def test_keys_of_a_partner_take_turns_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fhircm(*arguments, status=0, **settings):
        done = commands.run("keys", *arguments, FHIRCM_KEYS_DIR="keys", FHIRCM_AUDIT_DIR="audit", **settings)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if status else done.stdout

    assert "No key yet" in fhircm("list", "riverbend-clinic")
    kid, *words = fhircm("rotate", "riverbend-clinic", FHIRCM_KEY_PUBLICATION="PT2H").split()
    until = datetime.fromisoformat(words[-2])
    assert 7100 < (until - datetime.now(UTC)).total_seconds() <= 7200
    waits, signs = [line.split("\t") for line in fhircm("list", "riverbend-clinic").splitlines()]
    assert (waits[0], waits[1], waits[3]) == (kid, "ES384", f"signs from {words[-2]} on")
    assert signs[2:] == ["riverbend-clinic.json", "signs"]
    assert "waits already" in fhircm("rotate", "riverbend-clinic", status=1)
    assert "No key for riverbend-clinic can be retired" in fhircm("retire", "riverbend-clinic", status=1)
    assert fhircm("rotate", "riverbend-clinic", "--now") == f"{kid} is published and signs from now on\n"
    now, before = [line.split("\t") for line in fhircm("list", "riverbend-clinic").splitlines()]
    assert (now[0], before[0], before[3]) == (kid, signs[0], "signed before, still published")
    assert now[3].startswith("signs since ")
    assert "may still be on their way" in fhircm("retire", "riverbend-clinic", status=1)
    assert "has no partner nobody" in fhircm("list", "nobody", status=1)
