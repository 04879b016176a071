"""Attention as Arrow files that every tool reads: schema, writer, reader.

Uncompressed Arrow IPC, nested fixed-size lists of float32, no extension type, plain utf8: the one encoding that
pyarrow and Polars map without a copy and that DuckDB, pandas, JavaScript and others open as it is. One record batch a
variant, at most 512 rows. Readers drop schema metadata, so everything in it also stands in run.json.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vmapens.atomic import atomic_path
from vmapens.errors import RunError

_BATCH_ROWS = 512
METADATA_KEY = b"vmapens"


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
    """Writes the rows of one variant after the other; make it with `write_attention`."""

    def __init__(self, writer: pa.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self._writer = writer
        self._schema = schema

    def write(
        self, variant: int, samples: Sequence[str], y: np.ndarray, probability: np.ndarray, attention: np.ndarray
    ) -> None:
        """Write one variant's samples.

        Args:
            variant: Its number in the table.
            samples: Ids, S of them.
            y: Labels [S].
            probability: [S] or [S, C], float32.
            attention: [S, T, F] or [S, T], float32.
        """
        for start in range(0, len(samples), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            columns = [
                pa.array(np.full(len(samples[part]), variant, np.int32)),
                pa.array(samples[part], pa.utf8()),
                pa.array(y[part].astype(np.int32)),
                nested(probability[part]),
                nested(attention[part]),
            ]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))


@contextmanager
def write_attention(path: Path, schema: pa.Schema) -> Iterator[AttentionWriter]:
    """Write an attention file atomically; nothing is left at `path` if the block fails."""
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        yield AttentionWriter(writer, schema)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as an uncompressed Arrow file, atomically."""
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Map an Arrow file into memory; no value is copied.

    Raises:
        RunError: If the file is missing, cut short or not Arrow.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(
            f"{path} is not a whole Arrow file ({error}); "
            "remove the folder `attention` of the run and run `vmapens attend` again."
        ) from error


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
