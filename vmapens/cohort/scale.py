"""Fill and standardise a dense tensor in place: the order of work that every part of vmapens assumes.

1. forward-fill in time (never backward: that would tell an early step what is measured later);
2. mean and SD of each feature over the filled, non-missing cells of the training samples only, in float64;
3. subtract and divide;
4. what is still missing (nothing measured so far) becomes 0, the training mean.

NumPy rather than torch, because one thread and one order of additions give the same bits on every run.
`tests/test_cohort_scale.py` holds the same in plain Python.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Scaling:
    """What was fitted on the training samples.

    Args:
        mean: Of each feature; NaN if it was never measured.
        std: Population SD (divided by the number of cells, not one less); NaN likewise, exactly 0 if constant.
    """

    mean: Float64[np.ndarray, "F"]
    std: Float64[np.ndarray, "F"]

    @property
    def flat(self) -> list[int]:
        """Features that are constant or never measured in training: all zeros after `standardise`."""
        return [int(index) for index in np.flatnonzero(~(self.std > 0))]


def forward_fill(x: Float32[np.ndarray, "N T F"]) -> None:
    """Replace each NaN by the last value before it, in place; cells before the first value stay NaN."""
    for rows in _chunks(x):
        part = x[rows]
        for step in range(1, part.shape[1]):
            now = part[:, step]
            np.copyto(now, part[:, step - 1], where=np.isnan(now))


def fit_scaling(x: Float32[np.ndarray, "N T F"], train: Int[np.ndarray, "S"]) -> Scaling:
    """Mean and SD over the non-missing cells of the training samples, in two passes of float64.

    Args:
        x: Filled values, NaN = still missing.
        train: Rows of the training samples; their order changes the last bit at most.
    """
    features = x.shape[2]
    count = np.zeros(features, dtype=np.int64)
    total = np.zeros(features)
    least, most = np.full(features, np.inf), np.full(features, -np.inf)
    for cells in _cells(x, train):
        missing = np.isnan(cells)
        count += cells.shape[0] - missing.sum(axis=0)
        total += np.where(missing, 0.0, cells).sum(axis=0)
        least = np.fmin(least, np.fmin.reduce(cells, axis=0))
        most = np.fmax(most, np.fmax.reduce(cells, axis=0))
    known = np.where(count > 0, count, np.nan)
    mean = total / known
    squares = np.zeros(features)
    for cells in _cells(x, train):
        away = cells - mean
        np.copyto(away, 0.0, where=np.isnan(away))
        squares += np.einsum("nf,nf->f", away, away)
    # The mean of n equal numbers can miss them by one bit, so a constant is told by its range, not by its SD.
    constant = least == most
    return Scaling(np.where(constant, least, mean), np.where(constant, 0.0, np.sqrt(squares / known)))


def standardise(x: Float32[np.ndarray, "N T F"], scaling: Scaling) -> None:
    """Turn values into ``(x - mean) / std`` in place; missing cells and all cells of flat features become 0."""
    flat = scaling.flat
    for rows in _chunks(x):
        part = (x[rows].astype(np.float64) - scaling.mean) / np.where(scaling.std > 0, scaling.std, 1.0)
        part[..., flat] = 0.0
        np.copyto(part, 0.0, where=np.isnan(part))
        x[rows] = part


def _chunks(x: np.ndarray) -> Iterator[slice]:
    size = max(1, _CHUNK_BYTES // max(1, 8 * x.shape[1] * x.shape[2]))
    for start in range(0, x.shape[0], size):
        yield slice(start, min(start + size, x.shape[0]))


def _cells(x: np.ndarray, train: np.ndarray) -> Iterator[np.ndarray]:
    """The training cells as float64, some samples at a time, one row per sample and step."""
    for part in _chunks(x[: len(train)]):
        yield x[train[part]].reshape(-1, x.shape[2]).astype(np.float64)
