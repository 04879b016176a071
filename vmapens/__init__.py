"""vmapens: many seeds of one attention model, trained as one tensor.

`train(model, cohort, spec, out)` trains and writes a run directory, `open_run(path)` reads one back, `analyze(run)`
gives the tables of its explanations, `load(spec)` reads a cohort; `train_study` trains a run on each of several splits,
`open_study(path)` reads them back. They are imported when first used, because torch and polars take seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmapens.analysis.study import analyze
    from vmapens.cohort.load import load_cohort as load
    from vmapens.run import open_run
    from vmapens.study import open_study, train_study
    from vmapens.training import train

__version__ = "0.1.0"
__all__ = ["analyze", "load", "open_run", "open_study", "train", "train_study"]

_PLACES = {
    "analyze": ("analysis.study", "analyze"),
    "load": ("cohort.load", "load_cohort"),
    "open_run": ("run", "open_run"),
    "open_study": ("study", "open_study"),
    "train": ("training", "train"),
    "train_study": ("study", "train_study"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'vmapens' has no attribute {name!r}")
    module, function = _PLACES[name]
    return getattr(importlib.import_module(f"vmapens.{module}"), function)
