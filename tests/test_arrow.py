"""Attention files: written behind the caller's back, whole or absent, and read page by page."""

import errno
import json
import os
import resource
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import vmapens
from benchmarks import attention_read, attention_write
from benchmarks.attention_read import make_run
from benchmarks.page_cache import forget, resident
from vmapens import arrow
from vmapens.errors import OutputError, RunError

PATIENCE = 20  # seconds after which a test that waits for a thread gives up


def values_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def arguments(attention: np.ndarray, outputs: int = 1):
    V, S = attention.shape[:2]
    probability = values_of(V, S) if outputs == 1 else values_of(V, S, outputs)
    return [f"stay-{number}" for number in range(S)], np.arange(S) % 2, probability, attention


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def writers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("attention-writer")]


def write_parts(path: Path, parts, sizes=(4, 5)) -> None:
    """Write pairs of a first variant and attention [V, S, T, F] as they come, and hold none of them."""
    with arrow.write_attention(path, arrow.attention_schema(sizes, 1, {})) as writer:
        for first, attention in parts:
            writer.write(first, *arguments(attention))
            del attention


def write_plainly(path: Path, schema: pa.Schema, samples, y, probability, attention) -> None:
    """The slow twin: one thread, rows of one variant after the other."""
    with pa.ipc.new_file(str(path), schema) as writer:
        for variant in range(len(attention)):
            for start in range(0, len(samples), 512):
                rows = range(start, min(start + 512, len(samples)))
                columns = {
                    "variant": [variant for _ in rows],
                    "sample": [samples[row] for row in rows],
                    "y": [int(y[row]) for row in rows],
                    "probability": [probability[variant, row].tolist() for row in rows],
                    "attention": [attention[variant, row].tolist() for row in rows],
                }
                arrays = [pa.array(columns[field.name], field.type) for field in schema]
                writer.write_batch(pa.record_batch(arrays, schema=schema))


@pytest.mark.parametrize(
    ("shape", "outputs"), [((1, 1, 1, 1), 1), ((5, 3, 4, 7), 1), ((2, 3, 5), 3), ((3, 1030, 2, 3), 1)]
)
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_file_is_the_bytes_of_a_plain_writer_however_it_is_handed_over(tmp_path, shape, outputs, at_once):
    samples, y, probability, attention = arguments(values_of(*shape), outputs)
    schema = arrow.attention_schema(shape[2:], outputs, {"format_version": 1})
    with arrow.write_attention(tmp_path / "a.arrow", schema) as writer:
        for first in range(0, len(attention), at_once):
            own = slice(first, first + at_once)
            writer.write(first, samples, y, probability[own], attention[own])
    write_plainly(tmp_path / "b.arrow", schema, samples, y, probability, attention)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


def test_rows_of_one_variant_may_come_in_whole_batches(tmp_path):
    samples, y, probability, attention = arguments(values_of(1, 1030, 2, 3))
    schema = arrow.attention_schema((2, 3), 1, {})
    with arrow.write_attention(tmp_path / "a.arrow", schema) as writer:
        for start in range(0, 1030, arrow.BATCH_ROWS):
            own = slice(start, start + arrow.BATCH_ROWS)
            writer.write(0, samples[own], y[own], probability[:, own], attention[:, own])
    write_plainly(tmp_path / "b.arrow", schema, samples, y, probability, attention)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


def test_a_part_is_written_while_the_caller_goes_on_and_the_next_waits_for_it(tmp_path, monkeypatch):
    begun, go_on, written = threading.Event(), threading.Event(), []

    def push(self):
        begun.set()
        assert go_on.wait(PATIENCE)
        written.append(threading.current_thread().name)

    monkeypatch.setattr(arrow.AttentionWriter, "_push", push)
    samples, y, probability, attention = arguments(values_of(2, 3, 4, 5))
    with arrow.write_attention(tmp_path / "a.arrow", arrow.attention_schema((4, 5), 1, {})) as writer:
        writer.write(0, samples, y, probability[:1], attention[:1])
        assert begun.wait(PATIENCE)
        assert written == []  # the call has returned before its part was written
        threading.Timer(0.2, go_on.set).start()
        writer.write(1, samples, y, probability[1:], attention[1:])
        assert len(written) >= 1  # the next one has not
    assert len(written) == 2
    assert {name.rpartition("_")[0] for name in written} == {"attention-writer"}
    assert writers() == []


