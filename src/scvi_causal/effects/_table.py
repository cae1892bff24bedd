"""Effects of all treatments in all groups as one tidy table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from ._arguments import (
    check_options,
    check_rows,
    judge_clusters,
    make_cells,
    make_groups,
    make_predictor,
    make_reader,
    pick_targets,
)
from ._collect import collect
from ._estimators import FEW_CELLS, Estimate, Inference, estimate_arms, imbalance, reconstructed
from ._multiple import adjust_pvalues
from ._variance import FEWEST_CLUSTERS, n_clusters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from ._collect import Predictor, Reader, StratumPredictions
    from ._influence import Method
    from ._sums import Arms
    from ._variance import ClusterVariance

_BALANCE_LEVEL = 0.05


def estimate_effects(
    y: ArrayLike | Reader,
    treatment: ArrayLike,
    predicted: Mapping[str, ArrayLike] | Predictor | StratumPredictions | None = None,
    perturbations: str | Sequence[str] | None = None,
    *,
    contrast: str | None = "control",
    method: Method | Sequence[Method] = "robust",
    group: ArrayLike | pd.DataFrame | None = None,
    cluster: ArrayLike | None = None,
    cluster_variance: ClusterVariance = "jackknife",
    level: float = 0.95,
    simultaneous: bool = False,
    n_bootstrap: int = 1_000,
    genes: Sequence[str] | None = None,
    rows: ArrayLike | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Average effect of treatments on every gene, with intervals, from observed cells and the predictions of any model.

    In each group, the mean outcome had all its cells received the treatment, minus the same for the contrast. See
    :func:`marginal_mean` for the estimators and the user guide for what they assume. One pass over the cells, in chunks; only
    sums are kept.

    Parameters
    ----------
    y
        (cells, genes) outcomes on the scale on which effects are wanted, dense or sparse; or a function that gives the outcomes
        of some rows.
    treatment
        (cells,) label of what each cell received.
    predicted
        For each treatment the (cells, genes) predictions for *all* cells under it; or a function ``(rows, treatments)`` that
        yields one (rows, genes) array per treatment; or :class:`StratumPredictions`. ``None`` with ``method="group"``.
    perturbations
        Treatments to estimate; by default all labels but the contrast.
    contrast
        Treatment that effects are differences from; ``None`` gives the means themselves.
    method
        ``"group"``, ``"robust"``, ``"tuned"``, ``"mean"``, or several of them.
    group
        (cells,) labels of groups, or a DataFrame whose columns together tell groups apart; by default all cells are one.
        Treatments should have been assigned at random within groups.
    cluster
        (cells,) labels of clusters of dependent cells (donors, replicates, guides); by default cells are independent.
    cluster_variance
        ``"jackknife"`` leaves out one cluster after the other; ``"sandwich"`` is the textbook formula, which is too small where
        clusters are few and unequal.
    level
        Of the intervals.
    simultaneous
        Also give a band that holds for all genes of a perturbation and group together.
    n_bootstrap
        Draws of the multiplier bootstrap of the band; with clusters the band is Šidák's.
    genes
        Names of the genes; by default their positions.
    rows
        Cells to use, positions or a mask; by default all.
    seed
        Of the bootstrap.

    Returns
    -------
    DataFrame, one row per method, group, perturbation and gene:

    ``perturbation``, ``contrast``, the columns of the group (``group`` for an array), ``gene``, ``method``
        what the row is about;
    ``mean``, ``mean_contrast``
        marginal means under the perturbation and under the contrast;
    ``estimate``, ``se``, ``ci_low``, ``ci_high``
        their difference, its standard error and interval (Student's t: Welch's degrees of freedom, or those of the clusters);
        wider than Welch's where fewer than 10 cells of an arm have an outcome other than zero and so cannot tell its variance;
    ``band_low``, ``band_high``
        with ``simultaneous=True``;
    ``statistic``, ``pvalue``, ``padj``
        test of no effect; adjusted by Benjamini and Hochberg over all rows of a method;
    ``n_cells``, ``n_perturbed``, ``n_contrast``, ``n_clusters``
        cells of the group, of its two arms, and clusters in the smaller arm;
    ``balance_z``
        how many standard errors the predictions move the group mean; beyond chance they depend on what a cell received, or
        groups mix strata;
    ``flag``
        ``"model only"``: never observed in this group, so the estimate is the model's word, without an interval; ``"not
        observed"``: so there is no group mean; ``"unbalanced"``: ``balance_z`` is significant (5 % false discovery rate over the
        genes of the perturbation and group); ``"reconstructed"``: the predictions of observed cells are their own outcomes, all
        but (squared correlation above 0.98), so that nothing corrects the model and the interval is void; ``"few cells"``: an arm has fewer than 10; ``"few clusters"``: fewer than 3 in an
        arm, so no interval. Several are joined by ``", "``.

    Raises
    ------
    ValueError
        If shapes or labels do not fit, or no population has the three clusters that an interval needs.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.effects import estimate_effects
    >>> rng = np.random.default_rng(0)
    >>> treatment = np.repeat(["control", "A"], 200)
    >>> y = rng.normal(size=(400, 3)) + np.outer(treatment == "A", [1.0, 0.0, -1.0])
    >>> table = estimate_effects(y, treatment, method="group", genes=["g1", "g2", "g3"])
    >>> (table["padj"] < 0.05).tolist()
    [True, False, True]
    """
    labels = np.asarray(treatment).astype(str).astype(object)
    check_options(method, level, cluster_variance, predicted)
    methods = [method] if isinstance(method, str) else list(dict.fromkeys(method))
    rows = check_rows(rows, len(labels))
    read, n_genes = make_reader(y, len(labels), rows)
    names = np.arange(n_genes) if genes is None else np.asarray(genes, dtype=object)
    if len(names) != n_genes:
        raise ValueError(f"genes has {len(names)} names, and there are {n_genes} genes.")
    targets = pick_targets(perturbations, labels[rows], contrast)
    groups, of_row = make_groups(group, len(labels), rows)
    rng = np.random.default_rng(seed)
    cells = make_cells(labels, cluster, rows, simultaneous, rng)
    inference = Inference(level, None if cluster is None else cluster_variance, n_bootstrap * simultaneous, rng)

    parts, clustered = [], []
    for code in range(len(groups)):
        members = rows[of_row == code]
        for target, arms in collect(read, make_predictor(predicted), cells, members, targets, contrast, n_genes):
            n = 0 if cluster is None else n_clusters(arms)
            clustered.append(n)
            checks = None
            if predicted is not None and target != contrast:
                checks = (*imbalance(arms, inference), reconstructed(arms))
            for name in methods:
                head = {"perturbation": target, "contrast": contrast, **groups.iloc[code].to_dict()}
                estimate = (
                    estimate_arms(arms, name, inference) if target != contrast else _nothing(arms, name, inference)
                )
                parts.append(_rows(head, names, name, estimate, arms, n, checks, inference))
    if cluster is not None:
        judge_clusters(np.asarray(clustered))
    table = pd.concat(parts, ignore_index=True)
    table["padj"] = table.groupby("method", sort=False)["pvalue"].transform(adjust_pvalues)
    return table if cluster is not None else table.drop(columns="n_clusters")


