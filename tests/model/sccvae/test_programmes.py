"""Functional modules of perturbations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from scvi_causal.data import simulate_screen

from .conftest import TINY, fit, make_counts

GROUPS = {"G00": ["a1", "a2", "a3", "a4"], "G05": ["b1", "b2", "b3"]}


@pytest.fixture(scope="module")
def grouped():
    """Tokens of two kinds, each acting on its own gene and its neighbours."""
    rows = [(t, gene, -2.0) for gene, tokens in GROUPS.items() for t in tokens]
    rows += [(t, f"G{int(gene[1:]) + 1:02d}", 1.5) for gene, tokens in GROUPS.items() for t in tokens]
    table = pd.DataFrame(rows, columns=["token", "gene", "shift"])
    graph = pd.DataFrame({"source": ["G00", "G05"], "target": ["G10", "G11"], "weight": [0.8, 0.8]})
    graph = pd.concat([graph, pd.DataFrame({"source": ["G02"], "target": ["G12"], "weight": [0.1]})])
    genes = pd.DataFrame({"source": [f"G{i:02d}" for i in range(13)], "target": [f"G{i:02d}" for i in range(1, 14)]})
    graph = pd.concat([graph, genes.assign(weight=1e-3)]).drop_duplicates(["source", "target"])
    screen = simulate_screen(
        graph=graph, perturbations=table, n_cells_per_perturbation=60, n_control=200, mean_expression=30, seed=0
    )
    return fit(screen.adata, setup={"size_factor_key": "library"}, graph="none", **TINY)


def partition(table) -> set[frozenset[str]]:
    return {frozenset(group.index) for _, group in table.groupby("module", observed=True)}


@pytest.mark.parametrize(
    "options", [{"method": "hierarchical", "n_modules": 2}, {"method": "leiden", "n_neighbors": 3, "resolution": 0.5}]
)
def test_perturbations_with_one_effect_form_a_module(grouped, options):
    n_threads = torch.get_num_threads()
    table = grouped.get_modules(**options)
    assert torch.get_num_threads() == n_threads
    assert partition(table) == {frozenset(tokens) for tokens in GROUPS.values()}
    assert table.loc["a1", "module"] == "0"  # the largest first
    assert table["module"].cat.categories.tolist() == ["0", "1"]
    vectors = grouped.get_perturbation_embedding(table.index.tolist()).X
    np.testing.assert_allclose(table["effect_size"], np.linalg.norm(vectors, axis=1), rtol=1e-5)
    pd.testing.assert_frame_equal(table, grouped.get_modules(**options))


def test_modules_of_chosen_perturbations(grouped):
    table = grouped.get_modules(["a1", "b1", "a1+b1", "control", "b2"], method="hierarchical", n_modules=3)
    assert table.index.tolist() == ["a1", "b1", "a1+b1", "b2"]
    assert partition(table) == {frozenset({"a1"}), frozenset({"b1", "b2"}), frozenset({"a1+b1"})}


def test_modules_that_cannot_be(grouped):
    with pytest.raises(ValueError, match="at least 3 perturbations, and there are 2"):
        grouped.get_modules(["a1", "b1"])
    with pytest.raises(ValueError, match="method='kmeans'"):
        grouped.get_modules(method="kmeans")


def test_modules_of_the_published_model(paper):
    table = paper.get_modules(method="hierarchical", n_modules=3)
    assert sorted(table.index) == sorted(paper.seen_tokens_)
    assert (table["effect_size"] > 0).all()


def test_enrichment(grouped):
    modules = grouped.get_modules(method="hierarchical", n_modules=2)
    sets = {"first": ["a1", "a2", "a3", "a4", "elsewhere"], "mixed": ["a1", "b1"], "none": ["elsewhere"]}
    table = grouped.get_module_enrichment(modules, sets)
    assert len(table) == 6
    top = table.iloc[0]
    assert (top["module"], top["gene_set"], top["overlap"], top["module_size"], top["set_size"]) == (
        "0",
        "first",
        4,
        4,
        4,
    )
    assert top["p_value"] == pytest.approx(1 / 35)  # one of the 7 choose 4 ways
    for _, row in table.iterrows():
        expected = stats.hypergeom.sf(row["overlap"] - 1, 7, row["set_size"], row["module_size"])
        assert row["p_value"] == pytest.approx(expected)
    np.testing.assert_allclose(table["p_adjusted"], stats.false_discovery_control(table["p_value"]))
    assert table["p_value"].is_monotonic_increasing
    assert len(grouped.get_module_enrichment(modules, {})) == 0


def test_enrichment_counts_the_tokens_of_combinations(grouped):
    modules = pd.DataFrame({"module": ["0", "0", "1"]}, index=["a1+b1", "a1", "b2"])
    table = grouped.get_module_enrichment(modules, {"set": ["a1", "b1"]})
    first = table[table["module"] == "0"].iloc[0]
    assert (first["overlap"], first["module_size"], first["set_size"]) == (2, 2, 2)


def test_modules_need_training():
    from scvi_causal import SCCVAE

    adata = make_counts(["control", "g01", "g02", "g03"] * 5)
    SCCVAE.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="Train the SCCVAE first"):
        SCCVAE(adata, **TINY).get_modules(["g01", "g02", "g03"])
    with pytest.raises(RuntimeError, match="Train the SCCVAE first"):
        SCCVAE(adata, **TINY).get_modules()
