"""A made-up ICU cohort of which the truth is known: which cells caused each stay's outcome.

Vitals and labs over 48 hours on their clinical scales: slow patient levels, AR(1) noise, a circadian rhythm, a few
factors that several features share, and measurements that come irregularly and somewhat more often when a value is
unusual. The cause of the outcome differs between three strata of patients, and the stratum shows in the temperature:
    surgical     (cool, about 35.9 degC)   low mean arterial pressure in the first 6 hours
    respiratory  (about 37.0 degC)         low SpO2 in the 6 hours before the middle
    septic       (fever, about 38.1 degC)  high lactate in the last 6 hours
These cells are always measured, so that what caused the outcome can be found in the data; in every stay, so that
being measured does not give the stratum away.

Beside the cohort's own files stand `truth.parquet` (sample, step, feature: the causal cells) and `bayes.parquet`
(sample, probability, logit, stratum: what a reader of the whole latent state would say).

Axes: n samples of one chunk, T steps, F features, K factors.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Float32, Float64, Int64

from vmapens.atomic import atomic_path
from vmapens.cohort.schema import CohortInfo, Feature, Task
from vmapens.cohort.write import require_no_cohort, write_cohort
from vmapens.errors import CohortError

TASK_NAME = "outcome"
TRUTH_FILE = "truth.parquet"
BAYES_FILE = "bayes.parquet"

HOURS = 48.0
WINDOW_HOURS = 6.0
SOURCE = "vmapens synthetic cohort"
LEAST_SAMPLES, LEAST_STEPS, LEAST_FEATURES = 20, 4, 4
MOST_MISSING = 0.95

# Logits are close to normal with this mean and SD: prevalence 0.22, Bayes AUROC 0.90 (by quadrature).
_INTERCEPT, _LOGIT_SD = -2.3, 2.4
_CHUNK = 128  # samples in memory at once; part of what a seed means
_FACTOR_HOURS = np.array([24.0, 12.0, 8.0])  # time constants of the K shared factors; the first is severity
_UNUSUAL = 0.3  # log-rate of measurement per SD of the value and of severity


@dataclass(frozen=True)
class _Signal:
    """One feature: its marginal distribution, and how its standardised value moves and is measured.

    The standardised value has mean 0 and variance 1 (the marker excepted); ``centre + spread * z`` is the value, or
    ``centre * exp(spread * z)`` if `skewed`, rounded to `decimals` and kept within `low` and `high`.
    """

    name: str
    unit: str
    group: str
    centre: float
    spread: float
    low: float
    high: float
    decimals: int
    skewed: bool
    severity: float  # loading on the first factor
    circadian: float  # share of the SD that follows the time of day
    memory_hours: float  # time constant of the AR(1) noise
    per_hour: float  # rate of measurement


_SIGNALS = (
    _Signal("heart_rate", "1/min", "vitals", 88.0, 17.0, 25.0, 220.0, 0, False, 0.45, 0.25, 4.0, 3.0),
    _Signal("mean_arterial_pressure", "mmHg", "vitals", 79.0, 13.0, 25.0, 180.0, 0, False, -0.35, 0.20, 3.0, 3.0),
    _Signal("resp_rate", "1/min", "vitals", 19.0, 5.0, 4.0, 60.0, 0, False, 0.40, 0.15, 3.0, 2.5),
    _Signal("temperature", "degC", "vitals", 37.0, 0.44, 32.0, 42.0, 1, False, 0.20, 0.30, 6.0, 1.0),
    _Signal("spo2", "%", "vitals", 95.5, 2.3, 60.0, 100.0, 0, False, -0.35, 0.00, 3.0, 3.0),
    _Signal("central_venous_pressure", "mmHg", "vitals", 9.0, 4.0, -3.0, 35.0, 0, False, 0.15, 0.00, 5.0, 1.5),
    _Signal("end_tidal_co2", "mmHg", "ventilation", 36.0, 6.0, 10.0, 90.0, 0, False, 0.10, 0.05, 4.0, 2.0),
    _Signal("urine_output", "mL/h", "fluids", 70.0, 0.7, 0.0, 1500.0, 0, True, -0.30, 0.10, 4.0, 1.0),
    _Signal("lactate", "mmol/L", "blood gas", 1.6, 0.5, 0.2, 25.0, 1, True, 0.40, 0.00, 8.0, 0.25),
    _Signal("creatinine", "umol/L", "renal", 95.0, 0.5, 15.0, 1500.0, 0, True, 0.25, 0.00, 48.0, 0.08),
    _Signal("white_blood_cells", "10^9/L", "haematology", 10.5, 0.4, 0.1, 100.0, 1, True, 0.25, 0.05, 24.0, 0.08),
    _Signal("platelets", "10^9/L", "haematology", 195.0, 0.45, 5.0, 1200.0, 0, True, -0.25, 0.00, 48.0, 0.08),
    _Signal("haemoglobin", "g/L", "haematology", 102.0, 17.0, 40.0, 200.0, 0, False, -0.15, 0.00, 24.0, 0.17),
    _Signal("glucose", "mmol/L", "metabolic", 7.8, 0.28, 1.5, 45.0, 1, True, 0.20, 0.15, 6.0, 0.33),
    _Signal("sodium", "mmol/L", "electrolytes", 139.0, 4.5, 110.0, 175.0, 0, False, 0.00, 0.00, 24.0, 0.17),
    _Signal("potassium", "mmol/L", "electrolytes", 4.1, 0.5, 2.0, 8.5, 1, False, 0.15, 0.05, 10.0, 0.20),
    _Signal("chloride", "mmol/L", "electrolytes", 105.0, 5.5, 75.0, 140.0, 0, False, 0.05, 0.00, 24.0, 0.12),
    _Signal("bicarbonate", "mmol/L", "blood gas", 24.0, 4.0, 5.0, 45.0, 1, False, -0.40, 0.00, 12.0, 0.20),
    _Signal("arterial_ph", "", "blood gas", 7.38, 0.07, 6.8, 7.7, 2, False, -0.40, 0.00, 8.0, 0.20),
    _Signal("arterial_po2", "kPa", "blood gas", 12.5, 0.25, 4.0, 70.0, 1, True, -0.20, 0.00, 6.0, 0.20),
    _Signal("arterial_pco2", "kPa", "blood gas", 5.3, 0.9, 2.0, 15.0, 1, False, 0.05, 0.00, 8.0, 0.20),
    _Signal("urea", "mmol/L", "renal", 7.5, 0.6, 0.8, 70.0, 1, True, 0.25, 0.00, 48.0, 0.08),
    _Signal("bilirubin", "umol/L", "hepatic", 14.0, 0.75, 2.0, 700.0, 0, True, 0.20, 0.00, 48.0, 0.05),
    _Signal("albumin", "g/L", "hepatic", 29.0, 6.0, 8.0, 55.0, 0, False, -0.30, 0.00, 48.0, 0.05),
)


@dataclass(frozen=True)
class _Cause:
    """One stratum: what it is recognised by, and which cells raise (sign 1) or lower (-1) its risk."""

    stratum: str
    marker_shift: float  # of the temperature, in SD
    feature: str
    sign: int
    place: float  # of the window in the stay: 0 its start, 1 its end


_MARKER = "temperature"
_CAUSES = (
    _Cause("surgical", -2.5, "mean_arterial_pressure", -1, 0.0),
    _Cause("respiratory", 0.0, "spo2", -1, 3 / 7),
    _Cause("septic", 2.5, "lactate", 1, 1.0),
)


@dataclass(frozen=True)
class _Dynamics:
    """The standardised values' make-up: shares of the SD, [F] each (loadings [K, F]); their squares sum to 1."""

    level: Float64[np.ndarray, "F"]
    loadings: Float64[np.ndarray, "K F"]
    circadian: Float64[np.ndarray, "F"]
    noise: Float64[np.ndarray, "F"]
    noise_decay: Float64[np.ndarray, "F"]  # correlation of the AR(1) noise from one step to the next
    factor_decay: Float64[np.ndarray, "K"]
    hours: Float64[np.ndarray, "T"]


