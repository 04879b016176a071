"""What several commands share: the application, options, and how a table is printed as JSON."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

# The rooms below import torch and polars, which takes seconds: each command imports what it needs, when it runs.

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)

Out = Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable summary on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")]
Moved = Annotated[Path | None, typer.Option("--cohort", help="Where the cohort is, if it has moved.")]
OwnModel = Annotated[
    str | None, typer.Option("--model", help="The package:Class of your own that the run was made with.")
]


def to_json(value: object) -> str:
    """One line of JSON; numbers that are not finite, which JSON does not have, become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()  # a path may hold bytes that are no text


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
