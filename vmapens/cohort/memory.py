"""What loading a cohort takes at its peak, said before anything large is read.

Constants are rounded up from `python -m benchmarks run load` at 20,000 samples x 288 steps, 2 to 231 features.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from vmapens import machine
from vmapens.cohort.grid import COLUMNS_AT_ONCE
from vmapens.cohort.mapping import Layout
from vmapens.cohort.tables import Tables
from vmapens.errors import CohortError
from vmapens.spec import CohortSpec

_FIXED = 100 * 2**20  # libraries that are loaded late, and buffers of polars
_KEYS = 160  # per row of the series, while its ids and steps are looked at, before there is a tensor
_LONG_ROW = 34  # per row of a long table, then
_CELL_READ = 16  # per cell of the columns read at once: as decoded, of the task, side by side (seen: 10 to 16)
_CELL_GATHERED = 40  # the same where the last of several measurements is taken
_USE = 400 * 2**20  # what training or attention adds at least: torch's compiler, machine code, one batch


def loading_bytes(
    samples: int, steps: int, features: int, *, rows: int, layout: Layout = "plain", indicators: bool = False
) -> int:
    """Most bytes that loading takes, and training at least, beyond what the process holds.

    Args:
        samples: With a label of the task.
        steps: Of the grid.
        features: Without the indicators.
        rows: Of the files of the series.
        layout: What these rows are.
        indicators: Whether there is one for each feature.
    """
    cells = samples * steps * features * (2 if indicators else 1)
    long = layout == "long"
    wide = min(rows, samples * steps) if long else rows
    keys = wide * _KEYS + (rows * _LONG_ROW if long else 0)
    read = wide * min(features, COLUMNS_AT_ONCE) * (_CELL_READ if layout == "plain" else _CELL_GATHERED)
    return _FIXED + max(keys, 4 * cells + max(read, cells + _USE))  # one byte a cell says what was measured


def require_memory(tables: Tables, samples: int, spec: CohortSpec) -> None:
    """Say before loading that a cohort will not fit.

    Args:
        tables: Its files.
        samples: With a label of the task, at most.
        spec: How it is to be loaded.

    Raises:
        CohortError: If it takes more than is free; the line says how many samples, steps or features would fit.
    """
    T, F = tables.info.steps, len(tables.info.features)
    size = partial(loading_bytes, rows=tables.rows, layout=tables.layout, indicators=spec.indicators)
    need, free = size(samples, T, F), machine.free_memory()
    if need <= free:
        return

    def most(limit: int, need_of: Callable[[int], int]) -> int:
        return max(0, bisect_right(range(limit), free, key=need_of) - 1)

    raise CohortError(
        f"{tables.source}: {samples} samples x {T} steps x {F} features{' with indicators' * spec.indicators} need "
        f"{need / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free; "
        f"{most(samples, lambda n: size(n, T, F))} samples would fit (make the other labels of `{spec.task}` null), or "
        f"{most(T, lambda n: size(samples, n, F))} steps, or {most(F, lambda n: size(samples, T, n))} features; or use "
        f"a machine with {need / 2**30:.1f} GiB free."
    )
