"""An arm in a process of its own: for JAX, whose threads would share the cores with torch's, and for peak memory."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.arms import Named, build
from benchmarks.loading import status
from benchmarks.problem import Problem


class Remote:
    """An arm whose methods run in another process, which sleeps between calls.

    A call costs some 0.1 ms of its own, against timings of half a second.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def settings(self) -> AbstractContextManager[None]:
        """The other process has entered the arm's settings for good."""
        return nullcontext()

    def gradients(self) -> tuple[np.ndarray, Named]:
        """See `Arm`."""
        return self._call("gradients")  # type: ignore[no-any-return]

    def train(self, steps: int) -> np.ndarray:
        """See `Arm`."""
        return self._call("train", steps)  # type: ignore[no-any-return]

    def parameters(self) -> Named:
        """See `Arm`."""
        return self._call("parameters")  # type: ignore[no-any-return]

    def _call(self, method: str, *arguments: int) -> Any:
        self._connection.send((method, arguments))
        return _received(self._connection)


@contextmanager
def remote(letter: str, problem: Problem) -> Iterator[Remote]:
    """Start an arm in a process of its own, and end that process afterwards."""
    with _child(_serve, letter, problem) as connection:
        yield Remote(connection)


def peak_mib(work: Callable[..., object], *arguments: object) -> float | None:
    """Run `work` in a fresh process and see how much memory it took.

    Returns:
        On a GPU if the work used one, the most that torch had allocated there; else the largest resident set of the
        process, libraries included (Linux; None elsewhere). In MiB.
    """
    with _child(_watch, work, arguments) as connection:
        result = _received(connection)
    assert result is None or isinstance(result, float)
    return result


def _received(connection: Connection) -> Any:
    try:
        result = connection.recv()
    except EOFError:
        raise RuntimeError("an arm's process ended without an answer: was it killed for want of memory?") from None
    if isinstance(result, Exception):
        raise result
    return result


@contextmanager
def _child(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _serve(connection: Connection, letter: str, problem: Problem) -> None:
    torch.set_flush_denormal(True)  # before any other thread is there to inherit it
    try:
        arm = build(letter, problem)
        with arm.settings():
            while True:
                method, arguments = connection.recv()
                connection.send(getattr(arm, method)(*arguments))
    except EOFError:
        pass
    except Exception as error:
        connection.send(error)


def _watch(connection: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    torch.set_flush_denormal(True)
    try:
        work(*arguments)
        connection.send(_most_mib())
    except Exception as error:
        connection.send(error)


def _most_mib() -> float | None:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(status("VmHWM"), 1) if Path("/proc/self/status").exists() else None
