"""Do predicted cells vary as much as real ones?"""

from __future__ import annotations

import numpy as np

from ._arrays import as_cells, check_same_genes, mean_profile, row_blocks
from ._moments import cell_moments
from ._profiles import pearson

# a variance at rounding level is none: identical cells in float32 are rarely identical to the last bit
_NO_VARIANCE = 1e-12


def gene_variance(x, name: str = "cells") -> np.ndarray:
    """Sample variance (``ddof=1``) of every gene over cells, in float64; NaN for fewer than two cells.

    Parameters
    ----------
    x
        (cells, genes), dense or sparse (not densified).
    name
        What to call ``x`` in an error.

    Returns
    -------
    (genes,) float64.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import gene_variance
    >>> gene_variance(np.array([[0.0, 1.0], [2.0, 1.0]]))
    array([2., 0.])
    """
    return cell_moments(as_cells(x, name), name).variance


def variance_ratio(observed, predicted) -> np.ndarray:
    """Predicted over observed variance of every gene across cells.

    1 is best; below 1 the predicted cells are too alike (under-dispersed, as expected values always are), above 1 they
    scatter too much. Summarise it with the median over genes; a ratio of medians of opposite errors hides both, so look at
    the quantiles too.

    Parameters
    ----------
    observed, predicted
        (cells, genes) populations, dense or sparse, on the same scale; ``predicted`` as draws (``sample=True``).

    Returns
    -------
    (genes,) float64; NaN where the observed variance is zero or a population has fewer than two cells.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import variance_ratio
    >>> variance_ratio(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 1.0]]))
    array([0.25,  nan])
    """
    check_same_genes(observed=observed, predicted=predicted)
    return divide_variances(gene_variance(predicted, "predicted"), gene_variance(observed, "observed"))


def divide_variances(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """(genes,) ratio; NaN where nothing was observed to vary."""
    ratio = np.full(observed.shape, np.nan)
    np.divide(predicted, observed, out=ratio, where=observed > _NO_VARIANCE)
    return ratio


def pair_dispersion(observed, predicted, genes: np.ndarray | None = None, *, n_genes: int = 100) -> tuple[float, float]:
    r"""Do genes go together in predicted cells as they do in real ones? Agreement and size of what pairs of genes share.

    .. math:: \operatorname{corr}_{g<h}(\hat R_{gh}, R_{gh}), \qquad
        \sum_{g<h} \hat C_{gh} C_{gh} \Big/ \sum_{g<h} C_{gh}^2

    with :math:`R` the correlations and :math:`C` the covariances of genes across cells. Both are 1 for the true distribution.
    The first has range [-1, 1] and says whether the right pairs go together; the second says how strongly (0: genes are drawn
    independently of each other given the mean, as by a decoder without a latent state). Sampling noise lowers both: the second
    by the noise in the sum below the line, so compare with a replicate.

    Parameters
    ----------
    observed, predicted
        (cells, genes) populations, dense or sparse, on the same scale; ``predicted`` as draws (``sample=True``).
    genes
        Indices of the genes whose pairs are compared; ``None`` takes those that vary most among the observed cells. Choose
        few: pairs grow with the square, and most pairs of rarely detected genes are noise.
    n_genes
        How many genes ``None`` takes at most.

    Returns
    -------
    correlation
        0 where the predicted genes do not vary together at all (a gene that does not vary has no correlations); NaN with fewer
        than 3 genes that vary among the observed cells, or where all their correlations are the same.
    slope
        NaN with fewer than 3 genes that vary, or without observed covariances.

    Both are NaN where a population has fewer than 3 cells: two cells correlate perfectly, whatever they are.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import pair_dispersion
    >>> cells = np.random.default_rng(0).normal(size=(50, 4)) @ np.array(
    ...     [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    ... )
    >>> [round(value, 6) for value in pair_dispersion(cells, 2 * cells)]
    [1.0, 4.0]
    """
    check_same_genes(observed=observed, predicted=predicted)
    observed, predicted = as_cells(observed, "observed"), as_cells(predicted, "predicted")
    genes = most_variable_genes(gene_variance(observed, "observed"), n_genes) if genes is None else np.asarray(genes)
    return compare_covariances(covariance(observed, genes), covariance(predicted, genes))


def most_variable_genes(variance: np.ndarray, n_genes: int) -> np.ndarray:
    """At most ``n_genes`` positions, the largest variance first; ties in the order of the genes."""
    order = np.argsort(-np.nan_to_num(variance), kind="stable")[:n_genes]
    return order[np.nan_to_num(variance[order]) > _NO_VARIANCE]


def covariance(x, genes: np.ndarray) -> np.ndarray:
    """Covariances of few genes across cells, a block of cells at a time; NaN with fewer than three cells."""
    x = x[:, genes]
    if x.shape[0] < 3:
        return np.full((x.shape[1], x.shape[1]), np.nan)
    mean, total = mean_profile(x), np.zeros((x.shape[1], x.shape[1]))
    for _, block in row_blocks(x):
        centred = block - mean
        total += centred.T @ centred
    return total / (x.shape[0] - 1)


def compare_covariances(observed: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """The two numbers of :func:`pair_dispersion` from two covariance matrices."""
    varies = np.diag(observed) > _NO_VARIANCE
    if varies.sum() < 3 or not np.isfinite(predicted).all():
        return float("nan"), float("nan")
    observed, predicted = observed[np.ix_(varies, varies)], predicted[np.ix_(varies, varies)]
    pairs = np.triu_indices(len(observed), 1)
    below = (observed[pairs] ** 2).sum()
    slope = float((predicted[pairs] * observed[pairs]).sum() / below) if below > 0 else float("nan")
    return pearson(_correlations(predicted)[pairs], _correlations(observed)[pairs]), slope


def _correlations(covariances: np.ndarray) -> np.ndarray:
    """Correlations; 0 with a gene that does not vary."""
    variance = np.diag(covariances)
    with np.errstate(divide="ignore"):
        scale = np.where(variance > _NO_VARIANCE, 1 / np.sqrt(variance), 0.0)
    return covariances * scale[:, None] * scale[None, :]
