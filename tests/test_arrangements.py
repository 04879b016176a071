"""Nothing changes a variant: the same bytes in random arrangements, read from the run directory."""

import dataclasses
import random
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_model import MeanPool

import vmapens
from benchmarks.arrangement import DIVERGING, FORMS, Alone, Arrangement, Difference, Outcome, Variant, draw
from benchmarks.arrangements import made_cohort, outcome_of, train
from vmapens.ensemble import optimizer
from vmapens.nn.kernels import compiled, use_kernel
from vmapens.nn.kernels.compiled import lanes
from vmapens.run import open_run
from vmapens.spec import ModelSpec, RunSpec, TrainSpec, VariantSpec

KERNELS = ("compiled", "onednn")
BF16 = ("bf16",) if lanes.HAS_BF16 else ()


@dataclass(frozen=True)
class Case:
    """What no arrangement changes; the sizes are no multiples of a register's, and an epoch's last batch is short."""

    form: str
    kernel: str
    classes: int = 2
    shape: tuple[int, int, int] = (43, 5, 7)  # 26 training samples
    hidden: int = 3
    batch: int = 25  # the last batch is 1 sample
    precision: str = "fp32"
    frozen: bool = False
    clip_norm: float = 0.0
    patience: int = 0

    @cached_property
    def alone(self) -> Alone:
        """Variants trained alone, for all arrangements of this case."""
        return Alone(self.train)

    def train(self, arrangement: Arrangement) -> Outcome:
        spec = RunSpec(
            model=ModelSpec(hidden=self.hidden, attend_over=self.form, freeze_attention=self.frozen),
            train=TrainSpec(
                epochs=4 if self.patience else 2,
                batch_size=self.batch,
                precision=self.precision,
                clip_norm=self.clip_norm,
                patience=self.patience,
                device="cpu",
            ),
            save_attention="test:3",
        )
        with use_kernel(self.kernel):
            return train(spec, made_cohort(*self.shape, self.classes), arrangement)

    def check(self, arrangement: Arrangement, *, at_most: int | None = 2) -> Difference:
        """No byte of any variant may differ."""
        found = self.alone.difference(self.train(arrangement), at_most=at_most)
        assert found.differing_bytes == 0, found
        assert found.variants > 0
        return found


@cache
def case(*fields, **others) -> Case:
    return Case(*fields, **others)


# Drawn from within the tests: the checker of types draws random numbers, too, which Hypothesis forbids its strategies.
choices = st.randoms(use_true_random=False)


def of_any_size(form, kernel, choose) -> Case:
    """Sizes that are and are not multiples of a register's; a last batch of one sample, and a batch of all."""
    return Case(
        form,
        kernel,
        classes=choose.choice((2, 3, 5)),
        shape=(choose.choice((43, 70)), choose.choice((1, 3, 8, 17)), choose.choice((1, 7, 16, 31))),
        hidden=choose.choice((1, 3, 8, 16, 33)),
        batch=choose.choice((5, 16, 25, 41, 500)),
        precision=choose.choice(("fp32", *(BF16 if kernel == "compiled" else ()))),
        frozen=choose.choice((False, form != "uniform")),
        clip_norm=choose.choice((0.0, 0.1)),
        patience=choose.choice((0, 1)),
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=2, deadline=None)
@given(choose=choices)
def test_nothing_changes_a_variant(form, kernel, choose):
    of_any_size(form, kernel, choose).check(draw(choose, counts=(1, 7)))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=8, deadline=None)
@given(choose=choices)
def test_nothing_changes_a_variant_in_much_company(form, kernel, choose):
    of_any_size(form, kernel, choose).check(draw(choose))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", FORMS)
def test_a_block_of_64_changes_no_variant(form, kernel):
    arrangement = draw(random.Random(0), counts=[64], sizes=[64], threads=[2])  # narrower takes its time: above
    case(form, kernel).check(arrangement)


@pytest.mark.parametrize("design", ["paired", "bootstrapped", "crossed"])
@pytest.mark.parametrize("batch", [5, 500])  # six batches, the last of one sample; one batch of fewer than asked for
def test_every_design_and_size_of_batch(design, batch):
    arrangement = draw(random.Random(batch), counts=[7], sizes=[5], threads=[3], designs=[design])
    case("feature", "compiled", batch=batch).check(arrangement)


@pytest.mark.skipif(not BF16, reason="this processor has no products of bfloat16")
@pytest.mark.parametrize("form", FORMS)
def test_rounded_operands_change_no_variant_either(form):
    arrangement = draw(random.Random(1), counts=[7], sizes=[5], threads=[2])
    case(form, "compiled", precision="bf16").check(arrangement)


