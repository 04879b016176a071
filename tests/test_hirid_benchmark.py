"""HiRID-ICU-Benchmark: the windows, labels and splits of a file made to its published layout, compression and all."""

import dataclasses

import h5py
import hdf5plugin
import numpy as np
import polars as pl
import pytest

from vmapens.cohort.importers import hirid_benchmark
from vmapens.cohort.importers.hirid_benchmark import read_hirid_benchmark
from vmapens.cohort.schema import read_info
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError

STEPS = 12
FEATURES = ["datetime", "admissiontime", "sex", "vm1", "Körpertemperatur"]
TASKS = [
    "datetime",
    "Dynamic_CircFailure_12Hours",
    "Phenotyping_APACHEGroup",
    "Mortality_At24Hours",
    "Remaining_LOS_Reg",
]
GROUPS = (2, 5, 19)


@dataclasses.dataclass
class Source:
    """What a file holds: `data`, `labels` and `windows` of each split."""

    data: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    windows: dict[str, np.ndarray]

    def write(self, path, columns=FEATURES, tasks=TASKS):
        """As PyTables writes it: extendible arrays, blosc with lz4 at level 5, names as fixed-length bytes."""
        compression = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)
        with h5py.File(path, "w") as file:
            file["data/columns"] = np.array([name.encode() for name in columns])
            file["labels/tasks"] = np.array([name.encode() for name in tasks])
            for group, arrays in (("data", self.data), ("labels", self.labels), ("patient_windows", self.windows)):
                for split, values in arrays.items():
                    file.create_dataset(
                        f"{group}/{split}",
                        data=values,
                        maxshape=(None, values.shape[1]),
                        chunks=(32, values.shape[1]),
                        **compression,
                    )
        return path


def make_source(seed=0, sizes=(("train", 40), ("val", 12), ("test", 12))):
    """Stays of 0 to 30 rows whose patients ascend in no split; half of the long ones have labels, at row 11."""
    generator = np.random.default_rng(seed)
    patients = generator.permutation(np.arange(1, 1 + sum(size for _, size in sizes))) * 3
    source = Source({}, {}, {})
    for split, size in sizes:
        lengths = generator.integers(0, 31, size)
        stops = np.cumsum(lengths)
        mine, patients = patients[:size], patients[size:]
        rows = int(stops[-1])
        source.data[split] = generator.integers(-9, 9, (rows, len(FEATURES))) / 8
        labels = np.full((rows, len(TASKS)), np.nan)
        labels[:, [0, 1, 4]] = generator.random((rows, 3)).round()
        for stop, length in zip(stops, lengths, strict=True):
            last = stop - length + STEPS - 1
            if length >= STEPS and generator.random() < 0.8:
                labels[last, 2] = generator.choice(GROUPS)
            if length >= STEPS and generator.random() < 0.5:
                labels[last, 3] = generator.integers(2)
        source.labels[split] = labels
        source.windows[split] = np.stack([stops - lengths, stops, mine], axis=1).astype(np.int64)
    return source


def plain_reading(source):
    """Patient -> (split, x, mortality, group), one stay after another."""
    found = {}
    for split, windows in source.windows.items():
        for start, stop, patient in windows.tolist():
            x, labels = source.data[split][start:stop], source.labels[split][start:stop]
            if len(x) < STEPS or np.isnan(labels[STEPS - 1, 2:4]).all():
                continue
            group, death = labels[STEPS - 1, 2:4]
            found[patient] = (split.replace("val", "valid"), x[:STEPS].astype(np.float32), death, group)
    return dict(sorted(found.items()))


def written(path, folder, **options):
    """Import a file: what was written."""
    info = write_cohort(folder, *read_hirid_benchmark(path, **{"steps": STEPS, **options}))
    assert info == read_info(folder)
    return info, pl.read_parquet(folder / "series.parquet"), pl.read_parquet(folder / "labels.parquet")


