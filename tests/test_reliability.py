"""docs/reliability.md names tests that are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_that_the_table_names_exists():
    named = 0
    for row in TEXT.splitlines():
        known = set()
        for word in re.findall(r"`([^`]+)`", row):
            if word.startswith("tests/"):
                tree = ast.parse((ROOT / word).read_text())
                known = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            elif word.startswith("test_"):
                assert word in known, word
                named += 1
    assert named > 25


def test_long_ones_are_marked_so():
    for name in re.findall(r"`(test_\w+)` \(long\)", TEXT):
        source = next(path.read_text() for path in (ROOT / "tests").glob("*.py") if f"def {name}(" in path.read_text())
        assert re.search(rf"@pytest\.mark\.slow\n(@.*\n|    .*\n|\)\n)*def {name}\(", source), name
