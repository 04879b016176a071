"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # read when the kernels are made, at the first import of vmapens.nn.kernels.triton
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository, or where VMAPENS_DATA says; never part of the repository."""
    folder = Path(os.environ.get("VMAPENS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist; set VMAPENS_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory) -> Path:
    """A synthetic cohort of 200 stays x 8 steps x 6 features, for all tests; none may change it."""
    from vmapens.cohort.synthetic import make_synthetic  # late, or its types would go unchecked

    folder = tmp_path_factory.mktemp("cohorts") / "synthetic"
    make_synthetic(folder, samples=200, steps=8, features=6, seed=1)
    return folder
