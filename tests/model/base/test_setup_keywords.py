"""Keywords of setup_anndata that do not exist."""

from __future__ import annotations

import pytest

from scvi_causal import ControlMean
from scvi_causal.data import simulate_screen


def test_a_misspelt_keyword_is_named_with_the_one_that_was_meant():
    adata = simulate_screen(n_genes=10, n_perturbations=2, seed=0).adata
    with pytest.raises(TypeError, match="no argument 'pertubation_key'. Did you mean 'perturbation_key'"):
        ControlMean.setup_anndata(adata, pertubation_key="perturbation")
    assert not [key for key in adata.uns if key.startswith("_scvi")]
