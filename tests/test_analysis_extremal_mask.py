"""Learned masks: cells that are known, the planted truth, and a plain loop over pairs."""

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from twin import PlainAttentionLSTM

from vmapens.analysis.extremal_mask import extremal_masks
from vmapens.cohort.load import load_cohort
from vmapens.ensemble.seeds import construct
from vmapens.ensemble.stack import stack_modules
from vmapens.nn import AttentionLSTM
from vmapens.spec import CohortSpec

FAST = {"steps": 30, "lr": 0.1, "hidden": 4}  # enough where few cells matter


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's idle threads would take the other tests' cores
    yield
    torch.set_num_threads(threads)


class ReadsCells(torch.nn.Module):
    """logit = sum of weight * x: a model of which everyone knows what it needs."""

    attention_axes = ("step", "feature")

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return (self.weight * x).sum(dim=(1, 2)).unsqueeze(1), torch.ones_like(x)


class ReadsCause(torch.nn.Module):
    """Reads the causal cell of the stay's stratum, which it tells by the mean temperature."""

    attention_axes = ("step", "feature")

    def __init__(self, temperature, cells, signs):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.temperature, self.cells, self.signs = temperature, cells, signs

    def forward(self, x):
        warmth = x[:, :, self.temperature].mean(1)
        warm, hot = torch.sigmoid(10 * (warmth + 0.6)), torch.sigmoid(10 * (warmth - 0.6))
        shares = (1 - warm, warm * (1 - hot), hot)
        risk = sum(p * sign * x[:, t, f] for p, sign, (t, f) in zip(shares, self.signs, self.cells, strict=True))
        return self.scale * risk.unsqueeze(1), torch.ones_like(x)


def window_of(step, feature, shape, *, value):
    weight = torch.zeros(shape)
    weight[step : step + 3, feature] = value
    return weight


def made_stays(stays, steps, features, seed=0, dtype=torch.float32):
    return torch.randn(stays, steps, features, generator=torch.Generator().manual_seed(seed)).to(dtype)


def made_stack(variants, steps, features, outputs=1, hidden=5, dtype=torch.float32):
    def factory():
        return AttentionLSTM(features, steps, outputs, hidden=hidden)

    modules = [construct(factory, seed)[0] for seed in range(variants)]
    with torch.no_grad():
        for module in modules:
            module.lstm.weight_ih_l0.mul_(6)  # an untrained model's logits hardly depend on x
            module.dense.weight.mul_(6)
    return factory().to(dtype), stack_modules(modules, variants, dtype)


def only(stack, rows):
    return type(stack)(stack.theta[rows].clone(), stack.columns)


def test_each_variants_mask_finds_the_cells_that_it_reads_and_puts_the_others_to_0():
    shape = (8, 6)
    weights = [window_of(1, 1, shape, value=0.5), window_of(4, 4, shape, value=0.5)]
    x = made_stays(3, *shape)
    for weight in weights:  # of one sign, or the mask may drop the evidence against, and a part of that for
        x[:, weight > 0] = torch.tensor([[1.0], [-1.0], [1.0]]) * torch.tensor([2.0, 1.5, 2.5])
    masks = extremal_masks(ReadsCells(weights[0]), "binary", stack_modules(map(ReadsCells, weights), 2), x, **FAST)
    for weight, mask in zip(weights, masks, strict=True):
        read = (weight > 0).numpy()
        for own in mask:
            assert average_precision_score(read.ravel(), own.ravel()) == 1
            assert own[read].min() > 0.5
            assert (own[~read] == 0).all()


def test_a_value_below_the_price_of_keeping_it_is_left_to_the_network():
    shape = (8, 6)
    weight, x = window_of(4, 2, shape, value=2), made_stays(3, *shape)
    x[:, weight > 0] = 0.5
    of = (ReadsCells(weight), "binary", stack_modules([ReadsCells(weight)], 1), x)
    cheap, dear = (extremal_masks(*of, sparsity=price, **FAST)[0][:, weight > 0] for price in (0.1, 5.0))
    assert cheap.min() > 0.9
    assert (dear == 0).all()


def test_masks_find_the_planted_cause(cohort_folder):
    cohort = load_cohort(CohortSpec(path=str(cohort_folder), task="outcome"))
    names = cohort.features["feature"].to_list()
    truth = pl.read_parquet(cohort_folder / "truth.parquet")
    causes = np.zeros(cohort.x.shape, bool)
    for sample, step, feature in truth.iter_rows():
        causes[cohort.samples.index(sample), step, names.index(feature)] = True
    stratum = dict(pl.read_parquet(cohort_folder / "bayes.parquet").select("sample", "stratum").iter_rows())
    cells = [
        np.argwhere(causes[[stratum[sample] for sample in cohort.samples].index(name)])[0]
        for name in ("surgical", "respiratory", "septic")
    ]
    model = ReadsCause(names.index("temperature"), cells, (-1, -1, 1))
    stays = np.sort(np.abs(cohort.x.numpy()[causes]).argsort()[-8:])  # where the cause acts most
    masks = extremal_masks(model, "binary", stack_modules([model], 1), cohort.x[stays], **FAST)[0]
    precision = [average_precision_score(c.ravel(), m.ravel()) for c, m in zip(causes[stays], masks, strict=True)]
    assert causes[stays].mean() == 1 / 48
    assert np.mean(precision) > 0.5