def cohort_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_value_and_label_is_that_of_a_plain_reading(tmp_path, monkeypatch):
    """Frames of 5 stays and slabs of 16 rows: their borders fall everywhere."""
    monkeypatch.setattr(hirid_benchmark, "_STAYS_AT_ONCE", 5)
    monkeypatch.setattr(hirid_benchmark, "_ROWS_AT_ONCE", 16)
    source = make_source()
    info, series, labels = written(source.write(tmp_path / "ml_stage_12h.h5"), tmp_path / "out")
    expected = plain_reading(source)
    assert len(expected) > 15
    assert labels["sample"].to_list() == labels["group"].to_list() == list(expected)
    assert labels["sample"].dtype == series["sample"].dtype == pl.Int64
    assert labels["split"].to_list() == [split for split, *_ in expected.values()]
    assert {"train", "valid", "test"} == set(labels["split"])
    for task, at, codes in (("mortality", 2, (0, 1)), ("phenotyping", 3, GROUPS)):
        wanted = [None if np.isnan(stay[at]) else codes.index(stay[at]) for stay in expected.values()]
        assert labels[task].to_list() == wanted
        assert labels[task].dtype == pl.Int32
        assert 0 < labels[task].null_count() < len(wanted)
    assert series.columns == ["sample", "step", *FEATURES]
    assert series["sample"].to_list() == [patient for patient in expected for _ in range(STEPS)]
    assert series["step"].to_list() == list(range(STEPS)) * len(expected)
    assert np.array_equal(series.select(FEATURES).to_numpy(), np.concatenate([x for _, x, *_ in expected.values()]))
    assert (info.steps, info.minutes_per_step) == (STEPS, 5.0)
    assert info.task("mortality").classes == ("survived", "died")
    assert info.task("phenotyping").classes == ("APACHE group 2", "APACHE group 5", "APACHE group 19")
    assert info.task("phenotyping").kind == "multiclass"
    assert any("Dynamic_CircFailure_12Hours, Remaining_LOS_Reg" in note for note in info.notes)


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    source = make_source()
    info, _, labels = written(source.write(tmp_path / "a.h5"), tmp_path / "out")
    lengths = np.concatenate([windows[:, 1] - windows[:, 0] for windows in source.windows.values()])
    short = int((lengths < STEPS).sum())
    assert info.read == {"stays": 64, "rows of stays": int(lengths.sum())}
    assert info.dropped == {
        f"stays shorter than {STEPS} rows: left out": short,
        f"stays without a label of either task at row {STEPS - 1}: left out": 64 - short - len(labels),
    }
    assert 64 - short - len(labels) > 0


def test_the_order_of_windows_and_of_stays_in_the_rows_changes_no_byte(tmp_path):
    source = make_source()
    written(source.write(tmp_path / "a.h5"), tmp_path / "a")
    generator = np.random.default_rng(1)
    permuted = dataclasses.replace(
        source, windows={split: generator.permutation(windows) for split, windows in source.windows.items()}
    )
    written(permuted.write(tmp_path / "b.h5"), tmp_path / "b")
    moved = Source({}, {}, {})
    for split, windows in permuted.windows.items():
        rows = np.concatenate([np.arange(start, stop) for start, stop, _ in windows])
        stops = np.cumsum(windows[:, 1] - windows[:, 0])
        moved.data[split], moved.labels[split] = source.data[split][rows], source.labels[split][rows]
        moved.windows[split] = np.stack([stops - (windows[:, 1] - windows[:, 0]), stops, windows[:, 2]], axis=1)
    written(moved.write(tmp_path / "c.h5"), tmp_path / "c")
    assert list(cohort_bytes(tmp_path / "a")) == ["cohort.json", "labels.parquet", "series.parquet"]
    assert cohort_bytes(tmp_path / "a") == cohort_bytes(tmp_path / "b") == cohort_bytes(tmp_path / "c")


