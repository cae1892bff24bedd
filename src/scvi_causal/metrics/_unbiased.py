"""Squared errors of the mean without what sampling noise adds to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._moments import cell_moments, profiles_of
from ._profiles import mean_over_genes

if TYPE_CHECKING:
    import numpy as np


def mse_unbiased(observed, predicted, genes: np.ndarray | None = None, *, capped: bool = False) -> float:
    r"""Squared error of the mean profile without the sampling noise of the two means.

    .. math:: \frac1G \sum_g \Big[(\hat b_g - b_g)^2 - \frac{\hat s_g^2}{m} - \frac{s_g^2}{n}\Big]

    0 is best, larger is worse; its expectation is the squared distance of the true means, so it falls below 0 at times.
    Unbiased where cells are independent draws. Predicted cells that are none (control cells moved to a fixed mean, draws in
    opposite pairs) are credited noise that their mean does not have. Where predictions compete, give their *mean profiles*:
    only the noise of the observation is then subtracted, nothing that a model could earn, and drawing too few cells costs.

    Parameters
    ----------
    observed, predicted
        Populations, or their :class:`Moments`. A (genes,) profile has no sampling noise: nothing is subtracted for it.
    genes
        Indices to restrict to.
    capped
        Subtract for the prediction at most what is subtracted for the observation (both summed over genes), as ``vcc2026``
        does, so that no prediction earns by scattering. Biased upwards for a prediction of few or very different cells.

    Returns
    -------
    float; NaN without a single gene, or for a population of one cell (its noise is not known).

    References
    ----------
    ``expr_mse_unbiased_capped_norm`` of cell-eval2, which estimates the noise by a jackknife of its pseudobulk.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mse, mse_unbiased
    >>> real, replicate = np.random.default_rng(0).normal(size=(2, 100, 500))
    >>> round(mse(real, replicate), 3), abs(mse_unbiased(real, replicate)) < 0.002
    (0.019, True)
    """
    truth, guess = cell_moments(observed, "observed"), cell_moments(predicted, "predicted")
    means = profiles_of(genes, observed=truth, predicted=guess)
    noise, credit = (mean_over_genes(x.noise if genes is None else x.noise[genes]) for x in (truth, guess))
    error = mean_over_genes((means[1] - means[0]) ** 2)
    return error - noise - (min(credit, noise) if capped else credit)


def mse_ratio_unbiased(
    observed, predicted, control_source, genes: np.ndarray | None = None, *, capped: bool = False
) -> float:
    r"""Noise-corrected squared error of a prediction over that of the control prediction "nothing changes".

    .. math:: \frac{|\hat b - b|^2 - \hat\sigma^2 - \sigma^2}{|c - b|^2 - \sigma_c^2 - \sigma^2},\quad
        \sigma^2 = \sum_g s_g^2 / n

    0 is a prediction as good as a replicate of any size, 1 is no better than predicting the control cells unchanged; it falls
    below 0 at times. Both sides are unbiased, their ratio is not quite, and it is wild where the effect is hardly larger than
    its noise: show the median over perturbations, or leave out those that :func:`effect_test` cannot tell from control.

    Parameters
    ----------
    observed, predicted
        Populations, or their :class:`Moments`; a profile has no sampling noise.
    control_source
        Cells (or Moments) of the controls the prediction started from. Their mean alone is taken as exact, which makes the
        denominator too large and the ratio too small.
    genes
        Indices to restrict to.
    capped
        As in :func:`mse_unbiased`: the prediction is credited at most the noise of the observation.

    Returns
    -------
    float; NaN where the corrected denominator is not above 0 (no effect beyond the noise), or for a population of one cell.

    References
    ----------
    ``expr_mse_unbiased_capped_norm`` of cell-eval2, which sums both sides over the perturbations before it divides.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mse_ratio_unbiased
    >>> real, replicate, control = np.random.default_rng(0).normal(size=(3, 100, 500))
    >>> abs(mse_ratio_unbiased(real + 1, replicate + 1, control)) < 0.01
    True
    """
    observed = cell_moments(observed, "observed")
    baseline = mse_unbiased(observed, cell_moments(control_source, "control_source"), genes)
    return mse_unbiased(observed, predicted, genes, capped=capped) / baseline if baseline > 0 else float("nan")
