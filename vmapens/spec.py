"""Every setting of a run as frozen dataclasses, with presets, to and from TOML and JSON.

Order of precedence: command line over configuration file over preset over default. `resolve` merges the layers; a
`RunSpec` is complete and is written to run.json as it is.
"""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from vmapens.errors import SpecError, VmapensError, first_line

AttendOver = Literal["feature", "time", "pool", "uniform"]
Design = Literal["paired", "crossed"]
SelectOn = Literal["valid", "test"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
Unmatched = Literal["error", "keep", "drop"]
Table = dict[str, Any]
BUILT_IN = "attention-lstm"
"""Name of the built-in model."""
MOST_NUMBERS = 1_000_000
MOST_FOLDS = 1000


def _require(holds: bool, what: str, got: object, wanted: str) -> None:
    if not holds:
        raise SpecError(f"{what} is {got}, but must be {wanted}.")


@dataclass(frozen=True)
class CohortSpec:
    """Which data, and how they are split.

    Args:
        path: A cohort folder, or a TOML file that maps other Parquet files.
        task: Name of the label column.
        split_seed: Draws the split, unless the labels bring a `split` column.
        fractions: Shares of train, valid and test; positive, sum 1. With folds only the first two count, one against
            the other.
        folds: Equal parts, 2 to 1000, into which the seed draws the samples; None: the split is drawn by `fractions`.
        fold: Which of these parts is the test split, from 0; given if `folds` is.
        indicators: Add one feature per feature: 1 where it was not measured in that step, else 0.
        unmatched: What becomes of samples in one table only: `error` names them; `keep` treats samples without
            a series row as never measured and leaves out those without a label row; `drop` leaves out both.
        sample_ids: Name samples by their ids; if not, by their row numbers (from 0, among the samples that have a
            label of the task, ids sorted), in everything that is written, and wherever samples are chosen.
    """

    path: str = ""
    task: str = ""
    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    indicators: bool = False
    unmatched: Unmatched = "error"
    sample_ids: bool = True
    folds: int | None = None
    fold: int | None = None

    def __post_init__(self) -> None:
        _require(0 <= self.split_seed < 2**63, "split_seed", self.split_seed, "from 0 to 2^63 - 1")
        good = all(share > 0 for share in self.fractions) and abs(sum(self.fractions) - 1) < 1e-9
        _require(good, "fractions", list(self.fractions), "three positive shares with sum 1")
        if self.folds is not None:
            _require(2 <= self.folds <= MOST_FOLDS, "folds", self.folds, f"from 2 to {MOST_FOLDS}")
            in_range = self.fold is not None and 0 <= self.fold < self.folds
            _require(in_range, "fold", self.fold, f"from 0 to {self.folds - 1} where folds is {self.folds}")
        _require(self.folds is not None or self.fold is None, "folds", self.folds, "given where fold is")


@dataclass(frozen=True)
class ModelSpec:
    """Which module is stacked.

    Args:
        name: `attention-lstm`, or `package:Class` for a module of the user's own, called with (features=F, steps=T,
            outputs=C) and `options`.
        hidden: Hidden units H of the built-in model.
        attend_over: What the softmax of the built-in model runs over.
        freeze_attention: The attention stays as it was initialised.
        options: Further keyword arguments for a module of the user's own.
    """

    name: str = BUILT_IN
    hidden: int = 32
    attend_over: AttendOver = "feature"
    freeze_attention: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.hidden >= 1, "hidden", self.hidden, "1 or more")
        known = self.name == BUILT_IN or ":" in self.name
        _require(known, "model", f"`{self.name}`", "attention-lstm, or package:Class for a module of your own")
        built_in = {name: getattr(self, name) for name in ("hidden", "attend_over", "freeze_attention")}
        given = [name for name, value in built_in.items() if value != getattr(type(self), name)]
        if self.name != BUILT_IN and given:
            raise SpecError(
                f"{', '.join(given)} belong to the model attention-lstm, not to `{self.name}`: "
                "give your own model its arguments under [model.options]."
            )


