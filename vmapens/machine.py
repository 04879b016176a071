"""What memory can still be had here, and how much of it this process holds; in bytes, and of the CPU only."""

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path


def free_memory() -> int:
    """Bytes that can be had: of the machine (files that are cached count as free), within what the process may take.

    A process may be held to less by the groups it is in (a container, a batch system) and by `ulimit -v`.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(0, min(free, *_left_by_limits()))


def held_memory() -> int:
    """Bytes of memory that this process holds."""
    pages = _pages()
    return pages[1] if pages else most_held_memory()


def most_held_memory() -> int:
    """Most bytes that it has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _left_by_limits() -> Iterator[int]:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    yield most - _pages()[0] if most != resource.RLIM_INFINITY and _pages() else sys.maxsize
    own = re.search(r"^0::/(.*)$", _read("/proc/self/cgroup"), re.MULTILINE)
    group = Path("/sys/fs/cgroup", own[1] if own else "")
    for folder in (group, *group.parents):
        most_text, used = (_read(str(folder / f"memory.{name}")).strip() for name in ("max", "current"))
        if most_text.isdecimal() and used.isdecimal():
            cached = re.search(r"^inactive_file (\d+)$", _read(str(folder / "memory.stat")), re.MULTILINE)
            yield int(most_text) - int(used) + (int(cached[1]) if cached else 0)


def _pages() -> list[int]:
    """Bytes of address space, and of it resident; none where the system does not say."""
    return [int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in _read("/proc/self/statm").split()[:2]]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