def make_synthetic(
    out: Path, *, samples: int = 2000, steps: int = 48, features: int = 24, seed: int = 0, missing: float = 0.6
) -> CohortInfo:
    """Write a cohort with a planted truth; its task is `outcome` (binary, prevalence about 0.22, Bayes AUROC 0.90).

    ``logit = -2.3 + sum over the stay's causal cells of c * z``, z the standardised latent value (the logarithm's, for
    skewed features) and c equal within a stratum, such that the logit has an SD of about 2.4. The same arguments give
    the same values, and on one machine the same bytes.

    Args:
        out: The cohort folder; must not hold a cohort yet.
        samples: Stays, 20 or more.
        steps: Equal parts of the 48 hours, 4 or more.
        features: 4 or more. Up to 24 have real names; fewer than 24 keep those that matter (temperature, mean arterial
            pressure, SpO2, lactate) and then the first of the others; beyond 24 come `lab_025`, ...
        seed: Of every draw, 0 or more.
        missing: Share of the cells without a measurement, 0 to 0.95; vitals are missing less, labs more. The causal
            cells of all strata are measured even where that is more than is left.

    Returns:
        What `cohort.json` says; the notes hold the Bayes AUROC and the prevalence.

    Raises:
        CohortError: If an argument is outside its range (all such are named), or `out` is taken or cannot be written.
    """
    _check(out, samples, steps, features, seed, missing)
    rng = np.random.Generator(np.random.PCG64(seed))
    signals = _choose(features, rng)
    dynamics = _make_dynamics(signals, steps, rng)
    names = [signal.name for signal in signals]
    windows = [_window(cause, steps) for cause in _CAUSES]
    ids = pl.Series("sample", [f"stay-{i:0{len(str(samples - 1))}d}" for i in range(samples)])

    frames: list[pl.DataFrame] = []
    logits, strata = np.empty(samples), np.empty(samples, dtype=np.int64)
    longest_wait = np.inf
    for first in range(0, samples, _CHUNK):
        chunk = slice(first, min(first + _CHUNK, samples))
        z, severity, strata[chunk] = _draw_latent(rng, chunk.stop - first, dynamics, names.index(_MARKER))
        logits[chunk] = _logit(z, strata[chunk], dynamics, names, windows)
        wait = _draw_wait(rng, z, severity, signals)
        for s, cause in enumerate(_CAUSES):
            wait[:, windows[s], names.index(cause.feature)] = 0
        if first == 0 and missing > 0:
            longest_wait = float(np.quantile(wait, 1 - missing))
        frames.append(_to_frame(ids[chunk], _to_values(z, signals), wait <= longest_wait, names))
    probability = 1 / (1 + np.exp(-logits))
    outcome = (rng.random(samples) < probability).astype(np.int32)

    stratum = [_CAUSES[s].stratum for s in strata]
    bayes = pl.DataFrame({"sample": ids, "probability": probability, "logit": logits, "stratum": stratum})
    truth = pl.concat(
        pl.DataFrame({"sample": ids.filter(pl.Series(strata == s))})
        .join(pl.DataFrame({"step": windows[s].astype(np.int32)}), how="cross")
        .with_columns(feature=pl.lit(cause.feature))
        for s, cause in enumerate(_CAUSES)
    )
    info = CohortInfo(
        steps=steps,
        minutes_per_step=HOURS * 60 / steps,
        features=tuple(Feature(signal.name, signal.unit, signal.group) for signal in signals),
        tasks=(Task(TASK_NAME, "binary", ("no", "yes"), "Caused by the cells in truth.parquet."),),
        source=f"{SOURCE}: samples {samples}, steps {steps}, features {features}, seed {seed}, "
        f"missing {missing:g}. No patient is behind it.",
        licence="CC0-1.0",
        notes=(
            f"{TRUTH_FILE} holds the cells that caused each stay's outcome; such cells are measured in every stay.",
            f"{BAYES_FILE} holds each stay's true probability of the outcome and its stratum; the stratum shows in the "
            "mean temperature.",
            f"Bayes AUROC {bayes_auroc(probability):.3f}; prevalence {outcome.mean():.3f}, "
            f"mean Bayes probability {probability.mean():.3f}.",
        ),
    )
    for name, frame in ((TRUTH_FILE, truth.sort("sample", "step")), (BAYES_FILE, bayes.sort("sample"))):
        with atomic_path(out / name) as path:
            frame.write_parquet(path)
    write_cohort(out, info, pl.concat(frames, rechunk=False), pl.DataFrame({"sample": ids, "outcome": outcome}))
    return info


