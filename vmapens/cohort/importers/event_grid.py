"""Events to a grid: which windows hold an event, and what the steps of a window then hold.

Each sample has one window, ``(end - length, end]``, cut into steps ``(start + i * every, start + (i + 1) * every]``: an
event at the very end is in the last step, one at the start is outside. Times are whole microseconds, so this is exact.

Axes: N windows (one a sample), E events, M pairs of an event and a window that holds it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

_PAIRS_AT_ONCE = 1 << 22
_CELLS_AT_ONCE = 1 << 25
_PER_MICROSECOND = {"s": 1_000_000, "ms": 1_000, "us": 1}
_FARTHEST = 2**62
"""Microseconds; two of them still add up within int64."""

Aggregate = Literal["last", "mean"]


class Measured(NamedTuple):
    """Events in the windows that hold them.

    Args:
        row: ``window * T + step``.
        feature: The column.
        time: In microseconds.
        value: A finite number, no -0.
    """

    row: Int64[np.ndarray, "M"]
    feature: Int64[np.ndarray, "M"]
    time: Int64[np.ndarray, "M"]
    value: Float32[np.ndarray, "M"]


_NO_NUMBERS = np.zeros(0, dtype=np.int64)
_NONE = Measured(row=_NO_NUMBERS, feature=_NO_NUMBERS, time=_NO_NUMBERS, value=np.zeros(0, dtype=np.float32))


class Windows:
    """The windows of all samples, and which of them hold an event.

    Args:
        subject: Whose window each is. Windows of one subject stand together, the earlier end first.
        end: The last microsecond of each window.
        length: Microseconds, the same for all.
    """

    def __init__(self, subject: Int64[np.ndarray, "N"], end: Int64[np.ndarray, "N"], length: int) -> None:
        self.end, self.length = end, length
        begins = np.flatnonzero(np.r_[True, subject[1:] != subject[:-1]])
        self.group_stop = np.r_[begins[1:], len(subject)]
        """For each subject (in the order of the windows), the number after that of its last window."""
        self._of_subject = np.argsort(subject[begins])
        self._subjects = subject[begins][self._of_subject]
        # A window's subject and the rank of its end make one ascending number, which a binary search finds.
        self._ends, rank = np.unique(end, return_inverse=True)
        self._keys = self._key(np.repeat(np.arange(len(begins)), np.diff(np.r_[begins, len(subject)])), rank)

    def group(self, subject: Int64[np.ndarray, "E"]) -> Int64[np.ndarray, "E"]:
        """The place of each event's subject in `group_stop`; -1 where it has no window."""
        place = np.minimum(np.searchsorted(self._subjects, subject), len(self._subjects) - 1)
        found: np.ndarray = np.where(self._subjects[place] == subject, self._of_subject[place], -1)
        return found

    def holding(
        self, group: Int64[np.ndarray, "E"], time: Int64[np.ndarray, "E"]
    ) -> tuple[Int64[np.ndarray, "E"], Int64[np.ndarray, "E"]]:
        """Of each event, the first of the windows that hold it, and the number after the last; equal if none does.

        Where none does, the first is that whose end is next, and `group_stop` if all ends are over.
        """
        time = np.clip(time, -_FARTHEST, _FARTHEST)
        first, stop = (np.searchsorted(self._ends, edge) for edge in (time, time + self.length))
        return np.searchsorted(self._keys, self._key(group, first)), np.searchsorted(self._keys, self._key(group, stop))

    def _key(self, group: Int64[np.ndarray, "E"], rank: Int64[np.ndarray, "E"]) -> Int64[np.ndarray, "E"]:
        key: np.ndarray = group * (len(self._ends) + 1) + rank
        return key


