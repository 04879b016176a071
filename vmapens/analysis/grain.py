"""What is compared: single cells, features, windows of time, groups of features; all cells, or the measured ones.

A clinician reads "lactate, in the evening", not cell 31,207: so weights are summed over what the question leaves open.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from vmapens.errors import SpecError

WINDOWS = 12
"""Windows that a stay is cut into unless their length is given."""


@dataclass(frozen=True)
class Grid:
    """How the cells of a sample are put together.

    Args:
        steps: T (1 where the attention has no such axis).
        features: F (1 where the attention has no such axis).
        groups: Number of each feature's group, 0..G-1 [F]; None where the features have none, or all the same.
        window: Steps of a window.
        tolerance: Steps by which two cells may lie apart and still count as the same, under the grain `near`.
    """

    steps: int
    features: int
    groups: Int[np.ndarray, "F"] | None = None
    window: int = 1
    tolerance: int = 1

    @property
    def cells(self) -> int:
        """T * F."""
        return self.steps * self.features

    @property
    def windows(self) -> int:
        """How many windows there are; the last may be shorter."""
        return -(-self.steps // self.window)

    def grains(self) -> list[str]:
        """The grains at which there is anything to compare, of `tables.GRAINS`."""
        sizes = {"feature": self.features, "window": self.windows}
        sizes["group"] = 0 if self.groups is None else int(self.groups.max()) + 1
        near = ["near"] if self.tolerance and self.steps > 1 else []
        whole = [grain for grain, size in sizes.items() if 1 < size < self.cells]
        return ["cell", *near, *whole]

    def summed(self, weights: Float32[np.ndarray, "V T F"], grain: str) -> Float32[np.ndarray, "V n"]:
        """Weights of the parts of a grain: the sums of those of its cells, in float64; a window's per step.

        Args:
            weights: Of any sign.
            grain: A key of `tables.GRAINS`; `near` has the parts of `cell`.
        """
        match grain:
            case "feature":
                parts = weights.sum(axis=1, dtype=np.float64)
            case "window":
                starts = np.arange(0, self.steps, self.window)
                lengths = np.diff(np.append(starts, self.steps))  # a short last window is not the least attended
                parts = np.add.reduceat(weights.sum(axis=2, dtype=np.float64), starts, axis=1) / lengths
            case "group":
                assert self.groups is not None
                of_feature = weights.sum(axis=1, dtype=np.float64)
                sizes = range(self.groups.max() + 1)  # a large group is not the most attended
                parts = np.stack([of_feature[:, self.groups == g].mean(axis=1) for g in sizes], axis=1)
            case _:
                return weights.reshape(len(weights), -1)
        return parts.astype(np.float32)


def group_numbers(names: list[str]) -> Int[np.ndarray, "F"] | None:
    """Number the groups of features by name; None if there are fewer than two.

    >>> group_numbers(["labs", "vitals", "labs"]).tolist()
    [0, 1, 0]
    """
    known = sorted(set(names))
    return np.array([known.index(name) for name in names]) if len(known) > 1 else None


def counts_of(top_k: tuple[float, ...], cells: int) -> list[int]:
    """Numbers of cells from shares (below 1) or counts (whole numbers from 1), each once, increasing.

    >>> counts_of((0.0015, 0.015, 0.15), 66528)
    [100, 998, 9979]
    >>> counts_of((0.0015, 0.015, 0.15), 12)
    [1, 2]

    Raises:
        SpecError: If a number is neither, or a count leaves no cell out.
    """
    counts = set()
    for number in top_k:
        count = max(1, min(round(number * cells), cells - 1)) if 0 < number < 1 else number
        if not (count >= 1 and float(count).is_integer() and count < max(cells, 2)):
            raise SpecError(
                f"--top-k is {number:g}, but must be a share between 0 and 1, or a whole number from 1 to "
                f"{max(cells - 1, 1)}: there are {cells} to choose from."
            )
        counts.add(int(count))
    return sorted(counts)