def _rows(head, names, method, estimate: Estimate, arms: Arms, n, checks, inference) -> pd.DataFrame:
    """Rows of one group, perturbation and method."""
    half = estimate.se * stats.t.isf((1 - inference.level) / 2, estimate.df)
    n_genes = len(names)
    columns = {name: np.full(n_genes, value, dtype=object) for name, value in head.items()}
    columns |= {
        "gene": names,
        "method": np.full(n_genes, method, dtype=object),
        "mean": estimate.mean,
        "mean_contrast": estimate.mean_contrast,
        "estimate": estimate.estimate,
        "se": estimate.se,
        "ci_low": estimate.estimate - half,
        "ci_high": estimate.estimate + half,
    }
    if inference.n_bootstrap:
        width = estimate.se * estimate.critical
        columns |= {"band_low": estimate.estimate - width, "band_high": estimate.estimate + width}
    z, per_gene = np.full(n_genes, np.nan), {}
    if checks is not None:
        z, pvalue, known = checks
        if method != "group":
            per_gene = {"reconstructed": known, "unbalanced": adjust_pvalues(pvalue) < _BALANCE_LEVEL}
    sizes = [arms.target.n_cells] + ([] if arms.contrast is None else [arms.contrast.n_cells])
    columns |= {
        "statistic": estimate.statistic,
        "pvalue": estimate.pvalue,
        "padj": np.full(n_genes, np.nan),
        "n_cells": arms.n_cells,
        "n_perturbed": sizes[0],
        "n_contrast": sizes[1] if len(sizes) > 1 else 0,
        "n_clusters": n,
        "balance_z": z,
        "flag": _flags(estimate, min(sizes), n, per_gene, inference),
    }
    return pd.DataFrame(columns)


def _flags(estimate: Estimate, smallest: int, n: int, per_gene: dict, inference: Inference) -> np.ndarray:
    common = []
    if estimate.model_only:
        common.append("not observed" if np.isnan(estimate.estimate).all() else "model only")
    elif smallest < FEW_CELLS:
        common.append("few cells")
    if inference.clusters is not None and n < FEWEST_CLUSTERS and not estimate.model_only:
        common.append("few clusters")
    flags = np.full(len(estimate.estimate), ", ".join(common), dtype=object)
    for name, genes in per_gene.items():
        flags[genes] = [f"{flag}, {name}" if flag else name for flag in flags[genes]]
    return flags


def _nothing(arms: Arms, method: Method, inference: Inference) -> Estimate:
    """A treatment against itself: exactly nothing."""
    mean = estimate_arms(arms._replace(contrast=None), method, inference).mean
    zero = np.zeros(len(mean))
    critical = zero if inference.n_bootstrap else np.full(len(zero), np.nan)
    return Estimate(mean, mean, zero, zero, zero + 1.0, zero, zero + 1.0, False, critical)
