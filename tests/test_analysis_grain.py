"""What is compared: parts of a grid against loops, and numbers of cells from shares and counts."""

import numpy as np
import pytest

from vmapens.analysis.grain import Grid, counts_of, group_numbers
from vmapens.errors import SpecError


def draw(V, T, F, seed=0):
    return np.random.default_rng(seed).normal(size=(V, T, F)).astype(np.float32)


@pytest.mark.parametrize(("T", "window"), [(12, 4), (10, 4), (7, 1), (5, 9), (1, 1)])
def test_parts_are_sums_of_their_cells_or_means_of_such_sums(T, window):
    grid, maps = Grid(T, 5, np.array([1, 0, 1, 2, 0]), window=window), draw(3, T, 5)
    wide = maps.astype(np.float64)
    windows = [range(first, min(first + window, T)) for first in range(0, T, window)]
    want = {
        "cell": [[wide[v, t, f] for t in range(T) for f in range(5)] for v in range(3)],
        "feature": [[sum(wide[v, t, f] for t in range(T)) for f in range(5)] for v in range(3)],
        "window": [[sum(wide[v, t].sum() for t in own) / len(own) for own in windows] for v in range(3)],
        "group": [[np.mean([wide[v, :, f].sum() for f in own]) for own in ([1, 4], [0, 2], [3])] for v in range(3)],
    }
    want["near"] = want["cell"]
    assert grid.windows == len(windows)
    assert grid.cells == T * 5
    for grain, values in want.items():
        found = grid.summed(maps, grain)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-6)


def test_parts_by_hand():
    """A stay of 3 steps x 2 features; windows of 2 steps, so the last has one, and counts for no less; one group."""
    grid = Grid(3, 2, np.array([0, 0]), window=2)
    maps = np.array([[[1, 2], [3, 4], [5, 6]]], np.float32)
    assert grid.summed(maps, "feature").tolist() == [[9, 12]]
    assert grid.summed(maps, "window").tolist() == [[(1 + 2 + 3 + 4) / 2, 11]]
    assert grid.summed(maps, "group").tolist() == [[21 / 2]]


def test_sums_are_those_of_float64():
    """Small weights beside a large one that cancels: in float32 they would be lost."""
    maps = np.full((1, 2000, 1), 0.01, np.float32)
    maps[0, 0], maps[0, -1] = 1e6, -1e6
    assert Grid(2000, 1).summed(maps, "feature")[0, 0] == pytest.approx(19.98, rel=1e-6)


@pytest.mark.parametrize(
    ("grid", "grains"),
    [
        (
            Grid(8, 6, np.array([0, 1, 1, 2, 2, 2]), window=2),
            ["cell", "near", "feature", "window", "group"],
        ),
        (Grid(8, 6, None, window=2, tolerance=0), ["cell", "feature", "window"]),
        (Grid(8, 6, None, window=8), ["cell", "near", "feature"]),  # one window
        (Grid(8, 1, None, window=2), ["cell", "near", "window"]),  # attention over steps alone
        (Grid(8, 1, None, window=1), ["cell", "near"]),  # a window is a cell
        (Grid(1, 6, np.array([0, 0, 0, 1, 1, 1])), ["cell", "group"]),  # one step: a feature is a cell
        (Grid(1, 2, np.array([0, 1])), ["cell"]),
        (Grid(1, 1), ["cell"]),
    ],
)
def test_only_grains_with_parts_to_compare_are_named(grid, grains):
    assert grid.grains() == grains


def test_groups_are_numbered_by_name():
    assert group_numbers(["renal", "blood gas", "renal"]).tolist() == [1, 0, 1]
    assert group_numbers(["renal", "renal"]) is None
    assert group_numbers([]) is None


@pytest.mark.parametrize(
    ("top_k", "cells", "counts"),
    [
        ((0.0015, 0.015, 0.15), 288 * 231, [100, 998, 9979]),
        ((100.0, 1000.0, 10_000.0), 288 * 231, [100, 1000, 10_000]),
        ((0.15, 3.0, 0.0015), 20, [1, 3]),  # each once, increasing
        ((1e-9,), 50, [1]),  # a share is one cell at least
        ((0.99, 0.5), 4, [2, 3]),  # and leaves one out
        ((0.5, 1.0), 1, [1]),
        ((0.9,), 2, [1]),
        ((1.0,), 2, [1]),
        ((), 9, []),
    ],
)
def test_numbers_of_cells_come_from_shares_and_counts(top_k, cells, counts):
    found = counts_of(top_k, cells)
    assert found == counts
    assert all(type(count) is int for count in found)


@pytest.mark.parametrize(
    ("number", "cells"),
    [
        (0.0, 50),
        (-0.5, 50),
        (-3.0, 50),
        (1.5, 50),
        (50.0, 50),
        (51.0, 50),
        (2.0, 1),
        (float("nan"), 50),
        (float("inf"), 50),
    ],
)
def test_a_number_that_is_neither_share_nor_count_of_the_cells_is_refused(number, cells):
    with pytest.raises(SpecError, match=rf"top-k is {number:g}, .* from 1 to {max(cells - 1, 1)}: there are {cells} "):
        counts_of((0.5, number), cells)
