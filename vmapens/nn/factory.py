"""From a spec to a factory of modules: the built-in model, or one of the user's own by name."""

import importlib
from collections.abc import Callable
from functools import partial

import torch

from vmapens.errors import SpecError, first_line
from vmapens.nn.attention_lstm import AttentionLSTM
from vmapens.spec import BUILT_IN, ModelSpec


def model_factory(spec: ModelSpec, *, features: int, steps: int, outputs: int) -> Callable[[], torch.nn.Module]:
    """A function without arguments that builds one module, drawing from the global generator as plain PyTorch does.

    Args:
        spec: `attention-lstm`, or `package:Class`.
        features: F.
        steps: T.
        outputs: C; 1 for a binary task.

    Raises:
        SpecError: If the class cannot be imported.
    """
    sizes = {"features": features, "steps": steps, "outputs": outputs}
    if spec.name == BUILT_IN:
        built_in = partial(AttentionLSTM, hidden=spec.hidden, attend_over=spec.attend_over)
        return partial(built_in, **sizes, freeze_attention=spec.freeze_attention)
    package, _, name = spec.name.partition(":")
    try:
        kind = getattr(importlib.import_module(package), name)
    except Exception as error:
        raise SpecError(
            f"model `{spec.name}` cannot be imported ({first_line(error)}); is its folder on PYTHONPATH?"
        ) from error
    if not callable(kind):
        raise SpecError(f"model `{spec.name}` is {type(kind).__name__}, wanted a class of modules.")
    return partial(kind, **sizes, **spec.options)
