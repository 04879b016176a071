"""The tensors importer: arrays arrive unchanged, and a file that holds code is refused and not run."""

import os
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from vmapens.cohort.importers.tensors import read_tensors
from vmapens.cohort.schema import read_info
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError


@pytest.fixture
def pair():
    """Data [6, 5, 3] with a cell in four not measured, and labels [6] of three classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 3, generator=generator)
    x[torch.rand(6, 5, 3, generator=generator) < 0.25] = float("nan")
    return x, torch.tensor([0, 1, 2, 0, 1, 2])


def written(folder):
    """Info, series with NaN for null, and the table of labels of a cohort."""
    info = read_info(folder)
    series = pl.read_parquet(folder / "series.parquet")
    values = series.select([feature.name for feature in info.features]).fill_null(float("nan")).to_numpy()
    return info, values.reshape(-1, info.steps, len(info.features)), pl.read_parquet(folder / "labels.parquet")


def save_two_files(folder, x, y):
    torch.save(x, folder / "a.pt")
    torch.save(y, folder / "b.pt")
    return [folder / "b.pt", folder / "a.pt"]


def save_dict(folder, x, y):
    torch.save({"labels": y, "mask": ~x.isnan(), "data": x}, folder / "all.pt")
    return [folder / "all.pt"]


def save_tuple(folder, x, y):
    torch.save((x, y), folder / "all.pt")
    return [folder]


def save_npz(folder, x, y):
    np.savez(folder / "all.npz", X=x.numpy(), y=y.numpy())
    return [folder / "all.npz"]


def save_column_of_labels(folder, x, y):
    torch.save({"x": x, "y": y[:, None]}, folder / "all.pt")
    return [folder / "all.pt"]


def save_hdf5(folder, x, y):
    with h5py.File(folder / "all.hdf5", "w") as file:
        file.update({"X": x.numpy(), "y": y.numpy()})
    return [folder]


@pytest.mark.parametrize("save", [save_two_files, save_dict, save_tuple, save_npz, save_column_of_labels, save_hdf5])
def test_tensors_arrive_unchanged_however_they_are_kept(tmp_path, pair, save):
    x, y = pair
    (tmp_path / "source").mkdir()
    info = write_cohort(
        tmp_path / "out", *read_tensors(save(tmp_path / "source", x, y), task="phenotype", minutes_per_step=5)
    )
    read, values, labels = written(tmp_path / "out")
    assert info == read
    assert np.array_equal(values, x.numpy(), equal_nan=True)
    assert labels["phenotype"].to_list() == y.tolist()
    assert labels["sample"].to_list() == list(range(6))
    assert labels.columns == ["sample", "phenotype"]
    assert [feature.name for feature in info.features] == ["feature_000", "feature_001", "feature_002"]
    assert (info.steps, info.minutes_per_step) == (5, 5.0)
    assert (info.tasks[0].kind, info.tasks[0].classes) == ("multiclass", ("0", "1", "2"))


def test_pairs_named_by_split_become_a_split_column(tmp_path, pair):
    x, y = pair
    for name, rows in (("test", slice(4, 6)), ("train", slice(0, 3)), ("val", slice(3, 4))):
        torch.save(x[rows].double(), tmp_path / f"X_{name}.pt")
        torch.save(y[rows].float(), tmp_path / f"y_{name}.pt")
    write_cohort(tmp_path / "out", *read_tensors([tmp_path]))
    _, values, labels = written(tmp_path / "out")
    assert np.array_equal(values, x.numpy(), equal_nan=True)
    assert labels["split"].to_list() == ["train"] * 3 + ["valid"] + ["test"] * 2
    assert labels["outcome"].to_list() == y.tolist()


SPLITS = {"train": slice(0, 3), "val": slice(3, 4), "test": slice(4, 6)}


def nested(x, y):
    """As PyPOTS' `save_dict_into_h5` is given it: a dict for each split; what is held out for imputation beside X."""
    tables = {}
    for split, rows in SPLITS.items():
        masked = np.where(np.arange(5)[:, None] == 2, np.nan, x[rows])
        others = {"X_ori": x[rows], "X_intact": x[rows], "missing_mask": np.isnan(masked)}
        tables[split] = {"X": masked, **others, "indicating_mask": np.isnan(masked) & ~np.isnan(x[rows]), "y": y[rows]}
    return tables


