"""A variant is its seeds: the table of variants, initialisations, and the orders of the training samples.

The protocol is that of a script that seeds every generator with s, builds its modules on the CPU and trains with a
shuffling `torch.utils.data.DataLoader`, as Yadav & Subbian (CHIL 2025) did. After construction the generator gives,
in every epoch, one int64 for the training iterator (dropped), one that seeds a fresh generator whose `randperm` is the
order, and, once the epoch is trained, one for the evaluation iterator (dropped). Nothing here reads or moves the
global generator.
"""

from collections.abc import Callable, Iterator

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from vmapens.errors import SpecError
from vmapens.spec import TrainSpec, VariantSpec

Factory = Callable[[], torch.nn.Module]


def variant_table(variants: VariantSpec, train: TrainSpec) -> pl.DataFrame:
    """One row per variant: variant, init_seed, order_seed, bootstrap_seed (null: all stays), lr, weight_decay.

    Raises:
        SpecError: If `lr` or `weight_decay` has neither one value nor one per variant.
    """
    inits, bootstraps = variants.inits, variants.bootstrap_seeds
    if variants.design == "crossed":
        orders = variants.order_seeds or (0,)
        rows = [(i, o, b) for i in inits for o in orders for b in bootstraps or (None,)]
    else:
        orders = variants.order_seeds or inits
        rows = list(zip(inits, orders, bootstraps or (None,) * len(inits), strict=True))
    table = pl.DataFrame(
        rows,
        schema={"init_seed": pl.Int64, "order_seed": pl.Int64, "bootstrap_seed": pl.Int64},
        orient="row",
    ).with_row_index("variant")
    return table.with_columns(
        pl.col("variant").cast(pl.Int32),
        _per_variant_setting("lr", train.lr, len(rows)),
        _per_variant_setting("weight_decay", train.weight_decay, len(rows)),
    )


def _per_variant_setting(name: str, value: float | tuple[float, ...], count: int) -> pl.Series:
    values = value if isinstance(value, tuple) else (value,) * count
    if len(values) != count:
        raise SpecError(f"{name} has {len(values)} values for {count} variants: give one, or one per variant.")
    return pl.Series(name, values, dtype=pl.Float64)


def construct(factory: Factory, seed: int) -> tuple[torch.nn.Module, Tensor]:
    """Build a module as a script does that starts with `torch.manual_seed(seed)`.

    Returns:
        The module, on the CPU, and the state in which construction left the generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        with torch.device("cpu"):
            module = factory()
        return module, torch.default_generator.get_state()


class Order:
    """The epochs' orders of one variant.

    Args:
        state: Generator state after construction under the order seed.
        count: Samples of the training split.
        bootstrap_seed: Resample the training samples with replacement first; None: each once.
    """

    def __init__(self, state: Tensor, count: int, bootstrap_seed: int | None) -> None:
        self._generator = torch.Generator()
        self._generator.set_state(state)
        self._count = count
        self._samples: Tensor | None = None
        if bootstrap_seed is not None:
            resampling = torch.Generator().manual_seed(bootstrap_seed)
            self._samples = torch.randint(count, (count,), generator=resampling)

    def _draw(self) -> int:
        return int(torch.empty((), dtype=torch.int64).random_(generator=self._generator).item())

    def skip(self, epochs: int) -> None:
        """Go on as if so many more epochs had been drawn."""
        for _ in range(3 * epochs):
            self._draw()

    def next_epoch(self) -> Int[Tensor, "N"]:
        """Positions in the training split, in the order in which the next epoch visits them."""
        self._draw()  # the base seed of the training iterator
        shuffle = torch.Generator().manual_seed(self._draw())
        order = torch.randperm(self._count, generator=shuffle)
        self._draw()  # the base seed of the evaluation iterator
        return order if self._samples is None else self._samples[order]


def orders(factory: Factory, table: pl.DataFrame, count: int) -> Iterator[Order]:
    """The orders of each variant of the table, in its order; modules are built anew for each distinct order seed."""
    states: dict[int, Tensor] = {}
    for order_seed, bootstrap_seed in table.select("order_seed", "bootstrap_seed").iter_rows():
        if order_seed not in states:
            states[order_seed] = construct(factory, order_seed)[1]
        yield Order(states[order_seed], count, bootstrap_seed)