def _check(out: Path, samples: int, steps: int, features: int, seed: int, missing: float) -> None:
    wanted = (
        (samples >= LEAST_SAMPLES, f"samples is {samples}, must be {LEAST_SAMPLES} or more"),
        (steps >= LEAST_STEPS, f"steps is {steps}, must be {LEAST_STEPS} or more"),
        (features >= LEAST_FEATURES, f"features is {features}, must be {LEAST_FEATURES} or more"),
        (seed >= 0, f"seed is {seed}, must be 0 or more"),
        (0 <= missing <= MOST_MISSING, f"missing is {missing}, must be a share from 0 to {MOST_MISSING}"),
    )
    problems = [problem for holds, problem in wanted if not holds]
    if problems:
        raise CohortError(f"synthetic cohort: {'; '.join(problems)}.")
    require_no_cohort(out)  # before the truth of a cohort that is there would be replaced


def _choose(features: int, rng: np.random.Generator) -> tuple[_Signal, ...]:
    """The first signals in the order of the catalogue, those that matter always among them; made-up labs at the end."""
    needed = {_MARKER, *(cause.feature for cause in _CAUSES)}
    others = [signal.name for signal in _SIGNALS if signal.name not in needed]
    kept = needed.union(others[: features - len(needed)])
    chosen = [signal for signal in _SIGNALS if signal.name in kept]
    for number in range(len(_SIGNALS) + 1, features + 1):
        centre, spread = float(np.exp(rng.uniform(np.log(5), np.log(200)))), rng.uniform(0.2, 0.5)
        severity, memory, rate = rng.uniform(-0.4, 0.4), rng.uniform(6, 48), rng.uniform(0.04, 0.25)
        limits = (0.0, 100 * centre)
        lab = _Signal(f"lab_{number:03d}", "", "labs", centre, spread, *limits, 1, True, severity, 0.0, memory, rate)
        chosen.append(lab)
    return tuple(chosen)


