"""The threat model names tests, and each of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_control_is_shown_by_a_test_that_exists():
    named = []
    for line in (ROOT / "docs/explanation/threat-model.md").read_text().splitlines():
        file = None
        for path, test in re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", line):
            file = path or file
            if file:
                named.append((file, test))
    assert len(named) > 40
    for file, test in named:
        text = (ROOT / "tests" / file).read_text()
        assert not test or re.search(rf"def {test}\(", text), (file, test)
