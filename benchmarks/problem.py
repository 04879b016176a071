"""What every arm of a training benchmark is given: sizes, samples, batches, and variants as constructed from seeds.

All of it follows from a `Problem` alone, which is small, so that a process of its own can make the same again. Nothing
here needs Polars: a machine with a GPU may have torch and little else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vmapens.nn import AttentionLSTM

LR, WEIGHT_DECAY = 5e-4, 1e-6
"""Adam's settings in every arm; the paper's."""

BATCHES = 32
"""Batches drawn for each variant; the most steps that one timing takes."""

CHECKED = 16
"""Variants, from the first on, whose numbers the gate compares."""


@dataclass(frozen=True)
class Size:
    """Shape of one variant's work.

    Args:
        name: As in results.
        batch: B.
        steps: T.
        features: F.
        hidden: H.
        samples: N, from which batches are drawn.
    """

    name: str
    batch: int
    steps: int
    features: int
    hidden: int
    samples: int


SIZES = {
    "small": Size("small", batch=64, steps=48, features=37, hidden=32, samples=2800),
    "paper": Size("paper", batch=64, steps=288, features=231, hidden=128, samples=1024),
}


@dataclass(frozen=True)
class Problem:
    """Variants of seeds 0 to V-1 at one size, on made data; one logit.

    Args:
        size: Shape of the work.
        variants: V.
        device: `cpu` or `cuda`.
    """

    size: Size
    variants: int
    device: str = "cpu"

    @property
    def checked(self) -> int:
        """How many variants the gate compares."""
        return min(self.variants, CHECKED)

    def modules(self) -> Iterator[AttentionLSTM]:
        """Each variant's module as a script makes it that starts with `torch.manual_seed(s)`, on the CPU."""
        for seed in range(self.variants):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                module = AttentionLSTM(self.size.features, self.size.steps, 1, hidden=self.size.hidden)
            yield module

    def data(self) -> tuple[Tensor, Tensor]:
        """Samples x [N, T, F], standard normal, and labels y [N], 0.0 or 1.0, on the device."""
        generator = torch.Generator().manual_seed(0)
        size = self.size
        x = torch.randn(size.samples, size.steps, size.features, generator=generator)
        y = (torch.rand(size.samples, generator=generator) < 0.15).float()
        return x.to(self.device), y.to(self.device)

    def batches(self) -> Tensor:
        """Which samples each variant sees, [BATCHES, V, B], on the device; the same for a variant in any company."""
        index = torch.empty(BATCHES, self.variants, self.size.batch, dtype=torch.int64)
        for seed in range(self.variants):
            generator = torch.Generator().manual_seed(seed)
            index[:, seed] = torch.randint(self.size.samples, (BATCHES, self.size.batch), generator=generator)
        return index.to(self.device)
