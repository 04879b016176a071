"""The Triton kernels against the plain truth: interpreted on a CPU, compiled where there is a GPU."""

import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad_and_value, vmap

pytest.importorskip("triton")

from vmapens.ensemble import optimizer
from vmapens.ensemble.seeds import construct
from vmapens.ensemble.stack import stack_modules
from vmapens.ensemble.step import gradients, train_step
from vmapens.errors import SpecError
from vmapens.nn import LSTM, AttentionLSTM
from vmapens.nn.kernels import Inputs, Plan, batched, checked, choose, triton, use_kernel
from vmapens.nn.kernels.agreement import distances, head_distances, made_gradients, made_head, made_inputs, results
from vmapens.nn.kernels.triton import attention, product, recurrence, size
from vmapens.nn.kernels.triton.head import head
from vmapens.nn.loss import LOSSES, targets

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Norms over a whole tensor. float32: 6e-8 a rounding, tanh to 1.2e-7, and the gradient of a bias is a sum over all rows
# that nearly cancel (seen: 5e-6). TF32 keeps 10 bits, bfloat16 7, which the interpreter cuts off, not rounds.
TOLERANCE = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2}
SIZES = [(1, 1, 1, 1, 1), (3, 5, 4, 7, 6), (2, 17, 3, 37, 20), (1, 70, 2, 16, 3)]


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory():
    """Whatever a kernel forgets to write is NaN, not the zeros that fresh memory often holds."""
    torch.use_deterministic_algorithms(DEVICE == "cpu")  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def by_step(monkeypatch):
    """As if no recurrent weights fitted on the chip."""
    monkeypatch.setattr(size, "_ON_CHIP_SHARE", 0)


def check(inputs, plan, *, need_x=False):
    found = distances(triton, inputs, plan, need_x=need_x)
    assert len(found) >= 8
    assert max(found.values()) <= TOLERANCE[plan.precision], found


@pytest.mark.parametrize("gate_over", ["feature", "time", None])
@pytest.mark.parametrize("pool", [None, 9])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_fused_kernels_equal_the_reference(sizes, pool, gate_over):
    inputs = made_inputs(sizes, gate_over=gate_over, pool=pool, device=DEVICE)
    for all_states in (True, False):
        check(inputs, Plan(gate_over, all_states, keep=True), need_x=pool is None)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("gate_over", ["feature", None])
def test_rounded_operands_come_close(precision, gate_over):
    inputs = made_inputs((2, 17, 3, 37, 20), gate_over=gate_over, pool=9, device=DEVICE)
    check(inputs, Plan(gate_over, all_states=True, keep=True, precision=precision))


def test_bfloat16_keeps_half_the_bytes():
    inputs = made_inputs((2, 5, 3, 7, 6), gate_over="feature", device=DEVICE)
    kept = {p: triton.forward(inputs, Plan("feature", keep=True, precision=p))[1] for p in ("fp32", "bf16")}
    assert [t.shape for t in kept["fp32"]] == [(2, 3, 5, 64), (2, 4, 5, 16), (2, 4, 5, 16)]
    assert sum(t.nbytes for t in kept["bf16"]) * 2 == sum(t.nbytes for t in kept["fp32"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("all_states", [True, False])
def test_weights_read_at_each_step_give_the_same(by_step, precision, all_states):
    inputs = made_inputs((2, 17, 3, 7, 40), gate_over="feature", device=DEVICE)  # several tiles of hidden units
    assert not size.Size.of(inputs, Plan(precision=precision)).on_chip
    check(inputs, Plan("feature", all_states, keep=True, precision=precision), need_x=True)


def test_the_paper_keeps_its_weights_on_chip_in_bfloat16_only():
    inputs = Inputs(*(torch.empty(shape, device="meta") for shape in [(1, 64, 288, 231), (1, 64, 128)]), *[None] * 8)
    on_chip = {p: size.Size.of(inputs, Plan(precision=p)).on_chip for p in ("fp32", "tf32", "bf16")}
    assert on_chip == {"fp32": False, "tf32": False, "bf16": True}


@pytest.mark.parametrize("all_states", [True, False])
@pytest.mark.parametrize("share", [1, 0])
def test_without_keeping_the_states_are_the_same(monkeypatch, all_states, share):
    monkeypatch.setattr(size, "_ON_CHIP_SHARE", share)
    inputs = made_inputs((2, 5, 3, 7, 6), gate_over="feature", device=DEVICE)
    kept, without = (triton.forward(inputs, Plan("feature", all_states, keep)) for keep in (True, False))
    assert without[1] == []
    for a, b in zip(kept[0], without[0], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_computing_the_forward_again_gives_the_same_gradients():
    inputs, plan = made_inputs((2, 5, 3, 7, 6), gate_over="feature", device=DEVICE), Plan("feature", keep=True)
    grads, kept = made_gradients(inputs, plan), triton.forward(inputs, plan)[1]
    first, again, fresh = (triton.backward(inputs, plan, grads, k, True) for k in (kept, kept, []))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, fresh, strict=True))


@pytest.mark.parametrize("gate_over", ["feature", "time", None])
def test_groups_of_variants_give_the_same_bytes_as_all_at_once(monkeypatch, gate_over):
    inputs, plan = made_inputs((5, 3, 2, 4, 3), gate_over=gate_over, device=DEVICE), Plan(gate_over, keep=True)
    grads = made_gradients(inputs, plan)
    whole = results(triton, inputs, plan, grads, need_x=True)
    monkeypatch.setattr(triton, "_MOST_VARIANTS", 2)
    for keep in (True, False):
        parts = results(triton, inputs, Plan(gate_over, keep=keep), grads, need_x=True)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)
    groups = triton._groups(size.Size.of(inputs, plan), inputs.x.device, 1)
    assert [len(range(5)[group]) for group in groups] == [1, 2, 2]


