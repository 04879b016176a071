"""What `vmapens analyze` is asked: every setting of an analysis, as one frozen dataclass."""

from dataclasses import dataclass

from vmapens.errors import SpecError

PARTS = {
    "gradients": "gradient x input and integrated gradients",
    "faithfulness": "erasing and keeping cells, permuted attention",
    "learned_mask": "masks learned for the best variants",
}
"""What can be left out, as it takes long where cells and variants are many."""
DEFAULT_SAMPLES = "test:32"


@dataclass(frozen=True)
class Settings:
    """Which stays are looked at, and how.

    Args:
        samples: As `vmapens attend --samples`; `saved` takes the stays whose attention is saved.
        top_k: Sizes of the sets of most-attended cells: shares below 1, or counts. The middle one is the one of figures
            that show one.
        tolerance: Steps by which two cells may lie apart and still count as near; 0: no such grain.
        window: Steps of a window of time; 0: a twelfth of the stay.
        threshold: Probability above which class 1 is decided, for ambiguity and discrepancy; None: the prevalence.
        seed: Of every draw: partners, orders, permutations, bootstrap samples.
        without: Keys of `PARTS` that are left out.
        mask_variants: How many of the best variants learn masks.
        mask_stays: On how many stays.
    """

    samples: str = DEFAULT_SAMPLES
    top_k: tuple[float, ...] = (0.0015, 0.015, 0.15)
    tolerance: int = 1
    window: int = 0
    threshold: float | None = None
    seed: int = 0
    without: tuple[str, ...] = ()
    mask_variants: int = 8
    mask_stays: int = 8

    def __post_init__(self) -> None:
        unknown = sorted(set(self.without) - PARTS.keys())
        wrong = (
            (bool(unknown), f"--without names {', '.join(unknown)}, but there are {', '.join(PARTS)}"),
            (not self.top_k, "--top-k names no number, wanted shares below 1 or counts of cells, as 0.015,0.15"),
            (self.tolerance < 0, f"--tolerance is {self.tolerance}, but must be a number of steps, 0 or more"),
            (self.window < 0, f"--window is {self.window}, but must be a number of steps, 0 or more"),
            (not 0 <= self.seed < 2**63, f"--seed is {self.seed}, but must be from 0 to 2^63 - 1"),
            (
                self.threshold is not None and not 0 < self.threshold < 1,
                f"--threshold is {self.threshold}, but must be a probability between 0 and 1",
            ),
            (self.mask_variants < 2 or self.mask_stays < 1, "learned masks want 2 variants and 1 stay, or more"),
        )
        problems = [text for holds, text in wrong if holds]
        if problems:
            raise SpecError(f"{'; '.join(problems)}.")
