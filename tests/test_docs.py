"""The documents are true: their examples run on a small run, and what they list is what the code has."""

import re
from pathlib import Path

import pytest
from documents import blocks_of, carry_out, read

DOCUMENTS = {name: read(f"docs/{name}.md") for name in ("attention", "analysis")}
ANALYSIS = DOCUMENTS["analysis"]


def shrink(command: str) -> str:
    """The same command with few variants, epochs and stays."""
    command = re.sub(r"--variants \d+", "--variants 2", command)
    command = re.sub(r"--init-seeds \S+ --order-seeds \S+", "--init-seeds 0:3 --order-seeds 0:3", command)
    command = re.sub(r"^vmapens train", "vmapens train --hidden 4", re.sub(r"--epochs \d+", "--epochs 1", command))
    return re.sub(r"^vmapens analyze", "vmapens analyze --samples test:3 --without learned_mask", command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds what the documents suppose: a cohort, and a run on it with an analysis."""
    import vmapens  # late, or the types of what it imports would go unchecked
    from vmapens.analysis.settings import Settings
    from vmapens.cohort.synthetic import make_synthetic
    from vmapens.spec import resolve

    folder = tmp_path_factory.mktemp("docs")
    cohort, run = folder / "runs/demo-cohort", folder / "runs/demo"
    make_synthetic(cohort, samples=200, steps=12, features=9, seed=1)
    spec = {"cohort": {"path": str(cohort), "task": "outcome"}, "model": {"hidden": 4}, "train": {"epochs": 2}}
    vmapens.train(None, None, resolve({**spec, "variants": {"init_seeds": "0:20"}, "save_attention": "test:4"}), run)
    vmapens.analyze(run, settings=Settings(samples="test:4", mask_variants=2, mask_stays=1))
    return folder


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_and_program_of_a_document_runs(name, folder):
    for said in carry_out(blocks_of(DOCUMENTS[name]), folder, shrink):
        assert not re.search(r"Empty DataFrame|\b0 rows|shape: \(0,", said), said
