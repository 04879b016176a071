"""Attributions of all variants at once: equal to Captum's, one plain PyTorch module at a time."""

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from own_model import MeanPool
from twin import PlainAttentionLSTM

from vmapens.analysis import attribution
from vmapens.analysis.attribution import attributions, importance, passes, signed_logit
from vmapens.analysis.tables import ATTRIBUTIONS
from vmapens.ensemble.stack import stack_modules
from vmapens.nn import AttentionLSTM

V, T, F, H = 3, 7, 4, 5
# float64: the rounding of the float32 that is given. float32: another order of sums (seen: 1e-6).
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5}


def make(form="feature", outputs=1, *, variants=V, steps=T, features=F, dtype=torch.float64):
    """A model, and a stack of variants whose weights are large enough that the attention is not flat."""

    def module(seed):
        torch.manual_seed(seed)
        model = AttentionLSTM(features, steps, outputs, hidden=H, attend_over=form).to(dtype)
        for parameter in model.parameters():
            parameter.data *= 3
        return model

    return module(0), stack_modules((module(seed) for seed in range(variants)), variants, dtype)


def stay(seed=0, *, steps=T, features=F, dtype=torch.float64):
    return torch.randn(steps, features, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def twin_of(stack, variant, form="feature", outputs=1):
    """One variant as a plain PyTorch module."""
    twin = PlainAttentionLSTM(F, T, H, outputs, form).to(stack.theta.dtype)
    twin.load_state_dict(stack.state_dict(variant))
    return twin


def log_odds(logits, y):
    """The signed logit by way of the probabilities."""
    probability = torch.sigmoid(logits[:, 0]) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)[:, y]
    return torch.log(probability) - torch.log1p(-probability)


def test_the_signed_logit_is_the_log_odds_of_class_one_or_of_the_true_class():
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for y in range(4):
        torch.testing.assert_close(signed_logit(logits, y), log_odds(logits, y), rtol=0, atol=1e-12)
        torch.testing.assert_close(signed_logit(logits[:, :1], y), log_odds(logits[:, :1], y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("form", ["feature", "time"])
def test_every_variant_has_the_attributions_of_captum(form, outputs, dtype):
    _, stack = make(form, outputs, dtype=dtype)
    x, y = stay(dtype=dtype), outputs - 1
    found = attributions(make(form, outputs, dtype=dtype)[0], stack, x, y)
    assert list(found) == list(ATTRIBUTIONS)
    for v in range(V):
        twin = twin_of(stack, v, form, outputs)
        attention = twin.attend(x[None])[0].detach()

        def explained(batch, twin=twin):
            return log_odds(twin(batch), y)

        path = IntegratedGradients(explained)
        want = {
            "attention": attention,
            "gated_input": attention * x,
            "gated_input_size": (attention * x).abs(),
            "gradient_x_input": InputXGradient(explained).attribute(x[None].requires_grad_())[0].detach(),
            "integrated_gradients": path.attribute(x[None], n_steps=32, method="riemann_middle")[0].detach(),
        }
        for name, value in want.items():
            assert found[name].shape == (V, T, F)
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(
                found[name][v], value.numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], err_msg=name
            )


@pytest.mark.parametrize("form", ["feature", "time", "pool", "uniform"])
def test_integrated_gradients_sum_to_the_change_of_the_logit(form):
    """Completeness. The midpoint rule's error with 32 points is a share of what is attributed in all (seen: 2e-4)."""
    model, stack = make(form)
    x = stay()
    path = attributions(model, stack, x, 1, names=["integrated_gradients"])["integrated_gradients"].astype(np.float64)
    for v in range(V):
        model.load_state_dict(stack.state_dict(v))
        with torch.no_grad():
            change = (model.logits(x[None]) - model.logits(0 * x[None])).item()
        assert path[v].sum() == pytest.approx(change, abs=1e-3 * np.abs(path[v]).sum())


def test_pooling_has_attention_over_steps_and_no_gated_input():
    model, stack = make("pool")
    found = attributions(model, stack, stay(), 1)
    assert {name: value.shape for name, value in found.items()} == {
        "attention": (V, T),
        "gradient_x_input": (V, T, F),
        "integrated_gradients": (V, T, F),
    }


def test_only_what_is_named_is_given():
    model, stack = make()
    assert list(attributions(model, stack, stay(), 1, names=["gated_input"])) == ["gated_input"]
    assert list(attributions(model, stack, stay(), 1, names=["gradient_x_input"])) == ["gradient_x_input"]


def test_a_model_of_ones_own_is_explained():
    torch.manual_seed(0)
    model = MeanPool(F, T, 1)
    found = attributions(model, stack_modules([model], 1), stay(dtype=torch.float32), 0)
    x = stay(dtype=torch.float32)[None].requires_grad_()
    want = InputXGradient(lambda batch: model(batch)[0][:, 0]).attribute(x)[0].detach()
    np.testing.assert_allclose(found["gradient_x_input"][0], want.numpy(), rtol=0, atol=1e-6)


def test_one_variant_one_step_and_one_feature_work():
    model, stack = make(variants=1, steps=1, features=1)
    x = stay(steps=1, features=1)
    found = attributions(model, stack, x, 1)
    assert all(value.shape == (1, 1, 1) for value in found.values())
    assert found["gated_input"].item() == x.float().item()  # attention over one feature is 1


def test_a_variant_has_the_same_bytes_however_many_are_computed_at_once(monkeypatch):
    model, stack = make(variants=5, dtype=torch.float32)
    x = stay(dtype=torch.float32)
    together = attributions(model, stack, x, 1)
    monkeypatch.setattr(attribution, "_VARIANTS", 2)
    apart = attributions(model, stack, x, 1)
    for name in together:
        assert np.array_equal(together[name], apart[name]), name


def test_nan_in_one_variant_leaves_all_others_bit_identical():
    model, stack = make(dtype=torch.float32)
    x = stay(dtype=torch.float32)
    before = attributions(model, stack, x, 1)
    stack.theta[1] = torch.nan
    after = attributions(model, stack, x, 1)
    for name, value in after.items():
        assert np.isnan(value[1]).all()
        assert np.array_equal(value[[0, 2]], before[name][[0, 2]])


def test_passes_cover_all_variants_within_their_memory():
    _, stack = make(variants=5)
    mib = 2**20
    assert list(passes(stack, 200 * mib)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(passes(stack, 2000 * mib)) == [slice(v, v + 1) for v in range(5)]
    assert list(passes(stack, 1)) == [slice(0, 5)]


def test_signed_attributions_rank_by_their_size_and_the_gated_input_by_its_value():
    values = np.array([[-2.0, 1.0]])
    assert importance("integrated_gradients", values).tolist() == [[2.0, 1.0]]
    assert importance("gradient_x_input", values).tolist() == [[2.0, 1.0]]
    assert importance("gated_input", values).tolist() == [[-2.0, 1.0]]
