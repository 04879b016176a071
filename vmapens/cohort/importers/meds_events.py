"""The event files of a MEDS data set, a piece of a row group at a time.

They are read by pyarrow, which checks each page as it decodes it, so that no pass is spent on looking whether a file is
whole. A piece is arrays of numbers: codes are numbered in the order in which they come.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64

from vmapens.cohort.importers.event_grid import microseconds
from vmapens.errors import CohortError, first_line

_ROWS_AT_ONCE = 1 << 18
_NUMBERS = ("numeric_value", "value")

Part = tuple[int, int]
"""The place of a file, and of a row group in it."""


class Events(NamedTuple):
    """Some events.

    Args:
        subject: Whose they are.
        time: In microseconds, rounded up to whole ones.
        timed: Whether there is a time at all.
        code: The number of the code; -1 where the code or the subject is missing.
        value: NaN = no number, infinite = one that is no finite float32.
    """

    subject: Int64[np.ndarray, "E"]
    time: Int64[np.ndarray, "E"]
    timed: Bool[np.ndarray, "E"]
    code: Int64[np.ndarray, "E"]
    value: Float32[np.ndarray, "E"]

    def where(self, kept: Bool[np.ndarray, "E"]) -> "Events":
        """Those of a mask."""
        return Events(*(column[kept] for column in self))


class EventFiles:
    """Parquet files of events, opened: their columns are right, and how many rows there are is known.

    Args:
        files: One or more.

    Raises:
        CohortError: If a file is not Parquet, or a column is missing or of a wrong type. `read` raises it too, for what
            is damaged further inside.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.codes: dict[str, int] = {}
        """The number of each code that was met so far."""
        self.rows = 0
        self._layouts = []
        for path in self.files:
            with _named(path):
                metadata = pq.read_metadata(path)
                layout = _layout(metadata.schema.to_arrow_schema(), path)
            self.rows += metadata.num_rows
            self._layouts.append((metadata.num_row_groups, layout))
        self.number_columns = frozenset(layout[3] for _, layout in self._layouts)

    def read(self, parts: Container[Part] | None = None) -> Iterator[tuple[Part, Events]]:
        """The events, in pieces, each with the part it is of.

        Args:
            parts: Those that are read; all if None.
        """
        for place, (path, (groups, layout)) in enumerate(zip(self.files, self._layouts, strict=True)):
            some = [group for group in range(groups) if parts is None or (place, group) in parts]
            if not some:
                continue
            with _named(path), pq.ParquetFile(path, read_dictionary=["code"]) as file:
                for group in some:
                    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=list(layout)):
                        yield (place, group), self._events(*(batch.column(name) for name in layout))

    def _events(self, subject: pa.Array, time: pa.Array, code: pa.Array, value: pa.Array) -> Events:
        if not isinstance(code, pa.DictionaryArray):
            code = code.dictionary_encode()
        numbers = [self.codes.setdefault(name, len(self.codes)) if name else -1 for name in code.dictionary.to_pylist()]
        # The last one is what place -1 finds: a missing code.
        number = np.array([*numbers, -1])[code.indices.cast(pa.int64()).fill_null(-1).to_numpy()]
        number[~_known(subject)] = -1
        ticks = time.cast(pa.int64()).fill_null(0).to_numpy()
        measured = value.cast(pa.float32(), safe=False).fill_null(0).to_numpy()
        # Adding 0 makes 0 of -0: they are equal, and which of the two is kept must not depend on the order of rows.
        measured = np.where(np.isfinite(measured), measured + np.float32(0), np.float32(np.inf))
        measured[~_known(value)] = np.nan
        return Events(
            subject.cast(pa.int64()).fill_null(0).to_numpy(),
            microseconds(ticks, time.type.unit, up=True),
            _known(time),
            number,
            measured,
        )


def _known(column: pa.Array) -> Bool[np.ndarray, "E"]:
    known: np.ndarray = column.is_valid().to_numpy(zero_copy_only=False)
    return known


def _layout(schema: pa.Schema, path: Path) -> tuple[str, str, str, str]:
    """The names of the four columns, which are there once each and of the right type."""
    number = next((name for name in _NUMBERS if name in schema.names), _NUMBERS[0])
    types: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
        "subject_id": (pa.types.is_integer, "whole numbers"),
        "time": (lambda kind: pa.types.is_timestamp(kind) and kind.tz is None, "timestamps without a time zone"),
        "code": (_is_text, "text"),
        number: (lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind) or kind == pa.null(), "numbers"),
    }
    for name, (is_right, wanted) in types.items():
        place = schema.get_field_index(name)  # -1 too where there are two
        if place < 0:
            raise CohortError(
                f"{path}: no column `{name}`, or several; got {', '.join(schema.names[:20])}. Wanted the columns of "
                "MEDS: subject_id, time, code, numeric_value."
            )
        if not is_right(kind := schema.field(place).type):
            raise CohortError(f"{path}: column `{name}` is {kind}, wanted {wanted}; write it so.")
    return ("subject_id", "time", "code", number)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in what pyarrow says of it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CohortError(f"{path} cannot be read as Parquet: {first_line(error)}; write it again.") from error
