"""What is free is what this process may take: of the machine, of its groups, of its own limit."""

import subprocess
import sys

import pytest

from vmapens import machine

GIB = 2**30
FILES = {
    "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 4194304 kB\n",
    "/proc/self/cgroup": "0::/batch/job\n",
    "/sys/fs/cgroup/batch/memory.max": str(3 * GIB),
    "/sys/fs/cgroup/batch/memory.current": str(2 * GIB),
    "/sys/fs/cgroup/batch/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    "/sys/fs/cgroup/batch/job/memory.max": "max\n",
    "/sys/fs/cgroup/batch/job/memory.current": "7\n",
}


@pytest.mark.parametrize(
    ("without", "free"), [("none", 2 * GIB), ("memory.stat", GIB), ("cgroup", 4 * GIB), ("batch/memory.max", 4 * GIB)]
)
def test_the_tightest_of_the_groups_around_a_process_counts_and_cached_files_are_free(without, free, monkeypatch):
    files = {path: text for path, text in FILES.items() if without not in path}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.free_memory() == free


def test_a_limit_of_the_address_space_counts():
    program = """
import resource, vmapens.machine as machine
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
print(machine.free_memory())
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    assert 0 < int(done.stdout) < 2**30


def test_a_process_holds_what_it_was_given():
    program = """
import mmap, vmapens.machine as machine
before = machine.held_memory()
block = mmap.mmap(-1, 64 * 2**20)  # of its own: an allocator may give again what the process holds already
block.write(b"1" * len(block))
print(machine.held_memory() - before, machine.held_memory(), machine.most_held_memory())
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    more, held, most = map(int, done.stdout.split())
    assert more > 60 * 2**20
    assert most > 0.99 * held > 0.99 * 64 * 2**20  # counted at other moments
