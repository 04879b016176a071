"""Hostile input: what the tests of bad files draw, and the one way in which it may end.

`VMAPENS_FUZZ=50 pytest tests/test_hostile_*.py` draws fifty times as many examples, others each time.
"""

import datetime
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from vmapens.errors import VmapensError

T = TypeVar("T")
TIMES = int(os.environ.get("VMAPENS_FUZZ", "1"))


def examples(count: int) -> settings:
    """So many drawn inputs; the same in every run unless more are asked for."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[*quiet, HealthCheck.filter_too_much],
    )


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every path below a folder; of files, size and time of change (a lock may have come and gone in a folder)."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (0, 0) if path.is_dir() else (now.st_size, now.st_mtime_ns) for path, now in found.items()}


def ends_well(action: Callable[[], T], around: Path, out: Path | None = None) -> T | None:
    """The result, or None after one line that says what is wrong; nothing is written but the result, below `out`.

    Args:
        action: What is tried.
        around: The folder in which everything stands.
        out: Where a result may be written.
    """
    before = listing(around)
    try:
        result = action()
    except VmapensError as error:
        line = str(error)
        assert line.strip()
        assert line.isprintable()
        assert len(line) < 2100
        assert listing(around) == before
        return None
    after = listing(around)
    assert {path for path in before if path != out} <= after.keys()
    assert all(out in (path, *path.parents) for path in after if before.get(path) != after[path])
    assert not any(path.name.endswith(".tmp") for path in after)
    return result


_NASTY = (
    "",
    " ",
    "a\nb",
    "'",
    '"',
    "../x",
    "/etc/x",
    "a/b",
    "\0",
    "a\x1b[31m",
    "\u202egnp",
    "🫀\u200d🩹",
    "N" * 10_000,
)
_LIKE_OURS = (
    "sample",
    "step",
    "split",
    "group",
    "died",
    "hr",
    "^.*$",
    "[red]",
    "{0}",
    "%s",
    "CON",
    "é",
    "e\u0301",
    "a,b",
)
names = st.sampled_from(_NASTY + _LIKE_OURS) | st.text(max_size=5)
numbers = st.sampled_from([0, -1, 1, 2, 2**31 - 1, 2**31, 2**40, 10**12, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400])
floats = st.sampled_from([0.0, -0.0, 0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan])
scalars = st.none() | st.booleans() | numbers | floats | names
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
"""Any JSON; numbers beyond it, too."""

dates = st.sampled_from([datetime.date(2026, 1, 1), datetime.time(12), datetime.datetime(2026, 1, 1, 12)])


def toml(value: object) -> str:
    """A value as TOML writes it, in one line; what TOML has no sign for is left out."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(entry) for entry in value if entry is not None)}]"
    if isinstance(value, dict):
        entries = (f"{toml(str(key))} = {toml(entry)}" for key, entry in value.items() if entry is not None)
        return f"{{{', '.join(entries)}}}"
    return repr(value)


def document(table: dict[str, object]) -> str:
    """A TOML file, one line a key."""
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in table.items() if value is not None)


@st.composite
def changed(draw: st.DrawFn, good: object, values: st.SearchStrategy = plain) -> object:
    """Nested plain values of which one, anywhere, is another, is missing, or has another beside it."""
    if isinstance(good, dict) and good and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(good)))
        how = draw(st.integers(0, 9))
        if how == 0:
            return {name: value for name, value in good.items() if name != key}
        if how == 1:
            return {**good, draw(names): draw(values)}
        return {**good, key: draw(changed(good[key], values))}
    if isinstance(good, list | tuple) and good and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(good) - 1))
        return [*good[:place], draw(changed(good[place], values)), *good[place + 1 :]]
    return draw(values)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """The bytes of a file, cut short, with some of them changed, or others altogether."""
    how = draw(st.integers(0, 9))
    if how == 0:
        return draw(st.binary(max_size=300))
    if how == 1:
        return good[: draw(st.integers(0, len(good) - 1))]
    bad = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        bad[draw(st.integers(0, len(bad) - 1))] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    return bytes(bad)
