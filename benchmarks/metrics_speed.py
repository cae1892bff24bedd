"""How fast the metrics are: against the library one would take otherwise, and on 100,000 cells x 2,000 genes.

    python benchmarks/metrics_speed.py

One thread. Ours and the alternative alternate within a round on the same input, and the figure of each is the minimum of its
CPU-seconds over the rounds. Where the alternative needs dense input, making its dense copy is part of it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import warnings
from importlib.metadata import version

import numpy as np
import pandas as pd
import scipy.sparse as sp
from _common import say, write_page
from _speed_tools import ROUNDS, SEED, alternate, memory, peak, quiet, timed

from scvi_causal import metrics

N_GENES, DENSITY = 2000, 0.05


def cells(n_cells: int, n_genes: int, seed: int) -> sp.csr_matrix:
    """log1p-normalised counts of which about a twentieth is not zero, as in a shallow screen over all expressed genes."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(0.5, 2.0, n_genes)
    level *= DENSITY / (1 - np.exp(-level)).mean()
    pieces = [
        sp.csr_matrix(rng.poisson(level * rng.gamma(4.0, 0.25, (min(2000, n_cells - start), 1))).astype(np.float32))
        for start in range(0, n_cells, 2000)
    ]
    return metrics.log1p_normalize(sp.vstack(pieces, "csr"))


def compare(ours, other, n_repeats: int = 1) -> tuple[float, float]:
    """CPU-seconds of two functions."""
    best = alternate(
        {name: lambda f=f: [timed(f) for _ in range(n_repeats)] for name, f in (("ours", ours), ("other", other))}
    )
    return best["ours"], best["other"]


# ---------------------------------------------------------------------- against libraries


def against_libraries() -> pd.DataFrame:
    """The same quantity from the same cells; those of 50,000 cells on each side, unless a row says otherwise."""
    import ot
    import scanpy as sc
    from anndata import AnnData
    from scipy.spatial.distance import cdist
    from scipy.stats import permutation_test, wasserstein_distance
    from sklearn.utils.sparsefuncs import mean_variance_axis

    x, y = cells(50_000, N_GENES, 1), cells(50_000, N_GENES, 2)
    obs = pd.DataFrame({"group": np.repeat(["x", "y"], 50_000)}, index=np.arange(100_000).astype(str))
    adata = AnnData(sp.vstack([x, y], "csr"), obs)
    few = [z[:1000] for z in (x, y)]
    some = np.arange(0, N_GENES, 20)
    dense = lambda z: np.asarray(z.toarray(), dtype=np.float64)

    def energy_and_mmd():
        metrics.ObservedPopulation(few[0], moments, moments, max_cells=None).score(few[1], metrics=["energy", "mmd2"])

    def energy_and_mmd_by_cdist():
        a, b = (dense(z) for z in few)
        xx, yy, xy = cdist(a, a), cdist(b, b), cdist(a, b)
        h = np.median(xx[np.triu_indices(1000, 1)] ** 2)
        return 2 * xy.mean() - xx.mean() - yy.mean(), sum(np.exp(-(d**2) / h).mean() for d in (xx, yy, xy))

    def squared_distance(a, b, axis):
        return ((a.mean(axis=axis) - b.mean(axis=axis)) ** 2).sum()

    def permutations_by_scipy():
        a, b = (dense(z[:500, :200]) for z in few)
        statistic = lambda i, j: squared_distance(pooled[i.astype(int)], pooled[j.astype(int)], 0)
        pooled = np.vstack([a, b])
        permutation_test((np.arange(500), np.arange(500, 1000)), statistic, n_resamples=499, vectorized=False, rng=0)

    moments = metrics.cell_moments(y)
    jobs = {
        "mean and variance of every gene": (
            "sklearn mean_variance_axis",
            lambda: metrics.cell_moments(x),
            lambda: mean_variance_axis(x, axis=0),
        ),
        "Welch's t-test of every gene": (
            "scanpy rank_genes_groups, t-test",
            lambda: metrics.differential_expression(x, y),
            lambda: sc.tl.rank_genes_groups(adata, "group", groups=["x"], reference="y", method="t-test"),
        ),
        "Wilcoxon test of every gene": (
            "scanpy rank_genes_groups, wilcoxon",
            lambda: metrics.differential_expression(x, y, method="wilcoxon"),
            lambda: sc.tl.rank_genes_groups(
                adata, "group", groups=["x"], reference="y", method="wilcoxon", tie_correct=True
            ),
        ),
        "Wasserstein, 100 genes": (
            "scipy wasserstein_distance, gene by gene",
            lambda: metrics.wasserstein_genes(x, y, some),
            lambda: [wasserstein_distance(a, b) for a, b in zip(dense(x[:, some]).T, dense(y[:, some]).T, strict=True)],
        ),
        "Wasserstein, 100 genes, again": (
            "POT wasserstein_1d",
            lambda: metrics.wasserstein_genes(x, y, some),
            lambda: ot.wasserstein_1d(dense(x[:, some]), dense(y[:, some]), p=1),
        ),
        "energy distance and MMD, 1,000 cells each": ("scipy cdist", energy_and_mmd, energy_and_mmd_by_cdist),
        "correlations of pairs, 100 genes": (
            "numpy corrcoef on a dense copy",
            lambda: metrics.pair_dispersion(x, y, some),
            lambda: [np.corrcoef(dense(z)[:, some], rowvar=False) for z in (x, y)],
        ),
        "test for an effect, 500 cells each, 200 genes": (
            "scipy permutation_test",
            lambda: metrics.effect_test(few[0][:500, :200], few[1][:500, :200]),
            permutations_by_scipy,
        ),
    }
    rows = []
    for name, (other, ours, theirs) in jobs.items():
        say(name)
        seconds = compare(ours, theirs)
        rows.append([name, other, *seconds, seconds[1] / seconds[0]])
    return pd.DataFrame(
        rows, columns=["quantity", "alternative", "ours (s)", "alternative (s)", "times faster"]
    ).set_index("quantity")


