"""Which sample is which: the one order of ids, and how offenders are named.

Ids are kept as text. Where all of them are whole numbers they sort as numbers (9 before 10), else as text.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from vmapens.errors import CohortError

_WHOLE = re.compile(r"-?[0-9]{1,640}")  # of more digits, Python may refuse to make a number


def sample_order(samples: Sequence[str]) -> np.ndarray:
    """Row numbers that sort the ids, whatever order they come in.

    >>> sample_order(["10", "9", "100"]).tolist()
    [1, 0, 2]
    >>> sample_order(["10", "9", "b"]).tolist()
    [0, 1, 2]
    """
    if all(_WHOLE.fullmatch(sample) for sample in samples):
        # The text breaks the tie between "7" and "007".
        order = sorted(range(len(samples)), key=lambda row: (int(samples[row]), samples[row]))
    else:
        order = sorted(range(len(samples)), key=lambda row: samples[row])
    return np.array(order, dtype=np.int64)


def first_five(names: Iterable[str]) -> str:
    """The first five of the sorted distinct names, for the one line of an error.

    >>> first_five(["10", "9", "11", "9"])
    '9, 10, 11'
    >>> first_five("gfedcba")
    'a, b, c, d, e, ...'
    """
    distinct = list(set(names))
    ordered = [distinct[row] for row in sample_order(distinct)]
    return ", ".join(ordered[:5]) + (", ..." if len(ordered) > 5 else "")


def one_row_each(table: pl.DataFrame, key: Sequence[str], where: object, repeated: Counter[str]) -> pl.DataFrame:
    """The rows of a table, sorted by a key that then has one row each.

    Args:
        table: A table.
        key: Its columns that say what a row is about.
        where: What the table is called in a message, and in the count.
        repeated: Counts rows that are there several times, equal in all columns, and left out but once.

    Raises:
        CohortError: If rows of one key differ.
    """
    rows = table.unique().sort(key)
    repeated[f"rows of {where} that repeat another one: left out"] += table.height - rows.height
    twice = rows.filter(rows.select(key).is_duplicated()).select(key).unique()
    if len(twice):
        names = first_five([" ".join(map(str, row)) for row in twice.rows()])
        raise CohortError(
            f"{where}: {len(twice)} of {' and '.join(key)} have several rows that differ ({names}), wanted one each; "
            "remove those that are wrong."
        )
    return rows
