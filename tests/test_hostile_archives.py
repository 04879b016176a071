"""Archives and tensors that mean harm: one line or a right cohort; no code is run, nothing lands outside."""

import functools
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hostile import damaged, ends_well, examples, names
from hypothesis import given
from hypothesis import strategies as st
from test_physionet2012 import HEAD, OUTCOMES, record, tiny_set, write_folder, write_tar, write_zip

from vmapens.cohort.describe import describe_cohort
from vmapens.cohort.importers.archive import read_files
from vmapens.cohort.importers.physionet2012 import read_physionet2012
from vmapens.cohort.importers.tensors import read_tensors
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError


class Code:
    """What a hostile pickle is made of: reading it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.fixture
def place(tmp_path):
    """A folder of its own for each drawn example."""
    counter = iter(range(10**9))

    def make():
        folder = tmp_path / str(next(counter))
        folder.mkdir()
        return folder

    return make


def physionet(source):
    """Import a set; what comes out can be described."""
    out = source.parent / "out"
    return ends_well(
        lambda: (write_cohort(out, *read_physionet2012([source])), describe_cohort(out)), source.parent, out
    )


def tensors(source):
    out = source.parent / "out"
    return ends_well(lambda: (write_cohort(out, *read_tensors([source])), describe_cohort(out)), source.parent, out)


@functools.cache
def packed():
    """The tiny set in every kind of archive."""
    files = tiny_set()
    with tempfile.TemporaryDirectory() as folder:
        made = [write_tar(files, Path(folder, f"set.{kind}"), f"w:{kind}") for kind in ("", "gz", "xz", "bz2")]
        made.append(write_zip(files, Path(folder, "set.zip")))
        return {path.name: path.read_bytes() for path in made}


@examples(150)
@given(data=st.data(), kind=st.sampled_from(sorted(packed())))
def test_damaged_archives_are_one_line_or_a_cohort(place, data, kind):
    source = place() / kind
    source.write_bytes(data.draw(damaged(packed()[kind])))
    physionet(source)


_TEXTS = [
    record(101, "00:07,HR,73"),
    record(101, "00:08,HR,73"),
    record(102, "01:00,HR,1e400", "01:00,HR,nan", "x,y"),
    record(103, '00:00,"HR', "00:00,\0,1"),
    OUTCOMES,
    OUTCOMES.replace("101", "9" * 30),
    OUTCOMES.replace(",0\n", ",\n"),
    OUTCOMES.replace("SOFA", "SAPS-I"),
    HEAD,
    HEAD + "00:00,RecordID,7\n" * 3,
    HEAD + "00:00,RecordID,7,8\n",
    "\ufeff" + HEAD,
    "",
]
texts = st.sampled_from(_TEXTS)
kinds = st.sampled_from([tarfile.REGTYPE] * 6 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
kinds |= st.sampled_from([tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, b"Z"])
paths = names | st.sampled_from(
    ["../../outside", "/tmp/outside", "..", "C:\\x", "set/1.txt", "Outcomes-a.txt", "Outcomes-é.txt"]
)
members = st.lists(st.tuples(paths, texts, kinds, st.sampled_from([0, 0, 0, 0, 1, -1, 10**9, 2**40])), max_size=6)


@examples(60)
@given(
    members=members, mode=st.sampled_from(["w", "w:gz"]), form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
)
def test_members_of_any_name_kind_and_size_stay_inside_a_tar(place, members, mode, form):
    source = place() / "set.tar"
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=form) as tar:
        for name, text, kind, more in [("o.txt", OUTCOMES, tarfile.REGTYPE, 0), *members]:
            member = tarfile.TarInfo(name.replace("\0", ""))
            member.type, member.linkname = kind, "/etc/passwd"
            data = text.encode()
            member.size = max(0, len(data) + more) if kind == tarfile.REGTYPE else 0
            tar.addfile(member)
            tar.fileobj.write(data + bytes(-len(data) % 512) if kind == tarfile.REGTYPE else b"")
    source.write_bytes(sink.getvalue())
    physionet(source)


@examples(100)
@given(members=members)
def test_members_of_any_name_kind_and_size_stay_inside_a_zip(place, members):
    source = place() / "set.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text, kind, more in [("o.txt", OUTCOMES, tarfile.REGTYPE, 0), *members]:
            member = zipfile.ZipInfo(name or "x")
            member.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
            if member.filename not in archive.namelist():
                archive.writestr(member, text)
            member.file_size = min(max(0, member.file_size + more), 2**32 - 2)
    physionet(source)


def test_a_zip_member_without_a_name_is_read_as_any_other(place, monkeypatch):
    source = place() / "set.zip"
    with monkeypatch.context() as patch, zipfile.ZipFile(source, "w") as archive:
        patch.setattr(zipfile.ZipInfo, "is_dir", lambda member: False)
        for name, text in {**tiny_set(), "x": record(105)}.items():
            member = zipfile.ZipInfo(name)
            member.filename = name.removeprefix("x")
            archive.writestr(member, text)
    assert physionet(source)[1].samples == 5


def zip_that_says(path, name, text, size):
    """A zip of one member that claims another size than it has."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, size)
    path.write_bytes(data)
    return path


