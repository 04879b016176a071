"""Modules written for one variant, whose operations know what to do under `torch.func.vmap`."""

from vmapens.nn.attention_lstm import AttentionLSTM
from vmapens.nn.linear import Linear
from vmapens.nn.lstm import LSTM
from vmapens.nn.per_variant import per_variant

__all__ = ["LSTM", "AttentionLSTM", "Linear", "per_variant"]
