"""docs/reference/smart.md names every test of requirements and attacks, and no other."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "smart.md"


def test_the_table_of_requirements_names_the_tests_there_are():
    named = re.findall(r"`(test_\w+)`", PAGE.read_text())
    there = [
        node.name
        for file in (HERE / "test_requirements.py", HERE / "test_attacks.py", *HERE.parent.glob("smart_apps/test_*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    assert sorted(named) == sorted(there)
    assert len(set(there)) == len(there)
