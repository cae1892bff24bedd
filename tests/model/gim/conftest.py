"""A small simulated drug screen, and GIM trained on it."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch

from scvi_causal import GIM
from scvi_causal.data import simulate_drugs

SETUP = {"dosage_key": "dosage", "perturbation_features_key": "features"}


def fit(adata, setup=None, train=None, seed=0, **model) -> GIM:
    """A model trained on an AnnData."""
    GIM.setup_anndata(adata, **(SETUP if setup is None else setup))
    scvi.settings.seed = seed
    found = GIM(adata, **model)
    found.train(**{"accelerator": "cpu", "enable_progress_bar": False, "train_size": 1.0, **(train or {})})
    return found


def adjacency(grn, names) -> np.ndarray:
    """(d, d) bool from an edge list."""
    place = {name: i for i, name in enumerate(names)}
    found = np.zeros((len(names), len(names)), dtype=bool)
    found[grn["source"].map(place), grn["target"].map(place)] = True
    return found


def structural_distance(found: np.ndarray, truth: np.ndarray) -> int:
    """Edges missing, superfluous or reversed; a reversal counts once."""
    wrong = found != truth
    return int(np.triu(wrong | wrong.T, 1).sum())


@pytest.fixture(autouse=True)
def _torch_seed():
    """Random tensors are the same in every run, and leave no trace."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def simulation():
    """Six nodes, twelve drugs at two dosages, three new drugs."""
    return simulate_drugs(
        n_nodes=6, n_drugs=12, n_new_drugs=3, dosages=(0.5, 2.0), new_dosages=(1.0,), n_cells=60, n_control=400, seed=2
    )


@pytest.fixture(scope="session")
def model(simulation) -> GIM:
    """Trained with defaults, fewer steps. Shared: tests that change it take a model of their own."""
    return fit(simulation.adata.copy(), train={"max_epochs": 10})
