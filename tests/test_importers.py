"""What holds for every importer: rows in any order, rows twice, files cut short."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from hostile import ends_well, examples
from hypothesis import given
from hypothesis import strategies as st
from made_sources import SOURCES, Source

from vmapens.cohort.describe import describe_cohort
from vmapens.cohort.schema import INFO_FILE, LABELS_FILE, SERIES_FILE
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError

FILES = (SERIES_FILE, LABELS_FILE, INFO_FILE)


def rewrite(path: Path, rng: np.random.Generator, *, twice: bool) -> None:
    """Write the rows of a table in another order, and some of them twice if asked for."""

    def drawn(rows: int) -> np.ndarray:
        order = rng.permutation(rows)
        return rng.permutation(np.concatenate([order, order[: rows // 3]])) if twice else order

    if path.suffix == ".parquet":
        table = pl.read_parquet(path)
        table[drawn(len(table))].write_parquet(path)
    elif path.suffix in (".csv", ".txt"):
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *(rows[row] for row in drawn(len(rows)))]) + "\n")
    elif path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            for split in ("train", "val", "test"):
                if "patient_windows" in file:
                    moved = moved_stays(file, split, rng)
                    windows = moved[f"patient_windows/{split}"]
                    moved[f"patient_windows/{split}"] = windows[drawn(len(windows))]
                else:
                    order = drawn(len(file[split]["ids"]))
                    moved = {f"{split}/{name}": array[:][order] for name, array in file[split].items()}
                for name, array in moved.items():
                    del file[name]
                    file[name] = array
    else:
        with np.load(path, allow_pickle=False) as arrays:
            order = drawn(len(arrays["ids"]))
            moved = {name: array[order] for name, array in arrays.items()}
        np.savez(path, **moved)


def moved_stays(file: h5py.File, split: str, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """What HiRID-ICU-Benchmark has of a split, with whole stays elsewhere among the rows."""
    windows = rng.permutation(file[f"patient_windows/{split}"][:])
    rows = np.concatenate([np.arange(start, stop) for start, stop, _ in windows])
    stops = np.cumsum(windows[:, 1] - windows[:, 0])
    windows = np.stack([stops - windows[:, 1] + windows[:, 0], stops, windows[:, 2]], axis=1)
    moved = {f"{group}/{split}": file[f"{group}/{split}"][:][rows] for group in ("data", "labels")}
    return moved | {f"patient_windows/{split}": windows}


def imported(source: Source, folder: Path) -> dict[str, str]:
    """Import `source` below a folder into `cohort` beside it, if that is not done yet: a digest of each file."""
    if not (folder / "cohort").exists():
        write_cohort(folder / "cohort", *source.read(folder / "source"))
    return {name: sha256((folder / "cohort" / name).read_bytes()).hexdigest() for name in FILES}


@pytest.fixture(params=SOURCES, scope="module")
def source(request):
    return SOURCES[request.param]


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """A folder with the files of the source, and digests of those of its cohort."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "source").mkdir()
    source.make(folder / "source")
    return folder, imported(source, folder)


def changed(source: Source, folder: Path, seed: int, *, twice: bool) -> dict[str, str]:
    """The cohort of the same source with its rows in another order: digests."""
    place = folder / f"changed-{seed}-{twice}"
    if not place.exists():
        (place / "source").mkdir(parents=True)
        source.make(place / "source")
        rng = np.random.default_rng(seed)
        globs = source.tables if not twice or source.repeated is None else source.repeated
        for path in sorted(path for glob in globs for path in (place / "source").glob(glob)):
            rewrite(path, rng, twice=twice)
    return imported(source, place)


@given(st.integers(0, 2**32))
@examples(5)
def test_the_order_of_rows_changes_no_byte(source, made, seed):
    folder, files = made
    assert changed(source, folder, seed, twice=False) == files


@given(st.integers(0, 2**32))
@examples(5)
def test_rows_that_are_there_twice_change_no_table_or_are_refused(source, made, seed):
    folder, files = made
    if source.refusal:
        with pytest.raises(CohortError, match=source.refusal):
            changed(source, folder, seed, twice=True)
    else:
        found = changed(source, folder, seed, twice=True)
        assert {name for name in FILES if found[name] != files[name]} == {INFO_FILE}  # which counts them


@given(st.data())
@examples(12)
def test_files_cut_short_end_in_one_line_or_in_a_cohort_that_can_be_read(source, made, data):
    folder, _ = made
    path = data.draw(st.sampled_from(sorted(path for path in (folder / "source").rglob("*") if path.is_file())))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    out = folder / "cut"
    try:
        ends_well(lambda: write_cohort(out, *source.read(folder / "source")), folder, out)
        if out.exists():
            describe_cohort(out)
            for file in out.iterdir():
                file.unlink()
            out.rmdir()
        elif path.suffix in (".parquet", ".h5", ".npz"):
            assert not (out / INFO_FILE).exists()
    finally:
        path.write_bytes(whole)


def test_the_made_sources_hold_all_stays(source, made):
    folder, _ = made
    found = describe_cohort(folder / "cohort")
    assert found.samples == source.samples
    assert found.never_measured == 0
    assert found.read
    assert found.origin or "rows of mapped series" in found.read
