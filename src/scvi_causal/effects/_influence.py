"""One marginal mean with its influence values, cell by cell: the definition that the streamed sums are tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Method = Literal["group", "mean", "robust", "tuned"]
"""``"group"``: mean of the treated cells; ``"mean"``: plug-in, mean of the predictions; ``"robust"``: the mean of the predictions
plus what they miss on the treated cells; ``"tuned"``: the same with predictions scaled, gene by gene, to help most."""


class MarginalMean(NamedTuple):
    """A marginal mean and what each cell contributes to its error.

    Means of several treatments in the same cells can be subtracted, estimates and influence values alike.
    """

    estimate: np.ndarray
    """(genes,)"""
    influence: np.ndarray
    """(cells, genes) influence values; they sum to zero over cells."""


def marginal_mean(
    y: ArrayLike,
    predicted: ArrayLike | None,
    treated: ArrayLike,
    *,
    method: Method = "robust",
    form: Literal["hajek", "plug-in"] = "hajek",
) -> MarginalMean:
    r"""Mean outcome of a group of cells, had they all received one treatment.

    With :math:`f_k` the prediction for cell k under the treatment, :math:`A_k` whether it received it, bars for means over all
    :math:`n_x` cells of the group or its :math:`n_a` treated cells, :math:`r = n_x / n_a` and :math:`\varepsilon = y - \beta f`,

    .. math::
        \hat\Psi &= \bar y_a + \beta (\bar f_x - \bar f_a), \\
        \varphi_k &= \beta (f_k - \bar f_x) + r A_k (\varepsilon_k - \bar\varepsilon_a)

    where :math:`\beta` is 0 for ``"group"``, 1 for ``"robust"`` (equation 4 of :cite:t:`Wu2023GraphVCI`), and the regression
    slope of y on f among the treated cells for ``"tuned"``. ``"mean"`` is :math:`\bar f_x`, with
    :math:`\varphi_k = f_k - \bar f_x`: it knows nothing of how wrong the predictions are.

    Parameters
    ----------
    y
        (cells, genes) observed outcomes, dense or sparse, of all cells of one group. Those of untreated cells are not used.
    predicted
        (cells, genes) predictions for all cells under the treatment; may be ``None`` for ``"group"``.
    treated
        (cells,) which cells received the treatment.
    method
        See above.
    form
        ``"hajek"`` is valid for any predictions that do not depend on the treatment a cell received. ``"plug-in"``,
        :math:`(f_k - \hat\Psi) + r A_k \varepsilon_k`, needs predictions that are right on average among the treated cells, and
        gives intervals that are far too wide otherwise. It is there to be compared with.

    Returns
    -------
    Estimate and influence values; the result is dense, so meant for one group of cells at a time. :func:`estimate_effects`
    streams.

    Raises
    ------
    ValueError
        If shapes do not fit, no cell is treated (only ``"mean"`` exists then), or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.effects import marginal_mean, standard_error
    >>> rng = np.random.default_rng(0)
    >>> state, treated = rng.normal(size=(600, 1)), rng.random(600) < 0.15
    >>> y = 2.0 + 1.5 * state + rng.normal(0, 0.5, (600, 1))
    >>> group = marginal_mean(y, None, treated, method="group")
    >>> robust = marginal_mean(y, 2.0 + 1.5 * state, treated)
    >>> bool(standard_error(robust.influence) < 0.6 * standard_error(group.influence))
    True
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is not one of {', '.join(map(repr, get_args(Method)))}.")
    if form not in ("hajek", "plug-in"):
        raise ValueError(f"form={form!r} is neither 'hajek' nor 'plug-in'.")
    y, f, a = _check(y, predicted, treated, method)
    if method == "mean":
        return MarginalMean(f.mean(0), f - f.mean(0))
    n_x, n_a = len(a), int(a.sum())
    slope = {"group": 0.0, "robust": 1.0}.get(method)
    if slope is None:
        slope = regression_slope(y[a], f[a])
    f = slope * f
    estimate = y[a].mean(0) + (f.mean(0) - f[a].mean(0))
    rest = y[a] - f[a]
    if form == "plug-in":
        influence = f - estimate
        influence[a] += n_x / n_a * rest
    else:
        influence = f - f.mean(0)
        influence[a] += n_x / n_a * (rest - rest.mean(0))
    return MarginalMean(estimate, influence)