def test_windows_that_repeat_exactly_are_counted_and_change_nothing_else(tmp_path):
    source = make_source()
    first, *_ = written(source.write(tmp_path / "a.h5"), tmp_path / "a")
    source.windows["train"] = np.concatenate([source.windows["train"], source.windows["train"][:3]])
    again, *_ = written(source.write(tmp_path / "b.h5"), tmp_path / "b")
    assert again.dropped == first.dropped | {"rows of patient_windows that repeat another one: left out": 3}
    a, b = cohort_bytes(tmp_path / "a"), cohort_bytes(tmp_path / "b")
    assert a["series.parquet"] == b["series.parquet"]
    assert a["labels.parquet"] == b["labels.parquet"]


def test_values_that_float32_cannot_hold_become_missing_and_are_counted(tmp_path):
    source = make_source()
    start = next(start for start, stop, patient in source.windows["train"] if patient in plain_reading(source))
    signalling = np.array([0x7FF0000000000001]).view(float)[0]  # a NaN that a cast to float32 warns of
    source.data["train"][start : start + 5, 3] = (np.inf, -np.inf, 1e39, np.nan, signalling)
    info, series, _ = written(source.write(tmp_path / "a.h5"), tmp_path / "out")
    assert info.dropped["values that are infinite (as float32): set to missing"] == 3
    assert info.dropped["values that are NaN: set to missing"] == 2
    assert series["vm1"].null_count() == 5
    assert not series["vm1"].drop_nulls().is_infinite().any()


def test_a_task_that_no_stay_has_a_label_of_is_left_out_and_said(tmp_path):
    source = make_source()
    for labels in source.labels.values():
        labels[:, 3] = np.nan
    info, _, labels = written(source.write(tmp_path / "a.h5"), tmp_path / "a")
    assert [task.name for task in info.tasks] == ["phenotyping"]
    assert labels.columns == ["sample", "phenotyping", "group", "split"]
    assert "No stay has a label of Mortality_At24Hours." in info.notes
    info, *_ = written(source.write(tmp_path / "b.h5", tasks=[*TASKS[:3], "else", TASKS[4]]), tmp_path / "b")
    assert [task.name for task in info.tasks] == ["phenotyping"]


def test_the_listener_hears_of_every_stay(tmp_path):
    class Ear:
        def __init__(self):
            self.heard = []

        def start(self, amount):
            self.heard.append(amount)

        def advance(self, amount):
            self.heard.append(amount)

        def say(self, line):
            pass

    ear = Ear()
    _, _, labels = written(make_source().write(tmp_path / "a.h5"), tmp_path / "out", listener=ear)
    assert ear.heard == [len(labels)] * 2


def changed(change):
    def write(path):
        source = make_source()
        change(source)
        return source.write(path)

    return write


def window(place, value, split="train"):
    """One number of one window is another."""

    def change(source):
        source.windows[split][place] = value

    return changed(change)


def label(column, value):
    def change(source):
        for labels in source.labels.values():
            labels[~np.isnan(labels[:, column]), column] = value

    return changed(change)


def without(name):
    def write(path):
        make_source().write(path)
        with h5py.File(path, "a") as file:
            del file[name]
        return path

    return write


def other(name, values):
    def write(path):
        without(name)(path)
        with h5py.File(path, "a") as file:
            file[name] = values
        return path

    return write


def same_patient_in_two_splits(source):
    source.windows["test"][0, 2] = source.windows["train"][5, 2]


def unknown_as_minus_one(source):
    for labels in source.labels.values():
        labels[labels[:, 2] == 5, 2] = -1


