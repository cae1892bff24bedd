"""Effects of pairs against scipy, against the other metrics and on data without any effect."""

from __future__ import annotations

import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from scvi_causal.metrics import _ranks, log1p_normalize, pair_effects, rank_by_effect, wasserstein_genes

GENES = ["A", "B", "C", "D", "E"]


def cells_and_labels(seed=0, sizes=(40, 13, 25), dtype=np.float32):
    """Counts with many ties; C of B's cells is shifted, E is constant, D takes two values."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(["control", "A", "B"], sizes)
    x = np.log1p(rng.poisson(0.9, (len(labels), 5))).astype(dtype)
    x[labels == "B", 2] += 2
    x[:, 4] = 1
    x[:, 3] = rng.random(len(labels)) < 0.1
    order = rng.permutation(len(labels))
    return x[order], labels[order]


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
@pytest.mark.parametrize("sizes", [(40, 13, 25), (13, 13, 40), (1, 2, 3), (7, 1, 1)])
def test_equals_scipy_pair_by_pair(monkeypatch, form, sizes):
    monkeypatch.setattr(_ranks, "_BLOCK", 16 * sum(sizes))  # two genes at a time, the last alone
    x, labels = cells_and_labels(sizes=sizes)
    table = pair_effects(form(x), labels, GENES, min_cells=1).set_index(["source", "target"])
    assert len(table) == 2 * 4  # no self-loops
    control = x[labels == "control"].astype(float)
    for (source, target), row in table.iterrows():
        cells, gene = x[labels == source].astype(float), GENES.index(target)
        y, c = cells[:, gene], control[:, gene]
        assert row["n_cells"] == len(y)
        assert row["wasserstein"] == pytest.approx(stats.wasserstein_distance(y, c), abs=1e-12)
        assert row["lfc"] == pytest.approx(y.mean() - c.mean(), abs=1e-12)
        if len(np.unique(np.append(y, c))) == 1:
            assert (row["statistic"], row["pvalue"]) == (0, 1)
            continue
        expected = stats.mannwhitneyu(y, c, method="asymptotic")
        # scipy adds the continuity correction even where U is at its mean, so p is 1 or above at the centre
        if abs(expected.statistic - len(y) * len(c) / 2) > 0.5:
            assert row["pvalue"] == pytest.approx(expected.pvalue, rel=1e-9)
            assert np.sign(row["statistic"]) == np.sign(expected.statistic - len(y) * len(c) / 2)
        else:
            assert row["pvalue"] == 1


def test_null_distance_is_that_of_cells_without_an_effect():
    # closed form: for F uniform on [0, 1] the integral of sqrt(F (1 - F)) is pi / 8
    grid = np.linspace(0, 1, 4001)[:, None]
    labels = np.append(np.repeat("control", 4001), np.repeat("A", 100))
    table = pair_effects(np.concatenate([grid, grid[:100]]), labels, ["g"])
    assert table["wasserstein_null"][0] == pytest.approx(
        np.sqrt(2 / np.pi * (1 / 100 + 1 / 4001)) * np.pi / 8, rel=1e-3
    )
    # and on average over draws, for counts as well
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat("control", 500), np.repeat([f"s{i}" for i in range(40)], 25)])
    x = np.column_stack([rng.normal(size=1500), np.log1p(rng.poisson(1.0, 1500)), rng.gamma(0.3, 2.0, 1500)])
    by_gene = (
        pair_effects(x, labels, ["a", "b", "c"])
        .groupby("target", observed=True)[["wasserstein", "wasserstein_null"]]
        .mean()
    )
    np.testing.assert_allclose(by_gene["wasserstein"], by_gene["wasserstein_null"], rtol=0.12)


def test_few_cells_and_variable_genes_rank_high_by_distance_alone():
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.repeat("control", 1000), np.repeat("few", 10), np.repeat("many", 500)])
    x = rng.normal(size=(1510, 60)) * np.repeat([1.0, 3.0], 30)
    table = pair_effects(x, labels, [f"g{i}" for i in range(60)])  # no effect anywhere
    wild = table["target"].isin([f"g{i}" for i in range(30, 60)])
    mean = lambda column: table.groupby(["source", wild], observed=True)[column].mean()
    distance, excess = mean("wasserstein"), mean("wasserstein") - mean("wasserstein_null")
    assert distance["few", True] > 3 * distance["many", True] > 3 * 2 * distance["many", False]
    assert excess.abs().max() < 0.12 * distance["few", True]


def test_false_discoveries_are_controlled_and_effects_found():
    rng = np.random.default_rng(2)
    labels = np.repeat(["control", *"ABCDEFGH"], 60)
    genes = [f"g{i}" for i in range(200)]
    x = np.log1p(rng.poisson(1.5, (len(labels), 200))).astype(np.float32)
    calm = pair_effects(x, labels, genes)
    assert (calm["pvalue"] < 0.05).mean() == pytest.approx(0.05, abs=0.015)
    assert (calm["padj"] < 0.05).sum() <= 2
    x[np.ix_(labels == "A", np.arange(10))] += 1.0
    found = pair_effects(x, labels, genes)
    found = found[found["padj"] < 0.05]
    strong = found[(found["source"] == "A") & found["target"].isin(genes[:10])]
    assert len(strong) == 10
    assert (strong["statistic"] > 0).all()
    assert len(found) <= 13


def test_combinations_and_small_perturbations_are_left_out():
    x, labels = cells_and_labels()
    labels = labels.astype(object)
    b = np.flatnonzero(labels == "B")
    labels[b[:12]] = "A+B"
    table = pair_effects(x, labels, GENES)
    assert table["source"].unique().tolist() == ["A", "B"]
    assert table["n_cells"].tolist() == [13] * 4 + [13] * 4
    assert pair_effects(x, labels, GENES, separator=None)["source"].nunique() == 3
    assert pair_effects(x, labels, GENES, min_cells=13)["source"].nunique() == 2
    two = pair_effects(x, np.where(labels == "A", "NT", labels), GENES, control_category=["control", "NT"])
    assert two["source"].unique().tolist() == ["B"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["control"] * 3}, r"shape \(78, 5\) do not fit 3 labels and 5 genes"),
        ({"genes": list("AABCD")}, r"genes repeats names, e.g. \['A'\]"),
        ({"control_category": "ctrl"}, r"0 cells are labelled \['ctrl'\].*most frequent labels are 'control'"),
        ({"min_cells": 30}, "no single perturbation has 30 cells"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    x, labels = cells_and_labels()
    arguments = {"labels": labels, "genes": GENES} | change
    with pytest.raises(ValueError, match=message):
        pair_effects(x, **arguments)


def test_rankings():
    x, labels = cells_and_labels()
    pairs = pair_effects(x, labels, GENES)
    for by, size in {
        "wasserstein": pairs["wasserstein"],
        "excess": (pairs["wasserstein"] - pairs["wasserstein_null"]).clip(lower=0),
        "lfc": pairs["lfc"].abs(),
        "statistic": pairs["statistic"].abs(),
    }.items():
        edges = rank_by_effect(pairs, by)
        np.testing.assert_allclose(edges["weight"].abs(), np.sort(size)[::-1])
        assert tuple(edges.loc[0, ["source", "target"]]) == ("B", "C")
        merged = edges.merge(pairs.astype({"source": str, "target": str}), on=["source", "target"])
        nonzero = (merged["weight"] != 0) & (merged["lfc"] != 0)
        assert (np.sign(merged["weight"]) == np.sign(merged["lfc"]))[nonzero].all()
    with pytest.raises(ValueError, match="by='padj' is not one of"):
        rank_by_effect(pairs, "padj")
    with pytest.raises(ValueError, match="expected a table of scvi_causal.metrics.pair_effects, got"):
        rank_by_effect(pd.DataFrame({"source": ["A"]}))


@pytest.mark.real_data
def test_papalexi_in_seconds(real_data):
    adata = ad.read_h5ad(real_data("papalexi21_thp1_eccite.h5ad"))
    x = log1p_normalize(adata.X, adata.obs["library_size_full"].to_numpy())
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    start = time.process_time()
    table = pair_effects(x, labels, adata.var_names)
    assert time.process_time() - start < 10
    assert len(table) == 25 * 299 - 9  # nine of the targets are in the panel
    # the interferon-gamma axis
    strongest = table.nlargest(6, "wasserstein")
    assert set(strongest["target"]) <= {"PSMB9", "UBE2L6", "STAT1", "IRF1"}
    assert set(strongest["source"]) <= {"STAT1", "IFNGR1", "IFNGR2", "JAK2", "IRF1"}
    expected = wasserstein_genes(x[labels == "control"], x[labels == "MYC"])
    myc = table[table["source"] == "MYC"]
    np.testing.assert_allclose(
        myc["wasserstein"], expected[adata.var_names.get_indexer(myc["target"].astype(str))], atol=1e-12
    )
