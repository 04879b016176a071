"""The attention-LSTM of clinical time series, written for one variant.

Feature and time attention after Gandin et al. 2021 as used by Yadav & Subbian, CHIL 2025 (their parameter names);
pooling over hidden states as usual in clinical papers; uniform attention as the control that has none.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vmapens.errors import SpecError
from vmapens.nn.isolation import per_variant
from vmapens.nn.kernels import Inputs, Plan
from vmapens.nn.linear import Linear
from vmapens.nn.loss import LOSSES, TaskKind
from vmapens.nn.lstm import LSTM
from vmapens.nn.recurrence import classifier_loss, recurrence
from vmapens.spec import AttendOver


class Attention(torch.nn.Module):
    """One linear layer, whose output a softmax turns into attention."""

    def __init__(self, size: int, scores: int) -> None:
        super().__init__()
        self.attention_dense = Linear(size, scores)


class AttentionLSTM(torch.nn.Module):
    """Softmax attention and an LSTM, with C logits from its last hidden state.

    With ``a`` the attention and h the LSTM's hidden states:

    - ``feature``: a = softmax(Linear(F -> F)(x)) over F, one row per step; logits = Linear(h_T(x * a)).
    - ``time``: the same over T, one row per feature (x transposed, and back).
    - ``pool``: a = softmax(Linear(H -> 1)(h_t)) over the steps; logits = Linear(sum_t a_t h_t).
    - ``uniform``: a = 1 / F, a constant; logits = Linear(h_T(x / F)).

    Args:
        features: F.
        steps: T; only `time` depends on it.
        outputs: C.
        hidden: H.
        attend_over: What the softmax runs over.
        freeze_attention: Leave the attention's parameters as initialised.

    Attributes:
        attention_axes: Names of the axes of the attention after the batch.
    """

    attention_axes: tuple[str, ...]
    _AXES: ClassVar[dict[str, tuple[str, ...]]] = {"pool": ("step",)}

    def __init__(
        self,
        features: int,
        steps: int,
        outputs: int = 1,
        *,
        hidden: int = 128,
        attend_over: AttendOver = "feature",
        freeze_attention: bool = False,
    ) -> None:
        super().__init__()
        self.attend_over = attend_over
        self.attention_axes = self._AXES.get(attend_over, ("step", "feature"))
        # The order of construction is the order of the paper's script: it decides what a seed means.
        sizes = {"feature": (features, features), "time": (steps, steps), "pool": (hidden, 1)}
        if attend_over in sizes:
            self.attention = Attention(*sizes[attend_over])
            self.attention.requires_grad_(not freeze_attention)
        elif freeze_attention:
            raise SpecError("uniform attention has nothing to freeze: use it without freeze_attention.")
        self.lstm = LSTM(features, hidden, batch_first=True)
        self.dense = Linear(hidden, outputs)

    def forward(self, x: Float[Tensor, "B T F"]) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B ..."]]:
        """Logits and attention."""
        return self.logits(x), self.attend(x)

    def logits(self, x: Float[Tensor, "B T F"]) -> Float[Tensor, "B C"]:
        """Logits alone: what training needs."""
        if self.attend_over == "pool":
            summary = per_variant(_pool, self.lstm(x)[0], *self._attention_layer())
        else:
            summary = recurrence(*self._recurrence(x))[1]
        logits: Tensor = self.dense(summary)
        return logits

    def logits_given(self, x: Float[Tensor, "B T F"], attention: Float[Tensor, "#B ..."]) -> Float[Tensor, "B C"]:
        """Logits if the attention had these weights instead of its own: what follows from holding it, or moving it.

        Args:
            x: The batch.
            attention: Of each sample, or one for all: [B, T, F] or [1, T, F]; for `pool` [B, T] or [1, T].
        """
        if self.attend_over == "pool":
            summary = per_variant(_weighted, self.lstm(x)[0], attention)
        else:
            summary = self.lstm(per_variant(torch.mul, x, attention))[1][0].squeeze(0)
        logits: Tensor = self.dense(summary)
        return logits

    def loss(
        self, x: Float[Tensor, "N T F"], rows: Int[Tensor, "B"], y: Shaped[Tensor, "B"], kind: TaskKind
    ) -> Float[Tensor, ""]:
        """Mean loss of the batch x[rows], whose labels are y, as `LOSSES[kind]` of its logits; no gradient of x."""
        if self.attend_over == "pool":
            batch = per_variant(lambda x, rows: x.index_select(0, rows), x, rows)
            return per_variant(LOSSES[kind], self.logits(batch), y)
        inputs, plan = self._recurrence(x, rows)
        return classifier_loss(inputs, plan, self.dense.weight, self.dense.bias, y, kind)

    def attend(self, x: Float[Tensor, "B T F"]) -> Float[Tensor, "B ..."]:
        """Attention alone: [B, T, F], or [B, T] for `pool`. Sums to 1 over the axis that the softmax runs over."""
        match self.attend_over:
            case "feature":
                return per_variant(_attend, x, *self._attention_layer())
            case "time":
                return per_variant(_attend, x.mT, *self._attention_layer()).mT
            case "pool":
                return per_variant(_pooling_weights, self.lstm(x)[0], *self._attention_layer())
            case "uniform":
                return torch.full_like(x, 1 / x.shape[-1])

    def _attention_layer(self) -> tuple[Tensor, Tensor]:
        layer = self.attention.attention_dense
        return layer.weight, layer.bias

    def _recurrence(self, x: Tensor, rows: Tensor | None = None) -> tuple[Inputs, Plan]:
        """What the forms with a gate, or with none, ask of a kernel."""
        zeros = x.new_zeros(len(x if rows is None else rows), self.lstm.hidden_size)
        inputs = Inputs(x, zeros, zeros, *self.lstm.weights())._replace(rows=rows)
        if self.attend_over == "uniform":  # LSTM(x / F), without a copy of x
            return inputs._replace(w_ih=inputs.w_ih / x.shape[-1]), Plan()
        weight, bias = self._attention_layer()
        plan = Plan(gate_over="time" if self.attend_over == "time" else "feature")
        return inputs._replace(gate_weight=weight, gate_bias=bias), plan


def _attend(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax(F.linear(rows, weight, bias), dim=-1)


def _pooling_weights(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax(F.linear(states, weight, bias).squeeze(-1), dim=-1)


def _pool(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _weighted(states, _pooling_weights(states, weight, bias))


def _weighted(states: Tensor, attention: Tensor) -> Tensor:
    return (attention.unsqueeze(-1) * states).sum(dim=1)
