"""What the arms of the benchmarks `epoch` and `train_to_end` are given: a cohort, one architecture, seeds.

Everything follows from an `Experiment`, which is small, so that a process of its own can make the same again.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Line
from benchmarks.importing import ARCHIVE
from benchmarks.problem import LR, SIZES, WEIGHT_DECAY
from vmapens.cohort.importers.physionet2012 import read_physionet2012
from vmapens.cohort.load import Cohort, load_cohort
from vmapens.cohort.write import write_cohort
from vmapens.ensemble.epoch import Data
from vmapens.ensemble.seeds import Factory
from vmapens.nn import AttentionLSTM
from vmapens.spec import CohortSpec, ModelSpec, RunSpec, TrainSpec, VariantSpec


@lru_cache(maxsize=1)
def _loaded(spec: CohortSpec) -> Cohort:
    return load_cohort(spec)


@lru_cache(maxsize=1)
def _data(spec: CohortSpec, device: str) -> Data:
    return Data.of(_loaded(spec), TrainSpec(), torch.device(device))


class Splits(NamedTuple):
    """Samples and labels of two splits, each in tensors of its own, as scripts have them."""

    x: Tensor
    y: Tensor
    valid_x: Tensor
    valid_y: Tensor


@lru_cache(maxsize=1)
def _splits(spec: CohortSpec, device: str) -> Splits:
    data = _data(spec, device)
    return Splits(data.x[data.train], data.y[data.train], data.x[data.valid], data.y[data.valid])


@dataclass(frozen=True)
class Experiment:
    """Variants of seeds 0 to V-1 on one binary task of a cohort, chosen by AUROC on the valid split.

    Args:
        cohort: Its folder.
        task: One of its binary tasks.
        size: `small` or `paper`: hidden units and batch of that size; steps and features are the cohort's.
        variants: V.
        epochs: Of a whole training.
        device: `cpu` or `cuda`.
    """

    cohort: str
    task: str
    size: str
    variants: int
    epochs: int
    device: str

    def of(self, variants: int) -> "Experiment":
        """The same with at most so many of its variants, the first ones."""
        return replace(self, variants=min(variants, self.variants))

    @property
    def spec(self) -> RunSpec:
        """The same as a run of vmapens, without attention files."""
        size = SIZES[self.size]
        return RunSpec(
            cohort=CohortSpec(path=self.cohort, task=self.task),
            model=ModelSpec(hidden=size.hidden),
            train=TrainSpec(
                epochs=self.epochs,
                batch_size=size.batch,
                lr=LR,
                weight_decay=WEIGHT_DECAY,
                select_by="auroc",
                device="cuda" if self.device == "cuda" else "cpu",
            ),
            variants=VariantSpec(init_seeds=tuple(range(self.variants))),
            save_attention="none",
        )

    @property
    def loaded(self) -> Cohort:
        """The cohort, read once in a process."""
        return _loaded(self.spec.cohort)

    @property
    def data(self) -> Data:
        """Its tensors on the device, and the rows of its splits, made once in a process."""
        return _data(self.spec.cohort, self.device)

    @property
    def splits(self) -> Splits:
        """Its splits on the device, taken apart once in a process."""
        return _splits(self.spec.cohort, self.device)

    @property
    def factory(self) -> Factory:
        """Makes one variant's module."""
        T, F = self.loaded.x.shape[1:]
        return partial(AttentionLSTM, F, T, 1, hidden=self.spec.model.hidden)

    def described(self, name: str) -> Line:
        """The first fields of a result."""
        T, F = self.data.x.shape[1:]
        line: Line = {"benchmark": name, "size": self.size, "variants": self.variants}
        line |= {"cohort": self.loaded.info.source, "task": self.task, "train_samples": len(self.data.train)}
        line |= {"valid_samples": len(self.data.valid), "steps": T, "features": F}
        return line | {"batch": self.spec.train.batch_size, "hidden": self.spec.model.hidden}


def add_cohort_options(parser: argparse.ArgumentParser) -> None:
    """Which cohort, and what of it."""
    parser.add_argument("--cohort", type=Path, help="a cohort folder (default: set a of PhysioNet 2012, imported anew)")
    parser.add_argument("--task", default="mortality", help="a binary task of it (default: %(default)s)")
    parser.add_argument("--variants", type=int, default=64, help="default: %(default)s")


@contextmanager
def cohort_folder(given: Path | None) -> Iterator[Path]:
    """The folder that is given, or set a of PhysioNet 2012, imported into a temporary one from where VMAPENS_DATA says.

    Raises:
        SystemExit: If neither is there.
    """
    if given is not None:
        yield given
        return
    data = Path(os.environ.get("VMAPENS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (data / ARCHIVE).is_file():
        raise SystemExit(f"{data / ARCHIVE} does not exist: give --cohort, or set VMAPENS_DATA to its folder.")
    with tempfile.TemporaryDirectory() as folder:
        write_cohort(Path(folder, "set-a"), *read_physionet2012([data / ARCHIVE]))
        yield Path(folder, "set-a")
