from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_dir() -> Path:
    """Folder of the public screens: SCVI_CAUSAL_DATA, else ../shared/data beside the repository."""
    given = os.environ.get("SCVI_CAUSAL_DATA")
    return Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data():
    """Path of a file of the public screens; skips the test where it is absent."""

    def find(name: str) -> Path:
        path = data_dir() / name
        if not path.exists():
            pytest.skip(f"{name} is not in {data_dir()}; set SCVI_CAUSAL_DATA to the folder that holds it")
        return path

    return find


@pytest.fixture(autouse=True)
def _no_scvi_seed():
    """No test starts with the seed of another, nor of a fixture that is shared by a module."""
    import scvi

    scvi.settings._seed = None
    yield
    scvi.settings._seed = None
