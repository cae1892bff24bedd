"""Intervals of average effects on Papalexi: half of the cells against the other half, and guides that are left out.

    python benchmarks/effect_coverage_papalexi.py

SCCVAE is trained with the first seed only.
"""

from __future__ import annotations

import argparse
import warnings

import anndata as ad
import numpy as np
import pandas as pd
from _common import data_file, fit, say, write_page
from effect_coverage import METHODS, inside
from scipy import stats

import scvi_causal
from scvi_causal import metrics
from scvi_causal.effects import estimate_effects

NOMINAL_HALVES = 2 * stats.norm.cdf(stats.norm.isf(0.025) / np.sqrt(2)) - 1
HALVES = f"""## Papalexi, half against half

Cells are split at random within guides, each half gets its own model. `covers`: 95 % intervals of one half that contain the estimate
of the other, which is as noisy: {NOMINAL_HALVES:.3f} is nominal for independent cells. `difference`: intervals of the difference, whose
standard error combines both and whose degrees of freedom are Welch's, that contain 0: nominally 0.95. With guides or replicates (`batch`) as
clusters intervals also allow for other guides or replicates, which halves of the same ones do not differ by. All 25 perturbations
and 299 genes; `expressed`: genes in more than 5 % of the cells."""
CLUSTERS = """## Papalexi, clusters

`difference of halves`: mean of one half minus the other within each perturbation, guides or replicates as clusters; nothing differs, so
that 95 % of the intervals should contain 0 or, because clusters are unequal and there is no difference between them here,
somewhat more. `a guide left out`: the interval for one more guide from the others (mean and scatter of guides), against the
effect of that guide, each against other control guides; all perturbations with at least four guides of 30 cells. `independent`: the
same if cells were independent."""


def load_papalexi(seed: int):
    """Papalexi with a half for each cell, drawn within guides."""
    adata = ad.read_h5ad(data_file("papalexi21_thp1_eccite.h5ad"))
    shuffled = np.random.default_rng(seed).permutation(adata.n_obs)
    ordered = shuffled[np.argsort(adata.obs["guide"].astype(str).to_numpy()[shuffled], kind="stable")]
    half = np.empty(adata.n_obs, dtype=int)
    half[ordered] = np.arange(adata.n_obs) % 2
    adata.obs["half"] = half.astype(str)
    return adata


def papalexi(seeds) -> pd.DataFrame:
    """Intervals of one half, estimates of the other."""
    rows = []
    for seed in seeds:
        adata = load_papalexi(seed)
        detected = pd.Series(np.asarray((adata.X > 0).mean(0)).ravel(), adata.var_names)
        for model_class in (scvi_causal.Additive, scvi_causal.SCCVAE):
            if model_class is scvi_causal.SCCVAE and seed > min(seeds):
                continue
            # the plain intervals first; clusters of one model are enough
            keys = [None] if model_class is scvi_causal.SCCVAE else [None, "guide", "batch"]
            tables = {key: [] for key in keys}
            for side in "01":
                adata.obs["split"] = np.where(adata.obs["half"] == side, "train", "test")
                setup = {"batch_key": "batch", "size_factor_key": "library_size_full"}
                model, _ = fit(model_class, adata, setup, seed)
                for key in keys:
                    tables[key].append(model.get_marginal_effects(method=METHODS, cluster_key=key))
            for key, one, other in [(k, *pair) for k in keys for pair in (tables[k], tables[k][::-1])]:
                part = one[["method", "flag"]].copy()
                part["clusters"] = key or "none"
                part["covers"] = inside(one, other["estimate"])
                part["difference"] = difference_holds(one, other)
                part["expressed"] = (one["gene"].map(detected) > 0.05).to_numpy()
                part["model"] = np.where(part["method"] == "group", "-", model_class.__name__)
                rows.append(part)
        say(f"Papalexi halves, seed {seed}")
    table = pd.concat(rows)
    keys = ["clusters", "method", "model"]
    by = table.groupby(keys)
    out = by[["covers", "difference"]].mean()
    out["covers, expressed"] = table[table["expressed"]].groupby(keys)["covers"].mean()
    out["unbalanced"] = by["flag"].agg(lambda f: f.str.contains("unbalanced").mean())
    out["intervals"] = by.size()
    return out


