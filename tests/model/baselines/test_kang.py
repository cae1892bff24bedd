"""The additive baseline on Kang 2018, every cell type held out in turn, against the project's anchor figures."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from sklearn.metrics import r2_score

from scvi_causal.model import Additive


def pearson(a, b):
    return np.corrcoef(a, b)[0, 1]


def halves(adata, seed=0):
    """Per cell type, in the order of the anchor: two halves of the controls, and the stimulated cells."""
    rng = np.random.default_rng(seed)
    p, c = adata.obs["perturbation"].astype(str).to_numpy(), adata.obs["cell_type"].astype(str).to_numpy()
    for kind in np.unique(c):
        control = rng.permutation(np.flatnonzero((c == kind) & (p == "control")))
        stimulated = rng.permutation(np.flatnonzero((c == kind) & (p == "IFNB")))
        yield *np.array_split(control, 2), stimulated


def scores(truth, start, other_half, predicted):
    genes = np.argsort(-np.abs(truth - other_half))[:50]
    return (
        r2_score(truth[genes], predicted[genes]),
        pearson(predicted - start, truth - other_half),
        ((predicted - truth) ** 2).mean() / ((start - truth) ** 2).mean(),
    )


@pytest.mark.real_data
def test_additive_gives_the_anchor_figures(real_data):
    adata = ad.read_h5ad(real_data("kang18_pbmc_ifnb.h5ad"))
    x = np.log1p(adata.X.toarray().astype(float) / adata.obs["library_size_full"].to_numpy(float)[:, None] * 1e4)
    of_effect, of_cells = [], []
    for half, other, stimulated in halves(adata):
        adata.obs["split"] = "train"
        adata.obs.loc[adata.obs_names[stimulated], "split"] = "test"
        Additive.setup_anndata(adata, categorical_covariate_keys=["cell_type"], size_factor_key="library_size_full")
        model = Additive(adata)
        model.train(split_key="split")
        start, truth = x[half].mean(0), x[stimulated].mean(0)
        effect = model.get_perturbation_embedding(["IFNB"]).X[0].astype(float)
        of_effect.append(scores(truth, start, x[other].mean(0), start + effect))
        cells = model.predict_counterfactual(["IFNB"], indices=half, output="log1p").X.astype(float)
        of_cells.append(scores(truth, start, x[other].mean(0), cells.mean(0)))
    np.testing.assert_allclose(np.mean(of_effect, 0), [0.578, 0.875, 0.334], atol=6e-4)
    # cells that cannot fall below zero are no worse a prediction
    r2, correlation, ratio = np.mean(of_cells, 0)
    assert r2 > 0.577
    assert correlation > 0.875
    assert ratio < 0.334
