import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField, LayerField, NumericalObsField

from scvi_causal.data.fields import PerturbationField

LABELS = ["control"] * 60 + ["A"] * 45 + ["B"] * 20 + ["A+B"] * 3 + ["C"]


def make_adata(seed: int = 0, n_genes: int = 12) -> AnnData:
    """Cells whose first gene is their row number, so that any batch tells which cells it holds."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(LABELS)
    x = rng.poisson(0.7, (len(labels), n_genes)).astype(np.float32)
    x[:, 0] = np.arange(len(labels))
    obs = pd.DataFrame(
        {
            "perturbation": labels,
            "donor": rng.choice(["d1", "d2"], len(labels)),
            "cell_type": rng.choice(["T", "B", "NK"], len(labels)),
            "total": x.sum(1) + 1,
        },
        index=[f"cell{i}" for i in range(len(labels))],
    )
    return AnnData(csr_matrix(x), obs=obs)


def register(
    adata: AnnData, batch_key="donor", covariate_keys=("cell_type",), size_factor_key="total"
) -> AnnDataManager:
    fields = [
        LayerField(REGISTRY_KEYS.X_KEY, None, is_count_data=False),
        PerturbationField("perturbation"),
        CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
        CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, list(covariate_keys) or None),
        NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
    ]
    manager = AnnDataManager(fields=fields)
    manager.register_fields(adata)
    return manager


@pytest.fixture
def adata() -> AnnData:
    return make_adata()


@pytest.fixture
def manager(adata) -> AnnDataManager:
    return register(adata)


@pytest.fixture
def dense(adata) -> np.ndarray:
    return adata.X.toarray()
