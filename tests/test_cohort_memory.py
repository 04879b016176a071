"""A cohort that does not fit is refused before anything of its size is read or made, with what would fit."""

import re
import tracemalloc

import polars as pl
import pytest
from small_cohort import load, small_labels, small_series, write_small

from vmapens import machine
from vmapens.cli import main
from vmapens.cohort import grid
from vmapens.cohort.memory import loading_bytes
from vmapens.errors import CohortError

GIB = 2**30


@pytest.fixture
def long(tmp_path):
    """40 stays of three features, of whose 30 million steps six have rows: 13 GiB as a tensor, 7 kB as a file."""
    return write_small(tmp_path / "long", steps=30_000_000)


@pytest.mark.parametrize("unmatched", ["error", "drop"])
def test_a_cohort_that_does_not_fit_is_refused_before_it_is_read(long, unmatched, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 8 * GIB)
    if unmatched == "error":
        monkeypatch.setattr(grid, "collect", lambda *_: pytest.fail("the series were read"))
    tracemalloc.start()
    with pytest.raises(CohortError) as refusal:
        load(long, unmatched=unmatched)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()
    assert str(refusal.value) == (
        f"{long}: 40 samples x 30000000 steps x 3 features need 17.3 GiB of memory and 8.0 GiB are free; 17 samples "
        "would fit (make the other labels of `died` null), or 13442744 steps, or 1 features; or use a machine with "
        "17.3 GiB free."
    )


def test_what_would_fit_fits_and_one_more_does_not(tmp_path, monkeypatch):
    folder = write_small(tmp_path / "a", steps=6_000_000)
    rows, free = len(small_series()), GIB
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    with pytest.raises(CohortError) as refusal:
        load(folder, indicators=True)
    found = re.search(r"free; (\d+) samples .*, or (\d+) steps, or (\d+) features", str(refusal.value))
    assert found is not None
    samples, steps, features = (int(number) for number in found.groups())
    sizes = [(samples, 6_000_000, 3), (40, steps, 3), (40, 6_000_000, features)]
    for axis, size in enumerate(sizes):
        more = tuple(number + (place == axis) for place, number in enumerate(size))
        assert loading_bytes(*size, rows=rows, indicators=True) <= free or not size[axis]
        assert loading_bytes(*more, rows=rows, indicators=True) > free
    assert samples > 1
    assert steps > 1


def test_only_samples_with_a_label_of_the_task_count(tmp_path, monkeypatch):
    labels = small_labels().with_columns(died=pl.when(pl.col("sample") > 20).then("died"))
    folder = write_small(tmp_path / "a", labels=labels)
    need = loading_bytes(20, 6, 3, rows=len(small_series()))
    monkeypatch.setattr(machine, "free_memory", lambda: need)
    assert len(load(folder).samples) == 20
    monkeypatch.setattr(machine, "free_memory", lambda: need - 1)
    with pytest.raises(CohortError, match=r"a: 20 samples x 6 steps x 3 features need"):
        load(folder)


def test_a_dry_run_of_what_does_not_fit_is_one_line(long, monkeypatch, capsys):
    monkeypatch.setattr(machine, "free_memory", lambda: 8 * GIB)
    monkeypatch.setattr("sys.argv", ["vmapens", "train", str(long), "--task", "died", "--dry-run"])
    with pytest.raises(SystemExit, match="2"):
        main()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: .* samples would fit .*\n", printed.err)
