"""`per_variant`: the same numbers as the plain function, the same bytes in any company."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from vmapens.nn import isolation, per_variant
from vmapens.nn.threads import over_variants, spread_over


def loss(w, x, y):
    return per_variant(lambda x, w, y: F.binary_cross_entropy_with_logits(x @ w, y), x, w, y)


def plain(w, x, y):
    return F.binary_cross_entropy_with_logits(x @ w, y)


@pytest.fixture
def arguments():
    generator = torch.Generator().manual_seed(0)
    w, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(4, 3), (4, 5, 3)])
    return w, x, (x.sum(-1) > 0).double()


@pytest.mark.parametrize("whole", [False, True])
def test_values_and_gradients_are_the_plain_functions(arguments, whole, monkeypatch):
    """Also on the path of a GPU, which runs the function under vmap as it is."""
    if whole:
        monkeypatch.setattr(isolation, "_needs_vmap", lambda tensor: True)
    got = vmap(grad(loss, argnums=(0, 1)))(*arguments)
    wanted = vmap(grad(plain, argnums=(0, 1)))(*arguments)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() < 1e-15


def test_it_works_without_vmap_under_grad_of_vmap_and_nested(arguments):
    w, x, y = arguments
    leaf = w[0].clone().requires_grad_()
    (alone,) = torch.autograd.grad(loss(leaf, x[0], y[0]), leaf)
    assert (alone - grad(plain)(w[0], x[0], y[0])).abs().max() < 1e-15
    outside = grad(lambda w: vmap(loss)(w, x, y).sum())(w)
    assert (outside - vmap(grad(plain))(w, x, y)).abs().max() < 1e-15
    nested = vmap(lambda w: vmap(grad(loss), in_dims=(None, 0, 0))(w, x, y))(w)
    assert (nested - vmap(lambda w: vmap(grad(plain), in_dims=(None, 0, 0))(w, x, y))(w)).abs().max() < 1e-15


def test_plain_autograd_goes_through_a_vmap(arguments):
    w, x, y = arguments
    leaf = w.clone().requires_grad_()
    vmap(loss)(leaf, x, y).sum().backward()
    assert (leaf.grad - vmap(grad(plain))(w, x, y)).abs().max() < 1e-15


def test_a_per_variant_function_may_hold_another():
    x = torch.randn(3, 4)
    with spread_over(1):
        doubled = vmap(lambda row: per_variant(lambda row: per_variant(torch.exp, row) * 2, row))(x)
        over_variants(lambda v: over_variants(lambda w: None, 2), 2)
    assert (doubled - 2 * x.exp()).abs().max() < 1e-6


def test_an_interrupt_stops_the_other_variants():
    done = []

    def work(v):
        if v == 1:
            raise KeyboardInterrupt
        time.sleep(0.01)
        done.append(v)

    with spread_over(2), pytest.raises(KeyboardInterrupt):
        over_variants(work, 1000)
    count = len(done)
    time.sleep(0.1)
    assert len(done) == count < 10


def test_a_row_has_the_same_bytes_alone_and_in_company():
    """Plain `sigmoid` need not: it differs between the middle and the end of a tensor."""
    x = torch.randn(9, 13, generator=torch.Generator().manual_seed(0))
    isolated = vmap(lambda row: per_variant(torch.sigmoid, row))
    together = isolated(x)
    assert all(torch.equal(together[row], isolated(x[row : row + 1])[0]) for row in range(9))


def test_a_failure_in_one_variant_is_raised():
    def work(v):
        if v == 2:
            raise ZeroDivisionError("variant 2")

    with pytest.raises(ZeroDivisionError, match="variant 2"):
        over_variants(work, 5)


def test_threads_of_the_caller_are_restored():
    before = torch.get_num_threads()
    with spread_over(3):
        assert torch.get_num_threads() == 1
        over_variants(lambda v: None, 4)
    assert torch.get_num_threads() == before
    over_variants(lambda v: None, 4)
    assert torch.get_num_threads() == before
