"""The README is true: its commands and programs run, in its order, with fewer variants than it asks for."""

import re
import tarfile

import numpy as np
import polars as pl
import pytest
from documents import blocks_of, carry_out, read, run

from benchmarks import table

README = read("README.md")
BLOCKS = blocks_of(README)


def shrink(command: str) -> str:
    """The same command with 2 variants (4 of a crossed design) and 1 epoch, 8 stays in place of 64."""
    command = re.sub(r"--variants \d+", "--variants 2 --epochs 1", command).replace("test:64", "test:8")
    command = re.sub(r"--snapshots [\d,]+", "--snapshots 0,1", command)
    few = "--init-seeds 0:2 --order-seeds 0:2 --epochs 1"
    return re.sub(r"--init-seeds \d+:\d+ --order-seeds \d+:\d+", few, command)


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


def test_every_command_and_program_of_the_readme_runs(folder):
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "toml"}
    carry_out(BLOCKS, folder, shrink)


def test_the_first_screen_names_the_two_commands_and_the_makefile_has_them():
    makefile = read("Makefile")
    for command in ("demo", "test", "lint"):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE)
    first_screen = "\n".join(README.splitlines()[:25])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_the_tables_are_those_of_the_results():
    assert table.training_table() in README
    assert table.variants_table() in README
    assert table.splits_table() in README
    assert table.answer() in README
    assert table.analysis_table() in README


def test_the_sizes_that_importers_were_run_at_are_those_of_the_results():
    newest = {line["source"]: line for line in table.lines_of("import_size")}
    hirid, meds = newest["hirid"], newest["meds"]
    assert (hirid["samples"], hirid["steps"], hirid["features"], meds["size"]) == (33_900, 288, 231, 50_000_000)
    assert (hirid["peak_mib"] < 4_000, meds["peak_mib"] < 6_000) == (True, True)
    said = " ".join(read("CHANGELOG.md").split())
    assert f"33,900 stays x 288 x 231 in {hirid['peak_mib'] / 1024:.1f} GiB" in said
    assert f"50 million MEDS events in {meds['peak_mib'] / 1024:.1f} GiB" in said
    assert f"{hirid['peak_mib']:,} and {meds['peak_mib']:,} MiB at most" in read("docs/reliability.md")