def difference_holds(one: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
    """Whether the interval of the difference of two independent estimates contains zero."""
    # degrees of freedom from the width of the interval in standard errors: the quantile falls as they grow
    grid = np.geomspace(1, 1e5, 2_000)
    quantiles = stats.t.isf(0.025, grid)
    variances, uncertainty = 0.0, 0.0
    for table in (one, other):
        width = ((table["ci_high"] - table["estimate"]) / table["se"].where(table["se"] > 0)).fillna(12.0)
        variances = variances + table["se"].to_numpy() ** 2
        uncertainty = uncertainty + table["se"].to_numpy() ** 4 / np.interp(-width, -quantiles, grid)
    df = np.where(uncertainty > 0, variances**2 / np.where(uncertainty > 0, uncertainty, 1.0), np.inf)
    return (one["estimate"] - other["estimate"]).abs().to_numpy() <= stats.t.isf(0.025, df) * np.sqrt(variances)


def papalexi_clusters(seeds) -> pd.DataFrame:
    """Differences of halves with clusters, and guides that are left out."""
    rows = []
    for seed in seeds:
        adata = load_papalexi(seed)
        x = metrics.log1p_normalize(adata.X, adata.obs["library_size_full"].to_numpy())
        labels, half = adata.obs["perturbation"].astype(str).to_numpy(), adata.obs["half"].to_numpy()
        for key in ("guide", "batch"):
            cluster = adata.obs[key].astype(str).to_numpy()
            for kind in ("jackknife", "sandwich"):
                for label in np.unique(labels):
                    table = estimate_effects(
                        x, half, None, "0", contrast="1", method="group", rows=labels == label, cluster=cluster,
                        cluster_variance=kind,
                    )  # fmt: skip
                    rates = inside(table, 0)[table["se"] > 0]
                    rows.append(
                        {"check": f"difference of halves, clusters: {key}", "formula": kind, "covers": rates.mean()}
                    )
    for label, guide, table in left_out(x, labels, adata.obs["guide"].astype(str).to_numpy()):
        for formula in ("jackknife", "independent"):
            rows.append(
                {
                    "check": "a guide left out",
                    "formula": formula,
                    "covers": table[formula].mean(),
                    "of": f"{label} {guide}",
                }
            )
    return pd.DataFrame(rows).groupby(["check", "formula"])["covers"].agg(["mean", "min", "size"])


def left_out(x, labels, guides):
    """For each guide whether the interval for one more guide, from the others, contains its effect."""
    size = pd.Series(guides).value_counts()
    control = sorted(set(guides[labels == "control"]))
    sides = [np.isin(guides, control[::2]), np.isin(guides, control[1::2])]
    for label in np.unique(labels[labels != "control"]):
        own = [g for g in sorted(set(guides[labels == label])) if size[g] >= 30]
        if len(own) < 4:
            continue
        for guide in own:
            others = np.isin(guides, [g for g in own if g != guide])
            parts = [
                mean_of(x, others, guides),
                mean_of(x, sides[0], guides),
                mean_of(x, guides == guide),
                mean_of(x, sides[1], guides),
            ]
            d = (parts[0]["estimate"] - parts[1]["estimate"]) - (parts[2]["estimate"] - parts[3]["estimate"])
            share = size[[g for g in own if g != guide]] / others.sum()
            one_more = parts[0]["se"] ** 2 / (share**2).sum()  # variance of a guide
            variance = parts[0]["se"] ** 2 + one_more + parts[1]["se"] ** 2 + parts[3]["se"] ** 2
            iid = sum(mean_of(x, mask)["se"] ** 2 for mask in (others, sides[0], guides == guide, sides[1]))
            ok = parts[0]["se"] > 0
            within = {
                "jackknife": d.abs() < stats.t.isf(0.025, len(own) - 2) * np.sqrt(variance),
                "independent": d.abs() < 1.96 * np.sqrt(iid),
            }
            yield label, guide, pd.DataFrame(within)[ok]


def mean_of(x, mask, cluster=None) -> pd.DataFrame:
    """Mean of some cells with its standard error."""
    return estimate_effects(x, mask, None, "True", contrast=None, method="group", rows=mask, cluster=cluster)


def main() -> None:
    """Run all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Of .* population")
    halves, clusters = papalexi(options.seeds), papalexi_clusters(options.seeds)
    long = pd.concat([halves.reset_index().assign(part="halves"), clusters.reset_index().assign(part="clusters")])
    parts = [(HALVES, halves), (CLUSTERS, clusters)]
    write_page("effect_coverage_papalexi", "Papalexi: coverage of average effects", parts, options.seeds, long)


if __name__ == "__main__":
    main()
