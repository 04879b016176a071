"""A run that is ready to start: the cohort is read, one model is built, and every problem is found before training."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from vmapens import attention as attention_room
from vmapens.cohort.load import Cohort, load_cohort
from vmapens.ensemble import metrics
from vmapens.ensemble.memory import Needs, needs
from vmapens.ensemble.seeds import Factory, construct, variant_table
from vmapens.ensemble.stack import columns_of, stack_modules
from vmapens.ensemble.step import attend, gradients, predict
from vmapens.errors import SpecError, StackError, VmapensError, first_line
from vmapens.nn.factory import model_factory
from vmapens.nn.kernels import compute_device, use_kernel
from vmapens.nn.loss import targets
from vmapens.spec import BUILT_IN, RunSpec


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start: everything is read and checked, nothing is written."""

    spec: RunSpec
    cohort: Cohort
    factory: Factory
    made_from: Literal["spec", "python"]
    model: torch.nn.Module
    table: pl.DataFrame
    device: torch.device
    saved: Tensor
    needs: Needs


def plan(spec: RunSpec, *, model: Factory | None = None, cohort: Cohort | None = None) -> Plan:
    """Read the cohort, build one model, and find every problem that can be found before training.

    Args:
        spec: The run; with `cohort` given, that one's spec takes the place of `spec.cohort`.
        model: A factory of one module; None takes `spec.model`.
        cohort: A loaded cohort; None loads `spec.cohort`.

    Raises:
        VmapensError: With the first problem found.
    """
    device = compute_device(spec.train)
    table = variant_table(spec.variants, spec.train)
    cohort = cohort or load_cohort(spec.cohort)
    spec = dataclasses.replace(spec, cohort=cohort.spec)
    metric = spec.train.select_by or metrics.default_metric(cohort.task.kind)
    _check_metric(metric, cohort, spec.train.select_on)
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, select_by=metric))
    T, F = cohort.x.shape[1:]
    factory = model or model_factory(spec.model, features=F, steps=T, outputs=cohort.task.outputs)
    first = _first_module(factory, cohort)
    if model is not None or spec.model.name != BUILT_IN:  # the built-in model's tests have shown it
        _check_transformable(first, cohort)
    saved = attention_room.choose_samples(cohort, spec.save_attention, seed=spec.attention_seed)
    sizes = attention_room.attention_sizes(first, cohort.x[:1]) if len(saved) else ()
    columns = columns_of(first)
    estimate = needs(
        spec,
        parameters=sum(column.stop - column.start for column in columns),
        variants=len(table),
        shape=(cohort.x.shape[0], T, F),
        outputs=cohort.task.outputs,
        saved=len(saved),
        evaluated=int(np.sum(cohort.split != "train")),
        attention_cells=int(np.prod(sizes)),
        device=device,
    )
    return Plan(spec, cohort, factory, "spec" if model is None else "python", first, table, device, saved, estimate)


def _check_metric(metric: str, cohort: Cohort, split: str) -> None:
    metrics.check(metric, cohort.task.kind)
    y = cohort.y[cohort.rows(split)].numpy()
    classes = len(cohort.task.classes)
    flat = np.full((1, len(y)) if cohort.task.kind == "binary" else (1, len(y), classes), 1 / classes, np.float32)
    if np.isnan(metrics.score(metric, y, flat)).any():
        raise SpecError(
            f"{metric} cannot choose epochs on the {split} split, which has only {len(np.unique(y))} of {classes} "
            "classes; take another --select-by, or merge small classes."
        )


def _first_module(factory: Factory, cohort: Cohort) -> torch.nn.Module:
    """Build the first variant's module and call it once.

    Raises:
        StackError: If it cannot be built, has the wrong signature, or draws random numbers.
    """
    outputs, x = cohort.task.outputs, cohort.x[:2]
    name = "the model"
    try:
        module, state = construct(factory, 0)
        name = type(module).__name__
        with torch.random.fork_rng(devices=[]), torch.no_grad(), use_kernel("reference"):  # the others start slowly
            torch.default_generator.set_state(state)
            logits, attention = module(x)
            drawn = not torch.equal(torch.default_generator.get_state(), state)
    except VmapensError:
        raise
    except Exception as error:
        built_by = f"features={x.shape[2]}, steps={x.shape[1]}, outputs={outputs}"
        raise StackError(
            f"{name} cannot be built with ({built_by}), or fails on x {tuple(x.shape)}: {first_line(error)}"
        ) from error
    if drawn:
        raise StackError(
            f"{name} draws from the global random generator (dropout?): its variants would depend on each other. "
            "Remove it; seeded dropout is not offered yet."
        )
    if tuple(logits.shape) != (len(x), outputs) or attention.shape[0] != len(x):
        got = f"{tuple(logits.shape)} and {tuple(attention.shape)}"
        raise StackError(
            f"{name} gives logits and attention of shape {got}, wanted ({len(x)}, {outputs}) and (2, ...)."
        )
    return module


def _check_transformable(module: torch.nn.Module, cohort: Cohort) -> None:
    """See that two variants of a module give the gradients of one step, logits and attention.

    The first gradient makes torch import its compiler, 1.4 s of CPU time: a dry run of the built-in model goes without.

    Raises:
        StackError: If `torch.func` cannot transform it.
    """
    x, y = cohort.x[:2], targets(cohort.y[:2], cohort.task.kind, cohort.x.dtype)
    stack = stack_modules([module, module], 2)
    try:
        compute = gradients(module, cohort.task.kind)
        rows = torch.arange(len(x)).expand(2, -1)
        compute(stack.views(trained=True), stack.views(trained=False), x, rows, y[rows])
        predict(module, cohort.task.kind, stack, x)
        attend(module, stack, x)
    except Exception as error:
        hint = "torch.nn.LSTM cannot: use vmapens.nn.LSTM"
        name = type(module).__name__
        raise StackError(f"{name} does not run under torch.func.vmap: {first_line(error)} ({hint}).") from error
