"""Frames in, pictures and one HTML file out; computes no statistic.

`write_report(tables, settings, out)` writes the page, `sentences(tables, settings)` gives its answer in four sentences.
The tables are those of `vmapens.analysis.tables`, by name; the settings are those of `analysis.json`. Any table may be
empty or absent: what would have shown it is replaced by a sentence that says how to get it.
"""

from vmapens.report.page import write_report
from vmapens.report.sentences import sentences

__all__ = ["sentences", "write_report"]