# ---------------------------------------------------------------------- one population, as the benchmark scores it


def one_population() -> pd.DataFrame:
    """1,000 observed and 1,000 predicted cells, 1,000 controls in each half, 299 genes: the size of Papalexi."""
    rng = np.random.default_rng(SEED)
    level = rng.gamma(0.5, 1.0, 299)
    effect = np.exp(rng.normal(0, 0.3, 299))
    draw = lambda mean: np.log1p(rng.poisson(mean * rng.gamma(5, 0.2, (1000, 1)))).astype(np.float32)
    observed, predicted, source, reference = draw(level * effect), draw(level * effect), draw(level), draw(level)
    pca = metrics.fit_pca(source)
    halves = metrics.cell_moments(source), metrics.cell_moments(reference)
    known = {"average": source.mean(0), "exclude": [0]}
    make = lambda: metrics.ObservedPopulation(observed, *halves, pca=pca)
    population = make()
    population.score(predicted, **known)
    options = {"pca": pca, "max_cells": 500, "metrics": "all", "spearman_brown": True, **known}
    jobs = {
        "all numbers of a prediction (`ObservedPopulation.score`)": lambda: population.score(predicted, **known),
        "… the first time, with all that is kept of the observed cells": lambda: make().score(predicted, **known),
        "noise ceiling of all numbers, 5 splits": lambda: metrics.noise_ceiling(observed, *halves, **options),
        "… with 95 % intervals, 200 bootstrap samples": lambda: metrics.noise_ceiling(
            observed, *halves, n_bootstrap=200, **options
        ),
        "test for an effect, 499 permutations": lambda: metrics.effect_test(observed, reference),
    }
    targets = ["20", "", "", "", "50"]
    best = alternate({name: lambda f=f: [timed(f) for _ in range(5)] for name, f in jobs.items()})
    rows = [[name, 1000 * seconds, target] for (name, seconds), target in zip(best.items(), targets, strict=True)]
    return pd.DataFrame(rows, columns=["one population", "CPU-ms", "target"]).set_index("one population")


# ---------------------------------------------------------------------- a whole screen


