"""Do genes move the right way?"""

from __future__ import annotations

import numpy as np

from ._moments import effects_of


def direction_agreement(
    observed,
    predicted,
    control_source_mean,
    control_reference=None,
    genes: np.ndarray | None = None,
    *,
    tolerance: float = 1e-6,
) -> tuple[float, float]:
    """Shares of genes whose predicted effect has the direction of the observed one, and the opposite one.

    An effect is up, down, or none (within ``tolerance``). Without a threshold half of the genes that do not respond agree by
    chance, so that a floor of one half is normal over all genes; restrict it to ``genes`` that change.

    Parameters
    ----------
    observed, predicted
        Populations or mean profiles.
    control_source_mean
        Mean (or cells) of the controls the prediction started from.
    control_reference
        Cells (or mean) of independent controls to measure the observed effect against. ``None`` shares the former, as
        published.
    genes
        Indices to restrict to, such as those of :func:`top_de_genes`.
    tolerance
        Effects of at most this size are none. The rounding of float32 means is no direction.

    Returns
    -------
    correct
        Share of genes with the same direction; no effect on both sides counts as the same.
    opposite
        Share of genes with opposite directions. The remainder has an effect on one side only.

    Both are NaN without a single gene.

    References
    ----------
    "Frac Correct Direction" and "Frac Changed Direction" of :cite:t:`Liu2026SCCVAE`.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import direction_agreement
    >>> control = np.zeros(4)
    >>> direction_agreement(np.array([1.0, -1.0, 1.0, 0.0]), np.array([2.0, -0.5, -1.0, 1.0]), control)
    (0.5, 0.25)
    """
    effects = effects_of(observed, predicted, control_source_mean, control_reference, genes)
    if effects[0].size == 0:
        return float("nan"), float("nan")
    guess, truth = (np.where(np.abs(effect) > tolerance, np.sign(effect), 0.0) for effect in effects)
    difference = np.abs(guess - truth)
    return float((difference == 0).mean()), float((difference == 2).mean())
