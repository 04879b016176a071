"""Tables as `vmapens analyze` writes them, made up: plausible numbers of any size, for the tests of the report."""

import itertools
import math

import numpy as np
import polars as pl

from vmapens.analysis.tables import ATTRIBUTIONS, GRAINS, REFERENCES, TABLES

GROUPS = ("vitals", "blood gas", "renal", "haematology")
NAMES = ("heart rate", "MAP", "lactate", "temperature", "SpO2", "creatinine")
OUTCOMES = {"binary": ("survived", "died"), "multiclass": ("cardiac", "neuro", "renal", "sepsis")}
ROLES = ("best", "median", "worst", "most different")


def made_settings(*, stays=3, variants=12, steps=8, features=6, kind="binary", attention_features=None, **changes):
    width = features if attention_features is None else attention_features
    cells = steps * width
    counts = sorted({max(1, round(share * cells)) for share in (0.0015, 0.015, 0.15)})
    return {
        "run": "runs/made",
        "variants": variants,
        "failed": 0,
        "task": "mortality" if kind == "binary" else "group",
        "kind": kind,
        "classes": list(OUTCOMES[kind]),
        "form": "feature" if width == features else "pool",
        "axes": ["step", "feature"] if width == features else ["step"],
        "steps": steps,
        "features": [
            {
                "feature": NAMES[f] if f < len(NAMES) else f"feature {f}",
                "unit": "mmol/L" if f % 3 else "1/min",
                "group": GROUPS[f % 4],
            }
            for f in range(features)
        ],
        "minutes_per_step": 60.0 if steps <= 48 else 5.0,
        "k": counts,
        "k_shares": [k / cells for k in counts],
        "map_k": counts[len(counts) // 2],
        "tolerance": 2,
        "window_steps": 4,
        "seed": 7,
        "samples": f"test:{stays}",
        "stays": stays,
        "resamples": 1000,
        "versions": {"vmapens": "0.1.0", "numpy": "2.4.6"},
        "command": ["vmapens", "analyze", "runs/made", "--samples", f"test:{stays}"],
        "train_command": ["vmapens", "train", "cohorts/made", "--variants", str(variants), "--out", "runs/made"],
        "select_on": "valid",
        "cohort_source": "made up for the tests",
        "licence": "none needed",
        "design": "one seed each",
        "prevalence": 0.14,
        "threshold": 0.14,
        "bayes_auroc": None,
        "notes": ["Controls were not analysed."],
    } | changes


def made_tables(
    *, stays=3, variants=12, steps=8, features=6, kind="binary", attention_features=None, seed=0, empty=()
) -> dict[str, pl.DataFrame]:
    """Every table of the schema; those named in `empty` have no rows.

    The agreement on a stay (0.5 for a top-k overlap) is above that across stays (0.4) and far above chance.
    """
    made = _Made(stays, variants, steps, features, kind, attention_features, seed)
    tables = {}
    for name, schema in TABLES.items():
        records = [] if name in empty else list(getattr(made, name)())
        tables[name] = pl.DataFrame(records, schema=schema, orient="row", strict=False)
    return tables


class _Made:
    def __init__(self, stays, variants, steps, features, kind, attention_features, seed):
        self.random = np.random.default_rng(seed)
        self.settings = made_settings(
            stays=stays, variants=variants, steps=steps, features=features, kind=kind,
            attention_features=attention_features,
        )  # fmt: skip
        self.names = [f"{140000 + 17 * i}" for i in range(stays)]
        self.variants, self.steps = variants, steps
        self.width = features if attention_features is None else attention_features
        self.cells, self.k = steps * self.width, self.settings["k"]
        self.outcomes = OUTCOMES[kind]
        self.metrics = ("auroc", "average_precision") if kind == "binary" else ("balanced_accuracy", "macro_auroc")
        self.n = sorted({*(2**i for i in range(int(math.log2(variants)) + 1)), variants})
        self.two = self.cells // 10 + 1

    def near(self, centre, spread=0.01):
        return float(np.clip(centre + spread * self.random.standard_normal(), 0.001, 0.999))

    def with_interval(self, centre, spread=0.01):
        estimate = self.near(centre, spread)
        return estimate, estimate - 2 * spread, estimate + 2 * spread

    def samples(self):
        for i, name in enumerate(self.names):
            y = i % len(self.outcomes)
            yield name, "test", y, self.outcomes[y], i, self.near(0.2 + 0.4 * (i % 2)), 0.04, self.near(0.3, 0.05)

    def scores(self):
        for split, metric in itertools.product(("valid", "test"), self.metrics):
            values = 0.8 + 0.01 * self.random.standard_normal(self.variants)
            running = np.cumsum(values) / np.arange(1, self.variants + 1)
            for v in range(self.variants):
                yield v, split, metric, values[v], running[v], "ok"

    def _measures(self):
        yield from (("overlap", k) for k in self.k)
        yield from (("spearman", None), ("divergence", None))

    def _references(self, measure, k):
        chance = {"overlap": (k or 0) / self.cells, "spearman": 0.0, "divergence": 0.25}[measure]
        best = 0.02 if measure == "divergence" else 0.6
        shares = {
            "value": 0.8,
            "permuted": 0.2,
            "cross_patient": 0.65,
            "initialisation": 0.1,
            "own_initialisation": 0.4,
        }
        between = {name: chance + share * (best - chance) for name, share in shares.items()}
        return between | {"chance": chance}

    def agreement(self):
        for name, (measure, k) in itertools.product(self.names, self._measures()):
            found = self._references(measure, k)
            references = [found[reference] for reference in REFERENCES]
            yield (name, "attention", "cell", "all", measure, k, self.cells, self.variants, found["value"], *references,
                   0.01)  # fmt: skip

    def consistency(self):
        kinds = [(attribution, "cell", "all") for attribution in ATTRIBUTIONS]
        kinds += [("attention", grain, cells) for grain in GRAINS for cells in ("all", "measured")]
        for (attribution, grain, cells), (measure, k) in itertools.product(dict.fromkeys(kinds), self._measures()):
            found = self._references(measure, k)
            value, chance, cross = (found[name] for name in ("value", "chance", "cross_patient"))
            found |= {"corrected": (value - chance) / (1 - chance), "about_patient": abs(value - cross)}
            found |= {"patient_share": (value - cross) / (value - chance)}
            for (quantity, centre), over in itertools.product(found.items(), ("stays", "variants")):
                low, high = (None, None) if quantity == "chance" else (centre - 0.03, centre + 0.03)
                yield attribution, grain, cells, measure, k, len(self.names), quantity, centre, low, high, over

    def measured(self):
        for name, attribution, k in itertools.product(self.names, ATTRIBUTIONS, self.k):
            yield name, attribution, k, self.near(0.25, 0.08), 0.3

    def drop(self):
        walk = sorted({round(n) for n in np.geomspace(1, self.variants, 60)})
        for name, k, n in itertools.product(self.names, self.k, walk):
            exact = k * n**-0.6
            yield name, k, n, round(exact * self.near(0.95, 0.05)), exact, k * (k / self.cells) ** (n - 1)

    def rank_histogram(self):
        edges = np.linspace(1, self.cells, 41)
        middle = (edges[1:] + edges[:-1]) / 2 / self.cells - 0.5
        for n in self.n:
            share, expected = (np.exp(-((middle / spread) ** 2) / 2) for spread in (0.29, 0.29 / math.sqrt(n)))
            bins = share / share.sum(), expected / expected.sum()
            yield from zip([n] * 40, edges[:-1], edges[1:], *bins, strict=True)

    def rank_spread(self):
        for name, n in itertools.product(self.names, self.n):
            yield name, n, 0.1 * self.two * self.near(0.5, 0.1), 3 * self.two, 2.9 * self.two * math.sqrt(1 - 1 / n)

    def held(self):
        for name, k, share in itertools.product(self.names, self.k, (0.5, 0.8, 0.95)):
            yield name, k, share, round(k * (1 - share) * 1.2), 0.0

    def maps(self):
        shape = (self.steps, self.width)
        columns = self.random.gamma(2, 1, (self.steps, 1)) * np.exp(self.random.normal(0, 0.4, (1, self.width)))
        hold = max(1, self.steps // 48)
        for name in self.names:
            # Values are carried forward, so attention moves little from step to step on a fine grid.
            noise = np.repeat(self.random.gamma(1.5, 1, (-(-self.steps // hold), self.width)), hold, axis=0)
            mean = columns * noise[: self.steps] * self.random.gamma(900, 1 / 900, shape)
            mean = mean / mean.sum(axis=1, keepdims=True) if self.width > 1 else mean / mean.sum()
            rank = mean.ravel().argsort()[::-1].argsort().reshape(shape) + 1.0
            held = np.clip(1.2 - rank / self.cells * 4, 0, 1)
            value = np.round(80 + 5 * np.cumsum(self.random.normal(0, 0.3, shape), axis=0), 1)
            measured = self.random.random(shape) < 0.3 / hold
            unknown = ~np.logical_or.accumulate(measured, axis=0)
            # carried forward: a value stays until the next measurement
            last = np.maximum.accumulate(np.where(measured, np.arange(self.steps)[:, None], 0), axis=0)
            value = np.take_along_axis(value, last, axis=0)
            kinds = {"mean": mean, "sd": 0.4 * mean * self.random.gamma(4, 0.25, shape), "held": held}
            kinds |= {"rank_mean": rank * 0.8 + 0.1 * self.cells, "rank_sd": 0.2 * self.cells * (1 - held)}
            for kind, values in kinds.items():
                yield name, kind, None, values.ravel().tolist()
            yield name, "value", None, [None if gone else v for v, gone in zip(value.flat, unknown.flat, strict=True)]
            yield name, "measured", None, measured.astype(float).ravel().tolist()
            for _, variant, _, _ in self.chosen():
                yield name, "variant", variant, (mean * self.random.gamma(3, 1 / 3, shape)).ravel().tolist()

    def chosen(self):
        for i, role in enumerate(ROLES):
            yield role, i * (self.variants - 1) // 3, 0.30 + 0.01 * i, 0.5 - 0.05 * i

    def weights(self):
        if self.width == 1:
            return
        place = self.random.permutation(self.width)
        for row, column in itertools.product(range(self.width), range(self.width)):
            mean = float(self.random.normal(0, 0.1)) + 0.3 * (row == column)
            yield row, column, mean, self.near(0.05), mean + 0.05, int(place[row]), int(place[column])

    def controls(self):
        for i, form in enumerate(("feature", "time", "pool", "uniform", "frozen feature")):
            for split, metric in itertools.product(("valid", "test"), self.metrics):
                difference = (0.0, 0.0, 0.0) if i == 0 else self.with_interval(0.006, 0.004)
                mean = self.with_interval(0.8)
                yield (f"runs/{form}", form, self.variants, split, metric, mean[0], 0.004, *mean[1:], *difference)

    def faithfulness(self):
        masks = ("attention", "random", "rolled", "other_variant", "other_patient", "input_size", "gated_input_size",
                 "gradient_x_input", "integrated_gradients")  # fmt: skip
        ways = itertools.product(("mean", "other"), ("recomputed", "held"), ("erase", "keep"))
        for (i, mask), (fill, attention, direction), q, (y, outcome) in itertools.product(
            enumerate(masks), ways, (0.01, 0.05, 0.1, 0.2, 0.5), enumerate(self.outcomes)
        ):
            size = (0.2 + 0.15 * i) * (q**0.5 if direction == "erase" else 1 - q**0.5)
            change, low, high = (size + shift for shift in (0.0, -0.05, 0.05))
            ends = (-change, -high, -low) if y == 0 else (change, low, high)
            yield mask, fill, attention, direction, q, outcome, len(self.names), *ends, size

    def permutation(self):
        for outcome in self.outcomes:
            yield outcome, len(self.names), *self.with_interval(0.05)

    def planted(self):
        for (i, attribution), v in itertools.product(enumerate(ATTRIBUTIONS), range(self.variants)):
            yield attribution, v, self.near(0.1 + 0.1 * i, 0.02), 0.05

    def attributions(self):
        for (i, attribution), name in itertools.product(
            enumerate(ATTRIBUTIONS), ("consistent", "patient", "faithful", "right")
        ):
            yield attribution, name, *self.with_interval(0.1 + 0.1 * i, 0.02), 0.05 if name == "right" else 0.0

    def decomposition(self):
        for (measure, k), (component, share) in itertools.product(
            self._measures(), (("init", 0.9), ("order", 0.02), ("init x order", 0.05), ("residual", 0.03))
        ):
            yield "runs/made", measure, k, component, 8, *self.with_interval(share, 0.015), "levels"

    def epochs(self):
        for measure, k in self._measures():
            for epoch in (0, 1, 5, 15, 30):
                yield "snapshot", float(epoch), measure, k, *self.with_interval(0.2 + 0.01 * epoch)
            yield "last", 31.0, measure, k, *self.with_interval(0.5)
            yield "kept", 17.3, measure, k, *self.with_interval(0.42)

    def rashomon(self):
        for epsilon, (measure, k) in itertools.product((0.002, 0.005, 0.01, 0.02), self._measures()):
            count = min(self.variants, 2 + int(epsilon * 400))
            random = self.with_interval(0.49, 0.02)
            yield epsilon, count, measure, k, *self.with_interval(0.5), *random, 10 * epsilon, 4 * epsilon, 0.14

    def good(self):
        for v in range(self.variants):
            yield v, 0.3 + 0.002 * v, 0.002 * v, max(0.0, 1 - 0.1 * v)

    def reliability(self):
        for metric in (*self.metrics, "log_loss"):
            yield metric, self.variants, *self.with_interval(0.3, 0.1)

    def learned_mask(self):
        for name, attribution, (measure, k) in itertools.product(
            self.names, ("learned_mask", "attention"), self._measures()
        ):
            yield name, attribution, measure, k, 8, self.near(0.5, 0.05), (k or 0) / self.cells, self.near(0.3, 0.05)