def test_a_zip_that_unpacks_to_more_than_the_limit_is_refused_before_it_is_unpacked(place, monkeypatch):
    """Deflate packs a thousandfold: nothing may be asked of it in one piece."""
    most = 0
    decompress = zlib.decompressobj

    class Watched:
        def __init__(self, *arguments):
            self.inner = decompress(*arguments)

        def decompress(self, data, limit=0):
            nonlocal most
            found = self.inner.decompress(data, limit)
            most = max(most, len(found))
            return found

        def __getattr__(self, name):
            return getattr(self.inner, name)

    source = zip_that_says(place() / "set.zip", "1.txt", HEAD + "\n" * 50_000_000, 50_000_020)
    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(CohortError, match="holds more than the 1,000,000 bytes that one import reads; is it the right"):
        list(read_files([source], heads=(b"Time",), left_out=Counter(), max_bytes=1_000_000))
    assert 0 < most <= 1_000_000


@pytest.mark.parametrize("size", [0, 5, 2**31, 2**32 - 2])
def test_a_zip_member_that_lies_about_its_size_is_one_line(place, size):
    source = zip_that_says(place() / "set.zip", "1.txt", record(101, "00:07,HR,73"), size)
    assert physionet(source) is None


@functools.cache
def good_tensors():
    x, y = torch.arange(24.0).reshape(4, 3, 2), torch.tensor([0, 1, 0, 1])
    made = {}
    for name, save in {
        "new.pt": lambda sink: torch.save({"x": x, "y": y, "ids": torch.arange(4)}, sink),
        "old.pt": lambda sink: torch.save({"x": x, "y": y}, sink, _use_new_zipfile_serialization=False),
        "plain.npz": lambda sink: np.savez(sink, x=x, y=y, feature_names=["a", "b"], ids=["a", "b", "c", "d"]),
        "packed.npz": lambda sink: np.savez_compressed(sink, x=x, y=y, split=["train", "val", "test", "test"]),
    }.items():
        sink = io.BytesIO()
        save(sink)
        made[name] = sink.getvalue()
    return made


@pytest.mark.parametrize("kind", sorted(good_tensors()))
def test_the_tensors_that_are_spoilt_below_are_good(place, kind):
    source = place() / kind
    source.write_bytes(good_tensors()[kind])
    assert tensors(source) is not None


@examples(200)
@given(data=st.data(), kind=st.sampled_from(sorted(good_tensors())))
def test_damaged_tensors_are_one_line_or_a_cohort(place, data, kind):
    source = place() / kind
    source.write_bytes(data.draw(damaged(good_tensors()[kind])))
    tensors(source)


X, Y = torch.arange(24.0).reshape(4, 3, 2), torch.tensor([0, 1, 0, 1])
values = st.sampled_from(
    [
        X.double() * 1e300,
        X.half(),
        X.bfloat16(),
        X.to(torch.float8_e4m3fn),
        X.to(torch.complex64),
        X.bool(),
        X.to_sparse(),
        X.to("meta"),
        X.clone().requires_grad_(),
        torch.zeros(1).expand(10**6, 10**6, 10**3),
        torch.empty(0, 3, 2),
        torch.zeros(4, 0, 2),
        torch.full((4, 3, 2), torch.nan),
        torch.zeros(()),
        Y,
        Y.double() * 0.5,
        torch.tensor([2**63 - 1, -(2**63), 0, 1]),
        torch.tensor([2**64 - 1, 2, 0, 1], dtype=torch.uint64),
        torch.tensor([0.0, torch.nan, torch.inf, 1]),
        torch.tensor([1, 1, 1, 1], dtype=torch.uint8),
        ["a", "b"],
        ["a\nb", "*"],
        ["^.*$", ""],
        ["\ud800", "x"],
        ["x", "y", "step", "../x"],
        ["9" * 5000, "1", "2", "3"],
        ["train", "val", "TEST", "train"],
        {},
        [],
        None,
        3,
        "text",
    ]
)
keys = st.sampled_from(["x", "y", "ids", "group", "split", "feature_names", "x_train", "y_train"])
keys |= st.sampled_from(["\n", "", "samples", "a b", "patients", "y_held_out"])


