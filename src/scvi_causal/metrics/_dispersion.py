"""Do predicted cells vary as much as real ones?"""

from __future__ import annotations

import numpy as np

from ._arrays import check_same_genes, gene_variance


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
    real, guess = gene_variance(observed, "observed"), gene_variance(predicted, "predicted")
    ratio = np.full(real.shape, np.nan)
    # a variance at rounding level is none: identical cells in float32 are rarely identical to the last bit
    np.divide(guess, real, out=ratio, where=real > 1e-12)
    return ratio
