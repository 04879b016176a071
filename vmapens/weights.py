"""Theta as safetensors files that any tool reads, each with the checksum of what it holds."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from vmapens.atomic import atomic_path
from vmapens.ensemble.stack import Column, Stack
from vmapens.errors import RunError, first_line
from vmapens.nn.isolation import aligned

_KEY = "vmapens"


def write_weights(path: Path, stack: Stack, **others: Tensor) -> None:
    """Write theta [v, P] with its column table, and further tensors, atomically."""
    columns = json.dumps([astuple(column) for column in stack.columns])
    tensors = {name: tensor.cpu().contiguous() for name, tensor in {"theta": stack.theta, **others}.items()}
    with atomic_path(path) as temporary:
        # One key, as safetensors writes several in any order, and the same weights are to be the same bytes.
        description = json.dumps({"columns": columns, "sha256": _checksum(columns, tensors)})
        safetensors.torch.save_file(tensors, temporary, metadata={_KEY: description})


def read_weights(path: Path) -> Stack:
    """Read theta and its columns.

    Raises:
        RunError: If the file is missing or damaged.
    """
    return read_tensors(path)[0]


def read_columns(path: Path) -> tuple[tuple[Column, ...], int]:
    """Read the table of columns alone, without theta, and how many variants there are.

    Raises:
        RunError: If the file is missing, cut short, or has no such table.
    """
    with _opened(path) as file:
        description = json.loads((file.metadata() or {})[_KEY])
        count, width = file.get_slice("theta").get_shape()
        return _columns(json.loads(description["columns"]), width), count


def read_tensors(path: Path) -> tuple[Stack, dict[str, Tensor]]:
    """Read all that `write_weights` wrote: the stack, and the further tensors by name.

    Raises:
        RunError: If the file is missing, cut short, or holds other bytes than were written.
    """
    with _opened(path) as file:
        description = json.loads((file.metadata() or {})[_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        columns = description["columns"]
        if description["sha256"] != _checksum(columns, tensors):
            raise ValueError("its bytes are not those that were written")
        theta = tensors.pop("theta")
        if theta.ndim != 2 or not theta.is_floating_point():
            raise ValueError("its theta is no table of numbers")
        # As the file maps it, no row may start where `per_variant` wants it, and each would be copied at every use.
        return Stack(aligned(theta), _columns(json.loads(columns), theta.shape[1])), tensors


def read_tensor(path: Path, name: str) -> Tensor:
    """Read one tensor alone, and check nothing.

    Raises:
        RunError: If the file is missing, cut short, or holds none of that name.
    """
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be read as weights ({first_line(error)}): "
            f"remove {path.parent} and run the same `vmapens train` with --resume."
        ) from error


def _columns(table: list[list[Any]], width: int) -> tuple[Column, ...]:
    """The table of columns, each a stretch of the rows of theta that has the shape of its parameter."""
    for name, *numbers, shape, trained in table:
        start, stop = numbers
        whole = all(type(number) is int and number >= 0 for number in (start, stop, *shape))
        if type(name) is not str or type(trained) is not bool or not whole:
            raise ValueError(f"its column {name} is no name with a place and a shape")
        if stop - start != math.prod(shape) or stop > width:
            raise ValueError(f"its column {name} is not within its theta")
    if not table or len({row[0] for row in table}) < len(table):
        raise ValueError("it has no columns, or two of one name")
    return tuple(Column(name, start, stop, tuple(shape), trained) for name, start, stop, shape, trained in table)


def _checksum(columns: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the column table, and each tensor's name, type, shape and bytes."""
    total = hashlib.sha256(columns.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().reshape(-1).view(np.uint8).data)
    return total.hexdigest()
