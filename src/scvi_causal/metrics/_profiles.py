"""Metrics on mean profiles and on effects (the difference of two mean profiles).

Every function takes populations (cells, genes), dense or sparse, on log1p-normalised expression, or their (genes,) means.
"""

from __future__ import annotations

import numpy as np

from ._arrays import check_same_genes, mean_profile

# Below this an effect is rounding noise of float32 expression, not a prediction: a correlation with it means nothing.
_CONSTANT = 1e-6


def top_de_genes(observed, control_reference, n_de: int = 50) -> np.ndarray:
    """Indices of the genes with the largest absolute effect, largest first.

    Parameters
    ----------
    observed
        Perturbed cells, or their mean.
    control_reference
        Control cells that no prediction used, or their mean.
    n_de
        How many; at most all genes.

    Returns
    -------
    (n_de,) integer gene indices. Ties keep the order of the genes, so that the choice does not depend on the machine.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import top_de_genes
    >>> top_de_genes(np.array([1.0, 5.0, -9.0]), np.zeros(3), n_de=2)
    array([2, 1])
    """
    check_same_genes(observed=observed, control_reference=control_reference)
    effect = mean_profile(observed, "observed") - mean_profile(control_reference, "control_reference")
    return np.argsort(-np.abs(effect), kind="stable")[:n_de]


def r2_score_genes(observed, predicted, genes: np.ndarray | None = None) -> float:
    r"""Coefficient of determination of the mean profile over genes.

    .. math:: R^2 = 1 - \sum_g (\hat b_g - b_g)^2 / \sum_g (b_g - \bar b)^2

    Range (-inf, 1], 1 is best. Over all genes it mostly measures the baseline expression that control cells share (control
    itself scores above 0.9 on most data); restrict it to ``genes`` that change.

    Parameters
    ----------
    observed, predicted
        Populations or mean profiles, the same genes in the same order.
    genes
        Indices to restrict to, such as those of :func:`top_de_genes`; ``None`` takes all.

    Returns
    -------
    float; NaN where the observed profile is constant over the genes (nothing to explain).

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import r2_score_genes
    >>> r2_score_genes(np.array([0.0, 2.0]), np.array([1.0, 2.0]))
    0.5
    """
    check_same_genes(observed=observed, predicted=predicted)
    truth, guess = mean_profile(observed, "observed"), mean_profile(predicted, "predicted")
    if genes is not None:
        truth, guess = truth[genes], guess[genes]
    total = ((truth - truth.mean()) ** 2).sum()
    return float(1.0 - ((guess - truth) ** 2).sum() / total) if total > 0 else float("nan")


def mse(observed, predicted, genes: np.ndarray | None = None) -> float:
    """Mean over genes of the squared difference of the mean profiles. Range [0, inf), 0 is best.

    Biased upwards by the sampling noise of both means: even a replicate of n cells scores about (variance / n) twice.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mse
    >>> mse(np.array([0.0, 2.0]), np.array([1.0, 2.0]))
    0.5
    """
    check_same_genes(observed=observed, predicted=predicted)
    difference = mean_profile(predicted, "predicted") - mean_profile(observed, "observed")
    return float(np.mean((difference if genes is None else difference[genes]) ** 2))


def mse_ratio(observed, predicted, control_source_mean) -> float:
    """Mean squared error of a prediction over that of the control prediction "nothing changes".

    Range [0, inf): 0 is perfect, 1 is no better than predicting the control cells unchanged.

    Parameters
    ----------
    observed, predicted
        Populations or mean profiles.
    control_source_mean
        Mean (or cells) of the controls the prediction started from: what "nothing changes" predicts.

    Returns
    -------
    float; NaN where the control prediction is exact already.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mse_ratio
    >>> mse_ratio(np.array([0.0, 2.0]), np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    0.25
    """
    baseline = mse(observed, control_source_mean)
    return mse(observed, predicted) / baseline if baseline > 0 else float("nan")


def pearson_effect(
    observed, predicted, control_source_mean, control_reference=None, genes: np.ndarray | None = None
) -> float:
    r"""Pearson correlation over genes of predicted and observed effect.

    .. math:: \operatorname{corr}_g(\hat b_g - c^{A}_g,\; b_g - c^{B}_g)

    Range [-1, 1], 1 is best. The controls are *independent* halves: A is what models saw and predicted from, B is measured
    against. With the same controls on both sides the noise of their mean enters both effects and is scored as agreement.

    Parameters
    ----------
    observed, predicted
        Populations or mean profiles.
    control_source_mean
        Mean (or cells) of control half A.
    control_reference
        Cells (or mean) of control half B. ``None`` shares half A: only to show the inflation.
    genes
        Indices to restrict to.

    Returns
    -------
    float. 0 where the *predicted* effect is the same on all genes (a prediction of no effect has no skill), NaN where the
    *observed* one is.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import pearson_effect
    >>> control = np.array([1.0, 1.0, 1.0])
    >>> round(pearson_effect(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.5, 2.0]), control, control), 6)
    1.0
    """
    control_reference = control_source_mean if control_reference is None else control_reference
    check_same_genes(observed=observed, predicted=predicted, source=control_source_mean, reference=control_reference)
    predicted_effect = mean_profile(predicted, "predicted") - mean_profile(control_source_mean, "control_source_mean")
    observed_effect = mean_profile(observed, "observed") - mean_profile(control_reference, "control_reference")
    if genes is not None:
        predicted_effect, observed_effect = predicted_effect[genes], observed_effect[genes]
    return pearson(predicted_effect, observed_effect)


def pearson(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Pearson correlation with the conventions of :func:`pearson_effect` on constant input."""
    if observed.size < 2 or observed.std() <= _CONSTANT:
        return float("nan")
    if predicted.std() <= _CONSTANT:
        return 0.0
    predicted, observed = predicted - predicted.mean(), observed - observed.mean()
    return float(predicted @ observed / np.sqrt((predicted @ predicted) * (observed @ observed)))
