"""`torch.nn.Linear`, computed per variant."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vmapens.nn.isolation import per_variant


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` whose numbers under `vmap` do not depend on the other variants."""

    def forward(self, input: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """Compute ``input @ weight.T + bias``; shapes as `torch.nn.Linear`."""
        if self.bias is None:
            return per_variant(F.linear, input, self.weight)
        return per_variant(F.linear, input, self.weight, self.bias)
