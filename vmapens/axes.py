"""The legend of axes, and the shapes made from it.

| letter | axis |
|---|---|
| V | variants: models of one ensemble; always the leading axis where it occurs |
| B | samples of one batch |
| N | samples of a whole cohort or split |
| T | time steps |
| F | features |
| H | hidden units |
| C | logits: 1 for a binary task, else one per class |
| P | parameters of one variant, padding included |
| S | samples chosen for an attention file |

A cell is one feature at one step. Shapes are checked at run time under pytest only (jaxtyping, beartype).
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Series = Float[Tensor, "N T F"]
Observed = Bool[Tensor, "N T F"]
Labels = Int[Tensor, "N"]
Batch = Float[Tensor, "B T F"]
Logits = Float[Tensor, "B C"]
Theta = Float[Tensor, "V P"]
