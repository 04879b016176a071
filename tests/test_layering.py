"""Imports point upward only, in the order of the house."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vmapens"
ROOMS = [
    "errors",
    "listener",
    "atomic",
    "checksum",
    "lock",
    "machine",
    "axes",
    "spec",
    "cohort",
    "nn",
    "ensemble",
    "arrow",
    "weights",
    "checkpoint",
    "directory",
    "run",
    "attention",
    "plan",
    "manifest",
    "training",
    "verify",
    "study",
    "analysis",
    "report",
    "terminal",
    "cli",
]


def room_of(module: str) -> str:
    return module.split(".")[1]


def imported_rooms(source: str) -> set[str]:
    """Rooms of vmapens that a source imports, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "vmapens":
            rooms |= {alias.name for alias in node.names if alias.name in ROOMS}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmapens."):
            rooms.add(room_of(node.module))
        elif isinstance(node, ast.Import):
            rooms |= {room_of(alias.name) for alias in node.names if alias.name.startswith("vmapens.")}
    return rooms


def violations(room: str, source: str) -> list[str]:
    return sorted(other for other in imported_rooms(source) if ROOMS.index(other) > ROOMS.index(room))


# Not the package's own __init__: it holds the public names, imported lazily.
SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_above_it(path):
    relative = path.relative_to(ROOT)
    room = relative.parts[0].removesuffix(".py")
    assert violations(room, path.read_text()) == []


def test_the_test_can_fail():
    assert violations("nn", "from vmapens.run import open_run") == ["run"]
    assert violations("cohort", "def f():\n    import vmapens.training") == ["training"]
    assert violations("cohort", "from vmapens import arrow") == ["arrow"]


def test_only_step_vmaps_over_training():
    users = [path.name for path in SOURCES if "grad_and_value" in path.read_text()]
    assert users == ["step.py"]
