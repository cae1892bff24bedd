"""A screen with a network, and SCCVAE trained on it for a moment."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy.sparse import csr_matrix

from scvi_causal import SCCVAE
from scvi_causal.data import simulate_screen

TINY = {"n_latent": 4, "n_hidden": 8, "n_programmes": 12}
"""Options of the recommended preset that train in a moment; more programmes than tokens, so that nothing is lost."""
TINY_PAPER = {"preset": "paper", "n_latent": 6, "n_hidden": 8, "n_features": 5}


def fit(adata, setup=None, train=None, **model) -> SCCVAE:
    """A model trained on an AnnData; what its steps change is little, what it estimates before them is what is tested."""
    SCCVAE.setup_anndata(adata, **(setup or {}))
    scvi.settings.seed = 0
    found = SCCVAE(adata, **model)
    found.train(**{"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **(train or {})})
    return found


def make_counts(labels, n_genes=12, seed=0, rate=3.0) -> ad.AnnData:
    """Poisson counts without any effect, for what does not depend on one."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rate * rng.gamma(2.0, 0.5, n_genes), (len(labels), n_genes)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame({"perturbation": np.asarray(labels, dtype=object)}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i:02d}" for i in range(n_genes)]))


@pytest.fixture(autouse=True)
def _torch_seed():
    """Random tensors are the same in every run, and leave no trace."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def simulation():
    """24 genes with their true network, 8 knock-downs, strong enough that population means say something."""
    return simulate_screen(
        n_genes=24, n_perturbations=8, n_cells_per_perturbation=60, n_control=240, mean_expression=20, seed=0
    )


@pytest.fixture(scope="session")
def held_out(simulation) -> str:
    """A token that no model is trained on; a regulator, so that the network has something to say."""
    regulators = simulation.grn["source"].value_counts()
    return max(simulation.tokens, key=lambda token: regulators.get(token, 0))


@pytest.fixture(scope="session")
def screen(simulation, held_out) -> ad.AnnData:
    """Cells of the simulation with a split that keeps one token out."""
    adata = simulation.adata.copy()
    adata.obs["split"] = np.where(adata.obs["perturbation"] == held_out, "test", "train")
    adata.obs.loc[adata.obs_names[::10], "split"] = "valid"
    adata.obs.loc[adata.obs["perturbation"] == held_out, "split"] = "test"
    return adata


_OPTIONS = {"setup": {"size_factor_key": "library"}, "train": {"split_key": "split"}}


@pytest.fixture(scope="session")
def model(screen) -> SCCVAE:
    """Recommended preset with the network. Shared: tests that change it take ``fresh``."""
    return fit(screen.copy(), **_OPTIONS, **TINY)


@pytest.fixture(scope="session")
def paper(screen) -> SCCVAE:
    """The published model, small. Shared: tests that change it take ``fresh``."""
    return fit(screen.copy(), **_OPTIONS, **TINY_PAPER)


@pytest.fixture
def fresh(tmp_path):
    """A copy of a trained model, to be changed."""

    def copy(trained) -> SCCVAE:
        trained.save(str(tmp_path / "model"), overwrite=True)
        return SCCVAE.load(str(tmp_path / "model"), adata=trained.adata.copy(), accelerator="cpu")

    return copy
