"""Files, layers, counts: each wrong one is named with what would be right."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_causal._demo._options import DemoOptions, expression, holds_counts, load
from scvi_causal.data._read import read_h5ad


@pytest.fixture
def file(tmp_path):
    obs = pd.DataFrame({"perturbation": ["control", "A"], "cell_type": "T"}, index=["c0", "c1"])
    path = tmp_path / "screen.h5ad"
    ad.AnnData(np.eye(2, dtype=np.float32), obs=obs, layers={"counts": np.eye(2)}).write_h5ad(path)
    return path


def test_load(file):
    adata, options, name = load(DemoOptions(data=file, holdout="A"))
    assert (adata.shape, options.holdout, name) == ((2, 2), "A", "screen.h5ad")


def test_wrong_columns(file):
    with pytest.raises(ValueError, match=r"no obs column 'celltype' \(similar: cell_type\)"):
        load(DemoOptions(data=file, covariate_keys=("celltype",)))
    with pytest.raises(ValueError, match="'guide'. It has: perturbation, cell_type"):
        load(DemoOptions(data=file, perturbation_key="guide"))


def test_expression(file):
    adata = read_h5ad(file)
    assert expression(adata, None) is adata.X
    np.testing.assert_array_equal(expression(adata, "counts"), np.eye(2))
    with pytest.raises(ValueError, match=r"'count' \(similar: counts\)"):
        expression(adata, "count")
    adata.X = None
    with pytest.raises(ValueError, match="no X; name one of its layers with --layer: counts"):
        expression(adata, None)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_holds_counts(form):
    counts = np.random.default_rng(0).poisson(1.0, (9000, 3)).astype(np.float32)  # more than one block of cells
    assert holds_counts(form(counts))
    for wrong in (0.5, -1.0, np.nan):
        counts[8999, 1] = wrong
        assert not holds_counts(form(counts))
