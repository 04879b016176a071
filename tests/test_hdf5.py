"""HDF5: what lies in the file is read, all else is refused in one line."""

import os
import sys

import h5py
import hdf5plugin
import numpy as np
import pytest
from hostile import TIMES, ends_well

from vmapens.cohort.importers import hdf5
from vmapens.cohort.importers.hdf5 import open_hdf5
from vmapens.errors import CohortError

COMPRESSIONS = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "blosc": dict(hdf5plugin.Blosc(cname="lz4", clevel=5)),
    "zstd": dict(hdf5plugin.Zstd()),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


def made(path, fill):
    """A file with what `fill` puts into it."""
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def refused(path, action, message):
    """See that reading ends in one line that names the file."""
    with pytest.raises(CohortError, match=message) as caught, open_hdf5(path) as file:
        action(file)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["f8", "f4", "f2", ">f8", "i8", "u1", "?"])
def test_rows_arrive_unchanged_whatever_their_type_and_compression(path, kind, compression):
    values = (np.arange(700).reshape(50, 7, 2) % 5).astype(kind)
    made(path, lambda file: file.create_dataset("a/b", data=values, chunks=(8, 7, 2), **COMPRESSIONS[compression]))
    with open_hdf5(path) as file:
        array = file.array("a/b")
        assert (array.name, array.shape, array.dtype, array.nbytes) == ("a/b", (50, 7, 2), values.dtype, values.nbytes)
        for start, stop in ((0, None), (0, 50), (3, 29), (49, 50), (7, 7)):
            assert np.array_equal(array.read(start, stop), values[start:stop])
            assert array.read(start, stop).dtype == values.dtype


def test_texts_of_fixed_and_of_any_length_arrive_as_texts(path):
    names = ["hr", "Größe", ""]

    def fill(file):
        file["fixed"] = np.array([name.encode() for name in names])  # as PyTables writes UTF-8: marked as ASCII
        file.create_dataset("utf", data=[name.encode() for name in names], dtype=h5py.string_dtype("utf-8", 10))
        file["any"] = names
        file["bytes"] = np.array([b"a", b"b"], dtype=h5py.string_dtype("ascii"))

    with open_hdf5(made(path, fill)) as file:
        for name in ("fixed", "utf", "any"):
            assert file.array(name).dtype.kind == file.array(name).read().dtype.kind == "U"
            assert file.array(name).read().tolist() == names
        assert file.array("bytes").read().tolist() == ["a", "b"]
        assert file.array("any").read(1, 2).tolist() == ["Größe"]


def test_all_arrays_are_found_once_also_where_a_group_holds_itself(path):
    def fill(file):
        file["train/X"] = np.zeros((2, 3, 4))
        file["train/y"] = np.zeros(2)
        file["n_steps"] = 3
        file["train/again"] = file["/"]
        file["none"] = h5py.Empty("f4")

    with open_hdf5(made(path, fill)) as file:
        found = {array.name: array.shape for array in file.arrays()}
        assert found == {"n_steps": (), "none": (), "train/X": (2, 3, 4), "train/y": (2,)}
        with pytest.raises(CohortError, match="`n_steps` is a single value"):
            file.array("n_steps").read()


