"""The answer in four sentences; every number comes from a table.

An effect whose interval holds 0 is never called one.
"""

import polars as pl

from vmapens.report.selection import (
    Settings,
    Tables,
    at_middle_k,
    completed,
    decimals,
    first,
    interval_of,
    main_metric,
    middle,
    name_of,
    rows,
)

QUESTIONS = ("How well", "How consistent", "Does it matter", "Why do they differ")


def sentences(tables: Tables, settings: Settings) -> list[str]:
    """The answer: how well, how consistent and about whom, does attention matter, why do the variants differ.

    Args:
        tables: Those of `vmapens.analysis.tables.TABLES`, by name; any may be empty or absent.
        settings: The content of `analysis.json`.

    Returns:
        Four strings of plain text, in the order of `QUESTIONS`. Where an analysis was not done, its string says what
        to run.
    """
    frames = completed(tables)
    return [
        _how_well(frames, settings),
        _how_consistent(frames, settings),
        _does_it_matter(frames, settings),
        _why_do_they_differ(frames, settings),
    ]


def _how_well(frames: dict[str, pl.DataFrame], settings: Settings) -> str:
    metric = main_metric(settings)
    good = rows(frames["scores"], split="test", metric=metric, status="ok")
    values = good["value"].drop_nulls().drop_nans().to_numpy()
    if values.size == 0:
        return f"No score is known: the run has no {name_of(metric)} on its test split."
    chance = 0.5 if metric == "auroc" else 1 / max(2, len(settings.get("classes") or []))
    spread = f"SD {values.std(ddof=1):.3f}, " if values.size > 1 else ""
    failed = f"; {settings['failed']} more failed" if settings.get("failed") else ""
    bayes = settings.get("bayes_auroc")
    best = f", and the best possible {bayes:.3f}" if bayes and metric == "auroc" else ""
    return (
        f"On the test stays the {values.size:,} variants reach a mean {name_of(metric)} of {values.mean():.3f} "
        f"({spread}{values.min():.3f} to {values.max():.3f}{failed}), where chance is {chance:.3g}{best}."
    )


def _how_consistent(frames: dict[str, pl.DataFrame], settings: Settings) -> str:
    found = at_middle_k(
        rows(frames["consistency"], attribution="attention", grain="cell", cells="all", measure="overlap"), settings
    )
    over_stays = {
        quantity: rows(found, quantity=quantity, over="stays")
        for quantity in ("value", "corrected", "cross_patient", "patient_share")
    }
    value = first(over_stays["value"], "estimate")
    if value is None and _is_uniform(settings):
        return "How consistent the variants are cannot be asked: uniform attention has nothing to compare."
    if value is None:
        return (
            "How consistent the variants are was not analysed: run `vmapens analyze` on 2 variants or more whose "
            "attention is not the same everywhere."
        )
    k = int(found["k"][0]) if found["k"][0] is not None else middle(list(settings["k"]))
    corrected = over_stays["corrected"]
    cells = f"{k:,} cells" if k > 1 else "one cell"
    text = (
        f"Two variants share {100 * value:.1f} % of the {cells} that each attends to most on the same stay: "
        f"{_with_interval(corrected)} on a scale from 0 (chance) to 1 (all alike)"
    )
    if _holds_zero(corrected):
        text += ", which cannot be told from chance"
    cross, share = first(over_stays["cross_patient"], "estimate"), over_stays["patient_share"]
    if cross is None:
        return text + "; how much of it is about the patient takes more than one stay."
    text += f"; but two variants that look at two different stays share {100 * cross:.1f} % already, so "
    part = first(share, "estimate")
    if part is None:
        return text + "how much of it is about the patient cannot be said."
    if (first(corrected, "estimate") or 0) <= 0:
        return text + "none of it is beyond chance."
    low, high = first(share, "low"), first(share, "high")
    ends = "" if low is None or high is None else f" [{decimals(100 * low, 0)}, {decimals(100 * high, 0)}]"
    if _holds_zero(share):
        return (
            text + f"what is about the patient, {decimals(100 * part, 0)}{ends} % of it, cannot be told from nothing."
        )
    return text + f"{decimals(100 * part, 0)}{ends} % of what is beyond chance is about the patient."