def test_nan_in_one_variant_leaves_the_others_bit_identical():
    inputs, plan = made_inputs((3, 5, 3, 7, 6), gate_over="feature", pool=9, device=DEVICE), Plan("feature", keep=True)
    grads = made_gradients(inputs, plan)
    good = results(triton, inputs, plan, grads)
    for weight in (inputs.w_ih, inputs.gate_weight):
        weight[1, 0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the interpreter, about products with NaN
        bad = results(triton, inputs, plan, grads)
    for name in good:
        assert not torch.isfinite(bad[name][1]).all()
        assert all(torch.equal(good[name][v], bad[name][v]) for v in (0, 2))


def test_inputs_may_have_any_strides():
    inputs = made_inputs((2, 5, 3, 7, 6), gate_over="feature", device=DEVICE)
    crooked = inputs._replace(
        x=inputs.x.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0),
        w_hh=inputs.w_hh.mT.contiguous().mT,
        gate_weight=inputs.gate_weight.mT.contiguous().mT,
        h0=inputs.h0[:1, :1].expand(2, 5, 6),
    )
    assert crooked.x.stride(-1) != 1
    check(crooked, Plan("feature", all_states=True, keep=True), need_x=True)


def test_more_features_than_a_program_holds_go_through_the_batched_path(monkeypatch):
    monkeypatch.setattr(size, "_WIDEST", 16)
    inputs, plan = made_inputs((2, 3, 2, 17, 3), gate_over="feature", device=DEVICE), Plan("feature", keep=True)
    grads = made_gradients(inputs, plan)
    ours, theirs = (results(kernel, inputs, plan, grads) for kernel in (triton, batched))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("kind", "classes"), [("binary", 1), ("multiclass", 3), ("multiclass", 20)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (2, 70, 33)])
def test_the_head_equals_the_plain_loss_and_its_gradients(sizes, kind, classes):
    found = head_distances((*sizes, classes), kind, DEVICE)
    assert max(found.values()) <= 2e-6  # seen: 4e-7, of a gradient that nearly cancels
    given = [t.double() if t.is_floating_point() else t for t in made_head((*sizes, classes), kind, DEVICE)]

    def loss(hidden, weight, bias, y):
        return LOSSES[kind](F.linear(hidden, weight, bias), y)

    gradients, losses = vmap(grad_and_value(loss, argnums=(0, 1, 2)))(*given)
    for got, wanted in zip(batched.head(*given, kind), (losses, *gradients), strict=True):
        assert (got - wanted).abs().max() <= 1e-14


def test_the_head_of_a_saturated_variant_is_the_plain_losses():
    hidden, weight, bias, y = made_head((2, 5, 7, 1), "binary", DEVICE)
    weight[1] = 1e4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the interpreter, about an exponential that is infinite
        got = head(hidden, weight, bias, y, "binary")
    wanted = batched.head(hidden, weight, bias, y, "binary")
    assert wanted[0][1] > 10  # logarithms are cut off at -100
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(got, wanted, strict=True))


