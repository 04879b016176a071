"""What fits: how many variants are computed at once, how many make a block, and what a run needs.

Width is a matter of memory alone: no result depends on it (`nn.isolation`). It is never written to a file, and it is
halved where an allocation fails after all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vmapens.ensemble.step import PREDICTION_BATCH
from vmapens.machine import free_memory, held_memory, most_held_memory
from vmapens.nn.kernels import Plan, choose, is_compiled
from vmapens.spec import RunSpec

_BLOCK = 256
ATTENTION_PASS_MIB = 256.0
"""What one pass over the saved samples may give, for a few variants at a time; one is computed while one is written."""

_MARGIN = 0.8  # of the free memory that a width may fill
_STATES = 4  # theta, its best epoch, two moments: per parameter of a block
_GRADIENTS = 3  # as they come, scaled by the loss's gradient, and side by side: per parameter of a width
_LIBRARIES = 110 * 2**20  # what they load late: torch's compiler with the first gradient, writers of files
_LLVM = 130 * 2**20  # what makes the machine code of the compiled kernel
_ROW_BYTES = 150  # of predictions.parquet in memory, while it is written and read back
_PASSES = 3  # of attention: computed, on its way to the file, and a copy while it is laid out


@dataclass(frozen=True)
class Needs:
    """What a run needs. All sizes in MiB.

    Args:
        parameters: Of one variant.
        block: Variants per block.
        width: Variants computed at once.
        memory_mib: Peak of the process (on a GPU: of its memory) from now on.
        free_mib: What is free now, and what the process has already.
        disk_mib: The finished run directory, attention included.
        attention_mib: The attention files alone.
    """

    parameters: int
    block: int
    width: int
    memory_mib: float
    free_mib: float
    disk_mib: float
    attention_mib: float


class Width:
    """How many variants are computed at once.

    Args:
        value: At first.
        on_cut: Hears of each new value.
    """

    def __init__(self, value: int, on_cut: Callable[[int], None] = lambda value: None) -> None:
        self.value = value
        self._on_cut = on_cut

    def cut(self, value: int) -> None:
        """Compute no more than so many from now on, and let go of what torch keeps in store on a GPU."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if value < self.value:
            self.value = value
            self._on_cut(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: NumPy's, torch's on a GPU, or that of its allocator on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def needs(
    spec: RunSpec,
    *,
    parameters: int,
    variants: int,
    shape: tuple[int, int, int],
    outputs: int,
    saved: int,
    evaluated: int,
    attention_cells: int,
    device: torch.device,
) -> Needs:
    """Predict what a run needs, beyond what the process has now, and choose block and width.

    The width is the largest that fits the free memory with a margin; more than a block is never needed.

    Args:
        spec: The run.
        parameters: Of one variant, padding included.
        variants: V.
        shape: N, T, F of the cohort, which is loaded.
        outputs: C.
        saved: Samples whose attention is written.
        evaluated: Samples of the valid and test splits.
        attention_cells: Weights per sample, T*F or T.
        device: Where it runs.
    """
    N, T, F = shape
    block = min(_BLOCK if spec.block == "auto" else spec.block, variants)
    row = 4 * parameters
    # The cohort itself, on a GPU, and a batch of predictions; a CPU has the cohort already, and takes no split apart.
    of_data = 4 * T * F * (min(PREDICTION_BATCH, evaluated) + (N if device.type == "cuda" else 0))
    of_block = _STATES * block * row
    of_predictions = variants * evaluated * (_ROW_BYTES + 4 * outputs)
    attention = 4 * saved * attention_cells
    of_attention = _PASSES * min(int(ATTENTION_PASS_MIB * 2**20), min(variants, 16) * attention)
    full, last = min(spec.train.batch_size, N), (N - evaluated) % spec.train.batch_size
    per_thread, per_variant = _of_batch(spec, full, T, F, device, training=True)
    # A thread keeps memory for an epoch's last batch, too, and for predictions.
    per_thread += _of_batch(spec, last, T, F, device, training=True)[0]
    per_thread += _of_batch(spec, min(PREDICTION_BATCH, evaluated), T, F, device, training=False)[0]
    per_variant += _GRADIENTS * row
    threads = min(torch.get_num_threads(), block) if device.type == "cpu" else 1

    libraries = _LIBRARIES + (_LLVM if is_compiled(torch.empty(0, device=device)) else 0)
    fixed = libraries + of_data + of_block + threads * per_thread
    room = _MARGIN * (_free(device) - fixed)
    width = max(1, min(block, int(room / per_variant)))
    here = held_memory() if device.type == "cpu" else 0
    peak = here + fixed + max(width * per_variant, of_predictions + of_attention, of_block)  # of a checkpoint's reading
    files = 6 + len(spec.train.snapshots)  # best, last, and state: theta, best, and two moments
    attention_mib = variants * (attention + 16 * saved) / 2**20
    return Needs(
        parameters=parameters,
        block=block,
        width=width,
        memory_mib=max(peak, most_held_memory() if device.type == "cpu" else 0) / 2**20,
        free_mib=(_free(device) + here) / 2**20,
        disk_mib=attention_mib + variants * (files * row + evaluated * 8) / 2**20,
        attention_mib=attention_mib,
    )


def _of_batch(spec: RunSpec, batch: int, T: int, F: int, device: torch.device, *, training: bool) -> tuple[int, int]:
    """Bytes that a batch takes per thread and per variant of the width, without the parameters' gradients.

    A module of one's own is taken for the built-in one with pooling, which keeps the states of all steps.
    """
    kernel = choose(device, torch.float32)
    built_in = spec.model.name == "attention-lstm"
    over = spec.model.attend_over if built_in else "pool"
    H = spec.model.hidden
    gate = over if over in ("feature", "time") else None
    arithmetic = "fp32" if spec.train.precision == "auto" else spec.train.precision
    plan = Plan(gate_over=gate, all_states=over == "pool", keep=training, precision=arithmetic)
    per_thread, per_variant = kernel.memory((batch, T, F, H), plan)
    if over == "pool":  # the batch, and the states with their gradients
        per_variant += 4 * batch * T * (F + 3 * H)
    return per_thread, per_variant


def _free(device: torch.device) -> int:
    """Bytes that can be had of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()
