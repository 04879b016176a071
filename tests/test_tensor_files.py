"""Files of tensors: what is too large is refused, and names say the splits where there are several."""

import h5py
import numpy as np
import pytest
import torch
from test_tensors import save_plain_hdf5, save_plain_npz, written

from vmapens.cohort.importers.tensors import read_tensors
from vmapens.cohort.tables import SPLIT_NAMES
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError


@pytest.fixture
def pair():
    """Data [6, 5, 3] and labels [6] of three classes."""
    return np.arange(90, dtype=np.float32).reshape(6, 5, 3), np.arange(6) % 3


def test_hdf5_that_unpacks_to_more_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("X", (2**20, 2**10, 2**10), "f4", chunks=(1, 64, 64))
        file["y"] = np.zeros(4)
    monkeypatch.setattr("vmapens.cohort.importers.tensor_files.free_memory", lambda: 2**30)
    with pytest.raises(CohortError, match=r"a\.h5 unpacks to 4096\.0 GiB, of which 1\.0 are free"):
        read_tensors([tmp_path / "a.h5"])


def save_pt(folder, **arrays):
    torch.save({name: torch.from_numpy(values) for name, values in arrays.items()}, folder / "all.pt")


def save_npz_of_splits(folder, **arrays):
    for name, rows in (("train", slice(0, 30)), ("test", slice(30, 60))):
        np.savez(folder / f"{name}.npz", **{array: values[rows] for array, values in arrays.items()})


@pytest.mark.parametrize("save", [save_pt, save_plain_npz, save_plain_hdf5, save_npz_of_splits])
def test_importing_that_takes_more_than_the_memory_is_refused_whatever_the_file(tmp_path, monkeypatch, save):
    """All files together take the most when they are written, four times their size and more."""
    x = np.arange(90_000, dtype=np.float32).reshape(60, 50, 30)
    save(tmp_path, x=x, y=np.arange(60) % 2)
    monkeypatch.setattr("vmapens.cohort.importers.tensor_files.free_memory", lambda: 4 * x.nbytes)
    with pytest.raises(CohortError, match=r"(all|train)\.\w+ takes, until it is written, 0\.0 GiB, of which"):
        read_tensors([tmp_path])
    monkeypatch.setattr("vmapens.cohort.importers.tensor_files.free_memory", lambda: 6 * x.nbytes)
    assert read_tensors([tmp_path]).info.read["samples"] == 60


def test_few_features_take_more_memory_a_cell_because_each_row_has_its_id(tmp_path, monkeypatch):
    monkeypatch.setattr("vmapens.cohort.importers.tensor_files.free_memory", lambda: 6 * 4 * 90_000)
    save_plain_npz(tmp_path, x=np.zeros((60, 1500, 1), np.float32), y=np.arange(60) % 2)
    with pytest.raises(CohortError, match=r"all\.npz takes, until it is written,"):
        read_tensors([tmp_path])


@pytest.mark.parametrize("name", ["stress-test.npz", "X_train.npz", "dev.npz", "held_out.npz"])
def test_a_single_split_in_the_names_is_no_split_and_is_said(tmp_path, pair, name):
    x, y = pair
    np.savez(tmp_path / name, X=x, y=y)
    info = write_cohort(tmp_path / "out", *read_tensors([tmp_path / name]))
    _, values, labels = written(tmp_path / "out")
    assert np.array_equal(values, x)
    assert labels.columns == ["sample", "outcome"]
    assert "of one split" in info.notes[-1]
    assert "ignored" in info.notes[-1]


def test_a_split_array_goes_before_a_single_split_in_the_name_and_is_ignored_if_it_has_one_word(tmp_path, pair):
    x, y = pair
    np.savez(tmp_path / "stress-test.npz", X=x, y=y, split=["train", "TUNING", "held_out"] * 2)
    info, _, labels = read_tensors([tmp_path / "stress-test.npz"])
    assert labels["split"].to_list() == ["train", "valid", "test"] * 2
    assert len(info.notes) == 1
    np.savez(tmp_path / "all.npz", X=x, y=y, split=["test", "held_out"] * 3)
    info, _, labels = read_tensors([tmp_path / "all.npz"])
    assert labels.columns == ["sample", "outcome"]
    assert "of one split, `test`" in info.notes[-1]


@pytest.mark.parametrize("word", SPLIT_NAMES)
def test_every_word_for_a_split_is_known_in_arrays_in_names_and_in_names_of_files(tmp_path, pair, word):
    x, y = pair
    other = "train" if SPLIT_NAMES[word] != "train" else "test"
    order = sorted([word, other], key=lambda name: ["train", "valid", "test"].index(SPLIT_NAMES[name]))
    expected = [SPLIT_NAMES[name] for name in order for _ in range(3)]
    np.savez(tmp_path / "array.npz", x=x, y=y, split=np.repeat(order, 3))
    np.savez(
        tmp_path / "names.npz", **{f"X_{word}": x[:3], f"y_{word}": y[:3], f"X_{other}": x[:3], f"y_{other}": y[:3]}
    )
    (tmp_path / "files").mkdir()
    for name in order:
        np.savez(tmp_path / "files" / f"{name.upper()}-2.npz", x=x[:3], y=y[:3])
    for source in ("array.npz", "names.npz", "files"):
        assert read_tensors([tmp_path / source]).labels["split"].to_list() == expected, source


@pytest.mark.parametrize(
    "name", ["developments", "latest", "testosterone", "intestine", "unheld_out", "devtest", "value"]
)
def test_a_part_of_a_word_is_no_split(tmp_path, pair, name):
    x, y = pair
    np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    info, _, labels = read_tensors([tmp_path / f"{name}.npz"])
    assert labels.columns == ["sample", "outcome"]
    assert len(info.notes) == 1
