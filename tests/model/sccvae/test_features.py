"""The published features of a gene: P18 of the checks against the publication."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from scvi_causal import SCCVAE
from scvi_causal.model.sccvae._features import expression_features

from .conftest import TINY_PAPER, fit, make_counts


@pytest.fixture(scope="module")
def cells():
    """Tokens whose order in the vocabulary is not that of the genes; one of them is no gene."""
    adata = make_counts(["control", "control", "g11", "g02", "g07", "a drug"] * 12)
    adata = adata[:, ::-1].copy()  # from g11 down to g00
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 10 == 9, "test", "train")
    return adata


@pytest.fixture(scope="module")
def trained(cells):
    return fit(cells.copy(), train={"split_key": "split"}, **TINY_PAPER)


@pytest.fixture(scope="module")
def by_hand(cells):
    """gene -> scores, from an exact PCA of the transposed log expression of the training controls."""
    use = (cells.obs["perturbation"] == "control") & (cells.obs["split"] == "train")
    counts = cells[use.to_numpy()].X.toarray().astype(float)
    expression = np.log1p(counts * (1e4 / counts.sum(1, keepdims=True)))
    scores = PCA(5, svd_solver="full").fit_transform(expression.T)
    scores *= np.sign(np.take_along_axis(scores, np.abs(scores).argmax(0)[None], 0))
    return dict(zip(cells.var_names, scores, strict=True))


def test_p18_rows_are_those_of_the_symbol(trained, by_hand, cells):
    for row, gene in enumerate(cells.var_names):
        np.testing.assert_allclose(trained.gene_features_[row], by_hand[gene], rtol=1e-3, atol=1e-3)
    vocabulary = list(trained._vocabulary.tokens)
    assert vocabulary == ["a drug", "g02", "g07", "g11"]
    for index, token in enumerate(vocabulary[1:], start=1):
        row = trained.module.token_features[index, :5].numpy()
        np.testing.assert_allclose(row, by_hand[token], rtol=1e-3, atol=1e-3)
        trap = by_hand[cells.var_names[index]]  # the row at its index in the vocabulary
        assert np.abs(row - trap).max() > 0.1


def test_p18_the_same_at_training_and_at_inference(trained):
    tokens = ["g11", "a drug", "g02"]  # in another order than the vocabulary
    asked = trained._get_token_inputs(tokens, None)["features"]
    for token, row in zip(tokens, asked, strict=True):
        np.testing.assert_array_equal(row, trained.module.token_features[trained._vocabulary.index(token)])


def test_p18_signs_are_fixed(trained):
    scores = trained.gene_features_
    assert (np.take_along_axis(scores, np.abs(scores).argmax(0)[None], 0) > 0).all()


def test_p18_reproducible_and_independent_of_other_cells(trained, cells):
    again = fit(cells.copy(), train={"split_key": "split"}, **TINY_PAPER)
    np.testing.assert_array_equal(again.gene_features_, trained.gene_features_)
    changed = cells.copy()
    left_out = ((changed.obs["perturbation"] != "control") | (changed.obs["split"] == "test")).to_numpy()
    dense = changed.X.toarray()
    dense[left_out] = dense[left_out] * 5 + 1
    changed.X = type(changed.X)(dense)
    other = fit(changed, train={"split_key": "split"}, **TINY_PAPER)
    np.testing.assert_array_equal(other.gene_features_, trained.gene_features_)


def test_p18_saved_with_the_model(trained, fresh):
    np.testing.assert_array_equal(fresh(trained).gene_features_, trained.gene_features_)


def test_more_components_than_the_data_have_are_zero(cells):
    SCCVAE.setup_anndata(cells)
    manager = SCCVAE(cells, **TINY_PAPER).adata_manager
    scores = expression_features(manager, np.array([0, 1, 6]), 6, True)
    assert scores.shape == (cells.n_vars, 6)
    assert (scores[:, 2:] == 0).all()
    assert (scores[:, :2] != 0).any(0).all()
    assert (expression_features(manager, np.array([0]), 3, True) == 0).all()
