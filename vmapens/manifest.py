"""What run.json says, and which runs go on from which: the same one, or one of more epochs or more variants."""

import dataclasses
import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow
import torch

import vmapens
from vmapens.directory import FORMAT_VERSION
from vmapens.ensemble.seeds import variant_table
from vmapens.errors import RunError
from vmapens.nn import kernels
from vmapens.plan import Plan
from vmapens.spec import from_table, to_table

_COMPARED = ("spec", "cohort", "model", "saved", "versions")
_OF_VARIANTS = ("spec.variants.", "spec.train.lr", "spec.train.weight_decay")  # compared row by row
_FREE = ("spec.cohort.path", "spec.train.epochs")  # the fingerprint says whether it is the same cohort


def manifest_of(ready: Plan) -> dict[str, Any]:
    """What run.json says of a run that begins."""
    cohort, model = ready.cohort, ready.model
    T, F = cohort.x.shape[1:]
    saved = [cohort.samples[row] for row in ready.saved.tolist()]
    return {
        "format_version": FORMAT_VERSION,
        "state": "running",
        "command": [word for word in sys.argv if word != "--resume"],
        "spec": to_table(ready.spec),
        "versions": versions(ready.device),
        "cohort": {
            "fingerprint": cohort.fingerprint,
            "source": cohort.info.source,
            "licence": cohort.info.licence,
            "minutes_per_step": cohort.info.minutes_per_step,
            "samples": {split: len(cohort.rows(split)) for split in ("train", "valid", "test")},
        },
        "task": dataclasses.asdict(cohort.task),
        "model": {
            "made_from": ready.made_from,
            "class": f"{type(model).__module__}:{type(model).__qualname__}",
            "features": F,
            "steps": T,
            "outputs": cohort.task.outputs,
            "parameters": ready.needs.parameters,
            "attention_axes": list(getattr(model, "attention_axes", ())),
        },
        "saved": {"samples": len(saved), "sha256": hashlib.sha256("\n".join(saved).encode()).hexdigest()},
        "blocks": _blocks(0, len(ready.table), ready.needs.block),
    }


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what the results depend on."""
    return {
        "vmapens": vmapens.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "polars": pl.__version__,
        "pyarrow": pyarrow.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "kernel": kernels.version(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def go_on(old: dict[str, Any], new: dict[str, Any], out: Path) -> dict[str, Any]:
    """The manifest with which the run of `old` goes on as `new` asks.

    A variant is the same bytes under the same settings, cohort and versions only, so nothing else may be mixed. More
    epochs may be asked for, and more variants, behind those that are there: these get blocks of their own.

    Raises:
        RunError: With all that differs.
    """
    new = json.loads(json.dumps(new))
    if old["cohort"]["fingerprint"] != new["cohort"]["fingerprint"]:
        raise RunError(
            f"{out} cannot be resumed: the cohort {new['spec']['cohort']['path']} has changed since the run began (its "
            "fingerprint differs). Give the same files, or train another run."
        )
    before, now = (dict(_leaves({key: manifest[key] for key in _COMPARED})) for manifest in (old, new))
    keys = [key for key in {**now, **before} if key not in _FREE and not key.startswith(_OF_VARIANTS)]
    different = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    epochs, count = _different_epochs(old, new), _different_variants(old, new)
    different += [line for line in (epochs, count) if line]
    if different:
        raise RunError(
            f"{out} cannot be resumed: {'; '.join(different)}. Use the same settings, cohort and versions; only epochs "
            "and variants may become more."
        )
    there, wanted = old["blocks"][-1][1], new["blocks"][-1][1]
    size = max(stop - start for start, stop in new["blocks"])
    grown = there < wanted or old["spec"]["train"]["epochs"] < new["spec"]["train"]["epochs"]
    blocks = [*old["blocks"], *_blocks(there, wanted, size)]
    return {**new, "blocks": blocks, "command": new["command"] if grown else old["command"]}


def _different_epochs(old: dict[str, Any], new: dict[str, Any]) -> str:
    before, now = (manifest["spec"]["train"]["epochs"] for manifest in (old, new))
    return f"spec.train.epochs was {before}, is {now}" if now < before else ""


def _different_variants(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first of the variants that are there which would become another; empty if all stay."""
    specs = (from_table(manifest["spec"]) for manifest in (old, new))
    before, now = (variant_table(spec.variants, spec.train) for spec in specs)
    if len(now) < len(before):
        return f"there were {len(before)} variants, are {len(now)}"
    for was, is_now in zip(before.iter_rows(named=True), now.iter_rows(named=True), strict=False):
        for name in before.columns:
            if was[name] != is_now[name]:
                return f"{name} of variant {was['variant']} was {was[name]}, is {is_now[name]}"
    return ""


def _blocks(start: int, stop: int, size: int) -> list[list[int]]:
    """Half-open ranges."""
    return [[first, min(first + size, stop)] for first in range(start, stop, size)]


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
