"""What fits: how many variants are computed at once, how many make a block, and what a run needs.

Width is a matter of memory alone: no result depends on it (`nn.isolation`). It is never written to a file.
"""

import os
from dataclasses import dataclass

import torch

from vmapens.spec import RunSpec

_WORKSPACE_PER_STATE = 19  # floats that oneDNN keeps per hidden unit, step and sample (measured: 18.7 at small size)
_WIDTH = 16  # widest on a CPU: more gains nothing, since what is kept has left the cache by then
_BLOCK = 256
_LIBRARIES_MIB = 300  # torch, Polars and pyarrow, imported
_ARENAS = 2  # freed workspaces stay with the threads that used them
_THETAS = 5  # theta, its best epoch, two moments, and the gradients on their way


@dataclass(frozen=True)
class Needs:
    """What a run needs. All sizes in MiB.

    Args:
        parameters: Of one variant.
        block: Variants per block.
        width: Variants computed at once.
        data_mib: The cohort's tensors.
        block_mib: Parameters and moments of one block.
        step_mib: What one step of `width` variants holds.
        disk_mib: The finished run directory, attention included.
        attention_mib: The attention files alone.
    """

    parameters: int
    block: int
    width: int
    data_mib: float
    block_mib: float
    step_mib: float
    disk_mib: float
    attention_mib: float

    @property
    def memory_mib(self) -> float:
        """Peak of the process: libraries, data, block and step together."""
        return _LIBRARIES_MIB + self.data_mib + self.block_mib + _ARENAS * self.step_mib


def needs(
    spec: RunSpec,
    *,
    parameters: int,
    variants: int,
    shape: tuple[int, int, int],
    saved: int,
    evaluated: int,
    attention_cells: int,
    device: torch.device,
) -> Needs:
    """Estimate what a run needs and choose block and width.

    Args:
        spec: The run.
        parameters: Of one variant.
        variants: V.
        shape: N, T, F of the cohort.
        saved: Samples whose attention is written.
        evaluated: Samples of the valid and test splits.
        attention_cells: Weights per sample, T*F or T.
        device: Where it runs.
    """
    N, T, F = shape
    block = min(_BLOCK if spec.block == "auto" else spec.block, variants)
    batch = min(spec.train.batch_size, N)
    one_mib = 4 * batch * T * (2 * F + _WORKSPACE_PER_STATE * spec.model.hidden) / 2**20
    room_mib = _room_mib(device)
    width = max(1, min(block, _WIDTH if device.type == "cpu" else block, int(room_mib / 4 / one_mib)))
    theta_mib = 4 * parameters / 2**20
    attention_mib = variants * saved * 4 * (attention_cells + 4) / 2**20
    files = 5 + len(spec.train.snapshots)  # best, last, and state with its two moments
    return Needs(
        parameters=parameters,
        block=block,
        width=width,
        data_mib=N * T * F * (4 + 1 + 4) / 2**20,  # x, observed, and the splits taken apart
        block_mib=_THETAS * block * theta_mib,
        step_mib=width * one_mib,
        disk_mib=attention_mib + variants * (files * theta_mib + evaluated * 8 / 2**20),
        attention_mib=attention_mib,
    )


def _room_mib(device: torch.device) -> float:
    """What is free on a GPU; half of a machine's memory, since a cache of files would count as taken."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 / 2**20
