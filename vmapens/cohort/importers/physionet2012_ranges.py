"""The parameters of PhysioNet/CinC 2012: unit, clinical group, and the range outside which a value is impossible.

Names and units: the Challenge's own description, https://physionet.org/content/challenge-2012/1.0.0/ (its "Time series"
and "General descriptors"; the files write TroponinI and TroponinT for its TropI and TropT). So are the ranges of FiO2
(a fraction), GCS (3-15), MechVent and Gender (0 or 1), save that FiO2 starts just below room air.

All other ranges, and the clinical groups: wide physiological limits chosen by the authors of vmapens so that only
impossible values go. They are taken from no publication. They take out slips of the pen (pH 735, a white cell count of
12,500 per nL), other units (height in inches) and readings of an unplugged sensor (temperature -17.8, pressures and
heart rate 0); they keep zeros that are real (urine, respiration without breath, white cells). A change of any number
here is a new `RANGES_VERSION`.
"""

from dataclasses import dataclass

RANGES_VERSION = 1


@dataclass(frozen=True)
class Parameter:
    """One parameter of the files; values outside `low`..`high` (both possible) are impossible."""

    name: str
    unit: str
    group: str
    low: float
    high: float


SERIES: tuple[Parameter, ...] = (
    Parameter("Albumin", "g/dL", "liver", 0.1, 10.0),
    Parameter("ALP", "IU/L", "liver", 1.0, 20_000.0),
    Parameter("ALT", "IU/L", "liver", 1.0, 50_000.0),
    Parameter("AST", "IU/L", "liver", 1.0, 50_000.0),
    Parameter("Bilirubin", "mg/dL", "liver", 0.01, 150.0),
    Parameter("BUN", "mg/dL", "kidney", 0.5, 400.0),
    Parameter("Cholesterol", "mg/dL", "metabolism", 5.0, 2_000.0),
    Parameter("Creatinine", "mg/dL", "kidney", 0.01, 60.0),
    Parameter("DiasABP", "mmHg", "circulation", 1.0, 300.0),
    Parameter("FiO2", "fraction", "respiration", 0.2, 1.0),
    Parameter("GCS", "points", "consciousness", 3.0, 15.0),
    Parameter("Glucose", "mg/dL", "metabolism", 1.0, 3_000.0),
    Parameter("HCO3", "mmol/L", "blood gas", 1.0, 80.0),
    Parameter("HCT", "%", "haematology", 2.0, 80.0),
    Parameter("HR", "bpm", "circulation", 5.0, 350.0),
    Parameter("K", "mEq/L", "electrolytes", 0.5, 15.0),
    Parameter("Lactate", "mmol/L", "blood gas", 0.05, 60.0),
    Parameter("Mg", "mmol/L", "electrolytes", 0.05, 30.0),
    Parameter("MAP", "mmHg", "circulation", 1.0, 300.0),
    Parameter("MechVent", "", "respiration", 0.0, 1.0),
    Parameter("Na", "mEq/L", "electrolytes", 80.0, 220.0),
    Parameter("NIDiasABP", "mmHg", "circulation", 1.0, 300.0),
    Parameter("NIMAP", "mmHg", "circulation", 1.0, 300.0),
    Parameter("NISysABP", "mmHg", "circulation", 1.0, 350.0),
    Parameter("PaCO2", "mmHg", "blood gas", 2.0, 300.0),
    Parameter("PaO2", "mmHg", "blood gas", 5.0, 800.0),
    Parameter("pH", "", "blood gas", 6.5, 8.0),
    Parameter("Platelets", "cells/nL", "haematology", 0.5, 5_000.0),
    Parameter("RespRate", "bpm", "respiration", 0.0, 120.0),
    Parameter("SaO2", "%", "respiration", 10.0, 100.0),
    Parameter("SysABP", "mmHg", "circulation", 1.0, 350.0),
    Parameter("Temp", "°C", "temperature", 13.0, 46.0),
    Parameter("TroponinI", "μg/L", "heart muscle", 0.0, 1_000.0),
    Parameter("TroponinT", "μg/L", "heart muscle", 0.0, 200.0),
    Parameter("Urine", "mL", "kidney", 0.0, 10_000.0),
    Parameter("WBC", "cells/nL", "haematology", 0.0, 1_000.0),
    Parameter("Weight", "kg", "body", 15.0, 700.0),
)
"""Measured over time. Weight is also written down at admission."""

CONSTANT: tuple[Parameter, ...] = (
    Parameter("Age", "years", "body", 1.0, 125.0),
    Parameter("Gender", "0 female, 1 male", "body", 0.0, 1.0),
    Parameter("Height", "cm", "body", 50.0, 280.0),
)
"""Written down once, at admission."""
