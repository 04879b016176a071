"""Keep V variants of one module as the rows of one tensor.

The stack knows names, shapes and columns. It knows nothing of optimisers (`optimizer`), data (`cohort`)
or files (`run`).

Axes: V variants, P parameters of one variant (each parameter starts at a multiple of 16 elements).
Ground truth: V separate modules; `tests/test_stack.py` holds the bound.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vmapens.errors import StackError

_ALIGNMENT = 16  # elements: 64 bytes of float32, one cache line and one AVX-512 register


@dataclass(frozen=True)
class Column:
    """Where one parameter stands in a row of theta: elements `start` to `stop`, of this shape.

    Args:
        trained: False for parameters without gradient and for floating buffers: they stay as constructed.
    """

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    trained: bool


@dataclass(frozen=True)
class Stack:
    """Theta and the table of its columns; trained columns come first, in the order of the module's parameters."""

    theta: Float[Tensor, "V P"]
    columns: tuple[Column, ...]

    @property
    def trained_width(self) -> int:
        """Elements at the start of a row that training changes, padding included."""
        return _padded(max((column.stop for column in self.columns if column.trained), default=0))

    @property
    def parameters_per_variant(self) -> int:
        """Parameters and buffers of one variant, without padding."""
        return sum(column.stop - column.start for column in self.columns)

    def rows(self, start: int, stop: int) -> "Stack":
        """Variants start..stop-1, sharing memory."""
        return Stack(self.theta[start:stop], self.columns)

    def to(self, device: torch.device) -> "Stack":
        """The same variants on a device."""
        return Stack(self.theta.to(device), self.columns)

    def views(self, *, trained: bool | None = None) -> dict[str, Float[Tensor, "V ..."]]:
        """The parameters of all variants by name, as views of theta: all, the trained ones, or the others."""
        return {
            column.name: self.theta[:, column.start : column.stop]
            .unflatten(1, column.shape or (1,))
            .view(len(self.theta), *column.shape)
            for column in self.columns
            if trained is None or column.trained == trained
        }

    def state_dict(self, row: int) -> dict[str, Tensor]:
        """Parameters and floating buffers of one variant, copied, under the names of a plain module."""
        views = self.views()
        return {name: views[name][row].detach().clone().contiguous() for name in sorted(views)}


def columns_of(module: torch.nn.Module) -> tuple[Column, ...]:
    """Lay one module's parameters and floating buffers out as columns.

    Raises:
        StackError: If nothing is there to train.
    """
    tensors: list[tuple[str, Tensor, bool]] = [(name, p, p.requires_grad) for name, p in module.named_parameters()]
    tensors += [(name, b, False) for name, b in module.named_buffers() if b.is_floating_point()]
    if not any(trained for *_, trained in tensors):
        raise StackError(f"{type(module).__name__} has no parameter with requires_grad: there is nothing to train.")
    columns: list[Column] = []
    end = 0
    for name, tensor, trained in sorted(tensors, key=lambda entry: not entry[2]):  # stable: trained ones first
        columns.append(Column(name, end, end + tensor.numel(), tuple(tensor.shape), trained))
        end = _padded(columns[-1].stop)
    return tuple(columns)


def stack_modules(modules: Iterable[torch.nn.Module], count: int, dtype: torch.dtype = torch.float32) -> Stack:
    """Copy the parameters of `count` modules of one architecture into one tensor.

    Args:
        modules: Taken one at a time, so that a generator needs memory for one module only.
        count: V.
        dtype: Of theta.

    Raises:
        StackError: If a module's parameters differ from the first one's in name or shape, or its integer or boolean
            buffers, which are not stacked, in value.
    """
    theta: Tensor | None = None
    columns: tuple[Column, ...] = ()
    first_others: dict[str, Tensor] = {}
    for v, module in enumerate(modules):
        if theta is None:
            columns = columns_of(module)
            theta = torch.zeros(count, _padded(columns[-1].stop), dtype=dtype)
        named = dict(module.named_parameters()) | dict(module.named_buffers())
        others = {name: tensor for name, tensor in named.items() if not tensor.is_floating_point()}
        first_others = others if v == 0 else first_others
        if named.keys() - others.keys() != {column.name for column in columns}:
            extra = sorted(named.keys() ^ {column.name for column in columns} ^ others.keys())
            raise StackError(f"variant {v} of {count} has other parameters than variant 0: {', '.join(extra[:5])}.")
        for name, tensor in others.items():
            if not torch.equal(tensor, first_others.get(name, tensor)):
                raise StackError(
                    f"variant {v} of {count}: the buffer `{name}` ({tensor.dtype}) differs from variant 0's; only "
                    "floating-point buffers may differ between variants."
                )
        for column in columns:
            tensor = named[column.name]
            if tuple(tensor.shape) != column.shape:
                raise StackError(
                    f"variant {v} of {count}: `{column.name}` has shape {tuple(tensor.shape)}, but variant 0 has "
                    f"{column.shape}. One stack holds one architecture; train other sizes as another run."
                )
            theta[v, column.start : column.stop] = tensor.detach().flatten()
    if theta is None:
        raise StackError("a stack needs at least one variant.")
    return Stack(theta, columns)


def _padded(elements: int) -> int:
    return math.ceil(elements / _ALIGNMENT) * _ALIGNMENT
