"""A long training of many blocks holds no more at its end than after its first blocks, and a leak would be seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.loading import make

if not Path("/proc/self/fd").is_dir():
    pytest.skip("memory and files of a process are read from /proc", allow_module_level=True)

# First as it is, then with a MiB and an open file left behind at each block.
PROGRAM = """
import json, os, sys
from pathlib import Path
from benchmarks import soak

left = []
sizes = {"variants": 24, "blocks": 12, "minutes": 0.03}
for on_block in (lambda: None, lambda: left.append((os.urandom(2**20), open(os.devnull)))):
    print(json.dumps(soak.train(Path(sys.argv[1]), **sizes, on_block=on_block)))
"""


def test_a_leak_of_memory_and_of_files_is_seen(tmp_path):
    make(tmp_path, 60, 6, 3)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    clean, leaking = (json.loads(line) for line in done.stdout.splitlines())
    of_block = [line["mib_per_minute"]["median"] * line["minutes"] / 12 for line in (clean, leaking)]
    assert abs(of_block[0]) < 0.2
    assert 0.7 < of_block[1] < 1.5  # a block is not as long as another
    assert leaking["mib_per_minute"]["low"] > 0
    assert (clean["files_per_block"], leaking["files_per_block"]) == (0, 1)
    assert clean["files"][0] == clean["files"][1]
    assert leaking["files"][1] - leaking["files"][0] == 8  # of the nine blocks after the warm-up


def test_the_warm_up_does_not_count_and_a_peak_is_not_a_slope():
    def block(number, mib, files=5):
        return [soak.Sample(60 * number + 6 * part, mib + 9 * (part == 4), files, 3) for part in range(10)]

    warm_up = [block(number, 10 * number, files=number) for number in range(5)]
    flat = soak.judge([*warm_up, *(block(number, 50) for number in range(5, 20))])
    assert flat["mib_per_minute"] == {"median": 0, "low": 0, "high": 0}
    assert flat["files_per_block"] == 0
    assert flat["max_mib"] == 59
    rising = soak.judge([*warm_up, *(block(number, 50 + 0.25 * number) for number in range(5, 20))])
    assert rising["mib_per_minute"]["median"] == pytest.approx(0.25)


@pytest.mark.slow
def test_memory_and_open_files_stay_flat_over_ten_minutes_of_blocks():
    """Keeping every block's history, or one of its files open, would be seen."""
    line = soak.measure()
    assert line["mib_per_minute"]["high"] < line["bound_mib_per_minute"], line
    assert line["files_per_block"] == 0, line
    assert line["files"][0] == line["files"][1], line
    assert line["threads"][0] >= line["threads"][1], line
    assert line["minutes"] > 5, line
