"""Metrics on mean profiles: how far is the predicted mean from the observed one?

Every function takes populations (cells, genes), dense or sparse, on log1p-normalised expression, their
:class:`~scvi_causal.metrics.Moments`, or their (genes,) means. ``genes`` are indices or a boolean mask to restrict to.
"""

from __future__ import annotations

import numpy as np

from ._moments import effects_of, profiles_of

# Below this an effect is rounding noise of float32 expression, not a prediction: a correlation with it means nothing.
CONSTANT = 1e-6


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
    truth, reference = profiles_of(observed=observed, control_reference=control_reference)
    return np.argsort(-np.abs(truth - reference), kind="stable")[:n_de]


def r2_score_genes(observed, predicted, genes: np.ndarray | None = None) -> float:
    r"""Coefficient of determination of the mean profile over genes.

    .. math:: R^2 = 1 - \sum_g (\hat b_g - b_g)^2 / \sum_g (b_g - \bar b)^2

    Range (-inf, 1], 1 is best. Over all genes it mostly measures the baseline expression that control cells share (control
    itself scores above 0.9 on most data); restrict it to ``genes`` that change. Sampling noise of either mean lowers it.

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
    truth, guess = profiles_of(genes, observed=observed, predicted=predicted)
    if truth.size == 0 or truth.std() <= CONSTANT:
        return float("nan")
    return float(1.0 - ((guess - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def mae(observed, predicted, genes: np.ndarray | None = None) -> float:
    r"""Mean over genes of the absolute difference of the mean profiles, :math:`\frac1G \sum_g |\hat b_g - b_g|`.

    Range [0, inf), 0 is best, in units of log1p expression. Biased upwards by the sampling noise of both means, most where
    the true difference is small: two replicates score about :math:`\sqrt{2 v_g (1/n + 1/m) / \pi}` on each gene.

    Parameters
    ----------
    observed, predicted
        Populations or mean profiles.
    genes
        Indices to restrict to.

    Returns
    -------
    float; NaN without a single gene.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mae
    >>> mae(np.array([0.0, 2.0]), np.array([1.0, 2.0]))
    0.5
    """
    truth, guess = profiles_of(genes, observed=observed, predicted=predicted)
    return mean_over_genes(np.abs(guess - truth))


def mse(observed, predicted, genes: np.ndarray | None = None) -> float:
    """Mean over genes of the squared difference of the mean profiles. Range [0, inf), 0 is best.

    Biased upwards by the sampling noise of both means: even a replicate of n cells scores about (variance / n) twice.
    :func:`mse_unbiased` takes that out. NaN without a single gene.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mse
    >>> mse(np.array([0.0, 2.0]), np.array([1.0, 2.0]))
    0.5
    """
    truth, guess = profiles_of(genes, observed=observed, predicted=predicted)
    return mean_over_genes((guess - truth) ** 2)


def mse_ratio(observed, predicted, control_source_mean) -> float:
    """Mean squared error of a prediction over that of the control prediction "nothing changes".

    Range [0, inf): 0 is perfect, 1 is no better than predicting the control cells unchanged. Sampling noise enters both
    sides and pulls the ratio towards 1; :func:`mse_ratio_unbiased` takes it out.

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
    With independent ones noise on either side pulls it towards 0.

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
    *observed* one is, or there are fewer than two genes.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import pearson_effect
    >>> control = np.array([1.0, 1.0, 1.0])
    >>> round(pearson_effect(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.5, 2.0]), control, control), 6)
    1.0
    """
    return pearson(*effects_of(observed, predicted, control_source_mean, control_reference, genes))


def cosine_effect(
    observed, predicted, control_source_mean, control_reference=None, genes: np.ndarray | None = None
) -> float:
    r"""Cosine of the angle between predicted and observed effect.

    .. math:: \hat\delta^\top \delta \,/\, (|\hat\delta|\,|\delta|),\quad
        \hat\delta = \hat b - c^{A},\; \delta = b - c^{B}

    Range [-1, 1], 1 is best. Unlike :func:`pearson_effect` it does not take the mean over genes out, so a shift that all genes
    share counts as effect (and a wrong library size too). Shared controls inflate it in the same way.

    Parameters
    ----------
    observed, predicted, control_source_mean, control_reference, genes
        As in :func:`pearson_effect`.

    Returns
    -------
    float. 0 where the *predicted* effect is zero on all genes, NaN where the *observed* one is.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import cosine_effect
    >>> control = np.zeros(2)
    >>> round(cosine_effect(np.array([1.0, 1.0]), np.array([2.0, 0.0]), control, control), 4)
    0.7071
    """
    guess, truth = effects_of(observed, predicted, control_source_mean, control_reference, genes)
    if truth.size == 0 or np.abs(truth).max() <= CONSTANT:
        return float("nan")
    if np.abs(guess).max() <= CONSTANT:
        return 0.0
    return float(guess @ truth / np.sqrt((guess @ guess) * (truth @ truth)))


def pearson_centred(observed, predicted, average, genes: np.ndarray | None = None) -> float:
    r"""Pearson correlation over genes after the average perturbed profile is taken out on both sides.

    .. math:: \operatorname{corr}_g(\hat b_g - O_g,\; b_g - O_g)

    Range [-1, 1], 1 is best: does the prediction know what is *special* about this perturbation? The effect that all
    perturbations have in common, which makes up most of :func:`pearson_effect` on many screens, earns nothing; predicting the
    average scores 0. Noise of the observed mean pulls it towards 0. Noise of ``O`` is on both sides, which inflates it where
    few perturbations were averaged; and a prediction of "no effect" scores high on perturbations that have none, as both are
    then :math:`c - O`.

    Parameters
    ----------
    observed, predicted
        Populations or mean profiles.
    average
        (genes,) ``O``: the unweighted mean of the mean profiles of the *training* perturbations (never of the test ones).
    genes
        Indices to restrict to.

    Returns
    -------
    float. 0 where the prediction is ``O`` itself, NaN where the observation is.

    References
    ----------
    The perturbed reference of Systema: Viñas Torné et al., *Systema: a framework for evaluating genetic perturbation response
    prediction beyond systematic variation*, Nat. Biotechnol. 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import pearson_centred
    >>> average = np.array([1.0, 2.0, 3.0])
    >>> pearson_centred(np.array([1.0, 2.0, 5.0]), average, average)
    0.0
    """
    return pearson(*effects_of(observed, predicted, average, None, genes))


def pearson(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Pearson correlation with the conventions of :func:`pearson_effect` on constant input."""
    if observed.size < 2 or observed.std() <= CONSTANT:
        return float("nan")
    if predicted.std() <= CONSTANT:
        return 0.0
    predicted, observed = predicted - predicted.mean(), observed - observed.mean()
    return float(predicted @ observed / np.sqrt((predicted @ predicted) * (observed @ observed)))


def mean_over_genes(values: np.ndarray) -> float:
    """Mean, NaN without a single gene (numpy would warn)."""
    return float(values.mean()) if values.size else float("nan")
