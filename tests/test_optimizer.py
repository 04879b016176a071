"""Adam on the rows of theta against `torch.optim.Adam`."""

import pytest
import torch

from vmapens.ensemble import optimizer


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