def _make_dynamics(signals: tuple[_Signal, ...], steps: int, rng: np.random.Generator) -> _Dynamics:
    step_hours = HOURS / steps
    loadings = rng.uniform(-0.3, 0.3, (len(_FACTOR_HOURS), len(signals)))
    loadings[0] = [signal.severity for signal in signals]
    # The marker must tell the strata apart, so little of it is the patient's own.
    level = np.array([0.25 if signal.name == _MARKER else 0.45 for signal in signals])
    circadian = np.array([signal.circadian for signal in signals])
    return _Dynamics(
        level=level,
        loadings=loadings,
        circadian=circadian,
        noise=np.sqrt(1 - level**2 - (loadings**2).sum(axis=0) - circadian**2),
        noise_decay=np.exp(-step_hours / np.array([signal.memory_hours for signal in signals])),
        factor_decay=np.exp(-step_hours / _FACTOR_HOURS),
        hours=np.arange(steps) * step_hours,
    )


def _window(cause: _Cause, steps: int) -> Int64[np.ndarray, "S"]:
    """The causal steps of a stratum: 6 hours, at least one step."""
    length = max(1, round(steps * WINDOW_HOURS / HOURS))
    return round(cause.place * (steps - length)) + np.arange(length)


def _draw_latent(
    rng: np.random.Generator, n: int, dynamics: _Dynamics, marker: int
) -> tuple[Float32[np.ndarray, "n T F"], Float32[np.ndarray, "n T"], Int64[np.ndarray, "n"]]:
    """Standardised values, the severity factor, and the stratum of each sample.

    The factors are added one by one: a matrix product's rounding may depend on the number of threads.
    """
    steps, features = dynamics.hours.size, dynamics.level.size
    strata = rng.integers(0, len(_CAUSES), n)
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    level = rng.standard_normal((n, 1, features), dtype=np.float32)
    factors = _draw_ar1(rng, (n, steps, dynamics.factor_decay.size), dynamics.factor_decay)
    z = _draw_ar1(rng, (n, steps, features), dynamics.noise_decay)
    z *= dynamics.noise.astype(np.float32)
    z += level * dynamics.level.astype(np.float32)
    for k, loading in enumerate(dynamics.loadings.astype(np.float32)):
        z += factors[:, :, k, None] * loading
    day = np.sqrt(2) * np.sin(2 * np.pi * dynamics.hours / 24 + phase)
    z += day.astype(np.float32)[:, :, None] * dynamics.circadian.astype(np.float32)
    z[:, :, marker] += np.array([cause.marker_shift for cause in _CAUSES], dtype=np.float32)[strata][:, None]
    return z, factors[:, :, 0], strata


