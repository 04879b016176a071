"""A block's state between two epochs as one file: what resuming a run, or adding epochs to it, needs.

Theta, Adam's moments, the best epoch's parameters and scores, and the history. The orders of further epochs follow
from the seeds and the number of epochs.
"""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from vmapens.ensemble.block import Block
from vmapens.errors import RunError
from vmapens.weights import read_tensor, read_tensors, write_weights

_PER_VARIANT = ("variants", "best_score", "kept_epoch", "epochs", "failed")
_HISTORY = "history."


def write_checkpoint(path: Path, block: Block) -> None:
    """Write the state of a block whose rows are sorted."""
    tensors = {"first": block.state.first, "second": block.state.second, "best": block.best.theta}
    tensors |= {name: torch.from_numpy(getattr(block, name)) for name in _PER_VARIANT}
    if block.history:
        history = pl.concat(block.history).sort("variant", "epoch")
        for place, column in enumerate(history.iter_columns()):  # the place keeps their order
            tensors[f"{_HISTORY}{place}.{column.name}"] = torch.tensor(column.to_numpy())
    write_weights(path, block.stack, **tensors)


def trained_epochs(path: Path) -> int:
    """How many epochs a file's variants have been trained; 0 where there is none, or none that can be read."""
    try:
        return int(read_tensor(path, "epochs").max())
    except RunError:
        return 0


def restore(path: Path, block: Block) -> None:
    """Bring a block that has just started to the state that a file holds.

    Args:
        path: What `write_checkpoint` wrote.
        block: Changed in place; its rows are sorted.

    Raises:
        RunError: If the file is missing, damaged, or of other variants.
    """
    try:
        stack, tensors = read_tensors(path)
        if stack.columns != block.stack.columns or not np.array_equal(tensors["variants"], block.variants):
            raise RunError(f"{path} holds other variants than this block's.")
        _fill(block, stack.theta, tensors)
    except (RunError, KeyError, RuntimeError, ValueError) as error:
        raise RunError(
            f"the checkpoint {path} is damaged or of another run ({error}): remove it, and --resume trains variants "
            f"{block.variants[0]} to {block.variants[-1]} from their beginning."
        ) from error


def _fill(block: Block, theta: Tensor, tensors: dict[str, Tensor]) -> None:
    block.stack.theta.copy_(theta)
    block.state.first.copy_(tensors["first"])
    block.state.second.copy_(tensors["second"])
    block.best.theta.copy_(tensors["best"])
    for name in _PER_VARIANT:
        getattr(block, name)[:] = tensors[name].numpy()
    columns = sorted(key for key in tensors if key.startswith(_HISTORY))
    history = pl.DataFrame({key.split(".", 2)[2]: tensors[key].numpy() for key in columns})
    block.history = [history] if columns else []
    block.epoch = int(block.epochs.max())
    for order in block.orders:
        order.skip(block.epoch)
