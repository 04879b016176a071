"""Which stays are compared: always of two patients, and in companies that share no stay."""

import numpy as np
import pytest

from vmapens.analysis.pairing import in_pairs


def patients(name):
    generator = np.random.default_rng(3)
    return {
        "each their own": np.arange(12),
        "an odd number": np.arange(7) * 10,
        "three": np.array([4, 5, 6]),
        "two stays each": np.repeat(np.arange(8), 2),
        "of many sizes": np.repeat(np.arange(9), generator.integers(1, 6, 9)),
        "one with most": np.array([1, 1, 1, 1, 1, 2, 3, 4]),
    }[name]


CASES = ["each their own", "an odd number", "three", "two stays each", "of many sizes", "one with most"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_a_partner_is_of_another_patient_in_the_same_company(case, seed):
    patient = patients(case)
    pairs = in_pairs(patient, seed=seed)
    assert sorted(stay.place for stay in pairs) == list(range(len(patient)))
    company = {stay.place: stay.company for stay in pairs}
    for stay in pairs:
        assert patient[stay.place] != patient[stay.partner]
        assert company[stay.place] == company[stay.partner]


@pytest.mark.parametrize("case", CASES)
def test_companies_share_no_patient_and_are_as_many_as_can_be(case):
    patient = patients(case)
    companies = {}
    for stay in in_pairs(patient, seed=1):
        companies.setdefault(stay.company, set()).add(int(patient[stay.place]))
    sizes = sorted(map(len, companies.values()))
    count = len(set(patient.tolist()))
    assert len(sizes) == count // 2
    assert sum(sizes) == count
    assert set(sizes) <= {2, 3}
    assert sizes.count(3) == count % 2


def test_a_stay_and_its_partner_follow_each_other():
    """So that two stays' maps need be held at a time, and each is computed once."""
    pairs = in_pairs(np.arange(10), seed=0)
    assert [(a.place, a.partner) for a in pairs[::2]] == [(b.partner, b.place) for b in pairs[1::2]]


def test_pairs_are_drawn_evenly():
    counts = np.zeros((4, 4))
    for seed in range(3000):
        for stay in in_pairs(np.arange(4), seed=seed):
            counts[stay.place, stay.partner] += 1 / 3000
    np.testing.assert_allclose(counts, (1 - np.eye(4)) / 3, atol=0.04)  # SD 0.009


def test_the_stays_of_one_patient_alone_have_no_partner():
    assert [(stay.place, stay.partner, stay.company) for stay in sorted(in_pairs(np.array([5, 5, 5]), seed=0))] == [
        (0, 0, 0), (1, 1, 0), (2, 2, 0)
    ]  # fmt: skip
    assert [tuple(stay) for stay in in_pairs(np.array([2]), seed=0)] == [(0, 0, 0)]
