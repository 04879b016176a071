"""`torch.nn.LSTM`, one layer, batch first, in a form that `torch.func.vmap` understands."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vmapens.nn.kernels import Inputs, Plan
from vmapens.nn.recurrence import recurrence

State = tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]


class LSTM(torch.nn.LSTM):
    """Drop-in for `torch.nn.LSTM(input_size, hidden_size, batch_first=True)`.

    The same parameters, names, initialisation (also of the generator's state), numbers and gradients; but it works
    under `vmap` and `vmap(grad)`, where all variants go to one kernel.

    Args:
        input_size: Features F.
        hidden_size: Hidden units H.
        options: Further arguments of `torch.nn.LSTM`, with its defaults, so `batch_first=True` must be said; only one
            layer, one direction, with bias.

    Raises:
        NotImplementedError: If an option asks for another form.

    >>> x = torch.zeros(2, 5, 3)
    >>> states, (h, c) = LSTM(3, 4, batch_first=True)(x)
    >>> states.shape, h.shape
    (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        given = {"num_layers": 1, "bias": True, "batch_first": False, "bidirectional": False, "proj_size": 0} | options
        wanted = {"num_layers": 1, "bias": True, "batch_first": True, "bidirectional": False, "proj_size": 0}
        for name, value in wanted.items():
            if given[name] != value:
                raise NotImplementedError(f"vmapens.nn.LSTM has {name}={value} only, got {given[name]}.")
        super().__init__(input_size, hidden_size, **options)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four parameters, in the order of `Inputs`: w_ih [4H, F], w_hh [4H, H], b_ih and b_hh [4H]."""
        return self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0

    def forward(  # type: ignore[override]
        self, input: Float[Tensor, "B T F"], hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "B T H"], tuple[Tensor, Tensor]]:
        """Run over a batch.

        Args:
            input: The sequence.
            hx: Initial hidden and cell state, [1, B, H] each; zeros if absent.

        Returns:
            All hidden states, and the last hidden and cell state [1, B, H] each, as `torch.nn.LSTM`.
        """
        if input.dim() != 3:
            raise ValueError(f"the input has shape {tuple(input.shape)}, wanted [B, T, F]; add a batch axis.")
        if hx is None:
            h0 = c0 = input.new_zeros(input.shape[0], self.hidden_size)
        else:
            h0, c0 = hx[0].squeeze(0), hx[1].squeeze(0)
        states, h, c = recurrence(Inputs(input, h0, c0, *self.weights()), Plan(all_states=True))
        assert states is not None
        return states, (h.unsqueeze(0), c.unsqueeze(0))
