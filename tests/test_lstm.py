"""`vmapens.nn.LSTM` against `torch.nn.LSTM`: the same numbers, gradients and names, also where that one cannot go."""

from importlib.util import find_spec

import pytest
import torch
from torch.func import functional_call, grad, vmap

from vmapens.errors import SpecError
from vmapens.nn import LSTM
from vmapens.nn.kernels import Inputs, Plan, use_kernel
from vmapens.nn.recurrence import recurrence

INTERPRETED = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(),
    reason="runs in Triton's interpreter; test_triton compiles",
)
SHAPES = [(1, 1, 1, 1, 1), (3, 5, 7, 3, 4), (2, 64, 48, 37, 32), (4, 2, 1, 5, 1), (2, 1, 9, 1, 3)]
# float64: sums in another order. float32: the same, with 1e-7 a rounding and a few hundred terms.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
KERNELS = [
    ("reference", torch.float64),
    ("reference", torch.float32),
    ("onednn", torch.float32),
    ("compiled", torch.float32),
    ("batched", torch.float64),
    ("batched", torch.float32),
    pytest.param("triton", torch.float32, marks=INTERPRETED),
]
EVERY_KERNEL = ["reference", "onednn", "compiled", "batched", pytest.param("triton", marks=INTERPRETED)]


def loss_of(states, h, c):
    """Depends on every output, differently at every place."""
    weight = torch.linspace(0.5, 1.5, states.numel(), dtype=states.dtype).view(states.shape)
    return (states.sin() * weight).sum() + 2 * h.sum() + c.pow(2).sum()


def plain_results(module, x):
    x = x.clone().requires_grad_()
    states, (h, c) = module(x)
    loss_of(states, h, c).backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    return states.detach(), h.detach(), c.detach(), gradients, x.grad


def near(got, wanted, dtype):
    scale = max(1.0, wanted.abs().max().item())
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max().item() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_vmapped_lstm_equals_separate_torch_lstms(kernel, dtype, shape):
    V, B, T, F, H = shape
    torch.manual_seed(0)
    plain = [torch.nn.LSTM(F, H, batch_first=True, dtype=dtype) for _ in range(V)]
    ours = LSTM(F, H, batch_first=True, dtype=dtype)
    x = torch.randn(V, B, T, F, dtype=dtype)
    stacked = {name: torch.stack([m.state_dict()[name] for m in plain]) for name in plain[0].state_dict()}

    def run(parameters, x):
        states, (h, c) = functional_call(ours, parameters, (x,))
        return loss_of(states, h, c), (states, h, c)

    with use_kernel(kernel):
        (d_parameters, d_x), (states, h, c) = vmap(grad(run, argnums=(0, 1), has_aux=True))(stacked, x)
    for v, module in enumerate(plain):
        want_states, want_h, want_c, gradients, want_d_x = plain_results(module, x[v])
        near(states[v], want_states, dtype)
        near(h[v], want_h, dtype)
        near(c[v], want_c, dtype)
        near(d_x[v], want_d_x, dtype)
        for name, gradient in gradients.items():
            near(d_parameters[name][v], gradient, dtype)


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_lstm_works_in_plain_autograd_no_grad_and_vmap_alike(kernel, dtype):
    torch.manual_seed(1)
    plain = torch.nn.LSTM(3, 4, batch_first=True, dtype=dtype)
    ours = LSTM(3, 4, batch_first=True, dtype=dtype)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(5, 7, 3, dtype=dtype)
    states, h, c, gradients, d_x = plain_results(plain, x)
    with use_kernel(kernel):
        results = plain_results(ours, x)
        with torch.no_grad():
            without, _ = ours(x)
        shared = vmap(lambda x: ours(x)[0], in_dims=1)(x.unsqueeze(1).expand(5, 2, 7, 3))
    for got, wanted in zip(results[:3], (states, h, c), strict=True):
        near(got, wanted, dtype)
    near(results[4], d_x, dtype)
    for name, gradient in gradients.items():
        near(results[3][name], gradient, dtype)
    near(without, states, dtype)
    near(shared[1], states, dtype)


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_lstm_takes_initial_states_and_non_contiguous_inputs(kernel, dtype):
    torch.manual_seed(2)
    plain = torch.nn.LSTM(3, 4, batch_first=True, dtype=dtype)
    ours = LSTM(3, 4, batch_first=True, dtype=dtype)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3, 7, 5, dtype=dtype).permute(2, 1, 0)
    assert not x.is_contiguous()
    hx = torch.randn(1, 5, 4, dtype=dtype), torch.randn(1, 5, 4, dtype=dtype)
    mine = tuple(t.clone().requires_grad_() for t in hx)
    theirs = tuple(t.clone().requires_grad_() for t in hx)
    with use_kernel(kernel):
        states, (h, c) = ours(x, mine)
        loss_of(states, h, c).backward()
    want, (want_h, want_c) = plain(x, theirs)
    loss_of(want, want_h, want_c).backward()
    near(states, want, dtype)
    for own, other in zip(mine, theirs, strict=True):
        near(own.grad, other.grad, dtype)


