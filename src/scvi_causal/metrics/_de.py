"""Which genes change significantly, and does a prediction find them?

Differential expression of log1p-normalised cells against control cells, and the metrics on its calls. A predicted population
calls more genes the more cells it has and the less they scatter, so compare models at the same number of predicted cells, and
against a replicate of real cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import stats

from ._arrays import check_same_genes
from ._moments import Moments, cell_moments
from ._profiles import CONSTANT
from ._ranks import rank_sum_test

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def differential_expression(
    cells, controls, *, method: Literal["t-test", "wilcoxon"] = "t-test", alpha: float = 0.05
) -> pd.DataFrame:
    r"""Test every gene for a difference between cells and control cells.

    ``"t-test"`` is Welch's, from moments alone: nothing is sorted, sparse cells stay sparse, and a side that takes part in
    many tests can be given as :class:`Moments`, computed once. ``"wilcoxon"`` is the two-sided rank-sum test with correction
    for ties and continuity, in blocks of genes: slower, the choice where few cells with outliers are compared.

    Parameters
    ----------
    cells
        (cells, genes) log1p-normalised, dense or sparse, or their :class:`Moments` (t-test only).
    controls
        The same of the control cells: half B for observed cells, half A for predicted ones.
    method
        ``"t-test"`` or ``"wilcoxon"``.
    alpha
        False discovery rate of the calls.

    Returns
    -------
    DataFrame with one row per gene, indexed by its position:

    ``lfc``
        difference of the means of log1p expression (natural logarithm),
    ``statistic``
        Welch's t or the z of the rank sum, positive where the gene goes up,
    ``pvalue``, ``padj``
        two-sided, and adjusted over genes by Benjamini and Hochberg,
    ``significant``
        ``padj < alpha``.

    A gene without variance on both sides has a p-value of 1 where its means are equal and 0 where they differ. The t-test of a
    single cell does not exist: statistic and p-values are NaN, nothing is significant.

    Raises
    ------
    ValueError
        If the method is unknown, the genes differ, a population is empty, a value is not finite, or profiles are given.

    See Also
    --------
    scipy.stats.ttest_ind_from_stats, scipy.stats.mannwhitneyu, scipy.stats.false_discovery_control

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import differential_expression
    >>> rng = np.random.default_rng(0)
    >>> table = differential_expression(rng.normal(size=(50, 3)) + [0.0, 2.0, -2.0], rng.normal(size=(50, 3)))
    >>> table["significant"].tolist()
    [False, True, True]
    """
    if method not in ("t-test", "wilcoxon"):
        raise ValueError(f"method: expected 't-test' or 'wilcoxon', got {method!r}.")
    for name, x in {"cells": cells, "controls": controls}.items():
        if not isinstance(x, Moments) and np.ndim(x) == 1:
            raise ValueError(f"{name}: one profile cannot be tested; give (cells, genes), or their Moments.")
        if isinstance(x, Moments) and method == "wilcoxon":
            raise ValueError(
                f"{name}: a rank-sum test needs the cells, got Moments. Use method='t-test' or give cells."
            )
    moments, control_moments = cell_moments(cells, "cells"), cell_moments(controls, "controls")
    check_same_genes(cells=moments.mean, controls=control_moments.mean)
    if method == "t-test":
        statistic, pvalue = welch_t(moments, control_moments)
    else:
        statistic, pvalue = rank_sum_test(cells, controls)
    padj = pvalue if np.isnan(pvalue).any() else stats.false_discovery_control(pvalue)
    lfc = moments.mean - control_moments.mean
    columns = {"lfc": lfc, "statistic": statistic, "pvalue": pvalue, "padj": padj, "significant": padj < alpha}
    return pd.DataFrame(columns)


def welch_t(cells: Moments, controls: Moments) -> tuple[np.ndarray, np.ndarray]:
    """(genes,) Welch's t and its two-sided p-value; NaN for a single cell, see :func:`differential_expression`."""
    check_same_genes(cells=cells.mean, controls=controls.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        t, pvalue = stats.ttest_ind_from_stats(
            cells.mean,
            np.sqrt(cells.variance),
            cells.n_cells,
            controls.mean,
            np.sqrt(controls.variance),
            controls.n_cells,
            equal_var=False,
        )
    # identical cells in float32 are rarely identical to the last bit: rounding is neither variance nor difference
    difference = cells.mean - controls.mean
    fixed = (cells.variance <= CONSTANT**2) & (controls.variance <= CONSTANT**2)
    differs = np.abs(difference) > CONSTANT
    t = np.where(fixed, np.where(differs, np.copysign(np.inf, difference), 0.0), t)
    return t, np.where(fixed, np.where(differs, 0.0, 1.0), pvalue)


def de_direction(observed_de: pd.DataFrame, predicted_effect: ArrayLike) -> float:
    """Share of the significant genes whose predicted effect has the observed sign.

    Range [0, 1], 1 is best, 0.5 is chance. A predicted effect of zero (within rounding) has no direction and counts one half.
    Most perturbations of one screen move the same genes the same way, so that the perturbed mean scores high too. Nearly
    unbiased: significant genes rarely have the wrong observed sign.

    Parameters
    ----------
    observed_de
        Table of :func:`differential_expression` of the observed cells.
    predicted_effect
        (genes,) predicted mean minus the mean of the controls it started from.

    Returns
    -------
    float; NaN where no gene is significant.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.metrics import de_direction
    >>> observed = pd.DataFrame({"lfc": [1.0, -1.0, 0.1], "significant": [True, True, False]})
    >>> de_direction(observed, [0.5, 0.5, -3.0])
    0.5
    """
    predicted = _per_gene(predicted_effect, "predicted_effect", observed_de)
    significant = observed_de["significant"].to_numpy(dtype=bool)
    if not significant.any():
        return float("nan")
    truth, guess = observed_de["lfc"].to_numpy()[significant], predicted[significant]
    right = np.where(np.abs(guess) > CONSTANT, np.sign(guess) == np.sign(truth), 0.5)
    return float(right.mean())


def de_overlap(observed_de: pd.DataFrame, predicted_de: pd.DataFrame) -> float:
    r"""Jaccard index of the significant genes, :math:`|S \cap \hat S| / |S \cup \hat S|`, whatever their direction.

    Range [0, 1], 1 is best. Biased downwards by the noise of both calls: two replicates of real cells stay far below 1, so read
    it against the ceiling. It depends on the numbers of cells on both sides and on the scatter of the predicted ones.

    Parameters
    ----------
    observed_de, predicted_de
        Tables of :func:`differential_expression`, each against its own control half.

    Returns
    -------
    float; NaN where neither side has a significant gene, or the predicted side could not be tested (a single cell).

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.metrics import de_overlap
    >>> observed = pd.DataFrame({"pvalue": [0.0, 0.0, 1.0], "significant": [True, True, False]})
    >>> predicted = pd.DataFrame({"pvalue": [0.0, 1.0, 1.0], "significant": [True, False, False]})
    >>> de_overlap(observed, predicted)
    0.5
    """
    _check_tables(observed_de, predicted_de)
    if observed_de["pvalue"].isna().all() or predicted_de["pvalue"].isna().all():
        return float("nan")
    truth, guess = (table["significant"].to_numpy(dtype=bool) for table in (observed_de, predicted_de))
    either = int((truth | guess).sum())
    return float((truth & guess).sum() / either) if either else float("nan")


def de_overlap_at_k(observed_de: pd.DataFrame, predicted_score: ArrayLike, k: int = 50) -> float:
    """Share of the strongest significant genes that are also the strongest predicted ones.

    The significant genes with the largest ``|lfc|``, at most ``k``, against as many genes with the largest predicted score.
    Range [0, 1], 1 is best; chance is the number of genes drawn over all genes. Genes with equal scores count by the chance of
    being drawn among them, so that a constant prediction scores chance whatever the order of the genes. Biased downwards by
    noise: genes of nearly equal effect swap places between replicates.

    Parameters
    ----------
    observed_de
        Table of :func:`differential_expression` of the observed cells.
    predicted_score
        (genes,) larger for genes that are predicted to change more, such as the absolute predicted effect.
    k
        How many genes at most.

    Returns
    -------
    float; NaN where no gene is significant.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.metrics import de_overlap_at_k
    >>> observed = pd.DataFrame({"lfc": [3.0, -2.0, 0.1], "significant": [True, True, False]})
    >>> de_overlap_at_k(observed, [1.0, 0.0, 0.5], k=2)
    0.5
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1 gene, got {k}.")
    score = _per_gene(predicted_score, "predicted_score", observed_de)
    significant = np.flatnonzero(observed_de["significant"].to_numpy(dtype=bool))
    k = min(k, significant.size)
    if k == 0:
        return float("nan")
    size = np.abs(observed_de["lfc"].to_numpy()[significant])
    truth = significant[np.argsort(-size, kind="stable")[:k]]
    cut = np.sort(score)[-k]
    above, tied = score > cut, score == cut
    found = above[truth].sum() + tied[truth].sum() * (k - above.sum()) / tied.sum()
    return float(found / k)


def de_auprc(observed_de: pd.DataFrame, predicted_score: ArrayLike) -> tuple[float, float]:
    r"""Area under the precision-recall curve of a predicted ranking of genes for the observed calls.

    Average precision, :math:`\sum_n (R_n - R_{n-1}) P_n`, over thresholds of the score, without interpolation. Range [0, 1], 1
    is best; chance is the *prevalence* (the share of significant genes), which differs between perturbations by orders of
    magnitude and is returned beside it. Biased downwards by observed calls that are noise or were missed.

    Parameters
    ----------
    observed_de
        Table of :func:`differential_expression` of the observed cells.
    predicted_score
        (genes,) larger for genes that are more surely predicted to change: the absolute statistic of the predicted cells, or
        the absolute predicted effect. Infinite values are allowed; only the order counts.

    Returns
    -------
    value
        float; NaN where no gene is significant or the scores are all NaN (the t-test of a single cell).
    prevalence
        Share of significant genes.

    See Also
    --------
    sklearn.metrics.average_precision_score

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.metrics import de_auprc
    >>> de_auprc(pd.DataFrame({"significant": [True, False, False, True]}), [3.0, 0.0, 1.0, 2.0])
    (1.0, 0.5)
    """
    from sklearn.metrics import average_precision_score

    score = np.asarray(predicted_score, dtype=np.float64)
    truth = observed_de["significant"].to_numpy(dtype=bool)
    prevalence = float(truth.mean()) if truth.size else float("nan")
    if truth.any() and score.shape == truth.shape and np.isnan(score).all():
        return float("nan"), prevalence
    score = _per_gene(score, "predicted_score", observed_de)
    if not truth.any():
        return float("nan"), prevalence
    return float(average_precision_score(truth, stats.rankdata(score))), prevalence


def _per_gene(values: ArrayLike, name: str, table: pd.DataFrame) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(table),):
        raise ValueError(
            f"{name}: expected one number per gene, ({len(table)},), got an array of shape {values.shape}."
        )
    n_bad = int(np.isnan(values).sum())
    if n_bad:
        raise ValueError(f"{name}: {n_bad} of {values.size} genes are NaN. A prediction that is NaN cannot be scored.")
    return values


def _check_tables(observed_de: pd.DataFrame, predicted_de: pd.DataFrame) -> None:
    if len(observed_de) != len(predicted_de):
        raise ValueError(
            "Both tables need the same genes in the same order; got different numbers of genes "
            f"(observed_de: {len(observed_de)}, predicted_de: {len(predicted_de)})."
        )