def test_of_the_parts_two_are_alive_at_most(tmp_path, monkeypatch):
    alive: set[int] = set()
    counts = []

    def parts():
        for first in range(5):
            part = values_of(1, 3, 4, 5)
            alive.add(id(part))
            weakref.finalize(part, alive.remove, id(part))
            time.sleep(0.02)  # the thread lets go of a part a moment after it has said that it is written
            counts.append(len(alive))
            yield first, part
            del part

    monkeypatch.setattr(arrow.AttentionWriter, "_push", lambda writer: time.sleep(0.1))
    write_parts(tmp_path / "a.arrow", parts())
    assert counts == [1, 2, 2, 2, 2]
    assert len(arrow.read_table(tmp_path / "a.arrow")) == 15


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
def test_the_disk_is_told_to_begin_as_the_file_grows(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(arrow, "_PUSHED_BYTES", 30_000)
    monkeypatch.setattr(arrow, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: told.append((start, length)))
    write_parts(tmp_path / "a.arrow", ((first, values_of(1, 3, 40, 50)) for first in range(10)), (40, 50))
    ends = [start + length for start, length in told]
    assert [start for start, _ in told] == [0, *ends[:-1]]
    assert min(length for _, length in told) >= 30_000
    assert ends[-1] >= (tmp_path / "a.arrow").stat().st_size - 30_000
    assert len(told) == 5


def test_an_error_of_the_writer_surfaces_once_and_leaves_nothing(tmp_path, monkeypatch):
    handed = []

    def push(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def parts(count):
        for first in range(count):
            handed.append(first)
            yield first, values_of(1, 3, 4, 5)

    monkeypatch.setattr(arrow.AttentionWriter, "_push", push)
    with pytest.raises(OutputError, match=r"a\.arrow cannot be written: .*No space left on device"):
        write_parts(tmp_path / "a.arrow", parts(10))
    assert handed == [0, 1]  # the second was computed while the first could not be written
    with pytest.raises(OutputError, match="No space left"):
        write_parts(tmp_path / "a.arrow", parts(1))
    assert left_in(tmp_path) == []
    assert writers() == []


def test_a_file_that_the_system_cuts_short_is_one_line_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write_parts(tmp_path / "a.arrow", ((first, values_of(1, 3, 100, 50)) for first in range(4)), (100, 50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_or_interrupt_of_the_caller_waits_for_the_part_and_leaves_nothing(tmp_path, monkeypatch, kind):
    begun, log = threading.Event(), []
    push = arrow.AttentionWriter._push

    def slow_push(self):
        begun.set()
        time.sleep(0.2)
        push(self)
        log.append("written")

    def parts():
        yield 0, values_of(2, 3, 4, 5)
        assert begun.wait(PATIENCE)
        raise kind("no more")

    monkeypatch.setattr(arrow.AttentionWriter, "_push", slow_push)
    with pytest.raises(kind, match="no more"):
        write_parts(tmp_path / "a.arrow", parts())
    assert log == ["written", "written"]  # the file was not closed under the writer
    assert left_in(tmp_path) == []
    assert writers() == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_finished_file_is_closed_while_its_writer_still_has_a_name(tmp_path):
    with arrow.write_attention(tmp_path / "a.arrow", arrow.attention_schema((4, 5), 1, {})) as writer:
        writer.write(0, *arguments(values_of(1, 3, 4, 5)))
    open_files = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [name for name in open_files if name.startswith(str(tmp_path))]
    del writer


V, S, T, F = 7, 5, 40, 51  # 8160 bytes a row, so that rows begin anywhere in a page


@pytest.fixture
def attention():
    return values_of(V, S, T, F)


@pytest.fixture
def run(tmp_path, attention):
    return vmapens.open_run(make_run(tmp_path / "run", attention, block=4).root)


def test_any_samples_under_any_variants_are_what_was_written(run, attention):
    """The files hold every batch; `read_table` and `to_numpy` copy them whole: the slow twin."""
    tables = [arrow.read_table(run.paths.attention(start, stop, 0)) for start, stop in run.blocks]
    whole = np.concatenate([arrow.to_numpy(table["attention"]) for table in tables]).reshape(attention.shape)
    assert np.array_equal(whole, attention)
    assert np.array_equal(run.attention(), whole)
    assert np.array_equal(run.attention("stay-3"), whole[:, 3])
    assert np.array_equal(run.attention(["stay-4", "stay-0", "stay-4"]), whole[:, [4, 0, 4]])
    assert np.array_equal(run.attention(variants=6), whole[6])
    assert np.array_equal(run.attention(variants=[5, 1]), whole[[5, 1]])
    assert np.array_equal(run.attention("stay-2", 4), whole[4, 2])
    assert np.array_equal(run.attention(["stay-2"], range(3)), whole[:3, 2:3])


def test_samples_beyond_one_batch_and_in_several_parts_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "BATCH_ROWS", 2)
    attention = values_of(V, S, T)
    run = vmapens.open_run(make_run(tmp_path / "run", attention, block=3).root)
    assert np.array_equal(run.attention(), attention)
    assert np.array_equal(run.attention(["stay-4", "stay-1"], [6, 0]), attention[[6, 0]][:, [4, 1]])


def test_what_is_not_there_is_one_line(run):
    with pytest.raises(RunError, match=r"no attention is saved for 1 samples \(stay-9\)"):
        run.attention(["stay-1", "stay-9"])
    with pytest.raises(RunError, match="no attention is saved for any sample"):
        run.attention([])
    with pytest.raises(RunError, match=r"variant 7 is not in .*, which has 0 to 6"):
        run.attention(variants=[0, 7])
    with pytest.raises(RunError, match=r"variant -1 is not in"):
        run.attention("stay-1", -1)
    with pytest.raises(RunError, match=r"no variant .* is asked for"):
        run.attention(variants=[])


def test_a_file_that_is_not_the_one_written_is_refused(run, attention):
    path = run.paths.attention(4, 7, 0)
    path.write_bytes(b"")
    with pytest.raises(RunError, match="not a whole Arrow file"):
        run.attention(variants=5)
    path.write_bytes(run.paths.attention(0, 4, 0).read_bytes())
    with pytest.raises(RunError, match="does not hold variant 4"):
        run.attention("stay-0", variants=[5])
    path.unlink()
    assert np.array_equal(run.attention(variants=3), attention[3])  # no other block is opened
    with pytest.raises(RunError, match="not a whole Arrow file"):
        run.attention()


def pages_read(run, read) -> dict[Path, np.ndarray]:
    files = [run.paths.attention(start, stop, 0) for start, stop in run.blocks]
    for file in files:
        forget(file)
        if resident(file).any():
            pytest.skip(f"{file.parent} is on a file system that keeps files in memory: nothing is read from a disk")
    read()
    return {file: resident(file) for file in files}


def pages_of(file: Path, rows: list[np.ndarray], *, whole: bool = False) -> set[int]:
    """Pages that hold bytes of the rows, or nothing but such bytes; found by looking for the bytes."""
    held, size = file.read_bytes(), resource.getpagesize()
    pages: set[int] = set()
    for row in rows:
        start = held.index(row.tobytes())
        stop = start + row.nbytes
        pages |= set(range(-(-start // size), stop // size) if whole else range(start // size, -(-stop // size)))
    return pages


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages of a file are in memory")
@pytest.mark.parametrize(("sample", "variant"), [(2, None), (None, 5), (4, 0)])
def test_reading_takes_only_the_pages_that_hold_what_is_asked_for(run, attention, sample, variant):
    ids = None if sample is None else f"stay-{sample}"
    read = pages_read(run, lambda: run.attention(ids, variant))
    for (start, stop), pages in zip(run.blocks, read.values(), strict=True):
        file = run.paths.attention(start, stop, 0)
        rows = [(v, s) for v in range(start, stop) for s in range(S)]
        asked = [attention[v, s] for v, s in rows if sample in (None, s) and variant in (None, v)]
        others = [attention[v, s] for v, s in rows if not (sample in (None, s) and variant in (None, v))]
        taken = set(np.flatnonzero(pages).tolist())
        assert pages_of(file, asked) <= taken
        if not asked:
            assert not taken
        # What lies in no row are the headings of the batches, a page or two each; all else is somebody else's.
        assert not taken & (pages_of(file, others, whole=True) - pages_of(file, asked))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages of a file are in memory")
def test_the_whole_file_through_pyarrow_takes_every_page(run):
    """The count above can fail."""
    read = pages_read(run, lambda: arrow.to_numpy(arrow.read_table(run.paths.attention(0, 4, 0))["attention"]))
    assert read[run.paths.attention(0, 4, 0)].all()
    assert not read[run.paths.attention(4, 7, 0)].any()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages of a file are in memory")
@pytest.mark.parametrize("benchmark", [attention_write, attention_read])
def test_a_benchmark_prints_one_line_and_leaves_nothing(tmp_path, capsys, benchmark):
    sizes = {"variants": 16, "samples": 2, "steps": 5, "features": 4, "repeats": 1}
    try:
        benchmark.main(["--folder", str(tmp_path), *(f"--{name}={size}" for name, size in sizes.items())])
    except RuntimeError as error:
        pytest.skip(str(error))
    line = json.loads(capsys.readouterr().out)
    assert sizes.items() <= line.items()
    assert line.keys() >= {"benchmark", "peak_mib", "cores", "versions"}
    assert left_in(tmp_path) == []
