"""The command line in processes of its own, started quickly, that tests may kill: at a moment, or at a write.

A server process has imported everything and forks a child for each call, which then starts in milliseconds.
"""

import ctypes
import io
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    # The last two are imported late: torch's compiler with the first gradient, the kernel with the first step.
    [
        "vmapens.training",
        "vmapens.verify",
        "vmapens.cohort.load",
        "child",
        "torch._dynamo",
        "vmapens.nn.kernels.compiled",
    ]
)


class Child:
    """A running `vmapens` command.

    Args:
        arguments: Of the command line.
        errors: File that takes standard error.
        kill_at: (file name, how manieth write of such a file, moment): SIGKILL then. The moment is `half`, when half
            of the temporary file is written, `before` it takes its name, or `after`; or a signal to be sent before.
        full_at: Name of a file for which the disk is full: neither it nor any later one may have over 100 bytes.
        ordinary: Give up what lets an administrator write to read-only folders.
    """

    def __init__(self, arguments, errors, *, kill_at=None, full_at=None, ordinary=False):
        self._errors = Path(errors)
        settings = (list(map(str, arguments)), str(errors), kill_at, full_at, ordinary)
        self.process = _context.Process(target=_run, args=settings)
        self.process.start()

    def wait(self, seconds=120):
        """Status of its end; -9 if it was killed; and what it said."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {seconds} s: {self._errors.read_text()}")
        return self.process.exitcode, self._errors.read_text()

    def send(self, number):
        os.kill(self.process.pid, number)


def run(arguments, errors, **options):
    """Run a command to its end: status, and what it said."""
    return Child(arguments, errors, **options).wait()


def _run(arguments, errors, kill_at, full_at, ordinary):
    with Path(errors).open("wb") as file:
        os.dup2(file.fileno(), 2)
    with Path(os.devnull).open("wb") as file:
        os.dup2(file.fileno(), 1)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if ordinary and os.geteuid() == 0:
        _drop_rights()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if full_at is not None:
        sys.stderr = io.StringIO()  # for what is said there is room again at the end
        _fill_at(full_at)
    if kill_at is not None:
        _kill_at(*kill_at)
    from vmapens.cli import _main

    status = _main(arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if full_at is not None:
        os.write(2, sys.stderr.getvalue().encode())
    sys.stderr.flush()
    os._exit(status)


def _drop_rights():
    """Give up all capabilities (linux/capability.h, version 3): permissions of files hold for root, too."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _fill_at(name):
    touch = Path.touch

    def touch_on_a_full_disk(temporary):
        if temporary.name.startswith(f".{name}."):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        touch(temporary)

    Path.touch = touch_on_a_full_disk


def _kill_at(name, occurrence, moment):
    replace, seen = Path.replace, []

    def replace_or_die(temporary, path):
        if Path(path).name == name:
            seen.append(path)
        now = Path(path).name == name and len(seen) == occurrence
        if now and moment == "half":
            os.truncate(temporary, temporary.stat().st_size // 2)
        if now and isinstance(moment, signal.Signals):
            os.kill(os.getpid(), moment)
        if not now or (moment != "half" and moment != "before"):
            replace(temporary, path)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replace_or_die
