"""What a person sees: lines on standard error, and a progress bar where that is a terminal.

Every command imports this room, `vmapens --help` too: rich is imported when a training starts, and tables come as rows.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmapens.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_EVERY_SECONDS = 30


def say(line: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


class TrainingProgress:
    """A `vmapens.training.Listener`: a bar on a terminal, else a log line every 30 seconds."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._total = self._done = 0
        self._begun = self._last = time.monotonic()

    def start(self, variant_epochs: int) -> None:
        """Begin with this much work."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._total, self._begun = variant_epochs, time.monotonic()
        console = Console(stderr=True)
        if console.is_terminal and variant_epochs:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("variants x epochs {task.fields[speed]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._bar.add_task("train", total=variant_epochs, speed="")
            self._bar.start()

    def advance(self, variant_epochs: int) -> None:
        """Count finished work."""
        self._done += variant_epochs
        now = time.monotonic()
        speed = self._done / max(now - self._begun, 1e-9)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, speed=f"{speed:.1f}/s")
        elif now - self._last > _LINE_EVERY_SECONDS:
            self._last = now
            left = (self._total - self._done) / speed / 60
            say(f"{self._done}/{self._total} variants x epochs, {speed:.1f}/s, {left:.1f} min left")
        if self._done >= self._total:
            self.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(printable(line), highlight=False, markup=False)
        else:
            say(line)

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def summary_lines(summary: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of `Run.summary` as lines of text."""
    width = max((len(row["metric"]) for row in summary), default=0)
    lines = [f"{'split':<6} {'metric':<{width}}   mean     sd     min     max"]
    for row in summary:
        split, metric, _, *values = row.values()
        lines.append(f"{split:<6} {metric:<{width}} " + " ".join(f"{value:7.4f}" for value in values))
    return lines
