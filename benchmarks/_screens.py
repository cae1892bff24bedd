"""The screens of the reports: what is asked of each, and the AnnData with what the models may know."""

from __future__ import annotations

from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
from _common import data_file, prior_file

import scvi_causal
from scvi_causal import GraphVCI
from scvi_causal.benchmark import ModelPredictor, ModelSpec
from scvi_causal.data import annotate_quality, parse_label, validate_grn

GO = "go"
ALIAS = {"MARCH8": "MARCHF8"}
SIZE_FACTOR = "library_size_full"
FILES = {
    "papalexi": "papalexi21_thp1_eccite.h5ad",
    "papalexi_seen": "papalexi21_thp1_eccite.h5ad",
    "kang": "kang18_pbmc_ifnb.h5ad",
    "mcfaline": "mcfaline23_gbm.h5ad",
    "norman": "norman19_k562.h5ad",
    "gasperini": "gasperini19_k562_highmoi.h5ad",
}
# arguments of scvi_causal.benchmark.run; Norman has 15 combinations, so that three folds hold five each
SETTINGS = {
    "papalexi": {"task": "unseen", "perturbation_features_key": GO},
    "papalexi_seen": {"task": "seen"},
    "kang": {"task": "context", "covariate_key": "cell_type"},
    "mcfaline": {"task": "context-perturbation", "covariate_key": "cell_type"},
    "norman": {"task": "combination", "perturbation_features_key": GO, "n_folds": 3},
    "gasperini": {"task": "seen"},
}
SIMPLE = ["ControlMean", "PerturbedMean", "Additive"]
WITH_FEATURES = [*SIMPLE, "LinearEffect", "NearestPerturbation"]
BASELINES = {
    "papalexi": WITH_FEATURES,
    "papalexi_seen": SIMPLE,
    "kang": SIMPLE,
    "mcfaline": SIMPLE,
    "norman": WITH_FEATURES,
    "gasperini": SIMPLE,
}
WHOLE_CELL = {"counts": "library_size_full", "genes": "n_genes_full", "mito": None, "ribo": None, "hb": None}
# columns of the whole cell, the panels being cut, and the batches in which cells are judged. What these panels have of haemoglobin is
# biology: activating KLF1 in Norman makes red blood cells
QUALITY_OF = {
    "papalexi": ({**WHOLE_CELL, "mito": "p_mito"}, "batch"),
    "papalexi_seen": ({**WHOLE_CELL, "mito": "p_mito"}, "batch"),
    "kang": (WHOLE_CELL, "cell_type"),
    "mcfaline": (WHOLE_CELL, "cell_type"),
    "norman": (WHOLE_CELL, None),  # 100 control cells in 8 batches
    "gasperini": ({**WHOLE_CELL, "genes": None, "mito": "p_mito"}, "batch"),
}
COLLECTRI = "collectri"


class WithCollecTRI(ModelPredictor):
    """A model that gets CollecTRI among the measured genes; a network in the screen itself would be given to all models."""

    def fit(self, adata: ad.AnnData) -> None:
        """Put the network where the set-up looks for it, and train."""
        edges = pd.read_csv(prior_file("grn_collectri_human.csv.gz")).drop_duplicates(["source", "target"])
        adata.uns[COLLECTRI] = validate_grn(edges[edges["source"] != edges["target"]], adata.var_names)
        super().fit(adata)


class WithQuality(ModelPredictor):
    """A model that gets quality labels, by thresholds from the training controls; in the screen itself, held-out cells would move them.

    Predictions start from control cells with the quality that these have: predicted populations have the artifacts that observed ones have.

    Parameters
    ----------
    model_class, setup, kwargs, seed
        As of :class:`ModelPredictor`.
    columns, batch_key
        As of :func:`annotate_quality`.
    """

    def __init__(
        self,
        model_class: type,
        setup: dict,
        columns: dict,
        batch_key: str | None,
        kwargs: dict | None = None,
        seed: int = 0,
    ):
        super().__init__(model_class, setup, kwargs, seed=seed)
        self.labels = {"columns": columns, "batch_key": batch_key, "doublets": False}

    def fit(self, adata: ad.AnnData) -> None:
        """Label the training cells, and train."""
        annotate_quality(adata, split_key="split", **self.labels)
        self.thresholds = adata.uns["quality_thresholds"]
        super().fit(adata)

    def predict(self, adata: ad.AnnData, targets: list[str]) -> ad.AnnData:
        """Label the source cells by the same thresholds, and predict."""
        annotate_quality(adata, thresholds=self.thresholds, **self.labels)
        return super().predict(adata, targets)


def graph_vci(name: str) -> ModelSpec:
    """GraphVCI with CollecTRI on one of the screens."""
    return ModelSpec(partial(WithCollecTRI, GraphVCI, {**_setup(name), "grn_key": COLLECTRI}))


def cradle_vae(name: str, **kwargs) -> ModelSpec:
    """CRADLEVAE with quality labels on one of the screens."""
    return _with_quality("CRADLEVAE", name, kwargs)


def gpo_vae(name: str, **kwargs) -> ModelSpec:
    """GPOVAE with quality labels on one of the screens."""
    return _with_quality("GPOVAE", name, kwargs)


def _with_quality(model: str, name: str, kwargs: dict) -> ModelSpec:
    given = {"kwargs": kwargs} if kwargs else {}
    return ModelSpec(partial(WithQuality, getattr(scvi_causal, model), _setup(name), *QUALITY_OF[name], **given))


def _setup(name: str) -> dict:
    """Arguments of ``setup_anndata`` that the run gives to models that are named only."""
    settings = SETTINGS[name]
    setup = {"size_factor_key": SIZE_FACTOR}
    if "covariate_key" in settings:
        setup["categorical_covariate_keys"] = [settings["covariate_key"]]
    if "perturbation_features_key" in settings:
        setup["perturbation_features_key"] = settings["perturbation_features_key"]
    return setup


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
