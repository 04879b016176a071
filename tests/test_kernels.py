"""The kernels held against the plain truth in float64: outputs and gradients at odd sizes."""

import pytest
import torch

from vmapens.errors import SpecError
from vmapens.nn import LSTM
from vmapens.nn.kernels import (
    Inputs,
    Plan,
    batched,
    choose,
    compute_device,
    precision,
    reference,
    use_kernel,
    use_precision,
)
from vmapens.nn.kernels.agreement import distances, made_gradients, made_inputs, results
from vmapens.nn.loss import LOSSES
from vmapens.spec import TrainSpec

# float64: sums in another order. float32: 6e-8 a rounding, a few hundred in a row.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
SIZES = [(1, 1, 1, 1, 1), (3, 5, 4, 7, 6), (2, 17, 3, 37, 20)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gate_over", ["feature", "time", None])
@pytest.mark.parametrize("pool", [None, 9])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_batched_kernel_equals_the_reference(sizes, pool, gate_over, dtype):
    inputs = made_inputs(sizes, gate_over=gate_over, pool=pool, dtype=dtype)
    for plan in (Plan(gate_over, all_states=True, keep=True), Plan(gate_over, keep=True), Plan(gate_over)):
        found = distances(batched, inputs, plan, need_x=pool is None)
        assert len(found) >= 8
        assert max(found.values()) <= TOLERANCE[dtype], found


@pytest.mark.parametrize("gate_over", ["feature", "time", None])
@pytest.mark.parametrize("pool", [None, 9])
@pytest.mark.parametrize("sizes", [*SIZES, (2, 3, 5, 15, 16), (2, 8, 3, 16, 17), (1, 9, 17, 31, 33), (2, 1, 2, 32, 48)])
def test_the_compiled_kernel_equals_the_reference(sizes, pool, gate_over):
    """Sizes on both sides of what it pads to: 8 rows, 16 columns."""
    compiled = pytest.importorskip("vmapens.nn.kernels.compiled")
    inputs = made_inputs(sizes, gate_over=gate_over, pool=pool)
    for plan in (Plan(gate_over, all_states=True, keep=True), Plan(gate_over, keep=True), Plan(gate_over)):
        found = distances(compiled, inputs, plan, need_x=pool is None)
        assert len(found) >= 8
        assert max(found.values()) <= TOLERANCE[torch.float32], found


@pytest.mark.parametrize(("kind", "classes", "scale"), [("binary", 1, 1), ("binary", 1, 100), ("multiclass", 17, 9)])
def test_the_fused_loss_equals_the_plain_one(kind, classes, scale):
    """Saturated logits included, where the sigmoid is 1 and a logarithm is cut off at -100."""
    compiled = pytest.importorskip("vmapens.nn.kernels.compiled")
    inputs, plan = made_inputs((2, 11, 4, 5, 6), pool=9), Plan()
    weight, bias = scale * torch.randn(2, classes, 6), torch.randn(2, classes)
    y = torch.randint(2, (2, 11)).float() if kind == "binary" else torch.randint(classes, (2, 11))
    found = compiled.classify(inputs, plan, weight, bias, y, kind)
    hidden = compiled.forward(inputs, plan)[0].h
    for v in range(2):
        leaves = [t[v].clone().requires_grad_() for t in (hidden, weight, bias)]
        loss = LOSSES[kind](torch.nn.functional.linear(*leaves), y[v])
        _, d_weight, d_bias = torch.autograd.grad(loss, leaves)
        assert (found.loss[v] - loss).abs() <= 1e-5 * loss
        assert (found.weight[v] - d_weight).norm() <= 1e-5 * d_weight.norm()
        # A sum of errors p - y that may cancel: what is left of it is no more exact than they are, 6e-8 each.
        assert (found.bias[v] - d_bias).norm() <= 1e-5 * d_bias.norm() + 6e-8


def test_a_label_or_row_that_does_not_exist_is_refused():
    compiled = pytest.importorskip("vmapens.nn.kernels.compiled")
    inputs, head = made_inputs((1, 3, 4, 5, 6), pool=9), (torch.randn(1, 4, 6), torch.randn(1, 4))
    for y in (torch.tensor([[0, 4, 1]]), torch.tensor([[0, -100, 1]])):
        with pytest.raises(IndexError, match="there are 4 classes"):
            compiled.classify(inputs, Plan(), *head, y, "multiclass")
    for rows in (torch.tensor([[0, 9, 1]]), torch.tensor([[-1, 0, 1]])):
        with pytest.raises(IndexError, match="there are 9 samples"):
            compiled.forward(inputs._replace(rows=rows), Plan())


@pytest.mark.parametrize("gate_over", ["feature", "time", None])
def test_cutting_the_steps_in_chunks_changes_nothing(monkeypatch, gate_over):
    inputs = made_inputs((3, 5, 7, 4, 6), gate_over=gate_over, pool=9, dtype=torch.float64)
    monkeypatch.setattr(batched, "_ROOM_BYTES", 3 * 8 * 3 * 5 * 4 * (6 + 4))  # three steps: chunks of 3, 3 and 1
    for keep in (True, False):
        found = distances(batched, inputs, Plan(gate_over, all_states=True, keep=keep))
        assert max(found.values()) <= TOLERANCE[torch.float64], found
    assert batched._steps_at_once(inputs) == 3


def test_without_keeping_the_batched_kernel_gives_the_same_states():
    inputs = made_inputs((3, 5, 7, 4, 6), gate_over="feature")
    for all_states in (True, False):
        kept = batched.forward(inputs, Plan("feature", all_states, keep=True))
        without = batched.forward(inputs, Plan("feature", all_states))
        assert len(kept[1]) == 3
        assert without[1] == []
        for a, b in zip(kept[0], without[0], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_the_batched_kernels_backward_can_be_called_twice():
    inputs = made_inputs((2, 3, 4, 5, 6), gate_over="feature")
    plan = Plan("feature", keep=True)
    grads, kept = made_gradients(inputs, plan), batched.forward(inputs, plan)[1]
    first, second = (batched.backward(inputs, plan, grads, kept, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_last_state_that_nothing_depends_on_needs_no_gradient():
    inputs, plan = made_inputs((2, 3, 4, 5, 6)), Plan(all_states=True, keep=True)
    grads = made_gradients(inputs, plan)._replace(h=None, c=None)
    kept = batched.forward(inputs, plan)[1]
    got = batched.backward(inputs, plan, grads, kept, True)
    wanted = reference.backward(inputs, plan, grads, [], True)
    for a, b in zip(got, wanted, strict=True):
        assert (a is None and b is None) or (a - b).norm() <= TOLERANCE[torch.float32] * b.norm()


def test_a_kernel_that_is_wrong_is_far_from_the_truth():
    inputs, plan = made_inputs((2, 3, 4, 5, 6), gate_over="feature"), Plan("feature", keep=True)

    class Wrong:
        forward, memory = staticmethod(batched.forward), staticmethod(batched.memory)

        @staticmethod
        def backward(inputs, plan, grads, kept, need_x):
            good = batched.backward(inputs, plan, grads, kept, need_x)
            return good._replace(w_hh=good.w_hh * 1.01, b_ih=None, b_hh=good.b_hh * torch.nan)

    found = distances(Wrong(), inputs, plan)
    assert found["d_w_hh"] == pytest.approx(0.01, rel=1e-2)
    assert found["d_b_ih"] == found["d_b_hh"] == float("inf")
    assert found["d_w_ih"] <= TOLERANCE[torch.float32]


def test_devices_without_a_kernel_of_their_own_get_the_batched_one():
    assert choose(torch.device("mps"), torch.float32) is batched
    assert choose(torch.device("cpu"), torch.float64) is reference
    with use_kernel("batched"):
        assert choose(torch.device("cpu"), torch.float32) is batched


def test_the_precision_in_force_goes_into_the_plan_of_forward_and_backward(monkeypatch):
    seen = []

    class Watched:
        memory = staticmethod(batched.memory)

        @staticmethod
        def forward(inputs, plan):
            seen.append(("forward", plan.precision))
            return batched.forward(inputs, plan)

        @staticmethod
        def backward(inputs, plan, *rest):
            seen.append(("backward", plan.precision))
            return batched.backward(inputs, plan, *rest)

    monkeypatch.setattr("vmapens.nn.recurrence.choose", lambda device, dtype: Watched)
    x = torch.randn(2, 3, 4, requires_grad=True)
    with use_precision("bf16"):
        loss = LSTM(4, 5, batch_first=True)(x)[0].sum()
    with use_precision("auto"):
        loss.backward()
        LSTM(4, 5, batch_first=True)(x)
    assert seen == [("forward", "bf16"), ("backward", "bf16"), ("forward", "fp32")]
    assert precision() == "fp32"


@pytest.mark.parametrize(("name", "offered"), [("fp32", True), ("auto", True), ("tf32", False), ("bf16", False)])
def test_a_cpu_without_numba_refuses_precisions_that_it_has_no_kernel_for(monkeypatch, name, offered):
    monkeypatch.setattr("vmapens.nn.kernels._has_numba", lambda: False)
    spec = TrainSpec(device="cpu", precision=name)
    if offered:
        assert compute_device(spec).type == "cpu"
    else:
        with pytest.raises(SpecError, match=rf"precision is {name}, but no kernel here offers it on cpu; use fp32\.$"):
            compute_device(spec)


def test_a_gpu_offers_bfloat16_with_triton_and_tf32_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("vmapens.nn.kernels.has_triton", lambda: True)
    for name in ("auto", "fp32", "tf32", "bf16"):
        assert compute_device(TrainSpec(precision=name)).type == "cuda"
    monkeypatch.setattr("vmapens.nn.kernels.has_triton", lambda: False)
    assert compute_device(TrainSpec(precision="tf32")).type == "cuda"
    with pytest.raises(SpecError, match=r"precision is bf16, .* offers it on cuda; use fp32, tf32\.$"):
        compute_device(TrainSpec(precision="bf16"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(SpecError, match="precision is tf32, but no kernel here offers it on cuda"):
        compute_device(TrainSpec(precision="tf32"))


def test_the_batched_kernel_leaves_the_setting_of_tf32_as_it_was(monkeypatch):
    inputs, matmul = made_inputs((2, 3, 4, 5, 6)), torch.backends.cuda.matmul
    inside, forward = [], batched._forward
    monkeypatch.setattr(batched, "_forward", lambda *given: inside.append(matmul.fp32_precision) or forward(*given))
    before = matmul.fp32_precision
    for name in ("fp32", "tf32", "bf16"):
        batched.forward(inputs, Plan(precision=name))
    assert inside == ["ieee", "tf32", "ieee"]
    assert matmul.fp32_precision == before


def test_the_made_problem_holds_what_it_was_asked_for():
    inputs = made_inputs((2, 3, 4, 5, 6), gate_over="time", pool=7)
    assert inputs.x.shape == (2, 7, 4, 5)
    assert inputs.x.stride(0) == 0
    assert inputs.rows.shape == (2, 3)
    assert inputs.gate_weight.shape == (2, 4, 4)
    assert made_inputs((2, 3, 4, 5, 6)).gate_weight is None
    names = results(reference, inputs, Plan("time"), made_gradients(inputs, Plan("time")))
    assert sorted(names) == sorted(["h", "c"] + [f"d_{name}" for name in Inputs._fields[1:-1]])
    assert made_gradients(inputs, Plan("time")).all is None