@pytest.mark.parametrize(
    "kernel", ["reference", "onednn", "compiled", "batched", pytest.param("triton", marks=INTERPRETED)]
)
def test_gradient_of_a_vmap_equals_vmap_of_a_gradient(kernel):
    """Under grad(vmap(...)) the forward cannot see that it is differentiated: the backward computes it again."""
    torch.manual_seed(3)
    ours = LSTM(3, 4, batch_first=True)
    parameters = {name: torch.stack([p.detach(), p.detach() * 0.5]) for name, p in ours.named_parameters()}
    x = torch.randn(2, 5, 7, 3)

    def one(parameters, x):
        return functional_call(ours, parameters, (x,))[0].pow(2).sum()

    with use_kernel(kernel):
        inside = vmap(grad(one))(parameters, x)
        outside = grad(lambda p: vmap(one)(p, x).sum())(parameters)
    for name in inside:
        near(outside[name], inside[name], torch.float32)


def test_nested_vmap_equals_loops():
    torch.manual_seed(4)
    ours = LSTM(2, 3, batch_first=True)
    x = torch.randn(2, 4, 5, 6, 2)
    nested = vmap(vmap(lambda x: ours(x)[0]))(x)
    looped = torch.stack([torch.stack([ours(x[i, j])[0] for j in range(4)]) for i in range(2)])
    near(nested.detach(), looped.detach(), torch.float32)


def test_a_vmap_over_the_backward_alone_gives_the_jacobian():
    torch.manual_seed(5)
    ours = LSTM(2, 3, batch_first=True, dtype=torch.float64)
    x = torch.randn(1, 4, 2, dtype=torch.float64)
    rows = torch.func.jacrev(lambda x: ours(x)[1][0].flatten())(x)
    h = ours(x.clone().requires_grad_())
    assert rows.shape == (3, 1, 4, 2)
    leaf = x.clone().requires_grad_()
    for unit in range(3):
        h = ours(leaf)[1][0].flatten()[unit]
        near(rows[unit], torch.autograd.grad(h, leaf)[0], torch.float64)


def test_lstm_starts_as_torch_lstm_and_leaves_the_generator_alike():
    torch.manual_seed(7)
    plain = torch.nn.LSTM(5, 6, batch_first=True)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    ours = LSTM(5, 6, batch_first=True)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))
    assert list(plain.state_dict()) == list(ours.state_dict())


def test_lstm_refuses_what_it_is_not():
    with pytest.raises(NotImplementedError, match=r"num_layers=1 only, got 2"):
        LSTM(3, 4, num_layers=2)
    with pytest.raises(NotImplementedError, match=r"batch_first=True only, got False"):
        LSTM(3, 4)


def test_second_derivatives_are_refused_in_words():
    ours = LSTM(2, 3, batch_first=True)
    x = torch.randn(1, 4, 2, requires_grad=True)
    (first,) = torch.autograd.grad(ours(x)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        first.sum().backward()


def test_onednn_refuses_float64():
    with use_kernel("onednn"), pytest.raises(SpecError, match=r"computes float32 on a CPU, not torch\.float64"):
        LSTM(2, 3, batch_first=True, dtype=torch.float64)(torch.zeros(1, 2, 2, dtype=torch.float64))


def test_a_broken_gradient_is_caught(monkeypatch):
    """The comparison above can fail: a kernel whose gradient is 1 % off does not pass it."""
    from vmapens.nn.kernels import onednn

    good = onednn._lstm_backward
    monkeypatch.setattr(onednn, "_lstm_backward", lambda *a: tuple(t * 1.01 for t in good(*a)))
    with pytest.raises(AssertionError):
        test_vmapped_lstm_equals_separate_torch_lstms("onednn", torch.float32, (3, 5, 7, 3, 4))


@pytest.mark.parametrize(
    "kernel", ["reference", "onednn", "compiled", "batched", pytest.param("triton", marks=INTERPRETED)]
)
def test_a_batch_named_by_rows_of_shared_samples_equals_the_gathered_batch(kernel):
    torch.manual_seed(6)
    samples, rows = torch.randn(9, 7, 3), torch.tensor([[1, 8, 8, 0], [2, 3, 4, 5]])
    ours = LSTM(3, 4, batch_first=True)
    weights = [torch.stack([w.detach(), w.detach() * 0.5]) for w in ours.weights()]
    zeros = torch.zeros(4, 4)

    def by_rows(weights, rows):
        return recurrence(Inputs(samples, zeros, zeros, *weights, rows=rows), Plan())[1].pow(2).sum()

    def gathered(weights, x):
        return recurrence(Inputs(x, zeros, zeros, *weights), Plan())[1].pow(2).sum()

    with use_kernel(kernel):
        got = vmap(torch.func.grad_and_value(by_rows))(weights, rows)
        wanted = vmap(torch.func.grad_and_value(gathered))(weights, samples[rows])
    assert torch.equal(got[1], wanted[1])
    assert all(torch.equal(a, b) for a, b in zip(got[0], wanted[0], strict=True))
