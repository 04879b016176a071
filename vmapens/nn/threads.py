"""Spread variants over CPU threads, each variant's arithmetic on one thread.

Why one: with more than one intra-op thread, sums are cut at places that depend on the number of threads, so a weight
gradient would depend on the machine's load. Why threads of our own: operations on one variant are too small to be
worth cutting, and two variants on two cores share nothing.

Every variant's arithmetic runs on these threads, also when there is only one of them: they flush denormals, which
gradients through many steps decay into (measured: 8.5 times slower without), and the caller's thread may not.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_session_workers: int | None = None
_in_worker = threading.local()
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def _start_worker() -> None:
    _in_worker.yes = True
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _pool(workers: int) -> ThreadPoolExecutor:
    with _lock:
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="variant", initializer=_start_worker)
        return _pools[workers]


def _keep_freed_memory() -> None:
    """Ask glibc not to hand large freed buffers back to the system, which then faults their pages in again, zeroed.

    A kernel's workspace is 7 MB a variant and step at small size; keeping it took a step from 4.6 to 3.5 ms.
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
    """Call `work(v)` for v in 0..count-1, each on one thread of the pool, without gradients; return when all are done.

    The first exception, or an interrupt of the caller, is raised here once the other threads have stopped. Within
    another `work` the calls are made in turn, on that one's thread.
    """
    if getattr(_in_worker, "yes", False):
        for v in range(count):
            work(v)
        return
    threads = torch.get_num_threads()
    workers = _session_workers or threads
    variants = iter(range(count))  # next() of a range iterator is atomic: threads take variants as they become free
    stop = threading.Event()

    def take() -> None:
        try:
            with torch.no_grad():  # here, as entering it for each variant costs as much as a small operation
                for v in variants:
                    if stop.is_set():
                        return
                    work(v)
        except BaseException:
            stop.set()
            raise

    if threads != 1:
        torch.set_num_threads(1)  # MKL's thread count is one for the whole process
    try:
        running = [_pool(workers).submit(take) for _ in range(min(workers, count))]
        try:
            wait(running)
        except BaseException:
            stop.set()
            wait(running)
            raise
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
    for future in running:
        future.result()
