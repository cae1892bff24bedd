"""The screens of the reports: what is asked of each, and the AnnData with what the models may know."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from _common import data_file, prior_file

from scvi_causal.data import parse_label

GO = "go"
ALIAS = {"MARCH8": "MARCHF8"}
SIZE_FACTOR = "library_size_full"
FILES = {
    "papalexi": "papalexi21_thp1_eccite.h5ad",
    "kang": "kang18_pbmc_ifnb.h5ad",
    "mcfaline": "mcfaline23_gbm.h5ad",
    "norman": "norman19_k562.h5ad",
}
# arguments of scvi_causal.benchmark.run; Norman has 15 combinations, so that three folds hold five each
SETTINGS = {
    "papalexi": {"task": "unseen", "perturbation_features_key": GO},
    "kang": {"task": "context", "covariate_key": "cell_type"},
    "mcfaline": {"task": "context-perturbation", "covariate_key": "cell_type"},
    "norman": {"task": "combination", "perturbation_features_key": GO, "n_folds": 3},
}
SIMPLE = ["ControlMean", "PerturbedMean", "Additive"]
WITH_FEATURES = [*SIMPLE, "LinearEffect", "NearestPerturbation"]
BASELINES = {"papalexi": WITH_FEATURES, "kang": SIMPLE, "mcfaline": SIMPLE, "norman": WITH_FEATURES}


def load_screen(name: str) -> ad.AnnData:
    """A screen, with the GO features of its perturbations in ``uns`` where the question is about unseen ones."""
    adata = ad.read_h5ad(data_file(FILES[name]))
    if "perturbation_features_key" in SETTINGS[name]:
        archive = np.load(prior_file("gene_embedding_go_svd128.npz"), allow_pickle=True)
        table = pd.DataFrame(archive["embedding"], archive["genes"].astype(str)).add_prefix("go_")
        tokens = tokens_of(adata)
        # a gene without annotation is nothing but zeros in this embedding
        adata.uns[GO] = table.reindex([ALIAS.get(token, token) for token in tokens]).fillna(0.0).set_axis(tokens)
    return adata


def tokens_of(adata: ad.AnnData) -> list[str]:
    """Names of all perturbations, in alphabetical order."""
    return sorted({token for label in adata.obs["perturbation"].unique() for token in parse_label(label)})
