"""Which sample is which: the one order of ids, and how offenders are named.

Ids are kept as text. Where all of them are whole numbers they sort as numbers (9 before 10), else as text.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

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
