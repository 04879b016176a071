"""The attention-LSTM against plain `torch.nn` parts, in all its forms."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from twin import PlainAttentionLSTM

from vmapens.ensemble.step import _Call
from vmapens.errors import SpecError
from vmapens.nn import AttentionLSTM
from vmapens.nn.kernels import use_kernel, use_precision

FORMS = ["feature", "time", "pool", "uniform"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def plain_form(model, x):
    """The same function written with `torch.nn.functional` alone; gives logits and attention."""
    lstm = torch.nn.LSTM(x.shape[2], model.lstm.hidden_size, batch_first=True, dtype=x.dtype)
    parameters = dict(model.named_parameters())

    def run(x):
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        over = model.attend_over
        if over == "uniform":
            attention = torch.full_like(x, 1 / x.shape[2])
        elif over in ("feature", "time"):
            rows = x if over == "feature" else x.mT
            scores = torch.nn.functional.linear(
                rows, *(parameters[f"attention.attention_dense.{n}"] for n in ("weight", "bias"))
            )
            attention = torch.softmax(scores, -1) if over == "feature" else torch.softmax(scores, -1).mT
        gated = x if over == "pool" else x * attention
        states, (h, _) = functional_call(lstm, {n: parameters[f"lstm.{n}"] for n in names}, (gated,))
        summary = h[0]
        if over == "pool":
            scores = (
                states @ parameters["attention.attention_dense.weight"][0]
                + parameters["attention.attention_dense.bias"]
            )
            attention = torch.softmax(scores, -1)
            summary = torch.einsum("bt,bth->bh", attention, states)
        return summary @ parameters["dense.weight"].T + parameters["dense.bias"], attention

    return run(x)


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("reference", torch.float64),
        ("reference", torch.float32),
        ("onednn", torch.float32),
        ("compiled", torch.float32),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 7, 4, 6), (64, 12, 37, 8)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_plain_pytorch(form, shape, kernel, dtype):
    B, T, F, H = shape
    torch.manual_seed(0)
    model = AttentionLSTM(F, T, 3, hidden=H, attend_over=form).to(dtype)
    x = torch.randn(B, T, F, dtype=dtype)
    want_logits, want_attention = plain_form(model, x)
    want_logits.pow(2).sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parameters = {name: torch.stack([p.detach(), p.detach() + 1]) for name, p in model.named_parameters()}
    with use_kernel(kernel):
        logits, attention = model(x)
        stacked = vmap(grad(lambda p: functional_call(model, p, (x,))[0].pow(2).sum()))(parameters)
    assert (logits - want_logits).abs().max() <= TOLERANCE[dtype] * 10
    assert (attention - want_attention).abs().max() <= TOLERANCE[dtype]
    for name, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        assert (stacked[name][0] - gradient).abs().max() <= TOLERANCE[dtype] * 10 * scale, name


@pytest.mark.parametrize(("form", "axis"), [("feature", 2), ("time", 1), ("pool", 1), ("uniform", 2)])
def test_attention_sums_to_one_over_the_axis_of_the_softmax(form, axis):
    torch.manual_seed(0)
    model = AttentionLSTM(4, 7, attend_over=form, hidden=3)
    attention = model.attend(torch.randn(5, 7, 4))
    assert attention.dim() == 1 + len(model.attention_axes)
    assert (attention.sum(axis) - 1).abs().max() < 1e-6
    assert (attention > 0).all()


def test_gradients_reach_the_input():
    torch.manual_seed(0)
    for form in FORMS:
        model = AttentionLSTM(4, 7, attend_over=form, hidden=3).double()
        x = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, model=model: model.logits(x), x)


@pytest.mark.parametrize("form", FORMS)
def test_logits_given_its_own_attention_are_the_logits(form):
    torch.manual_seed(0)
    model = AttentionLSTM(4, 7, 2, attend_over=form, hidden=3).double()
    x = torch.randn(5, 7, 4, dtype=torch.float64)
    logits, attention = model(x)
    assert (model.logits_given(x, attention) - logits).abs().max() <= 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_logits_given_other_attention_are_those_of_plain_pytorch(form):
    """One attention [1, ...] for the whole batch, not normalised, so that nothing recomputes it unseen."""
    torch.manual_seed(0)
    model = AttentionLSTM(4, 7, 2, attend_over=form, hidden=3).double()
    lstm = torch.nn.LSTM(4, 3, batch_first=True).double()
    lstm.load_state_dict(model.lstm.state_dict())
    x = torch.randn(5, 7, 4, dtype=torch.float64)
    attention = torch.rand(1, 7, *(() if form == "pool" else (4,)), dtype=torch.float64)
    states = lstm(x if form == "pool" else x * attention)[0]
    summary = torch.einsum("t,bth->bh", attention[0], states) if form == "pool" else states[:, -1]
    want = summary @ model.dense.weight.T + model.dense.bias
    assert (model.logits_given(x, attention) - want).abs().max() <= 1e-12


@pytest.mark.parametrize("form", ["feature", "time", "pool"])
def test_frozen_attention_has_no_gradient_but_the_rest_has(form):
    model = AttentionLSTM(4, 7, attend_over=form, hidden=3, freeze_attention=True)
    model.logits(torch.randn(2, 7, 4)).sum().backward()
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    assert frozen == {"attention.attention_dense.weight", "attention.attention_dense.bias"}


def test_uniform_attention_cannot_be_frozen():
    with pytest.raises(SpecError, match="nothing to freeze"):
        AttentionLSTM(4, 7, attend_over="uniform", freeze_attention=True)


@pytest.mark.parametrize("form", ["feature", "time"])
def test_names_and_initialisation_are_those_of_the_papers_checkpoints(form):
    torch.manual_seed(3)
    plain = PlainAttentionLSTM(5, 7, 4, 2, form)
    torch.manual_seed(3)
    ours = AttentionLSTM(5, 7, 2, hidden=4, attend_over=form)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in plain.state_dict().items())


def loss_of_rows(model):
    x, rows, y = torch.randn(9, 7, 4), torch.tensor([3, 3, 8]), torch.tensor([0.0, 1.0, 1.0])
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    loss = _Call(model, "loss")

    def of(parameters, x=x):
        named = {f"model.{name}": p for name, p in parameters.items()}
        return functional_call(loss, named, (x, rows, y, "binary"))

    return of, parameters, x


@pytest.mark.parametrize("form", FORMS)
def test_a_scaled_loss_has_scaled_gradients(form):
    torch.manual_seed(0)
    of, parameters, _ = loss_of_rows(AttentionLSTM(4, 7, hidden=3, attend_over=form))
    once, thrice = grad(of)(parameters), grad(lambda p: 3 * of(p))(parameters)
    for name in once:
        assert (thrice[name] - 3 * once[name]).abs().max() <= 1e-6


def test_what_the_fused_loss_cannot_differentiate_is_refused():
    pytest.importorskip("numba")
    of, parameters, x = loss_of_rows(AttentionLSTM(4, 7, hidden=3))
    with pytest.raises(NotImplementedError, match="have no gradient"):
        grad(lambda x: of(parameters, x))(x)
    with pytest.raises(NotImplementedError, match="have no gradient"):
        grad(lambda x: vmap(lambda x: of(parameters, x))(x).sum())(x.expand(2, *x.shape))
    with pytest.raises(NotImplementedError, match="differentiable once"):
        grad(lambda p: sum(g.pow(2).sum() for g in grad(of)(p).values()))(parameters)


def test_two_precisions_in_one_call_are_refused():
    model = AttentionLSTM(4, 7, hidden=3).double()
    with pytest.raises(TypeError, match="use one precision for all"):
        model.logits(torch.randn(2, 7, 4))


@pytest.mark.parametrize("form", ["feature", "uniform"])
def test_bfloat16_operands_change_gradients_by_their_rounding_only(form):
    """2^-9 is the rounding of an operand; a sum of many such terms is off by about as much."""
    lanes = pytest.importorskip("vmapens.nn.kernels.compiled.lanes")
    if not lanes.HAS_BF16:
        pytest.skip("this processor has no products of bfloat16")
    torch.manual_seed(0)
    B, T, F, H = 19, 12, 38, 21
    model = AttentionLSTM(F, T, hidden=H, attend_over=form)
    x, y, rows = torch.randn(30, T, F), torch.randint(0, 2, (2, B)).float(), torch.randint(0, 30, (2, B))
    parameters = {name: torch.stack([p.detach(), p.detach() * 1.5]) for name, p in model.named_parameters()}
    loss = _Call(model, "loss")

    def one(parameters, rows, y):
        return functional_call(loss, {f"model.{name}": p for name, p in parameters.items()}, (x, rows, y, "binary"))

    found = {}
    for precision in ("fp32", "bf16"):
        with use_precision(precision):
            found[precision] = vmap(grad(one))(parameters, rows, y)
    for name, exact in found["fp32"].items():
        distance = (found["bf16"][name] - exact).norm() / exact.norm()
        assert 1e-6 < distance < 1e-2, name