BAD = {
    r"no `patient_windows` \(`/` has data, labels\)": without("patient_windows"),
    "has no `data/columns`": without("data/columns"),
    "has no `labels/val`": without("labels/val"),
    "data/columns is float64": other("data/columns", np.zeros(5)),
    "2 names, 1 different": other("data/columns", np.array([b"a", b"a"])),
    r"data/train is float64 \(\d+, 5\), wanted floats \(\d+, 2\)": other("data/columns", np.array([b"a", b"b"])),
    "labels/test is float64": other("labels/test", np.zeros((3, 5))),
    "data/val is int64": other("data/val", np.zeros((3, 5), dtype=np.int64)),
    "data/columns has mortality, step": other("data/columns", np.array([b"step", b"mortality", b"c", b"d", b"e"])),
    "`data/columns` cannot be read as HDF5": other("data/columns", np.array([b"a", b"\xff", b"c", b"d", b"e"])),
    r"patient_windows/train is float64 \(40, 3\), wanted whole numbers": other(
        "patient_windows/train", np.zeros((40, 3))
    ),
    r"patient_windows/val is int64 \(2, 4\)": other("patient_windows/val", np.zeros((2, 4), dtype=np.int64)),
    "1 windows of patient_windows/train are no range": window((3, 0), -1),
    r"are no range of the \d+ rows of data/val, the first \d+ to 9999": window((3, 1), 9999, "val"),
    "are no range .* the first 5 to 2 of patient 7;": window(3, (5, 2, 7)),
    "begin before the one before them ends": window((5, 0), 1),
    "1 patients have several windows": changed(same_patient_in_two_splits),
    r"labels of Mortality_At24Hours are 2, wanted 0 and 1": label(3, 2.0),
    r"labels of Mortality_At24Hours are inf, wanted 0 and 1": label(3, np.inf),
    r"labels of Phenotyping_APACHEGroup are 2.5, wanted whole numbers": label(2, 2.5),
    r"labels of Phenotyping_APACHEGroup are 3, wanted whole numbers from 0, 2 to 100": label(2, 3.0),
    r"labels of Phenotyping_APACHEGroup are -1, 2, 19, wanted whole numbers from 0": changed(unknown_as_minus_one),
}


@pytest.mark.parametrize("message", BAD)
def test_a_file_of_another_layout_is_one_clear_line(tmp_path, message):
    path = BAD[message](tmp_path / "a.h5")
    with pytest.raises(CohortError, match=message) as caught:
        write_cohort(tmp_path / "out", *read_hirid_benchmark(path, steps=STEPS))
    assert "\n" not in str(caught.value)
    assert "a.h5" in str(caught.value)
    assert not (tmp_path / "out" / "cohort.json").exists()


def test_a_window_of_another_length_than_the_labels_want_is_one_clear_line(tmp_path):
    path = make_source().write(tmp_path / "a.h5")
    with pytest.raises(
        CohortError, match=r"none of 64 stays has a label of .* at row 9; the benchmark writes them at row 287"
    ):
        read_hirid_benchmark(path, steps=10)
    with pytest.raises(CohortError, match="steps: got 0, wanted 1 or more"):
        read_hirid_benchmark(path, steps=0)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.1, 0.3, 0.5, 0.7, 0.9, -1])
def test_a_file_cut_short_is_one_clear_line(tmp_path, keep):
    path = make_source().write(tmp_path / "a.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CohortError, match=r"cannot be read as HDF5 .* cut short") as caught:
        read_hirid_benchmark(path, steps=STEPS)
    assert "\n" not in str(caught.value)


def test_a_damaged_chunk_is_one_clear_line_and_no_cohort(tmp_path):
    """The rows are read late, when half of the series may have been written."""
    path = make_source().write(tmp_path / "a.h5")
    with h5py.File(path) as file:
        data = file["data/test"]
        chunks = [data.id.get_chunk_info(place) for place in range(data.id.get_num_chunks())]
    assert {chunk.filter_mask for chunk in chunks} == {0}  # what does not shrink would have been left as it is
    with path.open("r+b") as file:
        for chunk in chunks:
            file.seek(chunk.byte_offset)
            file.write(b"\xff" * 16)
    with pytest.raises(CohortError, match="`data/test` cannot be read as HDF5"):
        written(path, tmp_path / "out")
    assert list((tmp_path / "out").glob("*")) == []
