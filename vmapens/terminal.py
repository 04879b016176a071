"""What a person sees: lines on standard error, and a progress bar where that is a terminal.

Every command imports this room, `vmapens --help` too: rich is imported when a training starts, and tables come as rows.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmapens.errors import printable

if TYPE_CHECKING:
    from rich import progress

_LINE_EVERY_SECONDS = 30


def say(line: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


class Progress:
    """A bar on a terminal, else a log line every 30 seconds; a `vmapens.listener.Listener`.

    Args:
        unit: What is counted.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: progress.Progress | None = None
        self._total = self._done = 0
        self._begun = self._last = time.monotonic()

    def start(self, amount: int) -> None:
        """Begin with this much work."""
        from rich import progress
        from rich.console import Console

        self._total, self._begun = amount, time.monotonic()
        console = Console(stderr=True)
        if console.is_terminal and amount:
            counted = progress.TextColumn(f"{self._unit} {{task.fields[speed]}}")
            columns = (progress.BarColumn(), progress.MofNCompleteColumn(), counted, progress.TimeRemainingColumn())
            self._bar = progress.Progress(*columns, console=console)
            self._bar.add_task(self._unit, total=amount, speed="")
            self._bar.start()

    def advance(self, amount: int) -> None:
        """Count finished work."""
        self._done += amount
        now = time.monotonic()
        speed = self._done / max(now - self._begun, 1e-9)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, speed=f"{speed:.1f}/s")
        elif now - self._last > _LINE_EVERY_SECONDS:
            self._last = now
            left = (self._total - self._done) / speed / 60
            say(f"{self._done}/{self._total} {self._unit}, {speed:.1f}/s, {left:.1f} min left")
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