def regression_slope(y: np.ndarray, f: np.ndarray) -> np.ndarray:
    """(genes,) slope of y on f, 0 where f does not vary or there are fewer than three cells."""
    centred = f - f.mean(0)
    return slope_of_moments((centred * y).sum(0), (centred**2).sum(0), (f**2).sum(0), len(f))


def slope_of_moments(cross: np.ndarray, scatter: np.ndarray, size: np.ndarray, n_cells: int) -> np.ndarray:
    """(genes,) ``cross / scatter``, 0 where the scatter is nothing but rounding of sums of squares of this ``size``."""
    real = (scatter > 1e-12 * size) & (n_cells >= 3)
    return np.where(real, cross / np.where(real, scatter, 1.0), 0.0)


def standard_error(influence: ArrayLike, cluster: ArrayLike | None = None) -> np.ndarray:
    r"""Standard error of a mean, or of a difference of means, from its influence values.

    :math:`\sqrt{\sum_k \varphi_k^2} / n`; with clusters of dependent cells, C of them,
    :math:`\sqrt{\tfrac{C}{C-1} \sum_c (\sum_{k \in c} \varphi_k)^2} / n`.

    Parameters
    ----------
    influence
        (cells, genes) influence values.
    cluster
        (cells,) labels of clusters, such as donors.

    Returns
    -------
    (genes,)

    Raises
    ------
    ValueError
        If there are fewer than three clusters: too few to tell how much they differ.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.effects import standard_error
    >>> float(standard_error(np.array([[-1.0], [1.0], [-1.0], [1.0]]))[0])
    0.5
    """
    influence = np.asarray(influence, dtype=np.float64)
    n = len(influence)
    if cluster is None:
        return np.sqrt((influence**2).sum(0)) / n
    _, code = np.unique(np.asarray(cluster), return_inverse=True)
    n_clusters = int(code.max()) + 1
    if n_clusters < 3:
        raise ValueError(
            f"There are {n_clusters} clusters: from fewer than 3 nobody can tell how much clusters differ."
        )
    indicator = sparse.csr_matrix((np.ones(n), (code, np.arange(n))), shape=(n_clusters, n))
    total = indicator @ influence
    return np.sqrt(n_clusters / (n_clusters - 1) * (total**2).sum(0)) / n


def _check(y, predicted, treated, method) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = np.asarray(y.toarray() if sparse.issparse(y) else y, dtype=np.float64)
    a = np.asarray(treated, dtype=bool)
    if y.ndim != 2 or a.shape != (len(y),):
        raise ValueError(f"y has the shape {y.shape} and treated {a.shape}: expected (cells, genes) and (cells,).")
    if predicted is None:
        if method != "group":
            raise ValueError(f"method={method!r} needs predictions; method='group' is the mean of the treated cells.")
        f = np.zeros_like(y)
    else:
        f = np.asarray(predicted.toarray() if sparse.issparse(predicted) else predicted, dtype=np.float64)
    if f.shape != y.shape:
        raise ValueError(f"predicted has the shape {f.shape}, and y {y.shape}: one prediction for each cell and gene.")
    if method != "mean" and not a.any():
        raise ValueError("No cell received the treatment: only the mean of the predictions exists (method='mean').")
    n_bad = int((~np.isfinite(f)).sum() + (~np.isfinite(y[a])).sum())
    if n_bad:
        raise ValueError(f"{n_bad} values of y (of treated cells) or of the predictions are NaN or infinite.")
    return y, f, a
