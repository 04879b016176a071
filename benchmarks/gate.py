"""No ratio is printed before the arms are seen to do the same work: equal losses, gradients and new parameters.

Tolerances, in float32. Losses, relative: 1e-5; another order of sums makes some 1e-7. Gradients, relative to the
largest element of their tensor: 1e-4; against float64 a stacked loop is off by 3e-7, but oneDNN's LSTM, in arms (a) to
(c), by 1e-5 in a bias, which it sums over B * T terms one after the other. Parameters, absolute: 1e-5; Adam's first
step moves each by up to the learning rate, 5e-4, however small its gradient, so where a gradient is rounding error its
direction is, too, and the bound is 2 % of a move (seen: 1e-6). Another model, batch or loss is far outside all of them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # so that `python -m benchmarks list` need not import torch
    from benchmarks.arms import Arm, Named

TOLERANCES = {"loss": 1e-5, "gradient": 1e-4, "parameter": 1e-5}


class GateError(Exception):
    """Two arms do not compute the same; there is nothing to compare."""


@dataclass(frozen=True)
class Outcome:
    """What one arm's first step gave, for the checked variants.

    Args:
        losses: Before the step, [V].
        gradients: At the initial parameters.
        parameters: After the step.
    """

    losses: np.ndarray
    gradients: "Named"
    parameters: "Named"


def first_step(arm: "Arm") -> Outcome:
    """Gradients at the initial parameters, then one step; for an arm that has not taken any."""
    with arm.settings():
        _, gradients = arm.gradients()
        losses = arm.train(1)[0]
        return Outcome(losses, gradients, arm.parameters())


def check(letter: str, own: Outcome, reference: Outcome) -> dict[str, float]:
    """Hold one arm's first step against the reference's, on the variants that both have.

    Returns:
        Largest differences: `loss`, relative; `gradient`, relative to the largest element of the same tensor of the
        same variant; `parameter`, absolute.

    Raises:
        GateError: If one of them is above its tolerance, or not a number; it says which arm, what, and where.
    """
    if own.gradients.keys() != reference.gradients.keys() or own.parameters.keys() != reference.parameters.keys():
        raise GateError(f"arm ({letter}) has other parameters than the reference: {sorted(own.parameters)}.")
    count = min(len(one) for side in (own, reference) for one in side.parameters.values())
    found: dict[str, float] = {}
    losses, wanted = own.losses[:count], reference.losses[:count]
    hold(found, letter, "loss", "", np.abs(losses - wanted) / np.abs(wanted), TOLERANCES)
    for name, value in reference.gradients.items():
        value = value[:count].reshape(count, -1)
        apart = np.abs(own.gradients[name][:count].reshape(count, -1) - value)
        hold(found, letter, "gradient", name, apart.max(axis=1) / np.abs(value).max(axis=1), TOLERANCES)
    for name, value in reference.parameters.items():
        apart = np.abs(own.parameters[name][:count] - value[:count])
        hold(found, letter, "parameter", name, apart, TOLERANCES)
    return found


def hold(
    found: dict[str, float], letter: str, what: str, name: str, apart: np.ndarray, tolerances: dict[str, float]
) -> None:
    """Keep the largest difference so far in `found[what]`, or raise a `GateError`."""
    largest, tolerance = float(np.max(apart)), tolerances[what]
    if not largest <= tolerance:  # also for a NaN
        where = f" of {name}" if name else ""
        raise GateError(
            f"arm ({letter}) differs from the reference: {what}{where} by {largest:.2g}, allowed {tolerance:.0e}. "
            "No ratio is given."
        )
    found[what] = float(f"{max(found.get(what, 0.0), largest):.2g}")
