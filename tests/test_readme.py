"""The README is true: its commands and programs run, in its order, with fewer variants than it asks for."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python|toml)\n(.*?)```", README, flags=re.DOTALL)


def shrink(command: str) -> str:
    """The same command with 2 variants and 1 epoch."""
    return re.sub(r"--variants \d+", "--variants 2 --epochs 1", command)


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    """Holds what the README supposes: the archive of set a, two files of a hospital, and the demo (18 variants)."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "set-a.tar.gz").symlink_to(shared_data / "physionet2012-set-a.tar.xz")
    with tarfile.open(shared_data / "physionet2012-set-a.tar.xz") as archive:
        (folder / "Outcomes-a.txt").write_bytes(archive.extractfile("Outcomes-a.txt").read())
    rng = np.random.default_rng(0)
    stays, hours = 60, 48
    series = {"stay_id": np.repeat(np.arange(stays), hours), "hour": np.tile(np.arange(hours) + 0.25, stays)}
    values = {name: rng.normal(size=stays * hours) for name in ("heart_rate", "lactate")}
    pl.DataFrame(series | values).write_parquet(folder / "vitals.parquet")
    labels = {"stay_id": np.arange(stays), "patient_id": np.arange(stays) // 2, "died": np.arange(stays) % 3 == 0}
    pl.DataFrame(labels).with_columns(pl.col("died").cast(pl.Int64)).write_parquet(folder / "stays.parquet")
    run(folder, "vmapens demo --variants 18")
    return folder


def run(folder: Path, command: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_command_and_program_of_the_readme_runs(folder):
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "toml"}
    for kind, text in BLOCKS:
        if kind == "toml":
            (folder / re.search(r"# (\S+\.toml)", text).group(1)).write_text(text)
        elif named := re.match(r"# (\S+\.py)\n", text):
            (folder / named.group(1)).write_text(text)
        elif kind == "python":
            (folder / "program.py").write_text(text)
            assert run(folder, f"{sys.executable} program.py").strip()
        else:
            for command in text.splitlines():
                run(folder, shrink(command))


def test_the_first_screen_names_the_two_commands_and_the_makefile_has_them():
    makefile = (ROOT / "Makefile").read_text()
    for command in ("demo", "test", "lint"):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE)
    first_screen = "\n".join(README.splitlines()[:25])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_the_tables_are_those_of_the_results():
    assert table.training_table() in README
    assert table.variants_table() in README
    assert table.splits_table() in README
