"""Attention files: written behind the caller's back, whole or absent, in the bytes of a plain writer."""

import errno
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

from vmapens import arrow
from vmapens.errors import OutputError

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
