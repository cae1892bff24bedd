"""A model that learns nothing: what scvi-tools does with the fields between set-up, saving, loading and queries."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField
from scvi.model.base import BaseModelClass
from scvi.module.base import BaseModuleClass, LossOutput

from scvi_causal.data import validate_setup
from scvi_causal.data.fields import FeaturesField, GRNField, PerturbationField


class IdleModule(BaseModuleClass):
    def __init__(self, n_genes):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(n_genes))

    def _get_inference_input(self, tensors, **kwargs):
        return {"x": tensors[REGISTRY_KEYS.X_KEY]}

    def _get_generative_input(self, tensors, inference_outputs, **kwargs):
        return inference_outputs

    def inference(self, x):
        return {"x": x}

    def generative(self, x):
        return {"x": x * self.scale}

    def loss(self, tensors, inference_outputs, generative_outputs):
        error = (generative_outputs["x"] ** 2).sum(1)
        return LossOutput(error.mean(), reconstruction_loss=error)


class IdleModel(BaseModelClass):
    _module_cls = IdleModule

    def __init__(self, adata=None, registry=None):
        super().__init__(adata, registry)
        self.module = IdleModule(self.summary_stats.n_vars)
        self._model_summary_string = "idle"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata,
        perturbation_key="perturbation",
        control_category="control",
        layer=None,
        dosage_key=None,
        perturbation_separator="+",
        batch_key=None,
        grn_key=None,
        perturbation_features_key=None,
        **kwargs,
    ):
        setup_method_args = cls._get_setup_method_args(**locals())
        validate_setup(
            adata,
            perturbation_key,
            control_category,
            layer,
            dosage_key,
            separator=perturbation_separator,
            batch_key=batch_key,
            grn_key=grn_key,
            perturbation_features_key=perturbation_features_key,
            source_registry=kwargs.get("source_registry"),
        )
        how = (perturbation_key, control_category, perturbation_separator)
        manager = AnnDataManager(
            fields=[
                GRNField(grn_key, *how),
                FeaturesField(perturbation_features_key, *how),
                PerturbationField(*how, dosage_key),
                CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
                LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            ],
            setup_method_args=setup_method_args,
        )
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def train(self):
        self.is_trained_ = True

    def tensors(self, adata=None):
        """All registered tensors of all cells, as the module would get them."""
        adata = self._validate_anndata(adata)
        batches = list(self._make_data_loader(adata, batch_size=7))
        return {key: torch.cat([batch[key] for batch in batches]).numpy() for key in batches[0]}

    def state(self, key):
        return self.registry_["field_registries"][key]["state_registry"]


GENES = ["HLA.A", "chr1/123", "g 3", "KLF1", "BAK1"]
LABELS = ["control", "KLF1", "drug x/1.5+KLF1", "KLF1+ctrl", "BAK1+KLF1"]
DOSAGES = ["0", "1", "0.5+2", "3+9", "-1+4"]


@pytest.fixture
def idle_model():
    return IdleModel


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    n_cells = 40
    kind = np.arange(n_cells) % len(LABELS)
    adata = ad.AnnData(
        sp.csr_matrix(rng.poisson(1.0, (n_cells, len(GENES))).astype(np.float32)),
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical(np.array(LABELS)[kind], categories=["unused", *sorted(LABELS)]),
                "dosage": np.array(DOSAGES, dtype=object)[kind],
                "batch": np.array(["a", "b"])[kind % 2],
            },
            index=[f"cell{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(index=GENES),
    )
    adata.uns["grn"] = pd.DataFrame(
        {
            "source": ["KLF1", "drug x/1.5", "HLA.A", "elsewhere"],
            "target": ["BAK1", "g 3", "chr1/123", "BAK1"],
            "weight": [1.0, -2.0, 0.5, 1.0],
        }
    )
    adata.uns["features"] = pd.DataFrame(
        np.arange(8).reshape(4, 2), index=["KLF1", "BAK1", "drug x/1.5", "never seen"], columns=["a b", "c.d"]
    )
    return adata


@pytest.fixture
def bare(adata):
    """Query cells with nothing but expression."""
    return ad.AnnData(adata.X[:9].copy(), obs=pd.DataFrame(index=adata.obs_names[:9]), var=adata.var[[]].copy())