def flat(x, y):
    """As BenchPOTS names them, with a second label and with numbers that are no arrays."""
    tables = nested(x, y)
    found = {f"{split}_{name}": values for split, table in tables.items() for name, values in table.items()}
    found |= {f"{split}_ICUType": np.ones_like(table["y"]) for split, table in tables.items()}
    return {"n_classes": 3, "n_steps": 5, **found}


def save_groups_of_hdf5(folder, x, y):
    with h5py.File(folder / "physionet.h5", "w") as file:
        for split, table in nested(x, y).items():
            for name, values in table.items():
                file[f"{split}/{name}"] = values


def save_flat_hdf5(folder, x, y):
    with h5py.File(folder / "physionet.hdf5", "w") as file:
        file.update(flat(x, y))


def save_a_file_each(folder, x, y):
    """Where there is nothing, PyPOTS' benchmarks write an empty text."""
    for split, table in nested(x, y).items():
        with h5py.File(folder / f"{split}.h5", "w") as file:
            file.update(table | {"X_intact": ""})


def save_flat_npz(folder, x, y):
    np.savez(folder / "all.npz", **flat(x, y))


def as_tensors(table):
    return {name: torch.from_numpy(values) for name, values in table.items()}


def save_nested_pt(folder, x, y):
    torch.save({"data": {split: as_tensors(table) for split, table in nested(x, y).items()}}, folder / "all.pt")


@pytest.mark.parametrize("save", [save_groups_of_hdf5, save_flat_hdf5, save_a_file_each, save_flat_npz, save_nested_pt])
def test_pypots_names_and_groups_give_x_y_and_split_and_the_rest_is_named(tmp_path, pair, save):
    x, y = (tensor.numpy() for tensor in pair)
    (tmp_path / "source").mkdir()
    save(tmp_path / "source", x, y)
    info = write_cohort(tmp_path / "out", *read_tensors([tmp_path / "source"]))
    _, values, labels = written(tmp_path / "out")
    expected = x.copy()
    expected[:, 2] = np.nan
    assert np.array_equal(values, expected, equal_nan=True)
    assert labels["outcome"].to_list() == y.tolist()
    assert labels["split"].to_list() == ["train"] * 3 + ["valid"] + ["test"] * 2
    assert "left out" in info.notes[1]
    for name in ("X_ori", "X_intact", "missing_mask", "indicating_mask"):
        assert info.notes[1].count(name) == 3, name
    for name in ("ICUType", "n_steps", "n_classes"):
        assert (name in info.notes[1]) == (save in (save_flat_hdf5, save_flat_npz)), name


def test_names_of_features_and_ids_are_read_from_hdf5(tmp_path, pair):
    x, y = pair
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.update({"X": x.numpy(), "y": y.numpy()[:, None], "ids": list("fedcba")})
        file["feature_names"] = np.array([b"hr", b"map", b"ph"])
    info = write_cohort(tmp_path / "out", *read_tensors([tmp_path / "a.h5"]))
    _, values, labels = written(tmp_path / "out")
    assert np.array_equal(values, x.numpy()[::-1], equal_nan=True)
    assert labels["sample"].to_list() == list("abcdef")
    assert [feature.name for feature in info.features] == ["hr", "map", "ph"]
    assert len(info.notes) == 1


