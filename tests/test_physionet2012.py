"""PhysioNet 2012: what is in the files arrives in the cohort, and what does not arrive is counted or refused."""

import gzip
import io
import json
import lzma
import os
import stat
import tarfile
import zipfile
from collections import Counter

import numpy as np
import polars as pl
import pytest

from benchmarks.importing import measure
from vmapens.cohort.importers.archive import read_files
from vmapens.cohort.importers.physionet2012 import read_physionet2012
from vmapens.cohort.importers.physionet2012_ranges import CONSTANT, SERIES
from vmapens.cohort.schema import read_info
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError

HEAD = "Time,Parameter,Value\n"
OUTCOMES_HEAD = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
OUTCOMES = OUTCOMES_HEAD + "101,6,1,5,-1,0\n102,16,8,8,4,1\n103,-1,-1,19,-1,0\n104,20,3,2,-1,0\n"


def record(sample, *rows, age=54, gender=0, height=170, icu=4, weight=-1):
    """The text of one stay; `rows` are `HH:MM,Parameter,Value`."""
    first = [f"00:00,RecordID,{sample}", f"00:00,Age,{age}", f"00:00,Gender,{gender}"]
    first += [f"00:00,Height,{height}", f"00:00,ICUType,{icu}", f"00:00,Weight,{weight}"]
    return HEAD + "\n".join([*first, *rows]) + "\n"


def tiny_set():
    return {
        "set-a/101.txt": record(101, "00:07,HR,73", "00:37,HR,77", "05:10,Urine,0", "48:00,HR,90", weight=80),
        "set-a/102.txt": record(102, "01:00,pH,735", "01:20,pH,7.3", "02:00,Temp,-17.8", "03:00,HR,-1", icu=1),
        "set-a/103.txt": record(103, height=-1, icu=2),
        "set-a/104.txt": record(104, "47:59,GCS,15", gender=-1, icu=3),
        "Outcomes-a.txt": OUTCOMES,
    }