@dataclass(frozen=True)
class TrainSpec:
    """How each variant is trained and which of its epochs is kept.

    Args:
        epochs: Passes over the training split.
        batch_size: Samples per step; the last batch of an epoch may be smaller.
        lr: Adam's learning rate, one number, or one per variant in the order of their table.
        weight_decay: L2 term added to the gradient, one number or one per variant.
        clip_norm: Largest Euclidean norm of a variant's gradient, which is scaled down to it; 0 leaves it as it is.
        patience: Epochs without a better score after which a variant stops training; 0: never.
        select_by: Metric of the kept epoch; "" chooses `auroc` for a binary task, `balanced_accuracy` otherwise.
        select_on: Split on which the epoch is chosen. `test` leaks and exists to replicate the paper.
        snapshots: Epochs whose weights are kept as well (0 is the initialisation).
        device: `auto` takes a GPU if there is one.
        precision: Of the kernels' operands in training; sums, and the final predictions, are float32. `auto` is fp32;
            tf32 needs a GPU, bf16 a GPU or a CPU that has it.
    """

    epochs: int = 15
    batch_size: int = 64
    lr: float | tuple[float, ...] = 5e-4
    weight_decay: float | tuple[float, ...] = 1e-6
    clip_norm: float = 0.0
    patience: int = 0
    select_by: str = ""
    select_on: SelectOn = "valid"
    snapshots: tuple[int, ...] = ()
    device: Device = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        for entry in self.lr if isinstance(self.lr, tuple) else (self.lr,):
            _require(0 < entry < float("inf"), "lr", entry, "finite and above 0")
        for entry in self.weight_decay if isinstance(self.weight_decay, tuple) else (self.weight_decay,):
            _require(0 <= entry < float("inf"), "weight_decay", entry, "finite and 0 or more")
        _require(0 <= self.clip_norm < float("inf"), "clip_norm", self.clip_norm, "finite and above 0, or 0 for none")
        _require(self.patience >= 0, "patience", self.patience, "1 or more, or 0 for none")
        beyond = [epoch for epoch in self.snapshots if not 0 <= epoch <= self.epochs]
        _require(not beyond, "snapshots", list(self.snapshots), f"epochs from 0 to {self.epochs}")


@dataclass(frozen=True)
class VariantSpec:
    """Which variants there are: the rows of the table of variants.

    Args:
        design: `paired`: variant i has the i-th init seed and the i-th order seed (the paper's: both the same).
            `crossed`: every init seed with every order seed (and every bootstrap seed), init varying slowest.
        init_seeds: Seeds of the initialisation; empty means: 0 to 63 if paired, (0,) if crossed.
        order_seeds: Seeds of the orders; empty means: as `init_seeds` if paired, (0,) if crossed.
        bootstrap_seeds: Seeds of resamplings of the training stays; empty means all stays, once each.
    """

    design: Design = "paired"
    init_seeds: tuple[int, ...] = ()
    order_seeds: tuple[int, ...] = ()
    bootstrap_seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("init_seeds", "order_seeds", "bootstrap_seeds"):
            seeds = getattr(self, name)
            _require(all(0 <= seed < 2**63 for seed in seeds), name, list(seeds)[:5], "from 0 to 2^63 - 1")
            _require(len(set(seeds)) == len(seeds), name, list(seeds)[:5], "without repeats")
        for name in ("order_seeds", "bootstrap_seeds"):
            n = len(getattr(self, name))
            if self.design == "paired" and n not in (0, len(self.inits)):
                wanted = f"{len(self.inits)}, one per init seed, or use --design crossed"
                raise SpecError(f"the number of {name} is {n}, but must be {wanted}.")
        count = len(self.inits)
        if self.design == "crossed":
            count *= max(len(self.order_seeds), 1) * max(len(self.bootstrap_seeds), 1)
        _require(count <= MOST_NUMBERS, "the number of variants", count, f"{MOST_NUMBERS} at most")

    @property
    def inits(self) -> tuple[int, ...]:
        """The init seeds, given or by default."""
        return self.init_seeds or ((0,) if self.design == "crossed" else tuple(range(64)))


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides what a run's files hold.

    Args:
        block: Variants per block, the unit of files.
        save_attention: `none`, `test`, `test:N` (N stays stratified by label), `all` or `@FILE` (one id a line).
        attention_seed: Draws the stays of `test:N`.
    """

    cohort: CohortSpec = CohortSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    variants: VariantSpec = VariantSpec()
    block: int | Literal["auto"] = "auto"
    save_attention: str = "test:16"
    attention_seed: int = 0
    preset: str = ""

    def __post_init__(self) -> None:
        _require(0 <= self.attention_seed < 2**63, "attention_seed", self.attention_seed, "from 0 to 2^63 - 1")
        _require(self.block == "auto" or self.block >= 1, "block", self.block, "1 or more, or auto")


PRESETS: dict[str, Table] = {
    "yadav2025-mortality": {
        "model": {"hidden": 128, "attend_over": "feature"},
        "train": {"epochs": 30, "batch_size": 64, "lr": 5e-4, "weight_decay": 1e-6}
        | {"select_by": "auroc", "select_on": "test"},
        "variants": {"init_seeds": list(range(1000))},
    },
    "yadav2025-phenotyping": {
        "model": {"hidden": 15, "attend_over": "feature"},
        "train": {"epochs": 100, "batch_size": 256, "lr": 5e-4, "weight_decay": 1e-6}
        | {"select_by": "balanced_accuracy", "select_on": "test"},
        "variants": {"init_seeds": list(range(1000))},
    },
}
"""Settings of Yadav & Subbian, CHIL 2025; the hidden size 15 of phenotyping is the one their checkpoints have."""


def whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """Read `A:B` (half-open) or a comma-separated list.

    >>> whole_numbers("3:6", "--seeds")
    (3, 4, 5)
    >>> whole_numbers("0,7,350", "--seeds")
    (0, 7, 350)

    Raises:
        SpecError: If the text is neither, or the range is empty.
    """
    try:
        if ":" in text:
            start, stop = (int(part) for part in text.split(":"))
            _require(stop - start <= MOST_NUMBERS, f"{what} `{text}`", "too long", f"{MOST_NUMBERS} numbers at most")
            numbers = tuple(range(start, stop))
        else:
            numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"{what} `{text}` cannot be read: write a half-open range like 0:1000, or 0,7,350.") from None
    _require(len(numbers) > 0, f"{what} `{text}`", "empty", "A:B with A < B")
    return numbers


def read_config(path: Path) -> Table:
    """Read a TOML file of settings: the tables [cohort], [model], [train], [variants] and the keys of `RunSpec`.

    Seeds may be written as "A:B".

    Raises:
        SpecError: As `read_toml`.
    """
    return read_toml(path, SpecError)


def read_toml(path: Path, kind: type[VmapensError]) -> Table:
    """Read a TOML file.

    Raises:
        VmapensError: Of the given kind, if the file is missing, is not TOML, or holds a date, a time or a number of
            more than 64 bits.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        if not _is_plain(table):
            raise ValueError("it has a date, a time, or a whole number of more than 64 bits, which no setting is")
    except FileNotFoundError:
        raise kind(f"{path} does not exist; wanted a TOML file.") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, a number of 5000 digits
        raise kind(f"{path} is not a readable TOML file: {first_line(error)}.") from error
    return table