@dataclass(frozen=True)
class Grid:
    """What becomes of the events in a window.

    Args:
        steps: T.
        every: Microseconds a step.
        features: Names of the columns.
        aggregate: Of several numbers in one cell, the last by time (of two at one time the larger), or their mean.
    """

    steps: int
    every: int
    features: tuple[str, ...]
    aggregate: Aggregate

    def step(self, windows: Windows, window: Int64[np.ndarray, "M"], time: Int64[np.ndarray, "M"]) -> np.ndarray:
        """The step of each event in the window that holds it."""
        # An event at the end of a step belongs to it, hence the microsecond.
        step: np.ndarray = (time - (windows.end[window] - windows.length) - 1) // self.every
        return step

    def frames(
        self, samples: pl.Series, windows: slice, pieces: Sequence[Measured], dropped: Counter[str]
    ) -> Iterator[pl.DataFrame]:
        """Fill the cells of some windows.

        Args:
            samples: The id of every window, ascending.
            windows: The range of windows to be filled.
            pieces: All that lies in them, in any order.
            dropped: Counts exact repetitions, the numbers that another one of the cell comes after, and empty windows.

        Yields:
            `sample`, `step` and the features; rows ascend, no sample is in two frames. Rows without a number are left
            out, but for the first of an empty window.
        """
        row, feature, time, value = (np.concatenate(column) for column in zip(_NONE, *pieces, strict=True))
        cell = row * len(self.features) + feature
        events = pl.DataFrame({"cell": cell, "time": time, "value": value}).sort("cell", "time", "value")
        events = events.filter(pl.any_horizontal((pl.all() != pl.all().shift(1)).fill_null(value=True)))
        cell, value = events["cell"].to_numpy(), events["value"].to_numpy()
        dropped["events that repeat another one in the same window: left out"] += len(row) - len(cell)
        begins = np.flatnonzero(np.diff(cell, prepend=-1))
        counts = np.diff(np.append(begins, len(cell)))
        if self.aggregate == "mean":
            value = (np.add.reduceat(value, begins, dtype=np.float64) / counts).astype(np.float32)
        else:
            value = value[begins + counts - 1]
            said = "events in a window with a later (or, at the same time, larger) one of the same cell: left out"
            dropped[said] += len(cell) - len(begins)
        row, feature = np.divmod(cell[begins], len(self.features))
        empty = np.setdiff1d(np.arange(windows.start, windows.stop), row // self.steps)
        dropped["samples with nothing measured in their window: kept, missing throughout"] += len(empty)
        yield from self._dense(samples, np.union1d(row, empty * self.steps), row, feature, value)

    def _dense(
        self,
        samples: pl.Series,
        rows: Int64[np.ndarray, "R"],
        row: Int64[np.ndarray, "C"],
        feature: Int64[np.ndarray, "C"],
        value: Float32[np.ndarray, "C"],
    ) -> Iterator[pl.DataFrame]:
        """The rows as frames, with the numbers of all cells, which stand in the order of the rows."""
        place = np.searchsorted(rows, row)
        of_window = np.unique(rows // self.steps, return_counts=True)[1]
        for windows in cuts(of_window * len(self.features), _CELLS_AT_ONCE):
            begin = of_window[: windows.start].sum()
            end = begin + of_window[windows].sum()
            mine = slice(*np.searchsorted(place, (begin, end)))
            dense = np.full((len(self.features), end - begin), np.nan, dtype=np.float32)
            dense[feature[mine], place[mine] - begin] = value[mine]
            window, step = np.divmod(rows[begin:end], self.steps)
            columns = [samples.gather(window).alias("sample"), pl.Series("step", step.astype(np.int32))]
            columns += [pl.Series(name, dense[i], nan_to_null=True) for i, name in enumerate(self.features)]
            yield pl.DataFrame(columns)


def pairs(
    first: Int64[np.ndarray, "E"], stop: Int64[np.ndarray, "E"]
) -> Iterator[tuple[Int64[np.ndarray, "M"], Int64[np.ndarray, "M"]]]:
    """Each event with each window that holds it, some millions at once: places of events, numbers of windows."""
    counts = stop - first
    for some in cuts(counts, _PAIRS_AT_ONCE):
        count = counts[some]
        event = np.repeat(np.arange(some.start, some.stop), count)
        within = np.arange(len(event)) - np.repeat(np.cumsum(count) - count, count)
        yield event, first[event] + within


def cuts(sizes: Int64[np.ndarray, "E"], most: int) -> Iterator[slice]:
    """Ranges one after another whose sizes add up to `most` at most, or that hold one entry alone.

    >>> [(some.start, some.stop) for some in cuts(np.array([3, 3, 9, 0, 1]), 6)]
    [(0, 2), (2, 3), (3, 5)]
    """
    total = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + most, side="right")))
        yield slice(start, stop)
        start = stop


def microseconds(ticks: Int64[np.ndarray, "E"], unit: str, *, up: bool) -> Int64[np.ndarray, "E"]:
    """Times of a unit (s, ms, us, ns) in whole microseconds; those beyond int64 stay far away.

    Args:
        ticks: Since 1970.
        unit: What they count.
        up: Whether nanoseconds are rounded up (what may be read, so that nothing seems earlier than it was) or down
            (until when it may).
    """
    if unit == "ns":
        return ticks // 1000 + (up & (ticks % 1000 > 0))
    farthest = (2**63 - 1) // _PER_MICROSECOND[unit]
    near: np.ndarray = np.clip(ticks, -farthest, farthest)
    return near * _PER_MICROSECOND[unit]
