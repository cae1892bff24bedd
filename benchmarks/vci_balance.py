"""Does the state that VCI infers know the treatment? The balance test and a classifier, on Kang.

    python benchmarks/vci_balance.py

At most 200 cells per cell type and arm. Prints the share of genes whose predictions are unbalanced, and how well the treatment (within a cell
type) and the cell type can be told from the latent state.
"""

from __future__ import annotations

import numpy as np
import scvi
from _common import QUIET, load, say
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import scvi_causal

MOST_CELLS = 200


def main() -> None:
    """Train once, then look."""
    adata, _, labels = load("kang18_pbmc_ifnb.h5ad")
    types, rng = adata.obs["cell_type"].astype(str).to_numpy(), np.random.default_rng(0)
    groups = [np.flatnonzero((types == c) & (labels == p)) for c in np.unique(types) for p in np.unique(labels)]
    adata = adata[np.sort(np.concatenate([rng.permutation(group)[:MOST_CELLS] for group in groups]))].copy()
    scvi.settings.seed = 0
    scvi_causal.VCI.setup_anndata(adata, size_factor_key="library_size_full", categorical_covariate_keys=["cell_type"])
    model = scvi_causal.VCI(adata)
    model.train(max_epochs=50, accelerator="cpu", **QUIET)
    for source in ("strata", "cells"):
        table = model.get_marginal_effects(["IFNB"], method="robust", predict_from=source)
        unbalanced = (table["balance_z"].abs() > 1.96).mean()
        say(
            f"predict_from={source!r}: |z| > 1.96 in {unbalanced:.3f} of genes; {table['flag'].value_counts().to_dict()}"
        )
    latent = model.get_latent_representation()
    treated = (adata.obs["perturbation"] != "control").to_numpy()
    types, classifier = adata.obs["cell_type"].astype(str).to_numpy(), LogisticRegression(max_iter=500)
    for name in np.unique(types):
        here = types == name
        auc = cross_val_score(classifier, latent[here], treated[here], scoring="roc_auc", cv=4).mean()
        say(f"AUC of the treatment, {name}: {auc:.2f}")
    say(f"accuracy of the cell type: {cross_val_score(classifier, latent, types, cv=4).mean():.2f}")


if __name__ == "__main__":
    main()