def _is_plain(value: object) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | float) or (isinstance(value, int) and value.bit_length() <= 64)


def resolve(command_line: Table, config: Table | None = None, preset: str = "") -> RunSpec:
    """Merge the layers of settings into one complete spec.

    Args:
        command_line: Nested as in a configuration file; only what was given.
        config: What `read_config` returned.
        preset: A key of `PRESETS`, or "" for none; `preset` in a layer above counts as well.

    Raises:
        SpecError: If a key or preset is unknown, or a value is of the wrong type or outside its range.
    """
    preset = command_line.get("preset") or (config or {}).get("preset") or preset
    if preset and (not isinstance(preset, str) or preset not in PRESETS):
        raise SpecError(f"unknown preset `{preset}`: there are {', '.join(PRESETS)}.")
    merged: Table = {"preset": preset}
    for layer in (PRESETS.get(preset, {}), config or {}, command_line):
        merged = _merge(merged, layer)
    return from_table(merged)


def _merge(below: Table, above: Table) -> Table:
    both = {key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)}
    return {**below, **above, **{key: _merge(below[key], above[key]) for key in both}}


def to_table(spec: RunSpec) -> Table:
    """The spec as nested plain values, for JSON; `from_table` reads it back."""
    return dataclasses.asdict(spec)


def from_table(table: Table) -> RunSpec:
    """Make a spec of nested plain values (TOML, JSON).

    Raises:
        SpecError: If a key is unknown, or a value is of the wrong type or outside its range.
    """
    return _build(RunSpec, table, "")


_Spec = TypeVar("_Spec")


def _build(kind: type[_Spec], table: Table, where: str) -> _Spec:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        place = f"in [{where}]" if where else "at the top"
        raise SpecError(f"unknown setting `{unknown[0]}` {place}: there are {', '.join(sorted(hints))}.")
    values = {key: _convert(hints[key], value, f"{where}.{key}".lstrip(".")) for key, value in table.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one plain value against a type of this module's dataclasses; lists become tuples, integers floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(cast(type[Any], hint), value, where)
    if dataclasses.is_dataclass(hint):
        names = ", ".join(field.name for field in dataclasses.fields(hint))
        raise SpecError(f"{where} is {value!r}, but must be a table [{where}] with any of {names}.")
    if origin is Literal:
        if value in arguments:
            return value
        raise SpecError(f"{where} is `{value}`, but must be one of {', '.join(map(str, arguments))}.")
    if origin in (types.UnionType, typing.Union):
        first, second = arguments
        if second is types.NoneType:
            return None if value is None else _convert(first, value, where)
        is_second = isinstance(value, list | tuple) or (isinstance(value, str) and typing.get_origin(second) is Literal)
        return _convert(second if is_second else first, value, where)
    if origin is tuple:
        if isinstance(value, str) and arguments[0] is int:
            return whole_numbers(value, where)
        if isinstance(value, list | tuple) and (arguments[-1] is ... or len(arguments) == len(value)):
            return tuple(_convert(arguments[0], entry, where) for entry in value)
    elif origin is dict and isinstance(value, dict):
        return value
    elif hint is float and (type(value) is float or (type(value) is int and value.bit_length() <= 64)):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise SpecError(f"{where} is {value!r}, but must be of type {wanted}.")
