"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository, or where VMAPENS_DATA says; never part of the repository."""
    folder = Path(os.environ.get("VMAPENS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist; set VMAPENS_DATA to the folder that holds them")
    return folder
