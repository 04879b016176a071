"""Modules written for one variant, whose operations know what to do under `torch.func.vmap`."""

from vmapens.nn.attention_lstm import AttentionLSTM
from vmapens.nn.isolation import per_variant
from vmapens.nn.linear import Linear
from vmapens.nn.lstm import LSTM

__all__ = ["LSTM", "AttentionLSTM", "Linear", "per_variant"]
