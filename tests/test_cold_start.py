"""What a command costs before its work begins: CPU time of a whole process, which no other process disturbs much."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vmapens.cohort.synthetic import make_synthetic

ROOT = Path(__file__).parent.parent


def cpu_seconds(*line: str) -> float:
    """User and system time of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *line], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imported(*line: str) -> set[str]:
    """Packages that a process has imported at its end."""
    program = "import sys; from vmapens.cli import _main; _main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program, *line], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stderr.split())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts") / "synthetic"
    make_synthetic(folder, samples=120, steps=6, features=5, seed=1)
    return folder


def test_help_takes_half_a_second_of_cpu_time_at_most():
    assert cpu_seconds("cli.py", "--help") < 0.5


def test_help_imports_no_library_that_computes_or_draws():
    assert not imported("--help") & {"torch", "polars", "pyarrow", "numpy", "rich.progress"}


def test_a_dry_run_takes_four_seconds_of_cpu_time_at_most(cohort):
    assert cpu_seconds("cli.py", "train", str(cohort), "--task", "outcome", "--dry-run") < 4


def test_a_dry_run_imports_no_compiler(cohort):
    """Torch does at the first gradient: the trial step that only models of a user's own need."""
    packages = imported("train", str(cohort), "--task", "outcome", "--dry-run")
    assert "torch" in packages
    assert "torch._dynamo" not in packages


def test_the_package_imports_its_functions_when_they_are_asked_for():
    program = (
        "import sys, vmapens; assert 'torch' not in sys.modules;"
        "assert callable(vmapens.train) and callable(vmapens.load) and callable(vmapens.open_run)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