def write_folder(files, folder):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def write_tar(files, path, mode):
    with tarfile.open(path, mode) as tar:
        for name, text in files.items():
            data = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(files, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def cohort_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def import_text(tmp_path, files, name="cohort"):
    """Import tiny files; the cohort's info, series and labels."""
    source = write_folder(files, tmp_path / f"{name}-source")
    info = write_cohort(tmp_path / name, *read_physionet2012([source]))
    return (
        info,
        pl.read_parquet(tmp_path / name / "series.parquet"),
        pl.read_parquet(tmp_path / name / "labels.parquet"),
    )


def value(series, sample, step, feature):
    return series.filter((pl.col("sample") == sample) & (pl.col("step") == step))[feature].item()


def test_a_folder_and_all_kinds_of_archive_give_the_same_bytes(tmp_path):
    """A set is what its files hold, not how they are packed."""
    files = tiny_set()
    sources = {
        "folder": write_folder(files, tmp_path / "folder"),
        "tar": write_tar(files, tmp_path / "set.tar", "w"),
        "gz": write_tar(files, tmp_path / "set.tar.gz", "w:gz"),
        "xz": write_tar(files, tmp_path / "set.tar.xz", "w:xz"),
        "bz2": write_tar(files, tmp_path / "set.tar.bz2", "w:bz2"),
        "zip": write_zip(files, tmp_path / "set.zip"),
        "renamed": write_tar(files, tmp_path / "download", "w:gz"),
    }
    cohorts = {}
    for name, source in sources.items():
        info = write_cohort(tmp_path / "out" / name, *read_physionet2012([source]))
        assert info == read_info(tmp_path / "out" / name)
        cohorts[name] = cohort_bytes(tmp_path / "out" / name)
    assert list(cohorts["folder"]) == ["cohort.json", "labels.parquet", "series.parquet"]
    assert all(cohort == cohorts["folder"] for cohort in cohorts.values())


def test_the_order_of_files_and_paths_changes_no_byte(tmp_path):
    files = tiny_set()
    backwards = dict(reversed(files.items()))
    records = {name: text for name, text in files.items() if name != "Outcomes-a.txt"}
    outcomes = write_folder({"Outcomes-a.txt": OUTCOMES}, tmp_path) / "Outcomes-a.txt"
    write_cohort(tmp_path / "1", *read_physionet2012([write_tar(files, tmp_path / "a.tar.gz", "w:gz")]))
    write_cohort(tmp_path / "2", *read_physionet2012([write_tar(backwards, tmp_path / "b.tar.gz", "w:gz")]))
    write_cohort(tmp_path / "3", *read_physionet2012([outcomes, write_zip(records, tmp_path / "records.zip")]))
    write_cohort(tmp_path / "4", *read_physionet2012([tmp_path / "records.zip", outcomes, tmp_path / "a.tar.gz"]))
    assert cohort_bytes(tmp_path / "1") == cohort_bytes(tmp_path / "2") == cohort_bytes(tmp_path / "3")
    assert cohort_bytes(tmp_path / "1") == cohort_bytes(tmp_path / "4")


def test_the_grid_has_forty_features_and_forty_eight_steps(tmp_path):
    info, series, labels = import_text(tmp_path, tiny_set())
    assert (info.steps, info.minutes_per_step) == (48, 60.0)
    names = [feature.name for feature in info.features]
    assert names == [parameter.name for parameter in SERIES + CONSTANT]
    assert len(names) == 40
    assert all(feature.group for feature in info.features)
    assert series.columns == ["sample", "step", *names]
    assert set(series.dtypes[2:]) == {pl.Float32}
    assert (series["sample"].dtype, series["step"].dtype) == (pl.Int64, pl.Int32)
    assert series.height == 4 * 48
    assert labels["sample"].to_list() == [101, 102, 103, 104]


def test_the_last_value_of_an_hour_is_kept_and_of_a_minute_the_last_in_file_order(tmp_path):
    rows = ("03:50,HR,61", "03:50,HR,62", "03:10,HR,60", "03:50,Temp,36", "04:00,HR,70")
    files = {"1.txt": record(101, *rows), "o.txt": OUTCOMES}
    info, series, _ = import_text(tmp_path, files)
    assert value(series, 101, 3, "HR") == 62.0
    assert value(series, 101, 4, "HR") == 70.0
    assert info.dropped["values followed by another of the same stay, parameter and hour: the last is kept"] == 2
    minute = "values followed by another of the same stay, parameter and minute: counted among those of the hour"
    assert info.dropped[minute] == 1


def test_hours_are_floored_and_48_00_is_in_the_last_step(tmp_path):
    rows = ("00:00,HR,50", "00:59,Na,140", "01:00,Na,141", "47:59,GCS,3", "48:00,HR,90", "48:01,K,4", "1:00,K,4")
    info, series, _ = import_text(tmp_path, {"1.txt": record(101, *rows), "o.txt": OUTCOMES})
    assert value(series, 101, 0, "HR") == 50.0
    assert value(series, 101, 0, "Na") == 140.0
    assert value(series, 101, 1, "Na") == 141.0
    assert value(series, 101, 47, "GCS") == 3.0
    assert value(series, 101, 47, "HR") == 90.0
    assert series["K"].null_count() == series.height
    assert info.dropped["rows with a time outside 00:00..48:00: left out"] == 2


def test_missing_and_impossible_values_are_null_and_do_not_displace_a_measurement(tmp_path):
    rows = ("01:00,pH,7.3", "01:20,pH,735", "02:00,Temp,-17.8", "03:00,HR,0", "03:10,PaO2,0", "03:20,WBC,12500")
    rows += ("04:00,Urine,0", "05:00,MechVent,1", "06:00,SysABP,-1", "07:00,FiO2,0.21", "07:30,FiO2,1")
    info, series, _ = import_text(tmp_path, {"1.txt": record(101, *rows, height=1.8), "o.txt": OUTCOMES})
    assert value(series, 101, 1, "pH") == pytest.approx(7.3)
    assert value(series, 101, 4, "Urine") == 0.0
    assert value(series, 101, 5, "MechVent") == 1.0
    assert value(series, 101, 7, "FiO2") == 1.0
    for name in ("Temp", "HR", "PaO2", "WBC", "SysABP", "Height"):
        assert series[name].null_count() == series.height, name
    assert info.dropped["pH outside 6.5..8: set to missing"] == 1
    assert info.dropped["Temp outside 13..46: set to missing"] == 1
    assert info.dropped["WBC outside 0..1000: set to missing"] == 1
    assert info.dropped["SysABP -1 (unknown): set to missing"] == 1
    assert info.dropped["Height outside 50..280: set to missing"] == 1


def test_age_gender_and_height_are_constant_and_weight_is_a_series(tmp_path):
    files = {
        "1.txt": record(101, "05:00,Weight,81", age=90, gender=1, height=180, weight=80),
        "2.txt": record(102, age=20, gender=-1, height=-1, weight=-1),
        "o.txt": OUTCOMES,
    }
    _, series, labels = import_text(tmp_path, files)
    first, second = (series.filter(pl.col("sample") == sample) for sample in (101, 102))
    for name, constant in (("Age", 90.0), ("Gender", 1.0), ("Height", 180.0)):
        assert first[name].to_list() == [constant] * 48
    assert second["Gender"].null_count() == second["Height"].null_count() == second["Weight"].null_count() == 48
    assert {step: weight for step, weight in enumerate(first["Weight"]) if weight is not None} == {0: 80.0, 5: 81.0}
    assert "ICUType" not in series.columns
    assert labels["icu_type"].to_list() == [3, 3]


def test_labels_and_tasks(tmp_path):
    info, _, labels = import_text(tmp_path, tiny_set())
    assert [task.name for task in info.tasks] == ["mortality", "icu_type", "severity"]
    assert info.task("mortality").classes == ("survived", "died")
    assert info.task("icu_type").classes == ("coronary care", "cardiac surgery recovery", "medical", "surgical")
    assert labels["mortality"].to_list() == [0, 1, 0, 0]
    assert labels["icu_type"].to_list() == [3, 0, 1, 2]
    assert labels["saps_i"].to_list() == [6, 16, None, 20]
    assert labels["sofa"].to_list() == [1, 8, None, 3]
    assert labels["set"].to_list() == ["a"] * 4
    assert labels["severity"].to_list() == [0, 1, None, 2]  # quartiles of 6, 16, 20: cuts at 6 and 16
    assert info.task("severity").classes == ("SAPS-I 6 to 6", "SAPS-I 7 to 16", "SAPS-I 17 to 20")
    assert "Quartiles" in info.task("severity").note
    assert info.dropped["stays whose SAPS-I is unknown: severity unknown"] == 1


def test_stays_that_died_within_the_window_are_said(tmp_path):
    """Their death is no prediction of what comes after 48 hours."""
    early = OUTCOMES.replace("102,16,8,8,4,1", "102,16,8,8,1,1")
    assert not [note for note in import_text(tmp_path, tiny_set(), "late")[0].notes if "warning" in note]
    notes = import_text(tmp_path, tiny_set() | {"Outcomes-a.txt": early}, "early")[0].notes
    assert "warning: 1 stays died before the window's end (Survival under 2 days)" in notes[-1]


@pytest.mark.parametrize("death", ["2", "yes", ""])
def test_a_file_whose_deaths_are_written_otherwise_is_refused(death, tmp_path):
    other = OUTCOMES.replace("102,16,8,8,4,1", f"102,16,8,8,4,{death}")
    with pytest.raises(CohortError, match="In-hospital_death is 0 in 3 rows and neither 0 nor 1 in the other 1"):
        import_text(tmp_path, tiny_set() | {"Outcomes-a.txt": other})


def test_a_folder_that_is_a_link_is_not_passed_over(tmp_path):
    source, more = write_folder(tiny_set(), tmp_path / "source"), write_folder({"9.txt": record(9)}, tmp_path / "more")
    (source / "more").symlink_to(more, target_is_directory=True)
    with pytest.raises(CohortError, match="more is a link to a folder, and links are not followed"):
        read_physionet2012([source])


def test_severity_is_left_out_where_all_scores_are_equal(tmp_path):
    outcomes = OUTCOMES_HEAD + "101,6,1,5,-1,0\n"
    info, _, labels = import_text(tmp_path, {"1.txt": record(101), "o.txt": outcomes})
    assert [task.name for task in info.tasks] == ["mortality", "icu_type"]
    assert "severity" not in labels.columns


def test_stays_that_were_never_measured_are_kept_and_counted(tmp_path):
    files = {
        "1.txt": record(101, weight=75),
        "2.txt": record(102, "01:00,HR,80"),
        "3.txt": record(103),
        "o.txt": OUTCOMES,
    }
    info, series, labels = import_text(tmp_path, files)
    assert labels.height == 3
    assert series.height == 3 * 48
    assert info.dropped["stays without any measurement after admission: kept, missing throughout"] == 2


def test_a_record_without_outcome_has_no_label_and_an_outcome_without_record_is_counted(tmp_path):
    info, _, labels = import_text(tmp_path, {"1.txt": record(101), "9.txt": record(999, icu=1), "o.txt": OUTCOMES})
    assert labels["sample"].to_list() == [101, 999]
    assert labels["mortality"].to_list() == [0, None]
    assert labels["icu_type"].to_list() == [3, 0]
    assert info.dropped["records without an outcome: kept, without mortality, severity and scores"] == 1
    assert info.dropped["outcomes without a record: left out"] == 3


def test_rows_that_cannot_be_read_are_counted_and_cost_no_other_row(tmp_path):
    rows = (
        "01:00,,-1",
        "01:10,Foo,3",
        "01:20,HR,abc",
        "01:30,HR",
        "",
        "   ",
        "01:40,HR,1,2",
        '01:50,"HR,3',
        "02:00,HR,inf",
    )
    rows += ("03:00,HR,80",)
    files = {"1.txt": record(101, *rows), "2.txt": record(102, "04:00,HR,90"), "o.txt": OUTCOMES}
    files["3.txt"] = record(103).encode() + b"05:00,HR,\xff\n"
    files["4.txt"] = HEAD + "00:00,Age,3\n"
    info, series, labels = import_text(tmp_path, files)
    assert value(series, 101, 3, "HR") == 80.0
    assert value(series, 102, 4, "HR") == 90.0
    assert series["HR"].drop_nulls().len() == 2
    assert labels["sample"].to_list() == [101, 102]
    assert info.dropped["rows with an empty parameter name: left out"] == 1
    assert info.dropped["rows with an unknown parameter name: left out"] == 2
    assert info.dropped["rows that are not `HH:MM,Parameter,number`: left out"] == 5
    assert info.dropped["files that are not UTF-8 text: left out"] == 1
    assert info.dropped["records without a usable header or RecordID: left out"] == 1


def test_line_ends_byte_order_marks_and_litter_change_nothing(tmp_path):
    files = tiny_set()
    plain, series, _ = import_text(tmp_path, files, "plain")
    odd = {f"deep/er/{name}": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() for name, text in files.items()}
    odd |= {
        "deep/._101.txt": b"\x00\x05\x16\x07litter",
        "README.md": "not a record",
        "deep/notes.txt": "",
        "x.bin": b"\x00",
    }
    info, odd_series, _ = import_text(tmp_path, odd, "odd")
    assert odd_series.equals(series)
    left_out = {"files of another kind (told by their first line): left out": 4}
    assert info.dropped == plain.dropped | left_out


def test_the_same_stay_twice_is_read_once_and_refused_if_it_differs(tmp_path):
    files = tiny_set()
    _, series, labels = import_text(tmp_path, files, "once")
    _, twice, labels_twice = import_text(tmp_path, files | {"copy/101.txt": files["set-a/101.txt"]}, "twice")
    assert twice.equals(series)
    assert labels_twice.equals(labels)
    with pytest.raises(CohortError, match="RecordID 101 occurs twice with different content"):
        import_text(tmp_path, files | {"copy/101.txt": record(101, "00:07,HR,74")}, "other")
    with pytest.raises(CohortError, match="two different outcomes for RecordID 102;"):
        import_text(tmp_path, files | {"o.txt": OUTCOMES_HEAD + "102,16,8,8,4,0\n"}, "outcomes")
    with pytest.raises(CohortError, match="the file of RecordID 101 names another RecordID too"):
        import_text(tmp_path, files | {"set-a/101.txt": record(101, "01:00,RecordID,102")}, "joined")


def test_missing_parts_are_one_clear_line(tmp_path):
    files = tiny_set()
    records = {name: text for name, text in files.items() if "Outcomes" not in name}
    cases = {
        "no outcomes in .*: got 4 records": records,
        "no records in ": {"Outcomes-a.txt": OUTCOMES},
        "none of the 1 records has a row in Outcomes-b.txt": {
            "1.txt": record(101),
            "Outcomes-b.txt": OUTCOMES_HEAD + "7,1,1,1,1,0",
        },
        "no column In-hospital_death": {**records, "o.txt": "RecordID,SAPS-I,SOFA\n101,6,1\n"},
    }
    for place, (message, content) in enumerate(cases.items()):
        with pytest.raises(CohortError, match=message) as caught:
            import_text(tmp_path, content, f"case-{place}")
        assert "\n" not in str(caught.value)
    with pytest.raises(CohortError, match="does not exist"):
        write_cohort(tmp_path / "out", *read_physionet2012([tmp_path / "nowhere"]))
    with pytest.raises(CohortError, match="no path given"):
        write_cohort(tmp_path / "out", *read_physionet2012([]))
    import_text(tmp_path, files, "first")
    with pytest.raises(CohortError, match="holds a cohort already"):
        write_cohort(tmp_path / "first", *read_physionet2012([tmp_path / "first-source"]))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_an_archive_cut_short_is_refused(tmp_path, kind, share):
    files = {f"set-a/{sample}.txt": record(sample, f"01:00,HR,{sample}") for sample in range(101, 140)}
    files |= {"Outcomes-a.txt": OUTCOMES}
    whole = tmp_path / f"set.{kind}"
    write_zip(files, whole) if kind == "zip" else write_tar(files, whole, f"w:{kind[4:]}")
    data = whole.read_bytes()
    size = int(len(data) * share)
    if kind == "tar":
        size -= size % 1024  # header and content of one record: a cut between two members is noticed too
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(data[:size])
    with pytest.raises(CohortError, match="cannot be read to its end") as caught:
        write_cohort(tmp_path / "out", *read_physionet2012([cut]))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_damaged_archive_is_refused(tmp_path, pack):
    write_tar(tiny_set(), tmp_path / "set.tar", "w")
    data = bytearray((tmp_path / "set.tar").read_bytes())
    data[1024 : 1024 + 512] = b"\xff" * 512  # the header of the second member
    (tmp_path / "set.tar.z").write_bytes(pack(bytes(data)))
    with pytest.raises(CohortError, match="cannot be read to its end"):
        write_cohort(tmp_path / "out", *read_physionet2012([tmp_path / "set.tar.z"]))
    (tmp_path / "text.gz").write_bytes(pack(b"hello"))
    with pytest.raises(CohortError, match="cannot be read to its end"):
        write_cohort(tmp_path / "out", *read_physionet2012([tmp_path / "text.gz"]))


def test_hostile_members_of_an_archive_are_passed_over(tmp_path):
    """Links and devices are counted; a name that climbs out of the folder is only a name."""
    outside = tmp_path / "outside.txt"
    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in {**tiny_set(), "../../outside.txt": record(105, "00:07,HR,99")}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
        for name, kind in (
            ("link", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("null", tarfile.CHRTYPE),
            ("p", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    info = write_cohort(tmp_path / "out", *read_physionet2012([path]))
    assert info.dropped["links, devices and other members that are no plain file: left out"] == 4
    assert pl.read_parquet(tmp_path / "out" / "labels.parquet")["sample"].to_list() == [101, 102, 103, 104, 105]
    assert not outside.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set.tar.gz"]


def test_links_in_a_zip_and_pipes_in_a_folder_are_passed_over(tmp_path):
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(link, HEAD)
        archive.writestr("1.txt", HEAD)
    folder = write_folder({"1.txt": HEAD}, tmp_path / "folder")
    os.mkfifo(folder / "pipe")
    for source in (tmp_path / "set.zip", folder):
        left_out = Counter()
        assert list(read_files([source], heads=(b"Time",), left_out=left_out)) == [("1.txt", HEAD.encode())]
        assert left_out == {"links, devices and other members that are no plain file: left out": 1}


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path):
    bomb = {"set-a/1.txt": HEAD + "\n" * 3_000_000}
    sources = [write_tar(bomb, tmp_path / "b.tar.xz", "w:xz"), write_zip(bomb, tmp_path / "b.zip")]
    sources.append(write_folder(bomb, tmp_path / "folder"))
    for source in sources:
        with pytest.raises(CohortError, match="holds more than the 1,000,000 bytes"):
            list(read_files([source], heads=(b"Time",), left_out=Counter(), max_bytes=1_000_000))


def test_set_a_as_published(tmp_path, shared_data):
    """Counts that the data's own description and the project's notes state."""
    archive = shared_data / "physionet2012-set-a.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    info = write_cohort(tmp_path / "a", *read_physionet2012([archive]))
    labels = pl.read_parquet(tmp_path / "a" / "labels.parquet")
    series = pl.read_parquet(tmp_path / "a" / "series.parquet")
    assert labels.height == 4000
    assert labels["mortality"].sum() == 554
    assert labels["icu_type"].value_counts().sort("icu_type")["count"].to_list() == [577, 874, 1481, 1068]
    assert labels["saps_i"].null_count() == labels["severity"].null_count() == 190
    assert len(info.task("severity").classes) == 4
    assert info.dropped["Height -1 (unknown): set to missing"] == 1894
    assert info.dropped["stays without any measurement after admission: kept, missing throughout"] == 3
    measured = series.group_by("sample").agg(
        pl.any_horizontal(pl.col(p.name).is_not_null().any() for p in SERIES).alias("any")
    )
    assert sorted(measured.filter(~pl.col("any"))["sample"]) == [140501, 140936, 141264]
    observed = sum(series[parameter.name].count() for parameter in SERIES) / (series.height * len(SERIES))
    assert observed == pytest.approx(0.20, abs=0.005)


def test_set_a_agrees_with_a_slow_reading_of_some_stays(tmp_path, shared_data):
    """The twin: a loop over rows and a dictionary of cells."""
    archive = shared_data / "physionet2012-set-a.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    write_cohort(tmp_path / "a", *read_physionet2012([archive]))
    ranges = {parameter.name: parameter for parameter in SERIES + CONSTANT}
    constant = {parameter.name for parameter in CONSTANT}
    cells = {}
    chosen = set()
    with tarfile.open(archive, "r|xz") as tar:
        for place, member in enumerate(tar):
            if place % 100 or not member.isfile() or "Outcomes" in member.name:
                continue
            lines = tar.extractfile(member).read().decode().splitlines()
            sample = int(lines[1].split(",")[2])
            chosen.add(sample)
            for line in lines[1:]:
                time, name, text = line.split(",")
                if name not in ranges or float(text) == -1 or not ranges[name].low <= float(text) <= ranges[name].high:
                    continue
                for step in range(48) if name in constant else [min(int(time[:2]), 47)]:
                    cells[sample, step, name] = float(np.float32(text))
    series = pl.read_parquet(tmp_path / "a" / "series.parquet").filter(pl.col("sample").is_in(list(chosen)))
    long = series.unpivot(index=["sample", "step"], variable_name="name").drop_nulls()
    assert len(chosen) >= 39
    assert dict(zip(long.select("sample", "step", "name").rows(), long["value"], strict=True)) == cells


def test_set_b_and_both_sets_together(tmp_path, shared_data):
    paths = [shared_data / f"physionet2012-set-{name}.tar.xz" for name in "ab"]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"not both of {paths}")
    info = write_cohort(tmp_path / "ab", *read_physionet2012(paths))
    labels = pl.read_parquet(tmp_path / "ab" / "labels.parquet")
    deaths = labels.group_by("set").agg(pl.len(), pl.col("mortality").sum()).sort("set").rows()
    assert deaths == [("a", 4000, 554), ("b", 4000, 568)]
    types = labels.filter(pl.col("set") == "b")["icu_type"].value_counts().sort("icu_type")["count"].to_list()
    assert types == [590, 782, 1436, 1192]
    assert info.dropped["WBC outside 0..1000: set to missing"] == 1


def test_the_import_benchmark_gives_medians_and_their_ratio(tmp_path):
    result = measure(write_tar(tiny_set(), tmp_path / "tiny.tar.xz", "w:xz"), repeats=2)
    assert result["ratio"] == pytest.approx(result["import_s"] / result["read_s"], rel=0.5)
    assert result["import_min_s"] <= result["import_s"] <= result["import_max_s"]
    assert json.loads(json.dumps(result)) == result
