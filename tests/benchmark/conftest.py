"""A tiny screen, and models that need no training, for the tests of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from scvi_causal.benchmark._resources import quick_garbage_collection
from scvi_causal.benchmark._screen import Screen
from scvi_causal.data import simulate_screen

from .predictors import MeanShift


@pytest.fixture(scope="module")
def quick_garbage():
    """Every job collects the garbage of the one before; what the libraries hold need not be looked at each time."""
    with quick_garbage_collection():
        yield


@pytest.fixture(scope="session")
def adata():
    """930 cells of 30 genes: control, 6 single perturbations and 3 combinations, in 2 cell types. Never change it."""
    combinations = ["G00+G01", "G02+G03", "G00+G03"]
    made = simulate_screen(
        n_genes=30,
        n_cells_per_perturbation=70,
        n_control=300,
        perturbations=[f"G0{i}" for i in range(6)],
        n_combinations=combinations,
        n_cell_types=2,
        seed=0,
    ).adata
    made.obs["perturbation"] = made.obs["perturbation"].astype("category")
    return made


@pytest.fixture(scope="session")
def screen(adata):
    """The screen without covariates."""
    return Screen.build(adata, size_factor_key="library")


@pytest.fixture(scope="session")
def context_screen(adata):
    """The screen with its two cell types as contexts."""
    return Screen.build(adata, size_factor_key="library", covariate_key="cell_type")


@pytest.fixture(scope="session")
def mean_shift():
    """The class :class:`MeanShift`."""
    return MeanShift


@pytest.fixture
def toys(monkeypatch):
    """The module ``toys`` beside this file, importable in other processes too, which get the path of this one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import toys

    return toys