def test_what_leads_out_of_the_file_is_refused_and_not_touched(path, tmp_path):
    """A pipe that nobody writes to stands for the other file: who opens it waits for ever."""
    os.mkfifo(pipe := str(tmp_path / "pipe"))
    virtual = h5py.VirtualLayout((3,), dtype="f8")
    virtual[:] = h5py.VirtualSource(pipe, "x", shape=(3,))
    growing = h5py.VirtualLayout((3,), dtype="f8", maxshape=(None,))
    source = h5py.VirtualSource(pipe, "x", shape=(3,), maxshape=(None,))
    growing[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    cases = {
        "soft": lambda file: file.update({"x": np.zeros(3), "soft": h5py.SoftLink("/x")}),
        "outer": lambda file: file.update({"outer": h5py.ExternalLink(pipe, "/x")}),
        "virtual": lambda file: file.create_virtual_dataset("virtual", virtual),
        "growing": lambda file: file.create_virtual_dataset("growing", growing),
        "raw": lambda file: file.create_dataset("raw", (3,), "f8", external=[(pipe, 0, 24)]),
    }
    for name, fill in cases.items():
        made(path, fill)
        message = f"`{name}` is a link|the data of `{name}` are in another file"
        refused(path, lambda file, name=name: file.array(name), message)
        refused(path, lambda file: file.arrays(), message)
    made(path, lambda file: file.update({"outer": h5py.ExternalLink(pipe, "/")}))
    refused(path, lambda file: file.array("outer/x"), "`outer` is a link to elsewhere")


def test_what_is_neither_number_nor_text_is_refused(path):
    cases = {
        "references": lambda file: file.create_dataset("a", (2,), dtype=h5py.ref_dtype),
        "lists": lambda file: file.create_dataset("a", (2,), dtype=h5py.vlen_dtype(int)),
        "compound": lambda file: file.update({"a": np.zeros(2, [("b", "i4")])}),
        "complex": lambda file: file.update({"a": np.zeros(2, complex)}),
        "opaque": lambda file: file.update({"a": np.zeros(2, "V5")}),
        "a type": lambda file: file.update({"a": np.dtype("i4")}),
    }
    for fill in cases.values():
        made(path, fill)
        refused(
            path, lambda file: file.array("a"), r"`a` is (of type .*, wanted numbers or texts|a type, wanted an array)"
        )
        refused(path, lambda file: file.arrays(), "leave it out")


def test_names_that_are_not_there_say_what_is(path):
    made(path, lambda file: file.update({"data/train": np.zeros(2), "n": 1}))
    refused(path, lambda file: file.array("data/test"), r"has no `data/test` \(`/data` has train\)")
    refused(path, lambda file: file.array("labels/test"), r"has no `labels` \(`/` has data, n\)")
    refused(path, lambda file: file.array("n/test"), r"has no `n/test` \(`/n` has no group\)")
    refused(path, lambda file: file.array("data"), "`data` is no array")


def test_an_unknown_compression_is_named(path):
    values = np.zeros(64)
    made(path, lambda file: file.create_dataset("a", data=values, chunks=(8,), **hdf5plugin.Zstd(clevel=3)))
    number = (32015).to_bytes(2, "little")
    whole = path.read_bytes()
    assert whole.count(number) == 1
    path.write_bytes(whole.replace(number, (31999).to_bytes(2, "little")))
    refused(path, lambda file: file.array("a"), "`a` is compressed by filter 31999 .* which is not known here")


@pytest.mark.parametrize("kind", ["S2", h5py.string_dtype()])
def test_texts_that_are_no_utf_8_are_one_line(path, kind):
    made(path, lambda file: file.create_dataset("a", data=[b"\xff\xfe"], dtype=kind))
    refused(path, lambda file: file.array("a").read(), "`a` cannot be read as HDF5 .*codec can't decode")


def test_names_that_are_no_utf_8_are_one_line(path):
    made(path, lambda file: file.update({b"tr\xff": np.zeros(2)}))
    refused(path, lambda file: file.arrays(), "it cannot be read as HDF5 .*codec can't decode")
    refused(path, lambda file: file.array("a"), "has no `a`")


def test_a_heap_of_texts_that_the_library_never_leaves_is_one_line(path, monkeypatch):
    monkeypatch.setattr(hdf5, "_TEXT_SECONDS", 2.0)
    bad = bytearray(made(path, lambda file: file.update({"a": ["b", "c"]})).read_bytes())
    size_of_the_first = bad.index(b"GCOL") + 16 + 8
    assert int.from_bytes(bad[size_of_the_first : size_of_the_first + 8], "little") == 1
    bad[size_of_the_first] = 238
    path.write_bytes(bad)
    refused(path, lambda file: file.array("a").read(), r"`a` cannot be read as HDF5 \(no answer in 2 s\)")


def test_blosc_without_its_parameters_is_refused(path):
    """Reading such a chunk would end the process."""
    values = np.zeros(640)
    made(path, lambda file: file.create_dataset("a", data=values, chunks=(64,), **COMPRESSIONS["blosc"]))
    bad = bytearray(path.read_bytes())
    count = bad.index((32001).to_bytes(2, "little") + b"\x08\0") + 6
    assert bad[count] == 7
    bad[count] = 0
    path.write_bytes(bad)
    refused(path, lambda file: file.array("a"), r"`a` is compressed by filter 32001 \(blosc\), which is not known here")


def test_what_is_no_hdf5_file_is_one_line(path, tmp_path):
    refused(path, lambda file: None, "a.h5 does not exist")
    refused(tmp_path, lambda file: None, "is no file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", lambda file: None, "is no file")
    for content in (b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"x" * 5000):
        path.write_bytes(content)
        refused(path, lambda file: None, r"a\.h5: it cannot be read as HDF5 .*: of another kind, damaged or cut short")


def test_more_than_fits_in_memory_is_refused_before_it_is_read(path, monkeypatch):
    made(path, lambda file: file.create_dataset("a", (2**31, 2**10), "f8", chunks=(64, 64)))
    refused(path, lambda file: file.array("a").read(), r"`a` unpacks to 16384\.0 GiB")
    with open_hdf5(path) as file:
        assert not file.array("a").read(2**30, 2**30 + 10).any()
    made(path, lambda file: file.create_dataset("a", (2**31,), "f8", chunks=(2**28,)))
    monkeypatch.setattr(hdf5, "free_memory", lambda: 2**30)
    refused(path, lambda file: file.array("a"), r"`a` unpacks to 2\.0 GiB, of which 1\.0 are free")


def test_too_many_arrays_are_refused(path, monkeypatch):
    monkeypatch.setattr(hdf5, "MAX_OBJECTS", 5)
    made(path, lambda file: file.update({f"g{place}/a": np.zeros(1) for place in range(4)}))
    refused(path, lambda file: file.arrays(), "more than 5 arrays")


@pytest.mark.parametrize("module", ["h5py", "hdf5plugin"])
def test_without_the_extra_the_line_says_how_to_install_it(path, monkeypatch, module):
    made(path, lambda file: file.update({"a": np.zeros(2)}))
    monkeypatch.setitem(sys.modules, module, None)
    refused(path, lambda file: None, r"pip install 'vmapens\[hdf5\]'")


def test_reading_changes_no_byte(path):
    before = made(path, lambda file: file.update({"a": np.zeros(2)})).read_bytes()
    with open_hdf5(path) as file:
        file.array("a").read()
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a small file with groups, texts, and compressed chunks."""

    def fill(file):
        chunks = {"chunks": (4, 6, 4), **COMPRESSIONS["blosc"]}
        file.create_dataset("train/X", data=np.arange(240.0).reshape(10, 6, 4), **chunks)
        file.create_dataset("train/y", data=np.arange(10), compression="gzip")
        file["names"] = np.array([b"a", b"b"])

    return made(tmp_path_factory.mktemp("good") / "a.h5", fill).read_bytes()


def read_everything(path):
    with open_hdf5(path) as file:
        return [array.read() for array in file.arrays() if array.shape and array.nbytes < 2**20]


def test_every_cut_of_a_file_is_one_line(path, good):
    for length in range(0, len(good), 97):
        path.write_bytes(good[:length])
        assert ends_well(lambda: read_everything(path), path.parent) is None
    path.write_bytes(good)
    assert len(read_everything(path)) == 3


def test_any_damage_ends_well(path, good):
    for seed in range(200 * TIMES):
        generator = np.random.default_rng(seed)
        bad = np.frombuffer(good, dtype=np.uint8).copy()
        places = generator.integers(len(bad), size=generator.integers(1, 5))
        bad[places] = generator.choice([0, 1, 0x7F, 0x80, 0xFF, generator.integers(256)], size=len(places))
        path.write_bytes(bad.tobytes())
        ends_well(lambda: read_everything(path), path.parent)
