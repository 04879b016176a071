"""The attention-LSTM of plain `torch.nn` parts: what the sequential arms train."""

import torch
from torch import Tensor, nn


class _Attention(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.attention_dense = nn.Linear(features, features)


class PlainAttentionLSTM(nn.Module):
    """`softmax(Linear(x)) * x` into an `nn.LSTM`, one logit from its last state; parameter names as `AttentionLSTM`."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.attention = _Attention(features)
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.dense = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B] of x [B, T, F]."""
        _, (last, _) = self.lstm(x * torch.softmax(self.attention.attention_dense(x), dim=-1))
        logits: Tensor = self.dense(last[0])[:, 0]
        return logits
