"""The models that have to keep the contract, and the screen on which they do.

A new method adds its cases to ``CASES``; everything in this folder then runs over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
from scipy.sparse import csr_matrix

import scvi_causal

TOKENS = ["G1", "G2", "G3", "HLA.A", "TP/53", "drug x"]
HELD_OUT = ("G3", "G1+HLA.A")
"""An unseen token, and an unseen combination of seen ones: all their cells are in the test part of the split."""


@dataclass(frozen=True)
class Case:
    """A model with its options.

    ``setup``, ``model`` and ``train`` are added to the arguments of setup_anndata, of the class, and of train.
    """

    name: str
    cls: str
    model: dict[str, Any] = field(default_factory=dict)
    setup: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    """Whether the model is the same, to rounding, however the matrix is stored and whatever the batches."""

    @property
    def model_class(self):
        return getattr(scvi_causal, self.cls)

    def set_up(self, adata, **kwargs):
        arguments = {
            "batch_key": "batch",
            "categorical_covariate_keys": ["cell_type"],
            "perturbation_features_key": "features",
            **self.setup,
            **kwargs,
        }
        self.model_class.setup_anndata(adata, **arguments)

    def fit(self, adata, seed=0, **kwargs):
        """A trained model on an AnnData that is not set up yet."""
        self.set_up(adata, **kwargs)
        scvi.settings.seed = seed
        model = self.model_class(adata, **self.model)
        train = {
            "max_epochs": 2,
            "split_key": "split",
            "accelerator": "cpu",
            "enable_progress_bar": False,
            **self.train,
        }
        model.train(**train)
        return model


_TINY = {"n_latent": 4, "n_hidden": 8, "n_programmes": 6}
_TINY_VCI = {"n_latent": 4, "n_hidden": 8}
_GRAPH = {"n_latent": 4, "n_hidden": 8, "n_graph": 6, "n_node_features": 6}

CASES = [
    Case("control-mean", "ControlMean"),
    Case("perturbed-mean", "PerturbedMean"),
    Case("additive", "Additive"),
    Case("linear-ridge", "LinearEffect", {"form": "ridge"}),
    Case("linear-bilinear", "LinearEffect", {"form": "bilinear", "n_factors": 3}),
    Case("nearest", "NearestPerturbation", {"n_neighbors": 2}),
    Case("sccvae", "SCCVAE", _TINY, exact=False),
    Case("sccvae-normal", "SCCVAE", _TINY | {"gene_likelihood": "normal", "graph": "none"}, exact=False),
    Case("gim", "GIM", {"n_nodes": 8, "n_hidden": 8}, exact=False),
    Case("gim-hard", "GIM", {"n_nodes": 6, "n_hidden": 8, "intervention": "hard", "grn": "none"}, exact=False),
    Case("gim-mlp", "GIM", {"n_nodes": 6, "n_hidden": 8, "mechanism": "mlp", "n_kicks": 0}, exact=False),
    Case("gim-pca", "GIM", {"latent": "pca", "n_nodes": 4, "n_hidden": 8, "combination": "features"}, exact=False),
    Case("gpovae", "GPOVAE", {"n_latent": 4, "n_hidden": 8, "extra_genes": 6}, exact=False),
    Case(
        "gpovae-paper",
        "GPOVAE",
        {"preset": "paper", "n_latent": 4, "n_hidden": 8, "n_guide_hidden": 8, "n_particles": 2, "matching": "random"},
        exact=False,
    ),
    Case("graphvci", "GraphVCI", _GRAPH | {"gene_decoder": "att"}, exact=False),
    Case("graphvci-dot", "GraphVCI", _GRAPH | {"gene_decoder": "dot", "aggregator": "mlp"}, exact=False),
    Case("samsvae", "SAMSVAE", {"n_latent": 4, "n_hidden": 8}, exact=False),
    Case(
        "samsvae-paper",
        "SAMSVAE",
        {"preset": "paper", "n_latent": 4, "n_hidden": 8, "n_guide_hidden": 8, "n_particles": 2},
        exact=False,
    ),
    Case("cradlevae", "CRADLEVAE", {"n_latent": 4, "n_hidden": 8}, exact=False),
    Case(
        "cradlevae-paper",
        "CRADLEVAE",
        {"preset": "paper", "n_latent": 4, "n_hidden": 8, "n_guide_hidden": 8, "n_particles": 2},
        exact=False,
    ),
    Case("vci", "VCI", _TINY_VCI, exact=False),
    Case("vci-normal", "VCI", _TINY_VCI | {"gene_likelihood": "normal", "encode_covariates": True}, exact=False),
    Case("vci-discriminator", "VCI", _TINY_VCI | {"distribution_loss": "discriminator"}, exact=False),
    Case("vci-paper", "VCI", _TINY_VCI | {"preset": "paper", "n_draws": 2}, exact=False),
    Case("sccvae-paper", "SCCVAE", {"preset": "paper", "n_latent": 6, "n_hidden": 8}, exact=False),
]


def make_screen(n_cells=240, n_genes=16, seed=0) -> ad.AnnData:
    """Counts of a small screen with two cell types, two batches, a size factor, quality, features, a graph and a split."""
    rng = np.random.default_rng(seed)
    conditions = ["control", *TOKENS, "G1+G2", "G1+HLA.A"]
    # every condition in every stratum, controls twice
    labels = np.resize(["control", *conditions], n_cells).astype(object)
    block = np.arange(n_cells) // len(["control", *conditions])
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(labels),
            "cell_type": pd.Categorical(np.where(block % 2 == 0, "T cell", "B cell")),
            "batch": pd.Categorical(np.where(block // 2 % 2 == 0, "b1", "b2")),
            "split": np.where(np.isin(labels, HELD_OUT), "test", "train"),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    obs.loc[obs.index[rng.choice(n_cells, n_cells // 10, replace=False)], "split"] = "valid"
    obs.loc[np.isin(labels, HELD_OUT), "split"] = "test"
    genes = [*TOKENS[:5], *(f"gene.{i}" for i in range(n_genes - 5))]
    base = rng.gamma(2.0, 1.0, n_genes) + 0.2
    log_effect = {token: rng.normal(0, 0.7, n_genes) for token in TOKENS}
    shift = np.array(
        [sum((log_effect[t] for t in label.split("+") if t in log_effect), np.zeros(n_genes)) for label in labels]
    )
    kind = np.where(obs["cell_type"] == "T cell", 0.4, 0.0)[:, None] * rng.normal(size=n_genes)
    profile = base * np.exp(shift + kind)
    library = rng.lognormal(np.log(150), 0.3, n_cells)
    counts = rng.poisson(profile / profile.sum(1, keepdims=True) * library[:, None]).astype(np.float32)
    counts[counts.sum(1) == 0, 0] = 1
    obs["library"] = counts.sum(1) * 2.0
    obs["depth"] = np.log(obs["library"])
    obs["quality"] = pd.Categorical(np.where(np.random.default_rng([seed, 1]).random(n_cells) < 0.3, "fail", "pass"))
    adata = ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame({"kind": "gene"}, index=genes))
    names = [*TOKENS, "NEW"]
    features = rng.normal(size=(len(names), 3)).astype(np.float32)
    adata.uns["features"] = pd.DataFrame(features, index=names, columns=["f1", "f2", "f3"])
    adata.uns["grn"] = pd.DataFrame(
        {"source": genes[:4] * 2, "target": genes[5:9] + genes[9:13], "weight": np.linspace(-1, 1, 8)}
    )
    return adata


@pytest.fixture(params=CASES, ids=lambda case: case.name, scope="session")
def case(request) -> Case:
    return request.param


@pytest.fixture
def screen() -> ad.AnnData:
    return make_screen()


@pytest.fixture(scope="session")
def saved(case, tmp_path_factory):
    """Folder of a trained model, and the prediction of its own cells."""
    adata = make_screen()
    model = case.fit(adata)
    model.predict_counterfactual()
    folder = tmp_path_factory.mktemp("models") / case.name
    model.save(str(folder))
    return folder, adata.layers["counterfactual"].copy()


@pytest.fixture
def model(case, saved, screen):
    """The trained model on a fresh AnnData."""
    return case.model_class.load(str(saved[0]), adata=screen, accelerator="cpu")
