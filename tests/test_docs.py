"""The documents are true: their examples run on a small run, and what they list is what the code has."""

import re
import tarfile
from inspect import signature

import polars as pl
import pytest
from documents import blocks_of, carry_out, read, run

import vmapens
from benchmarks import table
from vmapens.analysis import rashomon
from vmapens.analysis.attribution import PATH_POINTS
from vmapens.analysis.extremal_mask import extremal_masks
from vmapens.analysis.faithfulness import DIRECTIONS, FILLS, MASKS, SHARES, permuted_attention
from vmapens.analysis.interval import RESAMPLES
from vmapens.analysis.ranking import CONSTANT
from vmapens.analysis.scores import compare
from vmapens.analysis.settings import PARTS, Settings
from vmapens.analysis.stay import HELD_SHARES
from vmapens.analysis.tables import ATTRIBUTIONS, GRAINS, MEASURES, QUANTITIES, TABLES
from vmapens.cohort.load import load_cohort
from vmapens.cohort.synthetic import make_synthetic
from vmapens.spec import CohortSpec, resolve

DOCUMENTS = {name: read(f"docs/{name}.md") for name in ("attention", "analysis", "cohorts")}
SEVERITY = read("docs/severity.md")
ANALYSIS = DOCUMENTS["analysis"]


def shrink(command: str) -> str:
    """The same command with few variants, epochs and stays."""
    command = re.sub(r"--variants \d+", "--variants 2", command)
    command = re.sub(r"--init-seeds \S+ --order-seeds \S+", "--init-seeds 0:3 --order-seeds 0:3", command)
    command = re.sub(r"^vmapens train", "vmapens train --hidden 4", re.sub(r"--epochs \d+", "--epochs 1", command))
    if "--without" in command:
        return command
    return re.sub(r"^vmapens analyze", "vmapens analyze --samples test:3 --without learned_mask", command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds what the documents suppose: a cohort, and a run on it with an analysis."""
    folder = tmp_path_factory.mktemp("docs")
    cohort, out = folder / "runs/demo-cohort", folder / "runs/demo"
    make_synthetic(cohort, samples=200, steps=12, features=9, seed=1)
    spec = {"cohort": {"path": str(cohort), "task": "outcome"}, "model": {"hidden": 4}, "train": {"epochs": 2}}
    vmapens.train(None, None, resolve({**spec, "variants": {"init_seeds": "0:20"}, "save_attention": "test:4"}), out)
    run(folder, "vmapens analyze runs/demo --samples test:4 --without learned_mask")
    ids = load_cohort(CohortSpec(path=str(cohort), task="outcome")).samples
    wards = [f"{name},{ward}" for name, ward in zip(ids, ("surgery", "medicine") * len(ids), strict=False)]
    (folder / "groups.csv").write_text("\n".join(["stay,ward", *wards]) + "\n")
    return folder


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_and_program_of_a_document_runs(name, folder):
    for said in carry_out(blocks_of(DOCUMENTS[name]), folder, shrink):
        assert not re.search(r"Empty DataFrame|\b0 rows|shape: \(0,", said), said


def test_the_severity_groups_are_made_of_the_open_data(tmp_path, shared_data):
    """The 15 groups of the eICU demo, trained and analysed as the document says, on fewer variants."""
    for name in ("yaib-demo-hourly", "eicu-crd-demo-2.0-labels"):
        if not (shared_data / f"{name}.tar.xz").is_file():
            pytest.skip(f"no {name}.tar.xz in {shared_data}")
        with tarfile.open(shared_data / f"{name}.tar.xz", "r:xz") as archive:
            archive.extractall(tmp_path, filter="data")
    carry_out(blocks_of(SEVERITY), tmp_path, shrink_severity)
    labels = pl.read_parquet(tmp_path / "cohorts/groups/labels.parquet")
    counts = labels["apache_group"].drop_nulls().value_counts()["count"]
    assert (labels.height, counts.len(), counts.sum(), counts.min(), counts.max()) == (2267, 15, 2094, 16, 776)


def shrink_severity(command: str) -> str:
    return re.sub(
        r"--variants \d+", "--variants 2 --epochs 1", command.replace("--samples test ", "--samples test:20 ")
    )


def test_the_figures_of_the_severity_groups_are_those_of_the_raw_line():
    assert f"\n{table.severity_scores()}\n" in SEVERITY
    assert f"\n{table.severity_drop()}\n" in SEVERITY
    line = table.lines_of("severity")[-1]
    assert f"With {line['samples']['train']:,} stays to train on" in SEVERITY
    settings = "--task apache_group --preset yadav2025-phenotyping"
    for command in (SEVERITY, *line["commands"]):
        assert settings in command
        assert f"--variants {line['variants']} " in command
    shared = [
        row["exact"] / row["chance"] for row in line["drop"] if (row["k"], row["n"]) == (19, 2) and row["stays"] > 20
    ]
    assert f"{min(shared):.0f} to {max(shared):.0f} times" in SEVERITY


def listed() -> dict[str, list[str]]:
    """The columns of each table, as the last list of the analysis names them."""
    rows = re.findall(
        r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", ANALYSIS.partition("## The tables")[2], flags=re.MULTILINE
    )
    return {name: re.findall(r"`(\w+)`", columns) for name, columns in rows}


def test_every_table_and_every_column_of_an_analysis_is_listed():
    assert listed() == {name: list(schema) for name, schema in TABLES.items()}


@pytest.mark.parametrize("words", [ATTRIBUTIONS, GRAINS, MEASURES, QUANTITIES, MASKS, FILLS, DIRECTIONS, PARTS])
def test_every_word_of_the_tables_is_explained(words):
    text = ANALYSIS.partition("## The tables")[0]
    known = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    assert known >= set(words)


def test_the_numbers_are_those_of_the_code():
    settings, learned = Settings(), signature(extremal_masks).parameters
    shares = ",".join(f"{share:g}" for share in settings.top_k)
    changed = ", ".join(f"{100 * share:g}" for share in SHARES)
    in_sets = [f"{100 * share:.0f}" for share in rashomon.SHARES]
    held = ", ".join(f"{100 * share:g}" for share in HELD_SHARES)
    for sentence in (
        f"(default `{settings.samples}`:",
        f"`--tolerance` steps (default {settings.tolerance})",
        f"(default `{shares}`)",
        f"at {PATH_POINTS} midpoints",
        f"The top q = {changed} % of the cells",
        f"mean over {signature(permuted_attention).parameters['permutations'].default} permutations",
        f"by {learned['steps'].default} steps of Adam for the {settings.mask_variants} variants",
        f"on {settings.mask_stays} stays",
        f"abs(x) < {learned['sparsity'].default}",
        f"({', '.join(in_sets[:-1])} and {in_sets[-1]} % of them",
        f"bootstrap-t, {RESAMPLES:,} samples",
        f"expanded percentile, {signature(compare).parameters['resamples'].default:,} samples",
        f"(all weights within {CONSTANT:.0e} of the largest)".replace("e-0", "e-"),
        f"({held} %)",
    ):
        assert sentence in " ".join(ANALYSIS.split()), sentence
