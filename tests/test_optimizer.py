"""Adam on the rows of theta against `torch.optim.Adam`."""

import pytest
import torch

from vmapens.ensemble import optimizer
from vmapens.nn.threads import spread_over


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_rows_equal_torch_adam_each_with_its_own_settings(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(3, 40, dtype=dtype, generator=generator)
    lr, decay = [1e-3, 5e-4, 1e-1], [0.0, 1e-6, 1e-1]
    plain = [row.clone().requires_grad_() for row in theta]
    adams = [torch.optim.Adam([p], lr=a, weight_decay=d) for p, a, d in zip(plain, lr, decay, strict=True)]
    state = optimizer.init(theta, torch.tensor(lr), torch.tensor(decay))
    state = optimizer.AdamState(state.first, state.second, *(torch.tensor(v, dtype=torch.float64) for v in (lr, decay)))
    for step in range(1, 21):
        grad = torch.randn(3, 40, dtype=dtype, generator=generator)
        for parameter, adam, g in zip(plain, adams, grad, strict=True):
            parameter.grad = g.clone()
            adam.step()
        optimizer.update_(theta, grad, state, step)
    for row, parameter in zip(theta, plain, strict=True):
        assert (row - parameter).abs().max() <= tolerance


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_is_torchs_for_each_variant_by_itself(fused, monkeypatch):
    """The largest gradient is cut to the norm, the smallest is left; on the path of a GPU, too."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(3, 48, generator=generator)
    grads = {(0, 30): torch.randn(3, 5, 6, generator=generator), (32, 37): torch.randn(3, 5, generator=generator)}
    for part in grads.values():
        part *= torch.tensor([10.0, 1.0, 1e-3]).view(-1, *[1] * (part.dim() - 1))
    wanted = []
    for v in range(3):
        leaves = [torch.zeros_like(part[v]) for part in grads.values()]
        for leaf, part in zip(leaves, grads.values(), strict=True):
            leaf.grad = part[v].clone()
        torch.nn.utils.clip_grad_norm_(leaves, 0.5)
        wanted.append(torch.cat([leaf.grad.flatten() for leaf in leaves]))
    if fused:
        clipped = optimizer._clipped(grads, 0.5)
    else:
        seen = []
        monkeypatch.setattr(optimizer, "update_", lambda theta, grad, state, step: seen.append(grad.clone()))
        state = optimizer.init(theta, torch.full((3,), 1e-3), torch.zeros(3))
        with spread_over(1):
            optimizer.update_parts_(theta, grads, state, 1, clip_norm=0.5)
        flat = torch.cat(seen)
        clipped = {(start, stop): flat[:, start:stop] for start, stop in grads}
    got = torch.cat([part.flatten(1) for part in clipped.values()], dim=1)
    for v in range(3):
        assert torch.allclose(got[v], wanted[v], rtol=1e-6, atol=0)
    assert torch.equal(got[2], torch.cat([part[2].flatten() for part in grads.values()]))
    assert abs(got[0].norm() - 0.5) < 1e-5


def test_a_gradient_that_is_not_finite_stays_so_when_it_is_clipped():
    grads = {(0, 2): torch.tensor([[1.0, torch.nan], [3.0, 4.0]])}
    clipped = optimizer._clipped(grads, 1.0)[0, 2]
    assert clipped[0].isnan().all()
    assert torch.allclose(clipped[1], torch.tensor([0.6, 0.8]))