def _draw_ar1(
    rng: np.random.Generator, shape: tuple[int, int, int], decay: Float64[np.ndarray, "F"]
) -> Float32[np.ndarray, "n T F"]:
    """Stationary AR(1) series of variance 1: ``z_t = decay z_(t-1) + sqrt(1 - decay^2) e_t``."""
    z = rng.standard_normal(shape, dtype=np.float32)
    keep, fresh = decay.astype(np.float32), np.sqrt(1 - decay**2).astype(np.float32)
    for t in range(1, shape[1]):
        z[:, t] = keep * z[:, t - 1] + fresh * z[:, t]
    return z


def _logit(
    z: Float32[np.ndarray, "n T F"],
    strata: Int64[np.ndarray, "n"],
    dynamics: _Dynamics,
    names: list[str],
    windows: list[Int64[np.ndarray, "_"]],
) -> Float64[np.ndarray, "n"]:
    logit = np.full(strata.size, _INTERCEPT)
    for s, cause in enumerate(_CAUSES):
        mine, feature = strata == s, names.index(cause.feature)
        coefficient = cause.sign * _LOGIT_SD / _sum_sd(dynamics, feature, windows[s])
        logit[mine] += coefficient * z[mine][:, windows[s], feature].astype(np.float64).sum(axis=1)
    return logit


def _sum_sd(dynamics: _Dynamics, feature: int, window: Int64[np.ndarray, "S"]) -> float:
    """SD of the sum of a feature's standardised values over a window, from the covariances of their parts."""
    lag = np.abs(window[:, None] - window)
    covariance = dynamics.level[feature] ** 2 + dynamics.noise[feature] ** 2 * dynamics.noise_decay[feature] ** lag
    for loading, decay in zip(dynamics.loadings[:, feature], dynamics.factor_decay, strict=True):
        covariance = covariance + loading**2 * decay**lag
    angle = 2 * np.pi * (dynamics.hours[1] - dynamics.hours[0]) * lag / 24
    covariance = covariance + dynamics.circadian[feature] ** 2 * np.cos(angle)
    return float(np.sqrt(covariance.sum()))


def _draw_wait(
    rng: np.random.Generator,
    z: Float32[np.ndarray, "n T F"],
    severity: Float32[np.ndarray, "n T"],
    signals: tuple[_Signal, ...],
) -> Float32[np.ndarray, "n T F"]:
    """Time until each cell would be measured: exponential, shorter for vitals, the very ill and unusual values.

    A cell is measured if its wait is below a limit that all cells share, which sets the share of missing cells.
    """
    rate = np.array([signal.per_hour for signal in signals], dtype=np.float32)
    wait = rng.standard_exponential(z.shape, dtype=np.float32)
    wait /= rate * np.exp(np.float32(_UNUSUAL) * (np.abs(z) + severity[:, :, None]))
    return wait


def _to_values(z: Float32[np.ndarray, "n T F"], signals: tuple[_Signal, ...]) -> Float32[np.ndarray, "n T F"]:
    values = np.empty_like(z)
    for f, signal in enumerate(signals):
        scaled = signal.spread * z[:, :, f].astype(np.float64)
        value = signal.centre * np.exp(scaled) if signal.skewed else signal.centre + scaled
        values[:, :, f] = np.clip(np.round(value, signal.decimals), signal.low, signal.high)
    return values


def _to_frame(
    ids: pl.Series,
    values: Float32[np.ndarray, "n T F"],
    measured: Bool[np.ndarray, "n T F"],
    names: list[str],
) -> pl.DataFrame:
    """Rows of the series: null where nothing was measured, no row for a step without any measurement."""
    n, steps, features = values.shape
    values[~measured] = np.nan
    rows = np.flatnonzero(measured.any(axis=2).reshape(-1))
    frame = pl.DataFrame(values.reshape(n * steps, features)[rows], schema=names, orient="row", nan_to_null=True)
    step = pl.Series("step", (rows % steps).astype(np.int32))
    return frame.select(ids.gather(rows // steps), step, pl.all())


def bayes_auroc(probability: Float[np.ndarray, "N"]) -> float:
    """AUROC of the true probabilities, expected over the labels they could have drawn."""
    positive = np.sort(probability)
    negative = 1 - positive
    wins = (positive * (np.cumsum(negative) - negative)).sum()
    return float(wins / (positive.sum() * negative.sum() - (positive * negative).sum()))