@examples(200)
@given(
    more=st.dictionaries(keys, values, max_size=3), task=names, minutes=st.sampled_from([60.0] * 5 + [0, 1e-300, 1e300])
)
def test_tensors_of_any_type_are_one_line_or_a_cohort(place, more, task, minutes):
    folder = place()
    torch.save({"x": X, "y": Y, **more}, folder / "all.pt")
    out = folder / "out"

    def read():
        write_cohort(out, *read_tensors([folder / "all.pt"], task=task, minutes_per_step=minutes))
        return describe_cohort(out)

    found = ends_well(read, folder, out)
    assert found is None or pl.read_parquet(out / "series.parquet").height == found.samples * found.steps


@pytest.mark.parametrize(
    "array",
    [
        np.array([Code("ran")] * 4, dtype=object),
        np.array(["2026-01-01"] * 4, dtype="M8[D]"),
        np.array([(1, 2.0)] * 4, dtype=[("a", "i4"), ("b", "f8")]),
        np.array([b"a"] * 4),
        np.frombuffer(b"\x00\xd8\x00\x00" * 4, dtype="<U1"),
        np.frombuffer(b"\xff\xff\xff\xff" * 4, dtype="<U1"),
        np.zeros(4, dtype="V3"),
        np.zeros(4, dtype="g"),
        np.zeros((4, 1, 1, 1)),
    ],
    ids=lambda array: str(array.dtype),
)
@pytest.mark.parametrize("name", ["y", "ids", "group", "feature_names", "split"])
def test_arrays_of_any_type_are_one_line_or_a_cohort(place, monkeypatch, array, name):
    folder = place()
    monkeypatch.chdir(folder)
    np.savez(folder / "all.npz", **{"x": X, "y": Y, name: array})
    tensors(folder / "all.npz")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["a.pt", "a.npz", "a.parquet", "a.tar.gz", "Outcomes-a.txt", "a.toml", "cohort.json"])
def test_a_pickle_under_any_name_is_never_run(place, name):
    folder = place()
    bomb = pickle.dumps(Code(folder / "ran"))
    forms = {"plain": bomb, "gz": gzip.compress(bomb)}
    for kind in ("torch", "numpy", "old"):
        sink = io.BytesIO()
        if kind == "numpy":
            np.savez(sink, x=np.array([Code(folder / "ran")], dtype=object))
        else:
            torch.save(Code(folder / "ran"), sink, _use_new_zipfile_serialization=kind == "torch")
        forms[kind] = sink.getvalue()
    for data in forms.values():
        (folder / name).write_bytes(data)
        for action in (physionet, tensors):
            assert action(folder / name) is None
        assert ends_well(lambda: describe_cohort(folder / name), folder) is None
    assert not (folder / "ran").exists()
    pickle.loads(bomb)  # the code would have run
    assert (folder / "ran").exists()


def test_a_header_that_claims_a_petabyte_is_refused(place):
    folder = place()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**5, 10**5, 10**5)}
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, header)
    with zipfile.ZipFile(folder / "all.npz", "w") as archive:
        archive.writestr("x.npy", sink.getvalue() + bytes(96))
    with pytest.raises(CohortError, match="is cut short or holds more than plain arrays"):
        write_cohort(folder / "out", *read_tensors([folder / "all.npz"]))


@pytest.mark.parametrize("name", ["all.npz", "all.pt"])
def test_what_unpacks_to_more_than_the_memory_is_refused_before_it_is_unpacked(place, name, monkeypatch):
    folder = place()
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(2 * 2**20))
    monkeypatch.setattr("vmapens.cohort.importers.tensor_files.free_memory", lambda: 2**20)
    monkeypatch.setattr("vmapens.cohort.importers.tensor_files._load", None)
    assert (folder / name).stat().st_size < 10_000
    with pytest.raises(CohortError, match=r"unpacks to 0\.0 GiB, of which 0\.0 are free; is it the right file\?"):
        write_cohort(folder / "out", *read_tensors([folder / name]))


@examples(60)
@given(
    lines=st.lists(
        st.text("0123456789:,.-eHRNaTimp\t \"'\0é", max_size=14) | st.sampled_from(["00:00,HR,73"]), max_size=8
    ),
    outcomes=st.lists(st.text("0123456789,-", max_size=16) | st.sampled_from(["101,6,1,5,-1,0"]), max_size=4),
    head=st.sampled_from(["", "RecordID,SAPS-I\n", OUTCOMES.partition("\n")[0] + "\n"]),
)
def test_records_of_any_text_are_one_line_or_a_cohort(place, lines, outcomes, head):
    folder = place()
    files = {"1.txt": record(101, *lines), "Outcomes-a.txt": (head or OUTCOMES) + "\n".join(outcomes)}
    physionet(write_folder(files, folder / "set"))


def test_a_description_in_json_is_plain(place):
    """Whatever the importer counted, `--json` can print it."""
    folder = place()
    found = physionet(write_folder(tiny_set(), folder / "set"))
    assert json.loads(json.dumps(found[1].table()))["samples"] == 4
