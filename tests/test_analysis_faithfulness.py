"""Erasing and keeping cells: by hand, against a loop over plain PyTorch modules, against Captum, and by chance."""

import itertools

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation
from own_model import MeanPool
from scipy.stats import rankdata
from twin import PlainAttentionLSTM

from vmapens.analysis import attribution
from vmapens.analysis.attribution import attributions
from vmapens.analysis.faithfulness import MASKS, SHARES, faithfulness, masks, permuted_attention, ranking
from vmapens.ensemble.stack import stack_modules
from vmapens.ensemble.step import attend
from vmapens.nn import AttentionLSTM

V, T, F, H = 3, 8, 5, 4
AXES = ("step", "feature")


def make(form="feature", outputs=1, *, variants=V, steps=T, features=F, dtype=torch.float64):
    def module(seed):
        torch.manual_seed(seed)
        model = AttentionLSTM(features, steps, outputs, hidden=H, attend_over=form).to(dtype)
        for parameter in model.parameters():
            parameter.data *= 3  # so that the attention is not flat
        return model

    return module(0), stack_modules((module(seed) for seed in range(variants)), variants, dtype)


def stays(*, steps=T, features=F, dtype=torch.float64):
    x = torch.randn(2, steps, features, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x[0], x[1]


class WeightedSum(torch.nn.Module):
    """The logit is the sum of weight * x, whatever it attends to; its attention is a parameter."""

    attention_axes = AXES

    def __init__(self, weight, attention):
        super().__init__()
        self.weight, self.attention = torch.nn.Parameter(weight), torch.nn.Parameter(attention)

    def forward(self, x):
        return (self.weight * x).sum((1, 2))[:, None], self.attention.expand(x.shape)


def plain_logits(model, stack, variant):
    """Logits of one variant as a function of (x [T, F], attention or None), of plain PyTorch parts."""
    state = stack.state_dict(variant)
    form, features = model.attend_over, state["lstm.weight_ih_l0"].shape[1]
    lstm = torch.nn.LSTM(features, H, batch_first=True, dtype=torch.float64)
    lstm.load_state_dict({name[5:]: value for name, value in state.items() if name.startswith("lstm.")})
    weight, bias = (state[f"attention.attention_dense.{name}"] for name in ("weight", "bias"))

    def logits(x, attention):
        if form == "pool":
            hidden = lstm(x[None])[0][0]
            attention = torch.softmax(hidden @ weight[0] + bias, dim=0) if attention is None else attention
            summary = attention @ hidden
        else:
            if attention is None:
                rows = x if form == "feature" else x.T
                attention = torch.softmax(rows @ weight.T + bias, dim=1)
                attention = attention if form == "feature" else attention.T
            summary = lstm((x * attention)[None])[0][0, -1]
        return state["dense.weight"] @ summary + state["dense.bias"]

    return logits


def signed(logits, y):
    if len(logits) == 1:
        return logits[0].item()
    probability = torch.softmax(logits, dim=0)[y]
    return (torch.log(probability) - torch.log1p(-probability)).item()


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("form", ["feature", "time", "pool"])
@torch.no_grad()
def test_changes_are_those_of_a_loop_over_plain_modules(form, outputs):
    model, stack = make(form, outputs)
    (x, other), y = stays(), outputs - 1
    found = attributions(model, stack, x, y)
    result = faithfulness(model, stack, x, y, other, found, seed=3)
    assert result.masks == tuple(name for name in MASKS if form != "pool" or name != "gated_input_size")
    assert result.attentions == ("recomputed", "held")
    assert result.change.shape == (len(result.masks), 2, 2, 2, len(SHARES), V)
    other_attention = attend(model, stack, other[None])[:, 0].numpy()
    places = masks(found, other_attention, x.numpy(), model.attention_axes, range(V), seed=3)
    for v in (0, V - 1):
        logits, attention = plain_logits(model, stack, v), torch.from_numpy(found["attention"][v]).double()
        whole = signed(logits(x, None), y)
        for m, name in enumerate(result.masks):
            for q, share in enumerate(SHARES):
                cells = places[name][v]
                top = np.zeros((T, F), dtype=bool)
                for step, feature in np.ndindex(T, F):
                    row = cells[step, 0 if form == "pool" else feature]
                    top[step, feature] = row < max(1, round(share * cells.size))
                for f, fill in enumerate((torch.zeros_like(x), other)):
                    for d, erased in enumerate((torch.from_numpy(top), torch.from_numpy(~top))):
                        changed = torch.where(erased, fill, x)
                        for a, given in enumerate((None, attention)):
                            want = whole - signed(logits(changed, given), y)
                            assert result.change[m, f, a, d, q, v] == pytest.approx(want, abs=1e-6), (name, share)


def test_erasing_and_keeping_are_captums_ablation_of_the_top_cells_and_of_all_others():
    model, stack = make()
    x, other = stays()
    found = attributions(model, stack, x, 1)
    result = faithfulness(model, stack, x, 1, other, found, seed=0, shares=(0.2,))
    for v in range(V):
        twin = PlainAttentionLSTM(F, T, H, 1).double()
        twin.load_state_dict(stack.state_dict(v))
        top = rankdata(-np.abs(found["gradient_x_input"][v]), method="ordinal").reshape(T, F) <= 8  # 20 % of 40
        groups = torch.from_numpy(top.astype(np.int64))[None]
        for f, fill in enumerate((torch.zeros_like(x), other)):
            ablation = FeatureAblation(lambda batch, twin=twin: twin(batch)[:, 0])
            want = ablation.attribute(x[None], baselines=fill[None], feature_mask=groups)[0].detach().numpy()
            m = result.masks.index("gradient_x_input")
            assert result.change[m, f, 0, 0, 0, v] == pytest.approx(want[top][0], abs=1e-12)
            assert result.change[m, f, 0, 1, 0, v] == pytest.approx(want[~top][0], abs=1e-12)


def test_a_case_by_hand():
    """The logit is the sum of four cells, so erasing loses the top ones, and keeping loses the others."""
    model = WeightedSum(torch.ones(2, 2), torch.tensor([[0.4, 0.3], [0.2, 0.1]]))
    x, other = torch.tensor([[1.0, -2.0], [4.0, 8.0]]), torch.full((2, 2), 0.5)
    stack = stack_modules([model], 1)
    found = {"attention": model.attention.detach().numpy()[None]}
    result = faithfulness(model, stack, x, 1, other, found, seed=0, shares=(0.25, 0.5, 1.0))
    change = {name: result.change[m, :, 0, :, :, 0] for m, name in enumerate(result.masks)}
    assert change["attention"][0].tolist() == [[1.0, -1.0, 11.0], [10.0, 12.0, 0.0]]
    assert change["attention"][1].tolist() == [[0.5, -2.0, 9.0], [8.5, 11.0, 0.0]]
    assert change["input_size"][0].tolist() == [[8.0, 12.0, 11.0], [3.0, -1.0, 0.0]]
    assert change["rolled"][0].tolist() == [[4.0, 12.0, 11.0], [7.0, -1.0, 0.0]]  # the only offset of two steps is 1


def test_the_right_cells_lose_the_most_and_random_cells_their_share():
    """In a sum, q of the cells at random carry q of it on average; the best mask takes every positive term first."""
    variants, shape = 400, (6, 10)
    torch.manual_seed(0)
    model = WeightedSum(torch.ones(shape), torch.rand(shape))
    stack = stack_modules(itertools.repeat(model, variants), variants)
    x, other = torch.rand(shape), torch.zeros(shape)
    found = {"attention": np.repeat(x.numpy()[None], variants, axis=0)}
    result = faithfulness(model, stack, x, 1, other, found, seed=0)
    erased = dict(zip(result.masks, result.change[:, 0, 0, 0], strict=True))
    for q, share in enumerate(SHARES):
        count = max(1, round(share * 60))
        sd = x.std().item() * np.sqrt(count * (1 - count / 60) / variants)
        assert abs(erased["random"][q].mean() - count * x.mean().item()) < 4 * sd
        assert erased["attention"][q] == pytest.approx(x.flatten().sort().values[-count:].sum().item(), rel=1e-5)
        assert (erased["attention"][q] >= erased["random"][q]).all()


def test_ties_are_broken_at_random_so_that_a_flat_map_is_no_mask_of_the_first_steps():
    places = ranking(np.ones((2, 20, 10)), seed=0)
    assert np.array_equal(places[0], places[1])
    assert np.array_equal(np.sort(places[0], axis=None), np.arange(200))
    assert 60 < places[0, :10].mean() < 140  # the first half of the steps; 49.5 in the order of the cells


def test_ranking_is_that_of_scipy_up_to_ties():
    scores = np.random.default_rng(0).integers(0, 6, (4, 5, 7)).astype(float)
    places = ranking(scores, seed=1)
    for variant in range(4):
        row = -scores[variant].ravel()
        assert (rankdata(row, method="min") <= places[variant].ravel() + 1).all()
        assert (rankdata(row, method="max") >= places[variant].ravel() + 1).all()
        assert sorted(places[variant].ravel()) == list(range(35))


def drawn(variants, *, axes=AXES, steps=T, only=None, seed=5):
    generator = np.random.default_rng(1)
    shape = tuple({"step": steps, "feature": F}[axis] for axis in axes)
    found = {
        "attention": generator.random((variants, *shape)),
        "gated_input_size": generator.random((variants, steps, F)),
    }
    other, x = generator.random((variants, *shape)), generator.normal(size=(steps, F))
    return found, other, masks(found, other, x, axes, range(variants) if only is None else only, seed=seed)


def test_masks_are_what_their_names_say():
    found, other, places = drawn(400)
    assert list(places) == [name for name in MASKS if name not in ("gradient_x_input", "integrated_gradients")]
    assert np.array_equal(places["attention"], ranking(found["attention"], seed=5))
    assert np.array_equal(places["other_patient"], ranking(other, seed=5))
    assert np.array_equal(places["other_variant"], np.roll(places["attention"], -1, axis=0))
    offsets = set()
    for own, rolled in zip(places["attention"], places["rolled"], strict=True):
        (offset,) = [o for o in range(T) if np.array_equal(np.roll(own, o, axis=0), rolled)]
        offsets.add(offset)
    assert offsets == {2, 3, 4, 5, 6}  # a quarter to three quarters of eight steps
    mean = places["random"].mean(axis=0)  # of 400 places with an SD of 40 / sqrt(12)
    assert np.abs(mean - 19.5).max() < 4.5 * 40 / np.sqrt(12 * 400)


def test_masks_of_some_variants_are_those_of_all():
    _, _, every = drawn(6)
    for only in (range(0, 2), range(2, 5), range(5, 6)):
        _, _, some = drawn(6, only=only)
        for name in every:
            assert np.array_equal(some[name], every[name][only.start : only.stop]), name


def test_where_attention_has_steps_alone_all_masks_are_of_whole_steps():
    found, _, places = drawn(3, axes=("step",))
    assert all(mask.shape == (3, T, 1) for mask in places.values())
    sums = found["gated_input_size"].sum(axis=2)
    assert np.array_equal(places["gated_input_size"][:, :, 0], rankdata(-sums, axis=1) - 1)


def test_attention_with_other_axes_has_no_masks_of_its_own():
    found = {"attention": np.ones((2, 3, T))}
    places = masks(found, np.ones((2, 3, T)), np.ones((T, F)), ("head", "step"), range(2), seed=0)
    assert list(places) == ["random", "input_size"]
    assert places["random"].shape == (2, T, F)


def test_one_step_cannot_be_rolled():
    assert "rolled" not in drawn(2, steps=1)[2]


def test_without_a_way_to_hold_the_attention_it_is_only_recomputed():
    torch.manual_seed(0)
    model = MeanPool(F, T, 1)
    stack = stack_modules([model, model], 2)
    x, other = stays(dtype=torch.float32)
    found = attributions(model, stack, x, 1)
    result = faithfulness(model, stack, x, 1, other, found, seed=0)
    assert result.attentions == ("recomputed",)
    assert result.change.shape == (8, 2, 1, 2, len(SHARES), 2)
    with pytest.raises(ValueError, match="MeanPool has no method logits_given"):
        permuted_attention(model, stack, x, found["attention"], seed=0)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_outside_its_range_is_refused(share):
    model, stack = make()
    x, other = stays()
    with pytest.raises(ValueError, match="wanted values above 0, up to 1"):
        faithfulness(model, stack, x, 1, other, attributions(model, stack, x, 1), seed=0, shares=(0.1, share))


def test_a_variant_has_the_same_bytes_however_many_are_computed_at_once(monkeypatch):
    model, stack = make(variants=5, dtype=torch.float32)
    x, other = stays(dtype=torch.float32)
    found = attributions(model, stack, x, 1)

    def both():
        changes = faithfulness(model, stack, x, 1, other, found, seed=0).change
        return changes, permuted_attention(model, stack, x, found["attention"], seed=0)

    together = both()
    monkeypatch.setattr(attribution, "_VARIANTS", 2)
    for whole, part in zip(together, both(), strict=True):
        assert np.array_equal(whole, part)


def test_nan_in_one_variant_leaves_the_changes_of_its_own_masks_in_all_others_bit_identical():
    model, stack = make(dtype=torch.float32)
    x, other = stays(dtype=torch.float32)
    before = faithfulness(model, stack, x, 1, other, attributions(model, stack, x, 1), seed=0)
    stack.theta[1] = torch.nan
    after = faithfulness(model, stack, x, 1, other, attributions(model, stack, x, 1), seed=0)
    assert np.isnan(after.change[..., 1]).all()
    own = [m for m, name in enumerate(before.masks) if name != "other_variant"]
    assert np.array_equal(after.change[own][..., [0, 2]], before.change[own][..., [0, 2]])


def test_one_variant_one_step_and_one_feature_work():
    model, stack = make(variants=1, steps=1, features=1)
    x, other = stays(steps=1, features=1)
    found = attributions(model, stack, x, 1)
    result = faithfulness(model, stack, x, 1, other, found, seed=0)
    assert (result.change[:, :, :, 1] == 0).all()  # the one cell is kept
    assert permuted_attention(model, stack, x, found["attention"], seed=0).tolist() == [0.0]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("form", ["feature", "pool"])
def test_permuted_attention_moves_predictions_as_all_permutations_do_on_average(form, outputs):
    """Every way to permute both steps (or, with pooling, three steps), by plain PyTorch; 2000 draws come near it."""
    torch.manual_seed(0)
    steps = 3 if form == "pool" else 2
    model, stack = make(form, outputs, steps=steps, features=3)
    x, _ = stays(steps=steps, features=3)
    found = attributions(model, stack, x, 0, names=["attention"])["attention"]
    got = permuted_attention(model, stack, x, found, permutations=2000, seed=0)
    rows = 1 if form == "pool" else steps
    for v in range(V):
        logits = plain_logits(model, stack, v)
        own = torch.from_numpy(found[v]).double()
        every = [
            torch.stack([row[list(order)] for row, order in zip(own.view(rows, 3), orders, strict=True)]).view_as(own)
            for orders in itertools.product(itertools.permutations(range(3)), repeat=rows)
        ]
        with torch.no_grad():
            p, *others = (probabilities(logits(x, weights)) for weights in (own, *every))
        distance = torch.stack([(p - other).abs().sum() / 2 for other in others])
        assert got[v] == pytest.approx(distance.mean().item(), abs=4.5 * distance.std().item() / np.sqrt(2000) + 1e-7)
        assert distance.mean() > 1e-4  # or it would say nothing


def probabilities(logits):
    if len(logits) == 1:
        return torch.stack([torch.sigmoid(-logits[0]), torch.sigmoid(logits[0])])
    return torch.softmax(logits, dim=0)


def test_permuting_flat_attention_changes_nothing():
    model, stack = make("uniform")
    x, _ = stays()
    assert permuted_attention(model, stack, x, np.full((V, T, F), 1 / F), seed=0).tolist() == [0.0] * V