@pytest.mark.parametrize("kernel", KERNELS)
def test_frozen_attention_changes_no_variant(kernel):
    case("feature", kernel, frozen=True).check(draw(random.Random(2), counts=[7], sizes=[5]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_early_stopping_and_clipping_change_no_other_variant(kernel):
    own = case("feature", kernel, clip_norm=0.1, patience=1)
    own.check(draw(random.Random(4), counts=[7], sizes=[5], threads=[2]))


@pytest.mark.parametrize(("form", "kernel"), [("feature", "compiled"), ("pool", "onednn")])
def test_running_out_of_memory_changes_no_variant(monkeypatch, form, kernel):
    own = case(form, kernel)
    arrangement = draw(random.Random(3), counts=[7], sizes=[64])
    own.check(arrangement)
    widths, update = [], optimizer.update_parts_

    def scarce(theta, grads, state, step, **others):
        widths.append(len(theta))
        if len(theta) > 2 and step > 3:
            raise MemoryError
        update(theta, grads, state, step, **others)

    monkeypatch.setattr(optimizer, "update_parts_", scarce)
    own.check(arrangement)
    assert (widths[0], widths[-1]) in ((7, 1), (7, 2))


def test_a_model_of_ones_own_is_the_same_to_rounding():
    cohort = made_cohort(43, 5, 7)
    spec = RunSpec(train=TrainSpec(epochs=2, batch_size=25, device="cpu"), save_attention="test:3")
    own = partial(train, spec, cohort, model=partial(MeanPool, 7, 5, 1))
    arrangement = draw(random.Random(4), counts=[7], sizes=[5], designs=["paired"])
    sane = dataclasses.replace(arrangement, lr=(1e-3,) * 7, weight_decay=(0.0,) * 7)
    found = Alone(own).difference(own(sane), at_most=2)
    # Not the parameters: a softmax does not change with its bias, whose gradient is rounding, and Adam scales it up.
    assert max(found.largest[kind] for kind in ("history", "predictions", "attention")) < 1e-5  # seen: 6e-8


def test_neighbours_do_diverge():
    rates = tuple(DIVERGING if place == 3 else 1e-3 for place in range(7))
    design = VariantSpec(init_seeds=tuple(range(7)))
    outcome = case("feature", "compiled").train(Arrangement(design, rates, (0.0,) * 7, 7, 7, 2))
    assert [variant for variant, epoch in enumerate(outcome.values["kept_epoch"]) if epoch == 0] == [3]
    assert [variant for variant, rows in enumerate(outcome.values["history"]) if np.isnan(rows).any()] == [3]


def test_arrangements_of_all_kinds_are_drawn():
    drawn = [draw(choose) for choose in [random.Random(0)] for _ in range(300)]
    assert {len(a.lr) for a in drawn} == {1, 7, 64}
    assert {a.block for a in drawn} == {a.width for a in drawn} == {1, 5, 64}
    assert {a.threads for a in drawn} == {1, 2, 3, 4}
    assert {(a.design.design, bool(a.design.bootstrap_seeds)) for a in drawn} == {
        ("paired", False), ("paired", True), ("crossed", False),
    }  # fmt: skip
    assert any(a.diverging for a in drawn)
    assert any(a.design.init_seeds != tuple(sorted(a.design.init_seeds)) for a in drawn)


def test_one_flipped_bit_in_one_file_is_seen(tmp_path):
    alone = Variant(0, 0, -1, 1e-3, 0.0).alone()
    spec = RunSpec(model=ModelSpec(hidden=3), train=TrainSpec(epochs=1, lr=1e-3, weight_decay=0.0, device="cpu"))
    spec = dataclasses.replace(spec, variants=alone.design, save_attention="test:3")
    run = vmapens.train(None, made_cohort(43, 5, 7), spec, tmp_path / "run")
    known = Alone(lambda arrangement: outcome_of(open_run(tmp_path / "run")))
    assert known.difference(outcome_of(run)).differing_bytes == 0
    predictions = run.predictions
    bits = predictions["probability"].to_numpy().view(np.uint32).copy()
    bits[5] ^= 1
    changed = predictions.with_columns(probability=pl.Series(bits.view(np.float32)))
    changed.write_parquet(run.paths.predictions)
    found = known.difference(outcome_of(open_run(tmp_path / "run")))
    assert found.differing_bytes == 1
    assert [kind for kind, largest in found.largest.items() if largest > 0] == ["predictions"]


def test_a_kernel_that_looks_at_the_width_is_seen(monkeypatch):
    def broken(inputs, *others, classify=compiled.classify):
        result = classify(inputs, *others)
        result.weight.add_(1e-6 * (len(inputs.h0) > 1))  # a factor would not do: Adam takes it out again
        return result

    monkeypatch.setattr(compiled, "classify", broken)
    own = Case("feature", "compiled")
    arrangement = draw(random.Random(5), counts=[7], sizes=[5], designs=["paired"])
    found = own.alone.difference(own.train(arrangement))
    assert found.differing_bytes > 0
    assert found.largest["last"] > 0


def test_a_nan_on_one_side_is_an_infinite_difference():
    variant = Variant(0, 0, -1, 1e-3, 0.0)
    known = Alone(lambda arrangement: Outcome([variant], {"x": np.array([[1.0, np.nan, np.inf]])}))
    same = known.difference(Outcome([variant], {"x": np.array([[1.0, np.nan, np.inf]])}))
    other = known.difference(Outcome([variant], {"x": np.array([[np.nan, np.nan, np.inf]])}))
    assert (same.differing_bytes, same.largest["x"]) == (0, 0.0)
    assert other.largest["x"] == np.inf
