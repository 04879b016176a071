"""What the explorer of the page is given: maps in few bytes, and the top cells of each stay in full.

A map is written features first ([F, T]), so that values carried forward are runs, as unsigned whole numbers: the
square root of (value / largest) for attention, which is mostly small; the share itself for `held`; the place between
a feature's least and largest value for `value`, where 0 means never measured. Numbers of two bytes are written as
all their low bytes, then all their high ones. Then zlib, then base64; the page's script undoes it.
"""

import base64
import math
import zlib
from typing import Any

import numpy as np
from jaxtyping import Float

from vmapens.report.maps import read_map, top_cells
from vmapens.report.selection import Settings, Tables, distinct, rows

_FINE_CELLS = 20_000  # up to so many cells a map, attention is written in two bytes
_ROWS = 20
_KINDS = ("mean", "sd", "held", "value", "measured")

Map = Float[np.ndarray, "T F"]


def payload(tables: Tables, settings: Settings, *, budget: int) -> dict[str, Any]:
    """The explorer's data, ready for JSON.

    Stays come in the order of the table `samples`. Where not all would fit, the first stay comes first, with its
    single variants, then the others, then their single variants, as far as there is room; `notes` says what is not in.

    Args:
        tables: Those of `vmapens.analysis.tables.TABLES`, by name.
        settings: The content of `analysis.json`.
        budget: Bytes of all maps, in base64.

    Returns:
        `stays` (empty where no maps were made), `features`, `steps`, `minutes`, `k` and `notes`.
    """
    known = {row["sample"]: row for row in tables["samples"].iter_rows(named=True)}
    saved = [str(sample) for sample in distinct(rows(tables["maps"], kind="mean"), "sample")]
    order = [sample for sample in known if sample in saved] + [sample for sample in saved if sample not in known]
    stays: list[dict[str, Any]] = []
    singles: list[list[dict[str, Any]]] = []
    for sample in order:
        stay = _stay(tables, settings, sample, known.get(sample, {}))
        cost = _size(stay["planes"])
        if cost > budget:
            break
        budget -= cost
        stays.append(stay)
        singles.append(_singles(tables, settings, sample))
        if len(stays) == 1 and _size(singles[0]) <= budget:
            budget -= _size(singles[0])
            stays[0]["planes"] += singles[0]
    with_singles = 1
    for stay, planes in zip(stays[1:], singles[1:], strict=True):
        if _size(planes) > budget:
            break
        budget -= _size(planes)
        stay["planes"] += planes
        with_singles += 1
    notes = []
    if 0 < len(order) < len(known):
        notes.append(f"Maps are of {len(order)} of the {len(known)} stays: first those with saved attention.")
    if len(stays) < len(order):
        notes.append(f"To keep this page small it holds those of {len(stays)} of the {len(order)} stays with maps.")
    if any(singles) and with_singles < len(stays):
        notes.append(
            f"Single variants are in it for the first {with_singles} of them."
            if with_singles > 1
            else "Single variants are in it for the first of them."
        )
    return {
        "stays": stays,
        "features": [[one["feature"], one.get("unit") or "", one.get("group") or ""] for one in settings["features"]],
        "steps": int(settings["steps"]),
        "minutes": float(settings["minutes_per_step"]),
        "k": int(settings["map_k"]),
        "notes": notes,
    }


def _stay(tables: Tables, settings: Settings, sample: str, row: dict[str, Any]) -> dict[str, Any]:
    """A stay: what it is called, its maps over all variants, and the cells that most variants hold."""
    found = {kind: read_map(tables, settings, sample=sample, kind=kind) for kind in _KINDS}
    mean = found["mean"]
    if mean is None:
        return {"name": sample, "label": sample, "planes": [], "top": [], "width": 0}
    maps = {kind: values for kind, values in found.items() if values is not None and values.shape == mean.shape}
    label = f"{sample}: {row['outcome']}" if row.get("outcome") else sample
    if row.get("probability_mean") is not None:
        spread = "" if row.get("probability_sd") is None else f", SD {row['probability_sd']:.2f}"
        label += f" (predicted {row['probability_mean']:.2f}{spread})"
    planes = [_plane(kind, values) for kind, values in maps.items()]
    return {"name": sample, "label": label, "planes": planes, "top": _top(maps), "width": mean.shape[1]}


def _singles(tables: Tables, settings: Settings, sample: str) -> list[dict[str, Any]]:
    """The maps of the variants that are shown alone."""
    planes = []
    for row in tables["chosen"].iter_rows(named=True):
        values = read_map(tables, settings, sample=sample, kind="variant", variant=row["variant"])
        if values is not None:
            planes.append(
                _plane("variant", values) | {"title": f"{row['role'].capitalize()}: variant {row['variant']}"}
            )
    return planes


def _plane(kind: str, values: Map) -> dict[str, Any]:
    """One map as whole numbers in base64, and what turns them back."""
    if kind == "value":
        return _value_plane(values.T)
    if kind in ("held", "measured"):
        codes, most, largest = np.round(255 * values.T).astype(np.uint8), 255, 1.0
    else:
        clean = np.clip(np.nan_to_num(values.T), 0, None)
        largest = float(clean.max()) or 1.0
        number, most = (np.uint16, 65535) if clean.size <= _FINE_CELLS else (np.uint8, 127)
        codes = np.round(most * np.sqrt(clean / largest)).astype(number)
    return {"kind": kind, "most": most, "largest": float(f"{largest:.6g}"), **_packed(codes)}


def _value_plane(values: Float[np.ndarray, "F T"]) -> dict[str, Any]:
    known = np.isfinite(values)
    never = ~known.any(axis=1)
    low = np.where(never, 0.0, np.where(known, values, math.inf).min(axis=1))
    high = np.where(never, 0.0, np.where(known, values, -math.inf).max(axis=1))
    width = np.where(high > low, high - low, 1.0)[:, None]
    place = (np.where(known, values, low[:, None]) - low[:, None]) / width
    ends = {name: [float(f"{end:.7g}") for end in these] for name, these in (("low", low), ("high", high))}
    return {
        "kind": "value",
        "most": 65535,
        **ends,
        **_packed(np.where(known, 1 + np.round(65534 * place), 0).astype(np.uint16)),
    }


def _packed(codes: np.ndarray) -> dict[str, Any]:
    size = codes.dtype.itemsize
    places = codes.astype(codes.dtype.newbyteorder("<")).reshape(-1, 1).view(np.uint8)
    packed = zlib.compress(np.ascontiguousarray(places.T).tobytes(), 9)
    return {"bytes": size, "data": base64.b64encode(packed).decode()}


def _top(maps: dict[str, Map]) -> list[list[Any]]:
    """Step, feature, share of variants that hold it, mean, value, measured: of the cells that most variants hold."""
    mean = maps["mean"]
    # Among cells held by equally many, the one with more attention comes first.
    ranked = maps["held"] + 1e-6 * mean / (mean.max() or 1.0) if "held" in maps else mean
    cells = []
    for step, feature in zip(*top_cells(ranked, _ROWS), strict=True):
        there = {kind: float(values[step, feature]) for kind, values in maps.items()}
        cells.append([
            int(step), int(feature),
            *(float(f"{there[kind]:.6g}") if math.isfinite(there.get(kind, math.nan)) else None
              for kind in ("held", "mean", "value", "measured")),
        ])  # fmt: skip
    return cells


def _size(planes: list[dict[str, Any]]) -> int:
    return sum(len(plane["data"]) + 10 * len(plane.get("low", ())) * 2 for plane in planes)
