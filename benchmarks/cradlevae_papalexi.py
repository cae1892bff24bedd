"""Artifacts of a real screen: do failed cells of Papalexi, edited, look like passing ones of the same perturbation?

    python benchmarks/cradlevae_papalexi.py

Half of the cells is held out. Quality from counts, genes and mitochondrial share of the whole cell, by thresholds from training controls.
"""

from __future__ import annotations

import argparse

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from _common import QUIET, data_file, say, write_page
from _screens import QUALITY_OF, SIZE_FACTOR
from scipy.sparse import csr_matrix

from scvi_causal import CRADLEVAE, SAMSVAE, metrics
from scvi_causal.data import annotate_quality

FEWEST = 20  # failed held-out cells of a condition that is looked at
TEXT = """Energy distance (log1p of counts per 10,000, 299 genes) of held-out *failed* cells to held-out *passing* cells of the same perturbation, mean over conditions with at
least {fewest} failed cells. Passing cells are thinned to the libraries of the failed ones, whose depth no edit changes; `passing` are other passing cells, thinned likewise: as near as one
can get. `mean shift`: failed cells less the mean difference of training cells within conditions; it leaves no counts. `quality from x`: area under the curve of a linear
classifier that tells the cells from thinned passing ones, trained on the other half of both (0.5 is best)."""


def log_normalize(counts: np.ndarray, library: np.ndarray) -> np.ndarray:
    """(cells, genes) log1p of counts per 10,000 of the library of the whole cell."""
    return np.log1p(1e4 * counts / library[:, None])


def thinned(x: np.ndarray, library: np.ndarray, rows: np.ndarray, to: np.ndarray, rng) -> np.ndarray:
    """Cells with about the libraries ``to``, made from cells ``rows`` of which each has at least as much: log1p."""
    target = rng.choice(to, len(rows))
    keep = np.minimum(1.0, target / library[rows])
    return log_normalize(rng.binomial(x[rows].astype(int), keep[:, None]), library[rows] * keep)


def fit(adata: ad.AnnData, how: str, seed: int):
    """A trained model."""
    scvi.settings.seed = seed
    setup = {"size_factor_key": SIZE_FACTOR, "batch_key": "batch"}
    if how == "SAMSVAE, quality a covariate":
        SAMSVAE.setup_anndata(adata, categorical_covariate_keys=["quality"], **setup)
        model = SAMSVAE(adata)
    else:
        CRADLEVAE.setup_anndata(adata, **setup)
        model = CRADLEVAE(adata)
    model.train(split_key="split", accelerator="cpu", **QUIET)
    return model


def edited(model, rows: np.ndarray, seed: int) -> np.ndarray:
    """(cells, genes) drawn log1p of cells as if they passed."""
    kwargs = {"indices": rows, "sample": True, "output": "log1p", "key_added": None, "seed": seed}
    if isinstance(model, CRADLEVAE):
        return np.asarray(model.predict_counterfactual(quality="pass", **kwargs).X)
    own = model.adata.obs["perturbation"].astype(str).to_numpy(dtype=object)[rows]
    return np.asarray(model.predict_counterfactual(own, covariates={"quality": "pass"}, **kwargs).X)


def auc(cells: np.ndarray, others: np.ndarray, rng) -> float:
    """Area under the curve of a classifier of two populations, on the halves that it was not trained on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    x = np.vstack([cells, others])
    y = np.repeat([1, 0], [len(cells), len(others)])
    half = rng.random(len(y)) < 0.5
    found = LogisticRegression(max_iter=500, C=0.1).fit(x[half], y[half])
    return float(roc_auc_score(y[~half], found.decision_function(x[~half])))


def one(seed: int) -> list[dict]:
    """All ways to edit, on one split."""
    adata = ad.read_h5ad(data_file("papalexi21_thp1_eccite.h5ad"))
    rng = np.random.default_rng(seed)
    adata.obs["split"] = np.where(rng.random(adata.n_obs) < 0.5, "test", "train")
    columns, batch_key = QUALITY_OF["papalexi"]
    annotate_quality(adata, columns=columns, batch_key=batch_key, doublets=False, split_key="split")
    counts, library = csr_matrix(adata.X).toarray(), adata.obs[SIZE_FACTOR].to_numpy(dtype=float)
    x = log_normalize(counts, library)
    failed, held = (adata.obs["quality"] == "fail").to_numpy(), (adata.obs["split"] == "test").to_numpy()
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    rows = np.flatnonzero(held & failed)
    shift = np.zeros(x.shape[1])
    for t in np.unique(labels):
        bad, good = ~held & failed & (labels == t), ~held & ~failed & (labels == t)
        if bad.any() and good.any():
            shift += bad.sum() * (x[bad].mean(0) - x[good].mean(0))
    found = {"as observed": x[rows], "mean shift": x[rows] - shift / (~held & failed).sum()}
    for how in ("CRADLEVAE", "SAMSVAE, quality a covariate"):
        found[how] = edited(fit(adata.copy(), how, seed), rows, seed)
        say(f"seed {seed}: {how}")
    table = []
    for t in np.unique(labels):
        here = labels[rows] == t
        if here.sum() < FEWEST:
            continue
        good = rng.permutation(np.flatnonzero(held & ~failed & (labels == t)))
        first, second = (thinned(counts, library, part, library[rows[here]], rng) for part in np.array_split(good, 2))
        found_here = {name: cells[here] for name, cells in found.items()} | {"passing": second}
        for name, cells in found_here.items():
            row = {"seed": seed, "condition": t, "cells": name, "n": len(cells)}
            row |= {"energy distance": metrics.energy_distance(cells, first), "quality from x": auc(cells, first, rng)}
            table.append(row)
    say(f"seed {seed}: {failed.mean():.1%} of the cells fail")
    return table


def main() -> None:
    """All splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    options = parser.parse_args()
    table = pd.DataFrame([row for seed in options.seeds for row in one(seed)])
    order = ["as observed", "mean shift", "SAMSVAE, quality a covariate", "CRADLEVAE", "passing"]
    out = table.groupby("cells")[["energy distance", "quality from x"]].mean().loc[order]
    out.insert(0, "conditions", table.groupby("cells")["condition"].nunique())
    text = TEXT.format(fewest=FEWEST)
    write_page("cradlevae_papalexi", "CRADLE-VAE: failed cells of Papalexi", [(text, out)], options.seeds, table)


if __name__ == "__main__":
    main()
