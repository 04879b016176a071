"""Does an attribution name the cells that the model uses? Erase its top cells, or keep them alone, and see.

For one stay and all variants: the change of the signed logit (`attribution.signed_logit`), beside that of masks which
an attribution must beat. And Jain & Wallace's question: does the prediction change if the attention is permuted?

Axes: V variants, M masks, Q shares of the cells, T steps, F features; t, f: T and F, or 1 where the attention lacks
that axis. Ground truth: a loop over plain PyTorch modules, and Captum's ablation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int32
from torch import Tensor
from torch.func import vmap

from vmapens.analysis.attribution import importance, passes, signed_logit
from vmapens.ensemble.stack import Stack
from vmapens.ensemble.step import Parameters, attend, holds_attention, one_variant
from vmapens.nn.isolation import per_variant
from vmapens.nn.threads import spread_over

MASKS = {
    "attention": "the attention weight",
    "random": "a random order, a new one for each variant",
    "rolled": "the attention's mask rolled in time by a quarter to three quarters of the stay, at random",
    "other_variant": "the attention's mask of the next variant",
    "other_patient": "the attention's mask of the same variant on another stay",
    "input_size": "|x|",
    "gated_input_size": "|a * x|",
    "gradient_x_input": "size of gradient x input",
    "integrated_gradients": "size of integrated gradients",
}
"""Orders of the cells, in the order of the report."""
FILLS = ("mean", "other")
DIRECTIONS = ("erase", "keep")
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)

_COPIES = 4  # of a batch, in a pass without gradients
_MAP_AXES = ("step", "feature")
Attributions = Mapping[str, Float[np.ndarray, "V ..."]]


@dataclass(frozen=True)
class Changes:
    """Changes of the signed logit, and what their axes stand for.

    Args:
        change: [mask, fill, attention, direction, share, V], logit of x - logit of the changed x. Erasing what matters
            moves the logit, so more in size is more faithful; keeping what matters does not, so less is.
        masks: Those of `MASKS` that there are.
        attentions: ("recomputed", "held"), without the last one where the model cannot be given its attention.
        shares: Of the cells.
    """

    change: Float[np.ndarray, "M 2 _ 2 Q V"]
    masks: tuple[str, ...]
    attentions: tuple[str, ...]
    shares: tuple[float, ...]
    fills: tuple[str, ...] = FILLS
    directions: tuple[str, ...] = DIRECTIONS


@dataclass(frozen=True)
class MeanChanges:
    """The same, means over variants: of the changes, and of their sizes."""

    change: Float64[np.ndarray, "M 2 _ 2 Q"]
    size: Float64[np.ndarray, "M 2 _ 2 Q"]
    of: Changes

    @classmethod
    def over_variants(cls, changes: Changes) -> "MeanChanges":
        """Let go of the single variants."""
        change, size = (values.mean(axis=-1, dtype=np.float64) for values in (changes.change, np.abs(changes.change)))
        return cls(change, size, replace(changes, change=changes.change[..., :0].copy()))


def ranking(scores: Float[np.ndarray, "V ..."], *, seed: int) -> Int32[np.ndarray, "V ..."]:
    """Place of each cell in the order of its score, 0 for the highest; ties at random, the same for all variants.

    Ties in the order of the cells would make a mask of the first steps out of a map that says nothing.

    Args:
        scores: Of one map per variant.
        seed: Of the order of ties.

    >>> ranking(np.array([[[0.1, 0.5], [0.2, 0.9]]]), seed=0).tolist()
    [[[3, 1], [2, 0]]]
    """
    rows = scores.reshape(len(scores), -1)
    shuffled = np.random.default_rng(seed).permutation(rows.shape[1])
    order = shuffled[np.argsort(-rows[:, shuffled], axis=1, kind="stable")]
    places = np.empty(rows.shape, np.int32)
    np.put_along_axis(places, order, np.arange(rows.shape[1], dtype=np.int32)[None], axis=1)
    return places.reshape(scores.shape)


def masks(
    found: Attributions,
    other_attention: Float[np.ndarray, "V ..."] | None,
    x: Float[np.ndarray, "T F"],
    axes: Sequence[str],
    variants: range,
    *,
    seed: int,
) -> dict[str, Int32[np.ndarray, "v t f"]]:
    """The place of each cell by every mask of `MASKS` that there is, for some of the variants.

    Where the attention has no axis of features (pooling), all masks are orders of whole steps, by the sum of their
    cells' importance, so that all masks change as many cells. Attention with other axes than step and feature has no
    masks of its own.

    Args:
        found: From `attributions`, of all variants; what is not in it has no mask.
        other_attention: Of all variants on another stay.
        x: The stay.
        axes: Of the attention.
        variants: Which ones. A variant's draws do not depend on the others.
        seed: Of ties, random orders and offsets; another one for another stay.
    """
    V, own = len(next(iter(found.values()))), np.array(variants)
    drawn = [np.random.default_rng([seed, v]) for v in variants]
    absent = _absent(axes) if "attention" in found and other_attention is not None else None

    def ranked(importance: np.ndarray) -> np.ndarray:
        return ranking(importance.sum(axis=absent or (), keepdims=True), seed=seed)

    size = ranked(np.abs(x)[None])
    random = np.stack([rng.permutation(size.size).astype(np.int32).reshape(size.shape[1:]) for rng in drawn])
    result = {"random": random, "input_size": np.repeat(size, len(own), axis=0)}
    if absent is not None and other_attention is not None:
        several = np.append(own, own[-1] + 1) % V  # the last one's next, too
        places = ranking(np.expand_dims(found["attention"][several], absent), seed=seed)
        result |= {"attention": places[:-1], "other_variant": places[1:]}
        result["other_patient"] = ranking(np.expand_dims(other_attention[own], absent), seed=seed)
        steps = places.shape[1]
        least = math.ceil(steps / 4)
        if steps > 1:
            offsets = np.array([rng.integers(least, steps - least, endpoint=True) for rng in drawn])
            source = (np.arange(steps) - offsets[:, None]) % steps
            result["rolled"] = np.take_along_axis(places[:-1], source[:, :, None], axis=1)
    for name in ("gated_input_size", "gradient_x_input", "integrated_gradients"):
        if name in found:
            result[name] = ranked(importance(name, found[name][own]))
    return {name: result[name] for name in MASKS if name in result}


def _absent(axes: Sequence[str]) -> tuple[int, ...] | None:
    """Which axes of maps [V, T, F] the attention lacks; None if it is no such map."""
    if not axes or [axis for axis in _MAP_AXES if axis in axes] != list(axes):
        return None
    return tuple(place for place, axis in enumerate(_MAP_AXES, start=1) if axis not in axes)


def faithfulness(
    model: torch.nn.Module,
    stack: Stack,
    x: Float[Tensor, "T F"],
    y: int,
    other: Float[Tensor, "T F"],
    found: Attributions,
    *,
    seed: int,
    shares: Sequence[float] = SHARES,
) -> Changes:
    """Change of the signed logit when the top cells of one stay are erased, or only they are kept.

    ``s(x) - s(x with the top q of the cells erased)`` (comprehensiveness) and ``s(x) - s(x with all others erased)``
    (sufficiency), s the signed logit. Erased cells get the training mean, which is 0 after standardising, or the value
    that another stay has there: 0 is a real value, too. The attention of the changed stay is recomputed, or held as it
    is on x, since erasing input also moves the attention.

    Args:
        model: One module of the architecture.
        stack: The variants, on the device where to compute.
        x: The stay, standardised.
        y: Its class.
        other: The other stay: of the fill and of the mask `other_patient`.
        found: From `attributions` of this stay.
        seed: As in `masks`.
        shares: q, each in (0, 1]; q of the cells is rounded, to 1 at least.

    Raises:
        ValueError: If a share is outside its range.

    Source:
        DeYoung et al. 2020, arXiv:1911.03429, who take the probability of the predicted class; it hardly moves where
        outcomes are rare.
    """
    if not all(0 < q <= 1 for q in shares):
        raise ValueError(f"shares are {tuple(shares)}, wanted values above 0, up to 1.")
    x, other = x.to(stack.theta), other.to(stack.theta)
    axes = tuple(getattr(model, "attention_axes", ()))
    held = holds_attention(model) and "attention" in found
    logits_of = one_variant(model, "logits")
    logits_given = one_variant(model, "logits_given")

    def of_one_variant(parameters: Parameters, places: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        changed = per_variant(lambda places: _changed(x, other, places, shares), places)
        logits = [logits_of(parameters, changed)]
        if held:
            logits.append(logits_given(parameters, changed, attention[None]))
        return logits_of(parameters, x[None]), torch.cat(logits)

    computed = vmap(of_one_variant)
    parts: list[np.ndarray] = []
    names: tuple[str, ...] = ()
    with spread_over(), torch.no_grad():
        other_attention = attend(model, stack, other[None])[:, 0].cpu().numpy() if "attention" in found else None
        samples = len(MASKS) * len(FILLS) * len(DIRECTIONS) * len(shares)
        for own in passes(stack, _COPIES * samples * x.nbytes):
            variants = range(own.start, own.stop)
            places = masks(found, other_attention, x.cpu().numpy(), axes, variants, seed=seed)
            names = tuple(places)
            tensor = torch.from_numpy(np.stack(list(places.values()), axis=1)).to(x.device)
            attention = torch.from_numpy(found["attention"][own]).to(x) if held else x.new_zeros(len(variants))
            whole, changed = computed(stack.rows(own.start, own.stop).views(), tensor, attention)
            base, moved = (signed_logit(logits.flatten(0, 1), y).view(len(variants), -1) for logits in (whole, changed))
            parts.append((base - moved).cpu().numpy())
    change = np.concatenate(parts).reshape(
        len(stack.theta), 1 + held, len(FILLS), len(DIRECTIONS), len(names), len(shares)
    )
    return Changes(
        change.transpose(4, 2, 1, 3, 5, 0), names, ("recomputed", "held")[: 1 + held], tuple(map(float, shares))
    )


def _changed(
    x: Float[Tensor, "T F"], other: Float[Tensor, "T F"], places: Int[Tensor, "M t f"], shares: Sequence[float]
) -> Float[Tensor, "B T F"]:
    """The stay with cells erased, by fill, direction, mask and share; flattened in this order."""
    cells = places[0].numel()
    counts = torch.tensor([max(1, round(q * cells)) for q in shares], device=places.device)
    top = places[:, None] < counts[:, None, None]
    mean = torch.zeros_like(x)
    at_top, elsewhere = torch.stack([mean, x, other, x]), torch.stack([x, mean, x, other])
    return torch.where(top, at_top[:, None, None], elsewhere[:, None, None]).flatten(0, 2)


def permuted_attention(
    model: torch.nn.Module,
    stack: Stack,
    x: Float[Tensor, "T F"],
    attention: Float[np.ndarray, "V ..."],
    *,
    permutations: int = 20,
    over: str = "feature",
    seed: int,
) -> Float64[np.ndarray, "V"]:
    """Total variation of the prediction when the attention is permuted, mean over permutations.

    ``1/2 sum_c |p_c - p'_c|``, which is |p - p'| for a binary task. Weights move along the axis that the softmax runs
    over, so that each distribution stays what it is but for its order: among the features of a step, or among the
    steps. In [0, 1]; 0 says that it does not matter where it looks.

    Args:
        model: One module of the architecture; it must be one that `holds_attention`.
        stack: The variants, on the device where to compute.
        x: The stay, standardised.
        attention: Of the variants on this stay.
        permutations: How many; the same ones for all variants.
        over: Axis that the softmax runs over, `feature` or `step`; the only axis where there is one.
        seed: Of the permutations.

    Raises:
        ValueError: If the model cannot be given its attention.

    Source:
        Jain and Wallace 2019, arXiv:1902.10186, section 4.2.1, who take the median over permutations.
    """
    if not holds_attention(model):
        raise ValueError(f"{type(model).__name__} has no method logits_given(x, attention).")
    logits_given = one_variant(model, "logits_given")
    x = x.to(stack.theta)
    sizes = attention.shape[1:]
    axis = -2 if over == "step" and len(sizes) > 1 else -1
    places = np.arange(sizes[axis]).reshape(-1, *[1] * (-1 - axis))
    ordered = np.broadcast_to(places, (1 + permutations, *sizes)).copy()
    np.random.default_rng(seed).permuted(ordered[1:], axis=axis, out=ordered[1:])  # the first stays as it is
    order = torch.from_numpy(ordered).to(x.device)

    def of_one_variant(parameters: Parameters, attention: Tensor) -> Tensor:
        permuted = per_variant(lambda weights: weights[None].take_along_dim(order, dim=axis), attention)
        return logits_given(parameters, x.expand(len(order), *x.shape), permuted)

    computed = vmap(of_one_variant)
    result = np.empty(len(stack.theta))
    with spread_over(), torch.no_grad():
        for own in passes(stack, _COPIES * len(order) * x.nbytes):
            weights = torch.from_numpy(attention[own]).to(x)
            logits = computed(stack.rows(own.start, own.stop).views(), weights).double()
            if logits.shape[-1] == 1:
                logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)  # its softmax is the sigmoid
            probability = torch.softmax(logits, dim=-1).cpu().numpy()
            distance = np.abs(probability[:, 1:] - probability[:, :1]).sum(axis=-1) / 2
            result[own] = distance.mean(axis=-1)
    return result
