"""A small screen, and VCI trained on it for a moment."""

from __future__ import annotations

import pytest
import scvi
import torch

from scvi_causal import VCI
from scvi_causal.data import simulate_screen

TINY = {"n_latent": 4, "n_hidden": 8}


def fit(adata, setup=None, train=None, seed=0, **model) -> VCI:
    """A model trained for two epochs."""
    VCI.setup_anndata(adata, **(setup or {}))
    scvi.settings.seed = seed
    found = VCI(adata, **{**TINY, **model})
    found.train(**{"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, **(train or {})})
    return found


@pytest.fixture(autouse=True)
def _torch_seed():
    """Random tensors are the same in every run, and leave no trace."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def simulation():
    """20 genes, 6 perturbations, two cell types."""
    return simulate_screen(
        n_genes=20,
        n_perturbations=6,
        n_cells_per_perturbation=40,
        n_control=160,
        n_cell_types=2,
        mean_expression=10,
        seed=0,
    )


@pytest.fixture
def screen(simulation):
    """The cells, not set up yet."""
    return simulation.adata.copy()
