"""Attention as Arrow files that every tool reads: schema, writer, reader.

Uncompressed Arrow IPC, nested fixed-size lists of float32, no extension type, plain utf8: the one encoding that
pyarrow and Polars map without a copy and that DuckDB, pandas, JavaScript and others open as it is. One record batch a
variant, at most 512 rows. Readers drop schema metadata, so everything in it also stands in run.json.
"""

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vmapens.atomic import atomic_path
from vmapens.errors import RunError, first_line

BATCH_ROWS = 512
"""Rows of one variant in a record batch, at most."""
METADATA_KEY = b"vmapens"
_BUFFER_BYTES = 2 << 20
_PUSHED_BYTES = 4 << 20


def nested(values: np.ndarray) -> pa.Array:
    """An array [S, ...] as S fixed-size lists of fixed-size lists, one level an axis; float32 stays where it is.

    >>> nested(np.zeros((2, 3, 4), np.float32)).type
    FixedSizeListType(fixed_size_list<item: fixed_size_list<item: float>[4]>[3])
    """
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def nested_type(leaf: pa.DataType, sizes: Sequence[int]) -> pa.DataType:
    """The Arrow type of one entry of `nested`: the first size is the outermost list."""
    for size in reversed(sizes):
        leaf = pa.list_(leaf, size)
    return leaf


def probability_type(outputs: int) -> pa.DataType:
    """Arrow type of a probability: one number for a binary task (C = 1), else a list of C."""
    return pa.float32() if outputs == 1 else nested_type(pa.float32(), (outputs,))


def attention_schema(sizes: Sequence[int], outputs: int, metadata: dict[str, Any]) -> pa.Schema:
    """Schema of an attention file.

    Args:
        sizes: Lengths of the attention's axes, (T, F) or (T,).
        outputs: C, as in `probability_type`.
        metadata: Stored as JSON under the key `vmapens`.
    """
    fields = [
        ("variant", pa.int32()),
        ("sample", pa.utf8()),
        ("y", pa.int32()),
        ("probability", probability_type(outputs)),
        ("attention", nested_type(pa.float32(), sizes)),
    ]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(metadata)})


class AttentionWriter:
    """Writes the rows of one variant after the other in a thread of its own; make it with `write_attention`.

    `write` returns before its part is on the disk, so that the caller can compute the next one meanwhile. It waits for
    the part before, so that there are never more than two: one that is written and one that is computed.
    """

    def __init__(self, sink: pa.OSFile, file: pa.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self._sink, self._file, self._schema = sink, file, schema
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="attention-writer")
        self._writing: Future[None] | None = None
        self._pushed = 0

    def write(
        self, first: int, samples: Sequence[str], y: np.ndarray, probability: np.ndarray, attention: np.ndarray
    ) -> None:
        """Write some samples of some variants; the arrays must stay as they are until the next call or the end.

        Args:
            first: Number of the first variant in the table; the others follow.
            samples: Ids, S of them.
            y: Labels [S].
            probability: [V, S] or [V, S, C], float32.
            attention: [V, S, T, F] or [V, S, T], float32.

        Raises:
            OSError: If the part before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, first, samples, y, probability, attention)

    def wait(self) -> None:
        """Return when all parts are written, or raise what writing them raised."""
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Let the part that is written come to its end, and take no more."""
        self._thread.shutdown()

    def _write(
        self, first: int, samples: Sequence[str], y: np.ndarray, probability: np.ndarray, attention: np.ndarray
    ) -> None:
        parts = [slice(start, start + BATCH_ROWS) for start in range(0, len(samples), BATCH_ROWS)]
        same = [(pa.array(samples[part], pa.utf8()), pa.array(y[part].astype(np.int32))) for part in parts]
        for place in range(len(attention)):
            for part, (ids, labels) in zip(parts, same, strict=True):
                # Arrays of their own: with a slice, Arrow writes some bytes of what follows it.
                variant = pa.array(np.full(len(ids), first + place, np.int32))
                columns = [variant, ids, labels, nested(probability[place, part]), nested(attention[place, part])]
                self._file.write_batch(pa.record_batch(columns, schema=self._schema))
                self._push()

    def _push(self) -> None:
        """Let the disk begin now: by itself the system would wait for more, and then for the flush at the end."""
        end = self._sink.tell()
        if end - self._pushed >= _PUSHED_BYTES and hasattr(os, "posix_fadvise"):
            # Linux starts to write the range out, and returns; pages that are not on the disk yet stay in memory.
            os.posix_fadvise(self._sink.fileno(), self._pushed, end - self._pushed, os.POSIX_FADV_DONTNEED)
            self._pushed = end


@contextmanager
def write_attention(path: Path, schema: pa.Schema) -> Iterator[AttentionWriter]:
    """Write an attention file atomically; nothing is left at `path` if the block fails or is interrupted."""
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.BufferedOutputStream(sink, _BUFFER_BYTES) as buffered,  # most pieces of a record batch are tiny
        pa.ipc.new_file(buffered, schema) as file,
        closing(AttentionWriter(sink, file, schema)) as writer,
    ):
        yield writer
        writer.wait()


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as an uncompressed Arrow file, atomically."""
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,  # named, the file would stay open as long as the writer lives
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Map an Arrow file into memory; no value is copied.

    Raises:
        RunError: If the file is missing, cut short or not Arrow.
    """
    with _readable(path):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
        return table