def plain_mask(model, kind, x, *, steps, lr, sparsity, hidden, seed):
    """One pair, from the definition: `torch.nn`, a bidirectional LSTM, `torch.optim.Adam`; also its objectives."""
    torch.manual_seed(seed)
    ahead, back = (torch.nn.LSTM(x.shape[1], hidden, batch_first=True) for _ in range(2))
    linear = torch.nn.Linear(2 * hidden, x.shape[1]).to(x.dtype)
    both = torch.nn.LSTM(x.shape[1], hidden, batch_first=True, bidirectional=True)
    state = dict(ahead.state_dict()) | {f"{name}_reverse": value for name, value in back.state_dict().items()}
    both.load_state_dict(state)
    both = both.to(x.dtype)
    mask = torch.full_like(x, 0.5).requires_grad_()
    adam = torch.optim.Adam([mask, *both.parameters(), *linear.parameters()], lr=lr)
    with torch.no_grad():
        logits = model(x[None])
        target = torch.sigmoid(logits[0, 0]) if kind == "binary" else torch.softmax(logits[0], dim=0)
    for _ in range(steps):
        n = linear(both(x[None])[0])[0]
        logits = model((mask * x + (1 - mask) * n)[None])[0]
        if kind == "binary":
            loss = -(target * F.logsigmoid(logits[0]) + (1 - target) * F.logsigmoid(-logits[0]))
        else:
            loss = -(target * torch.log_softmax(logits, dim=0)).sum()
        adam.zero_grad()
        (loss + sparsity * mask.mean() + n.abs().mean()).backward()
        adam.step()
        mask.data.clamp_(0, 1)
    return mask.detach().numpy()


@pytest.mark.parametrize(
    ("kind", "outputs", "dtype", "tolerance"),
    # The target and what is returned are float32 (seen: 3e-7); in float32 rounding grows with the steps (seen: 1e-6).
    [("binary", 1, torch.float64, 1e-6), ("multiclass", 3, torch.float64, 1e-6), ("binary", 1, torch.float32, 1e-5)],
)
def test_masks_are_those_of_a_plain_loop_over_pairs(kind, outputs, dtype, tolerance):
    model, stack = made_stack(2, 7, 5, outputs, dtype=dtype)
    x = made_stays(3, 7, 5, dtype=dtype)
    options = {"steps": 25, "lr": 0.06, "sparsity": 0.05, "hidden": 4, "seed": 3}
    masks = extremal_masks(model, kind, stack, x, **options)
    assert 0.1 < np.mean(masks > 0) < 0.9  # the cells have parted
    for v in range(2):
        plain = PlainAttentionLSTM(5, 7, 5, outputs).to(dtype)
        plain.load_state_dict(stack.state_dict(v))
        for s in range(3):
            wanted = plain_mask(plain, kind, x[s], **options)
            assert np.abs(masks[v, s] - wanted).max() <= tolerance


def test_a_variants_masks_are_the_same_bytes_in_any_company():
    model, stack = made_stack(10, 6, 5)  # more than are learned together
    x = made_stays(3, 6, 5)
    options = {"steps": 8, "hidden": 4}
    every = extremal_masks(model, "binary", stack, x, **options)
    assert every.shape == (10, 3, 6, 5)
    for rows in ([0], [7, 2], [9, 8, 1]):
        assert np.array_equal(extremal_masks(model, "binary", only(stack, rows), x, **options), every[rows])


def test_a_stays_mask_does_not_depend_on_the_other_stays():
    model, stack = made_stack(2, 6, 5, dtype=torch.float64)
    x = made_stays(10, 6, 5, dtype=torch.float64)
    options = {"steps": 8, "hidden": 4}
    every = extremal_masks(model, "binary", stack, x, **options)
    for stays in ([0], [9, 3]):
        own = extremal_masks(model, "binary", stack, x[stays], **options)
        assert np.abs(own - every[:, stays]).max() <= 1e-7  # float64 but for the last rounding


def test_a_variant_that_is_lost_has_no_mask_and_leaves_the_others_bit_identical():
    model, stack = made_stack(3, 6, 5)
    x = made_stays(2, 6, 5)
    good = extremal_masks(model, "binary", stack, x, steps=5, hidden=4)
    stack.theta[1, 0] = torch.nan
    bad = extremal_masks(model, "binary", stack, x, steps=5, hidden=4)
    assert np.isnan(bad[1]).all()
    assert np.array_equal(bad[[0, 2]], good[[0, 2]])


def test_masks_are_between_0_and_1_and_follow_the_seed_alone():
    model, stack = made_stack(1, 6, 5, outputs=3)
    x = made_stays(2, 6, 5)
    before = torch.get_rng_state()
    first, again, other = (
        extremal_masks(model, "multiclass", stack, x, seed=seed, **FAST | {"steps": 12}) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == np.float32
    assert first.min() == 0
    assert 0.5 < first.max() <= 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"hidden": 0}, {"lr": 0.0}, {"lr": np.nan}, {"sparsity": -1.0}])
def test_settings_out_of_range_are_named(wrong):
    model, stack = made_stack(1, 6, 5)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
        extremal_masks(model, "binary", stack, made_stays(1, 6, 5), **wrong)
