"""With which other stay is each stay compared, and which stays must be drawn together for it?

What variants agree on across two stays is a matter of both. If each stay were compared with the next one, in a ring, no
stay could be drawn without its neighbours: a bootstrap of single stays then holds the mean over such comparisons in
83 % of the samples where stays differ much in how typical they are. So patients come in pairs, and a pair is drawn.

Axes: S stays.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Compared(NamedTuple):
    """One stay, by its place among those asked for.

    Args:
        place: Of the stay.
        partner: Place of the stay that it is compared with, of another patient; its own if there is only one patient.
        company: Number of its pair of patients.
    """

    place: int
    partner: int
    company: int


def in_pairs(patient: Int[np.ndarray, "S"], *, seed: int) -> list[Compared]:
    """Compare the stays of one patient with those of another one, and those with the first one's.

    Patients of as many stays are paired at random; an odd number of patients ends in a company of three.

    Args:
        patient: Of each stay, any integers.
        seed: Of the draw.

    Returns:
        One entry a stay, in an order in which a stay and its partner follow each other.

    >>> [tuple(stay) for stay in in_pairs(np.array([7, 7, 3]), seed=0)]
    [(0, 2, 0), (2, 0, 0), (1, 2, 0)]
    """
    stays: dict[int, list[int]] = {}
    for place in np.random.default_rng(seed).permutation(len(patient)).tolist():
        stays.setdefault(int(patient[place]), []).append(place)
    drawn = sorted(stays.values(), key=len, reverse=True)
    companies = [drawn[first : first + 2] for first in range(0, len(drawn) - 1, 2)] or [[]]
    if len(drawn) % 2:
        companies[-1].append(drawn[-1])
    return [
        Compared(own[turn], other[turn % len(other)], number)
        for number, company in enumerate(companies)
        for turn in range(max(map(len, company)))
        for own, other in zip(company, company[1:] + company[:1], strict=True)
        if turn < len(own)
    ]
