"""The features of YAIB's cohorts: unit and clinical group.

Names and units: the concepts of ricu, from which YAIB's cohorts are made
(https://github.com/eth-mds/ricu/tree/main/inst/extdata/config/concept-dict). The groups are those of vmapens' other
importers.
"""

from vmapens.cohort.schema import Feature

_UNITS = {
    "blood gas": "be mEq/L, bicar mEq/L, lact mmol/L, methb %, pco2 mmHg, ph , po2 mmHg",
    "body": "age years, bmi kg/m2, height cm, sex , weight kg",
    "circulation": "dbp mmHg, hr bpm, map mmHg, sbp mmHg",
    "electrolytes": "ca mg/dL, cai mmol/L, cl mEq/L, k mEq/L, mg mg/dL, na mEq/L, phos mg/dL",
    "haematology": (
        "bnd %, fgn mg/dL, hgb g/dL, inr_pt , lymph %, mch pg, mchc %, mcv fL, neut %, plt cells/nL, ptt s, "
        "wbc cells/nL"
    ),
    "heart muscle": "ck IU/L, ckmb ng/mL, tnt ng/mL",
    "inflammation": "crp mg/L",
    "kidney": "bun mg/dL, crea mg/dL, urine mL",
    "liver": "alb g/dL, alp IU/L, alt IU/L, ast IU/L, bili mg/dL, bili_dir mg/dL",
    "metabolism": "glu mg/dL",
    "respiration": "fio2 %, o2sat %, resp bpm",
    "temperature": "temp °C",
}

FEATURES = {
    name: Feature(name, unit, group)
    for group, entries in _UNITS.items()
    for name, unit in (entry.split(" ") for entry in entries.split(", "))
}
"""48 that change with time and 5 that do not, by name."""