def whole_screen() -> pd.DataFrame:
    """100,000 cells x 2,000 genes: 80 perturbations of 1,000 cells and 20,000 controls, predictions of 1,000 cells each."""
    x, predicted = cells(100_000, N_GENES, 3), cells(80_000, N_GENES, 4)
    source, reference = (metrics.cell_moments(x[80_000 + 10_000 * half : 90_000 + 10_000 * half]) for half in (0, 1))
    pca = metrics.fit_pca(x[:5000])
    dense = x.shape[0] * N_GENES * 4 / 2**20

    def score():
        for start in range(0, 80_000, 1000):
            population = metrics.ObservedPopulation(x[start : start + 1000], source, reference, pca=pca)
            population.score(predicted[start : start + 1000], average=reference.mean, exclude=[0])

    def ceilings():
        for start in range(0, 80_000, 1000):
            options = {"pca": pca, "max_cells": 500, "metrics": "all", "n_splits": 2}
            metrics.noise_ceiling(x[start : start + 1000], source, reference, **options)

    def tests():
        for start in range(0, 80_000, 1000):
            metrics.effect_test(x[start : start + 1000], x[90_000:])

    def at_once():
        population = metrics.ObservedPopulation(x[:80_000], source, reference, pca=pca, max_cells=2000)
        population.score(predicted, average=reference.mean, exclude=[0])

    jobs = {
        "all numbers of 80 perturbations": score,
        "their noise ceilings, 2 splits": ceilings,
        "their tests for an effect": tests,
        "all numbers of one population of 80,000 cells": at_once,
        "a PCA of 20,000 of the cells": lambda: metrics.fit_pca(x[80_000:]),
        "Wasserstein of every gene, 50,000 cells each": lambda: metrics.wasserstein_genes(x[:50_000], x[50_000:]),
    }
    rows = []
    for name, job in jobs.items():
        say(name)
        rise = peak(job)
        rows.append([name, timed(job), f"{rise:.0f}"])
    rows.append(
        ["(the cells, sparse; dense in float32)", float("nan"), f"({x.data.nbytes * 2 / 2**20:.0f}; {dense:.0f})"]
    )
    return pd.DataFrame(rows, columns=["whole screen", "CPU-s", "rise of memory (MB)"]).set_index("whole screen")


def against_cell_eval() -> pd.DataFrame:
    """All numbers of 20 perturbations of 200 cells, 1,000 controls, 1,000 genes: counts in, tables out."""
    import anndata as ad

    rng = np.random.default_rng(SEED)
    level = rng.gamma(0.5, 2.0, 1000)
    labels = np.repeat(["control", *(f"gene_{i}" for i in range(20))], [1000, *[200] * 20])
    effects = {label: np.exp(rng.normal(0, 0.3, 1000) * (label != "control")) for label in np.unique(labels)}
    mean = np.stack([level * effects[label] for label in labels])
    draw = lambda: sp.csr_matrix(rng.poisson(mean * rng.gamma(5, 0.2, (len(mean), 1))).astype(np.float32))
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(1000)])
    obs = pd.DataFrame({"perturbation": labels}, index=np.arange(len(labels)).astype(str))
    observed, predicted = ad.AnnData(draw(), obs, var), ad.AnnData(draw(), obs, var)

    pca = metrics.fit_pca(metrics.log1p_normalize(observed.X[:1000]))

    def ours():
        x, y = metrics.log1p_normalize(observed.X), metrics.log1p_normalize(predicted.X)
        controls = [metrics.cell_moments(z[:1000]) for z in (y, x)]
        average = metrics.mean_profile(x[1000:])
        for start in range(1000, 5000, 200):
            population = metrics.ObservedPopulation(x[start : start + 200], *controls, pca=pca)
            population.score(y[start : start + 200], average=average, exclude=[0])

    n_numbers = sum(metric.needs != "panel" for metric in metrics.METRICS.values())
    seconds = compare(ours, lambda: metrics.cell_eval(predicted, observed, anchors=False))
    rows = [
        [f"ours, {n_numbers} numbers", seconds[0]],
        [f"cell-eval2 {version('cell-eval2')}, preset vcc2026, 6 numbers", seconds[1]],
    ]
    return pd.DataFrame(rows, columns=["20 perturbations", "CPU-s"]).set_index("20 perturbations")


def main() -> None:
    quiet()
    warnings.filterwarnings("ignore")
    say(f"{memory('VmRSS'):.0f} MB after the imports")
    parts = [
        (
            f"One thread, ours and the alternative alternated, minimum of CPU-seconds over {ROUNDS} rounds. "
            + ", ".join(f"{name} {version(name)}" for name in ("scikit-learn", "scanpy", "POT", "pandas")),
            None,
        ),
        (f"## Against libraries: 50,000 + 50,000 cells x {N_GENES:,} genes, 5 % not zero", against_libraries()),
        ("## One population: 1,000 + 1,000 cells x 299 genes, at most 500 of each in distances", one_population()),
        (f"## A whole screen: 100,000 cells x {N_GENES:,} genes, 5 % not zero, one run", whole_screen()),
        ("## The scorer of the Virtual Cell Challenge: 5,000 cells x 1,000 genes", against_cell_eval()),
    ]
    write_page("metrics_speed", "Speed of the metrics", parts, [SEED])


if __name__ == "__main__":
    main()