def test_a_linear_layer_that_no_program_can_hold_goes_through_the_batched_path():
    given = made_head((2, 3, 600, 20), "multiclass", DEVICE)
    ours, theirs = head(*given, "multiclass"), batched.head(*given, "multiclass")
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("over", ["feature", "uniform", "time", "pool"])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_a_variant_beside_a_nan_takes_the_step_that_it_takes_alone(over, kind):
    """Gradients, loss, and Adam's step, whatever the place: what no launch may make depend on the variants' number."""
    x, y = torch.randn(9, 3, 7, device=DEVICE), torch.arange(9, device=DEVICE) % 2
    y = targets(y, kind, x.dtype)
    rows = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2], [3, 1, 4, 1, 5]], device=DEVICE)
    model = AttentionLSTM(7, 3, 1 if kind == "binary" else 3, hidden=6, attend_over=over)
    modules = [model, construct(partial(type(model), 7, 3, model.dense.out_features, hidden=6, attend_over=over), 1)[0]]

    def stepped(*which, nan=()):
        stack = stack_modules([modules[v] for v in which], len(which)).to(torch.device(DEVICE))
        stack.theta[list(nan)] = torch.nan
        rate = torch.full((len(which),), 1e-2, device=DEVICE)
        state = optimizer.init(stack.theta[:, : stack.trained_width], rate, rate)
        losses = train_step(gradients(model, kind), stack, state, x, y, rows[[2 * v for v in which]], 1)
        return losses, stack.theta, state.first, state.second

    with use_kernel("triton"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the interpreter, about products with NaN
        alone, together, last = stepped(0), stepped(0, 1, 0, nan=[1]), stepped(1, 1, 0, nan=[0, 1])
    assert torch.isnan(together[1][1]).any()
    same = torch.equal
    if over == "time":  # its softmax goes through the batched path, to rounding; lr times that of a gradient near zero
        same = partial(torch.allclose, rtol=1e-5, atol=1e-5)
    for own, beside, behind in zip(alone, together, last, strict=True):
        assert same(own[0], beside[0])
        assert same(own[0], beside[2])
        assert same(own[0], behind[2])


@pytest.mark.parametrize("gate_over", ["feature", None])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_launches_of_one_variant_are_compiled_as_those_of_many(monkeypatch, gate_over, precision):
    """Sizes of tiles, and strides, which Triton compiles by."""
    seen = []

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                numbers = [a for a in arguments if not isinstance(a, torch.Tensor)]
                seen.append((self.kernel, grid[0], [(a % 16 == 0, a == 1) for a in numbers], options))

            return launch

    for room, name in [
        (attention, "project"), (attention, "gate_gradient"), (product, "product"),
        (recurrence, "forward_on_chip"), (recurrence, "backward_on_chip"),
    ]:  # fmt: skip
        monkeypatch.setattr(room, name, Recorded(name))
    calls = []
    for count in (1, 3):
        seen.clear()
        inputs = made_inputs((count, 5, 3, 7, 6), gate_over=gate_over, pool=9, device=DEVICE)
        inputs = inputs._replace(x=inputs.x[0].clone().unsqueeze(0).expand(count, 9, 3, 7))
        plan = Plan(gate_over, keep=True, precision=precision)
        triton.backward(inputs, plan, made_gradients(inputs, plan), triton.forward(inputs, plan)[1], False)
        calls.append(list(seen))
    assert calls[0] == calls[1]
    assert len(calls[0]) >= 5


def test_the_fused_adam_equals_the_plain_one():
    # The change of theta is a difference of numbers near 1, so a rounding of theta shows as 1e-7 / lr.
    found = optimizer.fused_distances(torch.device(DEVICE))
    assert found["theta"] <= 1e-5
    assert max(found["first"], found["second"]) <= 1e-6


def test_the_triton_kernels_refuse_float64():
    with use_kernel("triton"), pytest.raises(SpecError, match=r"compute float32 tensors, not torch\.float64"):
        LSTM(2, 3, batch_first=True, dtype=torch.float64)(torch.zeros(1, 2, 2, dtype=torch.float64))


def compiled(precision, sizes, cache):
    """What `hopper` prints, compiled afresh."""
    root = Path(__file__).parent.parent
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-W", "ignore", "tests/hopper.py", precision, sizes]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


H200_SHARED_BYTES = 227 * 1024
KERNELS = {"project", "gate_gradient", "product", "classify"}


def test_the_kernels_compile_for_an_h200_at_the_papers_size_and_fit_its_shared_memory(tmp_path):
    found = compiled("bf16", "1000,64,288,231,128", tmp_path)
    assert {line["kernel"] for line in found} == KERNELS | {"forward_on_chip", "backward_on_chip"}
    assert all(line["shared_bytes"] <= H200_SHARED_BYTES for line in found)
    assert {line["matrix_unit"] for line in found if line["kernel"] != "classify"} == {"wgmma"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("sizes", ["1000,64,288,231,128", "64,64,48,37,32", "3,5,4,7,6", "8,64,48,1000,300"])
def test_the_kernels_compile_for_an_h200_at_other_sizes_and_precisions(tmp_path, precision, sizes):
    found = compiled(precision, sizes, tmp_path)
    assert {line["kernel"] for line in found} >= KERNELS
    assert all(line["shared_bytes"] <= H200_SHARED_BYTES for line in found)


@pytest.fixture
def no_verdicts(monkeypatch):
    monkeypatch.setattr(checked, "_verdicts", {})
    monkeypatch.setattr(checked, "_said", set())


@pytest.mark.parametrize("gate_over", ["feature", "time", None])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_kernels_that_agree_are_used(no_verdicts, gate_over, precision):
    inputs, plan = made_inputs((3, 5, 3, 7, 6), gate_over=gate_over, pool=9, device=DEVICE), Plan(gate_over, keep=True)
    assert checked._kernel(inputs, Plan(gate_over, keep=True, precision=precision)) is triton
    assert len(checked.forward(inputs, plan)[1][0].shape) == 4


def test_a_head_that_agrees_is_used_and_another_is_not(monkeypatch, no_verdicts):
    inputs, plan = made_inputs((2, 5, 3, 7, 6), gate_over="feature", pool=9, device=DEVICE), Plan("feature")
    _, weight, bias, y = made_head((2, 5, 6, 3), "multiclass", DEVICE)
    ours = checked.classify(inputs, plan, weight, bias, y, "multiclass")
    assert torch.equal(ours.loss, triton.classify(inputs, plan, weight, bias, y, "multiclass").loss)
    checked._verdicts.clear()
    monkeypatch.setattr("vmapens.nn.kernels.triton.head.head", lambda *given: 1 / 0)
    with pytest.warns(RuntimeWarning, match="they failed: division by zero"):
        plain = checked.classify(inputs, plan, weight, bias, y, "multiclass")
    assert torch.allclose(plain.loss, ours.loss)
    assert torch.allclose(plain.inputs.w_hh, ours.inputs.w_hh, atol=1e-6)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda inputs, plan: 1 / 0, "they failed: division by zero"),
        (
            lambda inputs, plan: batched.forward(inputs._replace(c0=inputs.c0 + 1), plan),
            "they disagree with it: .* h by",
        ),
    ],
)
def test_kernels_that_fail_or_disagree_are_not_used_and_that_is_said_once(monkeypatch, no_verdicts, forward, reason):
    monkeypatch.setattr(triton, "forward", forward)
    monkeypatch.setattr(triton, "backward", batched.backward)
    inputs, others = (made_inputs((3, 5, 3, features, 6), device=DEVICE) for features in (7, 8))
    plan = Plan(keep=True)
    with pytest.warns(RuntimeWarning, match=f"in fp32 the batched path computes.*{reason}"):
        states, kept = checked.forward(inputs, plan)
    checked.backward(inputs, plan, made_gradients(inputs, plan), kept, False)
    checked.forward(others, plan)  # other sizes fail the same way: a second warning would be an error here
    assert torch.equal(states.h, batched.forward(inputs, plan)[0].h)


def test_a_gpu_with_triton_gets_the_checked_kernels_and_without_it_the_batched_one(monkeypatch):
    gpu = torch.device("cuda")
    assert choose(gpu, torch.float32) is checked
    assert choose(gpu, torch.float64) is batched
    monkeypatch.setattr("vmapens.nn.kernels.has_triton", lambda: False)
    assert choose(gpu, torch.float32) is batched