def test_a_dictionary_that_holds_itself_is_entered_once(tmp_path, pair):
    x, y = pair
    table = {"x": x, "y": y}
    table["again"] = table
    torch.save(table, tmp_path / "a.pt")
    write_cohort(tmp_path / "out", *read_tensors([tmp_path / "a.pt"]))
    assert written(tmp_path / "out")[2]["outcome"].to_list() == y.tolist()


def test_hdf5_that_cannot_be_used_is_one_clear_line(tmp_path, pair):
    x, y = pair
    cases = {
        "0 arrays could be y": {"X": x, "y": ""},
        r"2 arrays could be x: got a\.h5\[X_intact\]": {"X_intact": x, "X_ori": x, "y": y},
        "`outer` is a link to elsewhere": {"X": x, "y": y, "outer": h5py.ExternalLink("b.h5", "/x")},
        r"a\.h5\[y\]: y has 1 different values in these stays, wanted two": {"X": x, "y": list("aaaaaa")},
        r"shape \(2,\), but x in": {"train/X": x, "train/y": y[:2]},
        "x is of type int64": {"X": x.long(), "y": y},
        r"n: no word train, valid or test|\[n\]: no word": {"train/X": x, "train/y": y, "n": y},
    }
    for message, content in cases.items():
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.update(content)
        with pytest.raises(CohortError, match=message) as caught:
            write_cohort(tmp_path / "out", *read_tensors([tmp_path / "a.h5"]))
        assert "\n" not in str(caught.value)
    save_hdf5(tmp_path, x, y)
    whole = (tmp_path / "all.hdf5").read_bytes()
    for length in range(0, len(whole), len(whole) // 11):
        (tmp_path / "a.h5").write_bytes(whole[:length])
        with pytest.raises(CohortError, match=r"a\.h5: it cannot be read as HDF5"):
            read_tensors([tmp_path / "a.h5"])


def save_plain_npz(folder, **arrays):
    np.savez(folder / "all.npz", **arrays)


def save_plain_hdf5(folder, **arrays):
    with h5py.File(folder / "all.h5", "w") as file:
        file.update(arrays)


@pytest.mark.parametrize("name", ["group", "groups", "patient", "patients", "subject", "Subjects"])
@pytest.mark.parametrize("groups", [[7, 7, 3, 3, 1, 1], list("ggccaa")])
def test_patients_become_groups(tmp_path, pair, name, groups):
    x, y = (tensor.numpy() for tensor in pair)
    arrays = {"x": x, "y": y, "ids": np.arange(6)[::-1], name: np.array(groups)}
    save_plain_npz(tmp_path, **arrays)
    save_plain_hdf5(tmp_path, **arrays | {name: groups})
    for file in ("all.npz", "all.h5"):
        info = write_cohort(tmp_path / file[4:], *read_tensors([tmp_path / file]))
        labels = written(tmp_path / file[4:])[2]
        assert labels["group"].to_list() == groups[::-1]
        assert labels["outcome"].to_list() == y[::-1].tolist()
        assert len(info.notes) == 1


def test_a_patient_in_two_splits_is_refused_whatever_says_the_split(tmp_path, pair):
    x, y = (tensor.numpy() for tensor in pair)
    np.savez(tmp_path / "array.npz", x=x, y=y, group=[1, 1, 2, 2, 3, 3], split=["train"] * 3 + ["test"] * 3)
    tables = {
        f"{split}/{name}": array for split, rows in SPLITS.items() for name, array in (("x", x[rows]), ("y", y[rows]))
    }
    np.savez(tmp_path / "names.npz", **tables, **{f"{s}/patient": np.arange(6)[rows] % 4 for s, rows in SPLITS.items()})
    for source, message in (("array", r"1 patients .*\(2\)"), ("names", r"2 patients .*\(0, 1\)")):
        with pytest.raises(CohortError, match=message) as caught:
            write_cohort(tmp_path / "out", *read_tensors([tmp_path / f"{source}.npz"]))
        assert "\n" not in str(caught.value)
    np.savez(tmp_path / "names.npz", **tables, **{"train/patient": [1, 2, 3]})
    with pytest.raises(CohortError, match="some splits have groups of one type and others none"):
        read_tensors([tmp_path / "names.npz"])


def test_labels_that_are_text_become_classes_and_missing_ones_are_not_in_the_task(tmp_path, pair):
    x = pair[0].numpy()
    cases = {
        ("died", "discharged", "", "transferred", "nan", "died"): [0, 1, None, 2, None, 0],
        ("died", "None", "NA", "transferred", "<NA>", "died"): [1, 0, None, 2, None, 1],
        (2.0, 0.0, np.nan, 0.0, np.nan, 2.0): [2, 0, None, 0, None, 2],
        (False, True, True, False, False, True): [0, 1, 1, 0, 0, 1],
    }
    classes = [("died", "discharged", "transferred"), ("None", "died", "transferred"), ("0", "1", "2"), ("0", "1")]
    for place, (y, codes) in enumerate(cases.items()):
        save_plain_hdf5(tmp_path, x=x, y=list(y))
        save_plain_npz(tmp_path, x=x, y=np.array(y))
        for file in ("all.h5", "all.npz"):
            out = tmp_path / f"{place}-{file}"
            info = write_cohort(out, *read_tensors([tmp_path / file]))
            assert written(out)[2]["outcome"].to_list() == codes
            assert info.tasks[0].classes == classes[place]
            assert info.tasks[0].kind == ("binary" if place == 3 else "multiclass")
            assert sum(info.dropped.values()) == codes.count(None)
            assert f"Labels of {file}[y]." in info.tasks[0].note
            assert ("No stay is of 1 of 3 classes (1)" in info.tasks[0].note) == (place == 2)


def test_splits_that_label_by_text_and_by_number_are_refused(tmp_path, pair):
    x = pair[0].numpy()
    np.savez(tmp_path / "train.npz", x=x, y=np.array(list("ababab")))
    np.savez(tmp_path / "test.npz", x=x, y=np.arange(6) % 2)
    with pytest.raises(CohortError, match="some splits have labels of one type and others none or another"):
        read_tensors([tmp_path])


def test_npz_names_of_features_ids_and_split_are_kept(tmp_path, pair):
    x, y = pair
    ids, split = np.array(["f", "e", "d", "c", "b", "a"]), np.array(["train", "train", "val", "test", "test", "train"])
    names = np.array(["hr", "map", "ph"])
    np.savez(tmp_path / "all.npz", x=x.numpy(), y=(y > 0).numpy(), ids=ids, split=split, feature_names=names)
    info = write_cohort(tmp_path / "out", *read_tensors([tmp_path / "all.npz"]))
    _, values, labels = written(tmp_path / "out")
    assert np.array_equal(values, x.numpy()[::-1], equal_nan=True)  # a cohort is sorted by sample
    assert labels["sample"].to_list() == sorted(ids.tolist())
    assert labels["split"].to_list() == ["train", "test", "test", "valid", "train", "train"]
    assert [feature.name for feature in info.features] == names.tolist()
    assert (info.tasks[0].kind, info.tasks[0].classes) == ("binary", ("0", "1"))


class Code:
    """What a hostile pickle is made of."""

    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path, pair, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = pair
    torch.save({"x": x, "y": y, "more": Code()}, "code.pt")
    np.savez("code.npz", x=x.numpy(), y=np.array([Code()] * 6, dtype=object))
    Path("junk.pt").write_bytes(b"\x80\x04junk")
    Path("empty.pt").write_bytes(b"")
    torch.save(x, "whole.pt")
    Path("cut.pt").write_bytes(Path("whole.pt").read_bytes()[:-200])
    for name in ("code.pt", "code.npz", "junk.pt", "empty.pt", "cut.pt"):
        with pytest.raises(CohortError, match="code in a file is never run") as caught:
            write_cohort(tmp_path / "out", *read_tensors([Path(name)]))
        assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_wrong_tensors_are_one_clear_line(tmp_path, pair):
    x, y = pair
    infinite = x.clone()
    infinite[2, 1, 0] = float("inf")
    infinite[4, 0, 2] = -float("inf")
    cases = {
        r"2 values of x are infinite \(as float32\), the first at sample 2, step 1, `feature_000`": {
            "x": infinite,
            "y": y,
        },
        r"1 values of x are infinite": {"x": torch.full((1, 1, 1), 1e300, dtype=torch.float64), "y": torch.tensor([0])},
        r"x is of type int64, wanted float": {"x": torch.zeros(6, 5, 3, dtype=torch.int64), "y": y},
        r"shape \(5,\), but x in .* is \(6, 5, 3\)": {"x": x, "y": y[:5]},
        r"0 arrays could be y: got .*\[y\] \(6, 2\)": {"x": x, "y": torch.stack([y, y], dim=1)},
        r"0 arrays could be x": {"x": x[0], "y": y},
        r"2 arrays could be x": {"a": x, "b": x, "y": y},
        r"\[y\]: y holds 1 numbers that are no class \(-1\)": {"x": x, "y": torch.tensor([0, 1, 2, -1, 1, 0])},
        r"\[y\]: y holds 1 numbers that are no class \(0\.5\)": {"x": x, "y": torch.tensor([0, 1, 0.5, 1, 1, 0])},
        r"\[y\]: y goes up to 900, wanted classes from 0 to 99": {"x": x, "y": torch.tensor([0, 900, 0, 900, 0, 0])},
        r"\[y\]: y goes up to inf, wanted classes": {"x": x, "y": torch.tensor([0, 1, float("inf"), 1, 1, 0])},
        r"\[y\]: y has 0 different values": {"x": x, "y": torch.full((6,), torch.nan)},
        r"\[y\]: y has 1 different values": {"x": x, "y": torch.ones(6)},
        r"\[y\]: y has 101 different values, wanted 100 classes": {
            "x": torch.zeros(101, 1, 1),
            "y": [f"class {place}" for place in range(101)],
        },
        r"\[y\]: labels are of type complex64, wanted whole numbers": {"x": x, "y": y.to(torch.complex64)},
        r"groups are of type float32, wanted integers or text": {"x": x, "y": y, "group": torch.zeros(6)},
        r"group\]: shape \(5,\), but x in": {"x": x, "y": y, "group": torch.arange(5)},
        r"1 ids occur more than once: 7; .* of patients in an array `group`": {
            "x": x,
            "y": y,
            "patient_ids": torch.tensor([7, 7, 1, 2, 3, 4]),
        },
        r"2 feature names, 2 different, for F = 3": {"x": x, "y": y, "feature_names": ["a", "b"]},
        r"named so if there are more": {"x": x},
        r"hold no arrays": {"note": "nothing here"},
    }
    for place, (message, content) in enumerate(cases.items()):
        torch.save(content, tmp_path / f"{place}.pt")
        with pytest.raises(CohortError, match=message) as caught:
            write_cohort(tmp_path / "out", *read_tensors([tmp_path / f"{place}.pt"]))
        assert "\n" not in str(caught.value)
    torch.save((x, y), tmp_path / "good.pt")
    for message, arguments in {
        "the task cannot be called `split`": {"task": "split"},
        r"wanted 1e-06 to 1e\+08": {"minutes_per_step": 0.0},
    }.items():
        with pytest.raises(CohortError, match=message):
            write_cohort(tmp_path / "out", *read_tensors([tmp_path / "good.pt"], **arguments))
    for path, message in ((tmp_path / "none.pt", "does not exist"), (Path(__file__), r"wanted \.pt, \.npz or \.h5")):
        with pytest.raises(CohortError, match=message):
            write_cohort(tmp_path / "out", *read_tensors([path]))
    assert not (tmp_path / "out").exists()
