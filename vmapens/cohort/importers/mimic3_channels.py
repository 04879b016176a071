"""The 17 channels of mimic3-benchmarks: unit, clinical group, and the scores that its texts stand for.

Names as in its files ("Glascow" is theirs). The texts of the three Glasgow components come from MIMIC-III's two
charting systems, CareVue ("3 To speech") and MetaVision ("To Speech"), and mean the same. Scores are those of the
Glasgow coma scale (Teasdale and Jennett 1974, Lancet 304:81-84): the least of each component is 1, also for the eye
opening `None`, which the benchmark's own `channel_info.json` calls 0. What numbers are possible is as for
PhysioNet 2012 (`physionet2012_ranges`), of the same hospital: the benchmark converts units, but removes nothing.

Source:
    https://github.com/YerevaNN/mimic3-benchmarks, mimic3models/resources/discretizer_config.json (names and texts).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl


@dataclass(frozen=True)
class Channel:
    """One channel of the files: with `scores` it holds their keys, else numbers, possible from `low` to `high`."""

    name: str
    unit: str
    group: str
    scores: Mapping[str, int] = field(default_factory=dict)
    low: float = -math.inf
    high: float = math.inf

    def value(self, text: pl.Expr) -> pl.Expr:
        """What a text of the files stands for, float32; null where it stands for nothing, or for what cannot be."""
        read = self._read(text)
        return pl.when(read.is_between(self.low, self.high)).then(read)

    def faults(self, text: pl.Expr) -> dict[str, pl.Expr]:
        """A sentence to whether a text has no value for that reason."""
        read = self._read(text)
        what = "texts that are no score" if self.scores else "no finite number (float32)"
        faults = {f"{self.name}: {what}: set to missing": text.is_not_null() & read.is_null()}
        if not self.scores:
            impossible = f"{self.name} outside {self.low:g}..{self.high:g}: set to missing"
            faults[impossible] = ~read.is_between(self.low, self.high)
        return faults

    def _read(self, text: pl.Expr) -> pl.Expr:
        if self.scores:
            return text.replace_strict(self.scores, default=None, return_dtype=pl.Float32)
        return finite(number(text).cast(pl.Float32))


def number(text: pl.Expr) -> pl.Expr:
    """The number that a text is, float64; null where it is none."""
    return text.cast(pl.Float64, strict=False)


def finite(value: pl.Expr) -> pl.Expr:
    """Null in place of infinities and NaN; 0.0 in place of -0.0, else the order of rows would choose between them."""
    return pl.when(value == 0).then(value.abs()).when(value.is_finite()).then(value)


def _whole(numbers: Sequence[int]) -> dict[str, int]:
    """Whole numbers, which pandas writes with and without a decimal."""
    return {text: number for number in numbers for text in (f"{number}", f"{number}.0")}


_EYE_OPENING = {
    "1 No Response": 1,
    "None": 1,
    "2 To pain": 2,
    "To Pain": 2,
    "3 To speech": 3,
    "To Speech": 3,
    "4 Spontaneously": 4,
    "Spontaneously": 4,
}

_MOTOR_RESPONSE = {
    "1 No Response": 1,
    "No response": 1,
    "2 Abnorm extensn": 2,
    "Abnormal extension": 2,
    "3 Abnorm flexion": 3,
    "Abnormal Flexion": 3,
    "4 Flex-withdraws": 4,
    "Flex-withdraws": 4,
    "5 Localizes Pain": 5,
    "Localizes Pain": 5,
    "6 Obeys Commands": 6,
    "Obeys Commands": 6,
}

_VERBAL_RESPONSE = {
    "1 No Response": 1,
    "No Response": 1,
    "1.0 ET/Trach": 1,
    "No Response-ETT": 1,
    "2 Incomp sounds": 2,
    "Incomprehensible sounds": 2,
    "3 Inapprop words": 3,
    "Inappropriate Words": 3,
    "4 Confused": 4,
    "Confused": 4,
    "5 Oriented": 5,
    "Oriented": 5,
}

CHANNELS: tuple[Channel, ...] = (
    Channel("Capillary refill rate", "0 normal, 1 delayed", "circulation", _whole(range(2))),
    Channel("Diastolic blood pressure", "mmHg", "circulation", low=1.0, high=300.0),
    Channel("Fraction inspired oxygen", "fraction", "respiration", low=0.2, high=1.0),
    Channel("Glascow coma scale eye opening", "points", "consciousness", _EYE_OPENING),
    Channel("Glascow coma scale motor response", "points", "consciousness", _MOTOR_RESPONSE),
    Channel("Glascow coma scale total", "points", "consciousness", _whole(range(3, 16))),
    Channel("Glascow coma scale verbal response", "points", "consciousness", _VERBAL_RESPONSE),
    Channel("Glucose", "mg/dL", "metabolism", low=1.0, high=3000.0),
    Channel("Heart Rate", "bpm", "circulation", low=5.0, high=350.0),
    Channel("Height", "cm", "body", low=50.0, high=280.0),
    Channel("Mean blood pressure", "mmHg", "circulation", low=1.0, high=300.0),
    Channel("Oxygen saturation", "%", "respiration", low=10.0, high=100.0),
    Channel("Respiratory rate", "bpm", "respiration", low=0.0, high=120.0),
    Channel("Systolic blood pressure", "mmHg", "circulation", low=1.0, high=350.0),
    Channel("Temperature", "°C", "temperature", low=13.0, high=46.0),
    Channel("Weight", "kg", "body", low=15.0, high=700.0),
    Channel("pH", "", "blood gas", low=6.5, high=8.0),
)
"""In the order of the files."""