def _does_it_matter(frames: dict[str, pl.DataFrame], settings: Settings) -> str:
    if _is_uniform(settings):
        return (
            "Whether the score needs attention cannot be asked of a run that has none (its weights are uniform): give "
            "it to `vmapens analyze` after a run with attention."
        )
    metric = main_metric(settings)
    uniform = rows(frames["controls"], form="uniform", split="test", metric=metric)
    gain = first(uniform, "difference")
    if gain is None or uniform["run"][0] == frames["controls"]["run"][0]:  # the run itself has no attention
        text = (
            "Whether the score needs attention was not asked: train a run with `--attend-over uniform` and give both "
            "to `vmapens analyze`"
        )
    else:
        ends = interval_of(uniform, "difference_low", "difference_high")
        text = (
            f"Without attention (uniform weights) the {name_of(metric)} changes by {decimals(gain, sign=True)} {ends}"
        )
        text = text.rstrip()
        if _holds_zero(uniform, "difference_low", "difference_high"):
            text += ", a difference that cannot be told from none"
    faithful = rows(frames["attributions"], attribution="attention", property="faithful")
    further = first(faithful, "estimate")
    if further is None:
        return text + "; whether the attended cells move the prediction was not analysed."
    text += "; erasing the tenth of the cells that is attended to most (the training mean stands in) moves the logit "
    if _holds_zero(faithful):
        return text + (
            f"no further, either way, than erasing the same mask rolled in time, as far as can be told "
            f"({_with_interval(faithful, sign=True)})."
        )
    direction = "further" if further > 0 else "less far"
    return (
        text + f"{direction}, either way, than erasing the same mask rolled in time, by "
        f"{_with_interval(faithful, absolute=True)}."
    )


def _why_do_they_differ(frames: dict[str, pl.DataFrame], settings: Settings) -> str:
    found = at_middle_k(rows(frames["decomposition"], measure="overlap"), settings)
    causes = [
        f"{name} {_with_interval(part, percent=True)} %"
        + (" (which cannot be told from nothing)" if _holds_zero(part) else "")
        for component, name in (
            ("init", "the initialisation explains"),
            ("order", "the order of the data"),
            ("bootstrap", "the choice of the training stays"),
        )
        if first(part := rows(found, component=component), "share") is not None
    ]
    if not causes and _is_uniform(settings):
        return "Why they differ cannot be asked of attention that is uniform in all of them."
    if not causes:
        return (
            "Why they differ this run cannot tell, since its seeds do not vary the initialisation apart from the order "
            "of the data: train one with `--design crossed --init-seeds 0:16 --order-seeds 0:8` and give it to "
            "`vmapens analyze`."
        )
    listed = causes[0] if len(causes) == 1 else f"{', '.join(causes[:-1])} and {causes[-1]}"
    over = "; these intervals are over seeds" if found["low"].count() else ""
    return f"Of the disagreement of variants that share no seed, {listed}{over}."


def _is_uniform(settings: Settings) -> bool:
    """Whether the run has no attention: all weights are the same, and its variants cannot differ in them."""
    return str(settings.get("form")).endswith("uniform")


def _with_interval(frame: pl.DataFrame, *, sign: bool = False, absolute: bool = False, percent: bool = False) -> str:
    column = "share" if percent else "estimate"
    factor, digits = (100, 0) if percent else (1, 3)
    ends = [first(frame, name) for name in ("low", "high")]
    estimate = first(frame, column)
    if absolute and estimate is not None and estimate < 0:
        factor, ends = -factor, ends[::-1]
    text = decimals(estimate if estimate is None else factor * estimate, digits, sign)
    if ends[0] is None or ends[1] is None:
        return text
    return f"{text} [{', '.join(decimals(factor * end, digits) for end in ends)}]"  # type: ignore[operator]


def _holds_zero(frame: pl.DataFrame, low: str = "low", high: str = "high") -> bool:
    """Whether the interval of the first row holds 0; one without ends holds everything."""
    ends = first(frame, low), first(frame, high)
    return ends[0] is None or ends[1] is None or ends[0] <= 0 <= ends[1]
