"""Spread variants over CPU threads, each variant's arithmetic on one thread.

Why one: with more than one intra-op thread, sums are cut at places that depend on the number of threads, so a weight
gradient would depend on the machine's load. Why threads of our own: operations on one variant are too small to be
worth cutting, and two variants on two cores share nothing.

Every variant's arithmetic runs on these threads, also when there is only one of them: they flush denormals, which
gradients through many steps decay into (measured: 8.5 times slower without), and the caller's thread may not.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_session_workers: int | None = None


def _start_worker() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _pool(workers: int) -> ThreadPoolExecutor:
    with _lock:
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="variant", initializer=_start_worker)
        return _pools[workers]


def _keep_freed_memory() -> None:
    """Ask glibc not to hand large freed buffers back to the system, which then faults their pages in again, zeroed.

    A kernel's workspace is 7 MB a variant and step at small size; keeping it made a step 1.25 times as fast (measured).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names of malloc.h, which ctypes cannot read
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


@contextmanager
def spread_over(workers: int | None = None) -> Iterator[None]:
    """Keep the caller's own operations on one thread and give variants `workers` threads.

    For a whole training or prediction: switching back and forth around every operation would leave OpenMP's idle
    threads spinning on the cores that the variants need.

    Args:
        workers: Number of threads; by default as many as torch has now.
    """
    global _session_workers
    outer, threads = _session_workers, torch.get_num_threads()
    _session_workers = workers or outer or threads
    _keep_freed_memory()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _session_workers = outer


def over_variants(work: Callable[[int], object], count: int) -> None:
    """Call `work(v)` for v in 0..count-1, each on one thread of the pool; return when all are done.

    `work` must not start another `over_variants`. The first exception is raised here, after the other threads stopped.
    """
    threads = torch.get_num_threads()
    workers = _session_workers or threads
    variants = iter(range(count))  # next() of a range iterator is atomic: threads take variants as they become free

    def take() -> None:
        for v in variants:
            work(v)

    if threads != 1:
        torch.set_num_threads(1)  # MKL's thread count is one for the whole process
    try:
        running = [_pool(workers).submit(take) for _ in range(min(workers, count))]
        failures = [error for future in running if (error := future.exception()) is not None]
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
    if failures:
        raise failures[0]
