"""The command line: parses, calls one function of a room below, prints.

Results go to standard output, everything else to standard error. Exit status: 0 done; 2 the input is wrong (one line);
1 a fault of vmapens; 130 interrupted.
"""

import shlex
import signal
import sys
from typing import Annotated, Any

import typer

from vmapens import __version__
from vmapens.cli import analysis, cohort, demo, run, train
from vmapens.cli.options import app
from vmapens.errors import VmapensError, first_line
from vmapens.terminal import say

__all__ = ["analysis", "app", "cohort", "demo", "main", "run", "train"]

_INTERRUPTED = 130


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train many seeds of one attention model as one tensor, and write what each attends to.

    Example: vmapens demo
    """
    if version:
        typer.echo(f"vmapens {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    if arguments in ([], ["import"]):
        arguments = [*arguments, "--help"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a scheduler sends is an interrupt, too
    try:
        result: Any = app(arguments, standalone_mode=False)
        status = result if isinstance(result, int) else 0
    except VmapensError as error:
        say(f"error: {error}")
        return 2
    except OSError as error:
        say(f"error: {error.filename or 'a file'} cannot be read or written: {error.strerror or first_line(error)}.")
        return 2
    except (MemoryError, RuntimeError) as error:
        from vmapens.ensemble.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        say(f"error: not enough memory ({first_line(error)}); --dry-run says what a run needs.")
        return 2
    except typer.TyperException as error:
        say(f"error: {' '.join(error.format_message().split())} Try `vmapens --help`.")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        resuming = [word for word in arguments if word not in ("--overwrite", "--resume")] + ["--resume"]
        trains = arguments[:1] == ["train"] and "--dry-run" not in arguments
        how = f" To go on: {shlex.join(['vmapens', *resuming])}" if trains else ""
        kept = " Finished blocks and the last checkpoint are kept." if how else ""
        say(f"interrupted.{kept}{how}")
    return status