class AttentionFile:
    """An attention file mapped into memory: of the disk only the pages are read that hold what is asked for.

    The system is told to read nothing ahead, which around each row of one sample would be megabytes, and which ranges
    to fetch. (`pyarrow.memory_map` fetches whole record batches, so the mapping is made here.)

    Args:
        path: The file.
        first: Number of its first variant.
        variants: How many it holds.
        whole: All of it will be asked for, from front to back: then the system does read ahead.

    Raises:
        RunError: If the file is missing, cut short or not Arrow.
    """

    def __init__(self, path: Path, first: int, variants: int, *, whole: bool = False) -> None:
        self._path, self._first, self._whole = path, first, whole
        with _readable(path):
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped.madvise(mmap.MADV_SEQUENTIAL if whole else mmap.MADV_RANDOM)
            self._buffer = pa.py_buffer(self._mapped)
            self._file = pa.ipc.open_file(self._buffer)
            _check_schema(self._file.schema)
        self._batches = self._file.num_record_batches // variants

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file says of itself; see `attention_schema`."""
        with _readable(self._path):
            metadata: dict[str, Any] = dict(json.loads((self._file.schema.metadata or {}).get(METADATA_KEY, b"{}")))
            return metadata

    @property
    def samples(self) -> list[str]:
        """Ids of the rows of each variant."""
        return list(self._places)

    def rows(self, variant: int, samples: Sequence[str]) -> list[np.ndarray]:
        """Attention of some samples under one variant.

        Args:
            variant: Its number in the table.
            samples: Ids.

        Returns:
            For each an array [T, F] or [T] in the mapped memory, float32; its pages are on their way.

        Raises:
            RunError: If the file holds something else.
        """
        absent = [sample for sample in samples if sample not in self._places]
        if absent:
            raise RunError(f"{self._path} does not hold {', '.join(absent[:5])}, as the index says; was it changed?")
        places = [self._places[sample] for sample in samples]
        parts = {place // BATCH_ROWS for place in places}
        with _readable(self._path):
            attention = {part: to_numpy(self._batch(variant, part)["attention"]) for part in parts}
            rows = [attention[place // BATCH_ROWS][place % BATCH_ROWS] for place in places]
            if not self._whole:
                self._fetch(rows)
        return rows

    def _fetch(self, rows: list[np.ndarray]) -> None:
        """Ask the system for the pages of the rows, and do not wait for them."""
        stretches: list[list[int]] = []  # rows side by side are one
        for row in rows:
            start = row.ctypes.data - self._buffer.address
            if not stretches or stretches[-1][1] != start:
                stretches.append([start, start])
            stretches[-1][1] += row.nbytes
        for start, stop in stretches:
            page = start - start % mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_WILLNEED, page, stop - page)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where each sample stands among the rows of a variant: of each the same."""
        parts = [self._batch(self._first, part)["sample"] for part in range(self._batches)]
        with _readable(self._path):
            for ids in parts:
                ids.validate(full=True)
                if ids.null_count:
                    raise ValueError("a sample has no name")
        return {sample: place for place, sample in enumerate(chain.from_iterable(ids.to_pylist() for ids in parts))}

    def _batch(self, variant: int, part: int) -> pa.RecordBatch:
        with _readable(self._path):
            batch = self._file.get_batch((variant - self._first) * self._batches + part)
            batch.validate()
        if not len(batch) or batch["variant"][0].as_py() != variant:
            raise RunError(f"{self._path} does not hold variant {variant} where vmapens writes it; was it changed?")
        return batch


_UNREADABLE = (OSError, ValueError, TypeError, LookupError, RecursionError, MemoryError, pa.ArrowException)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say in one line what to do about a file that cannot be read inside the block."""
    try:
        yield
    except _UNREADABLE as error:
        raise RunError(
            f"{path} is not a whole Arrow file ({first_line(error)}); "
            "remove the folder `attention` of the run and run `vmapens attend` again."
        ) from error


def _check_schema(schema: pa.Schema) -> None:
    leaf = attention = schema.field("attention").type
    while pa.types.is_fixed_size_list(leaf):
        leaf = leaf.value_type
    kinds = [schema.field("variant").type, schema.field("sample").type, leaf]
    if kinds != [pa.int32(), pa.utf8(), pa.float32()] or leaf == attention:
        raise ValueError("its columns are not those of attention")


def to_numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Nested fixed-size lists as one array [rows, ...]; without a copy where the column is one chunk."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = []
    for chunk in chunks:
        sizes, leaf = [len(chunk)], chunk
        while pa.types.is_fixed_size_list(leaf.type):
            sizes.append(leaf.type.list_size)
            leaf = leaf.flatten()
        arrays.append(leaf.to_numpy(zero_copy_only=not pa.types.is_boolean(leaf.type)).reshape(sizes))
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
