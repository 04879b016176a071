"""Train, valid and test: stratified by label, whole groups together, the same for the same ids and seed.

The arithmetic starts from ids that are sorted first, so the order of rows in a file cannot matter.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vmapens.cohort.identity import sample_order
from vmapens.errors import CohortError

SPLITS = ("train", "valid", "test")


def split_samples(
    samples: Sequence[str],
    y: Int[np.ndarray, "N"],
    group: Sequence[str | None] | None = None,
    *,
    seed: int,
    fractions: tuple[float, float, float],
    folds: int | None = None,
    fold: int | None = None,
) -> np.ndarray:
    """Draw the split of each sample.

    Without folds the groups are drawn into train, valid and test (`_draw`). With folds they are drawn into so many
    equal parts, which are the same for every fold; one part is the test split, and the others are drawn once more, into
    train and valid. So each sample is in the test split of exactly one fold.

    Args:
        samples: Ids, all different.
        y: Class of each sample.
        group: What must stay together (the patient of a stay); None, or an entry None, stands for a group of one.
        seed: Of `numpy.random.PCG64`, which draws one permutation of the groups; with folds, a second one of the rest.
        fractions: Shares of train, valid and test; positive, sum 1. With folds, train : valid is that of the rest.
        folds: Number of equal parts, 2 or more; None for none.
        fold: The part that is the test split, 0 to folds - 1.

    Returns:
        "train", "valid" or "test" for each sample, in the order of `samples`.

    >>> split = split_samples(["4", "3", "2", "1", "0"], np.array([0, 0, 0, 0, 0]), seed=0, fractions=(0.6, 0.2, 0.2))
    >>> sorted(split.tolist())
    ['test', 'train', 'train', 'train', 'valid']
    """
    classes, code = np.unique(y, return_inverse=True)
    members: dict[tuple[str, str], list[int]] = {}
    for row in sample_order(samples):
        own = None if group is None else group[row]
        members.setdefault(("sample", samples[row]) if own is None else ("group", own), []).append(int(row))
    groups = list(members.values())
    counts = np.array([np.bincount(code[rows], minlength=len(classes)) for rows in groups])
    generator = np.random.Generator(np.random.PCG64(seed))
    if folds is None:
        part = _draw(counts, fractions, generator)
    else:
        part = np.full(len(groups), SPLITS.index("test"))
        rest = _draw(counts, (1 / folds,) * folds, generator) != fold
        train, valid, _ = fractions
        part[rest] = _draw(counts[rest], (train / (train + valid), valid / (train + valid)), generator)
    split = np.empty(len(samples), dtype="<U5")
    for rows, number in zip(groups, part, strict=True):
        split[rows] = SPLITS[number]
    return split


def _draw(
    counts: Int[np.ndarray, "G C"], shares: tuple[float, ...], generator: np.random.Generator
) -> Int[np.ndarray, "G"]:
    """Draw the part that each group goes to.

    Sizes come first (`split_sizes`). Then the groups, in a random order but large ones first, go one after another to
    the part s that lessens ``sum over s, c of (wanted[s, c] - has[s, c])^2 / (wanted[s, c] n_c)`` most, c the classes
    and n_c their sizes. Weighing by the wanted size keeps large groups from all going to the largest part. With
    groups of one sample the sizes are met exactly.

    Args:
        counts: Samples of each class in each group.
        shares: Of the parts; positive, sum 1.
        generator: Draws one permutation.
    """
    order = generator.permutation(len(counts))
    class_sizes = counts.sum(axis=0)
    wanted = split_sizes(class_sizes, shares).T.astype(np.float64)
    # A part that is to have none of a class still needs a finite price for one, and so does a class without samples.
    price = 1 / (np.maximum(wanted, 0.5) * np.maximum(class_sizes, 1))
    left = wanted.copy()
    part = np.empty(len(counts), dtype=np.int64)
    for group in order[np.argsort(-counts[order].sum(axis=1), kind="stable")]:
        own = counts[group]
        part[group] = np.argmax((price * own * (2 * left - own)).sum(axis=1))
        left[part[group]] -= own
    return part


def split_sizes(class_sizes: Int[np.ndarray, "C"], fractions: tuple[float, ...]) -> Int[np.ndarray, "C S"]:
    """How many of each class go to each split, or to each of any number of parts.

    The sizes of the splits are largest-remainder sizes of all samples together, ties to the earlier split. Each entry
    is the share of its class rounded down, or one more: rows with most of these extra ones first, each to the splits
    that lack most, which meets the sizes exactly for two or three splits, and for equal ones (Gale 1957, Ryser 1957).

    >>> split_sizes(np.array([7, 3]), (0.7, 0.15, 0.15)).tolist()
    [[5, 1, 1], [2, 1, 0]]
    """
    # 1e-9 keeps 20 * 0.15 from falling just short of 3.
    sizes = np.floor(np.outer(class_sizes, fractions) + 1e-9).astype(np.int64)
    total = int(class_sizes.sum())
    goal = np.array([math.floor(total * share + 1e-9) for share in fractions])
    remainders = total * np.array(fractions) - goal
    goal[np.argsort(-remainders.round(9), kind="stable")[: total - goal.sum()]] += 1
    lacking = goal - sizes.sum(axis=0)
    extra = class_sizes - sizes.sum(axis=1)
    for row in np.argsort(-extra, kind="stable"):
        chosen = np.argsort(-lacking, kind="stable")[: extra[row]]
        sizes[row, chosen] += 1
        lacking[chosen] -= 1
    return sizes


def check_split(split: np.ndarray, y: Int[np.ndarray, "N"], classes: Sequence[str], where: object) -> None:
    """Refuse a split on which nothing can be learnt or measured.

    Raises:
        CohortError: If train, valid or test is empty or has samples of one class only; the line names all such splits.
    """
    problems = []
    for name in SPLITS:
        present, counts = np.unique(y[split == name], return_counts=True)
        if len(present) == 0:
            problems.append(f"split `{name}` is empty")
        elif len(present) == 1:
            only = f"{counts[0]} samples of class {present[0]} (`{classes[present[0]]}`)"
            problems.append(f"split `{name}` has {only} and none of another class")
    if problems:
        raise CohortError(
            f"{where}: {'; '.join(problems)}; wanted two classes or more in each: choose other fractions, fewer folds, "
            "another split seed, or bring a `split` column."
        )
