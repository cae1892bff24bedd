"""Is a prediction specific? The rank of the right perturbation among all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.spatial.distance import cdist

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_METRICS = {"cosine": "cosine", "l1": "cityblock", "l2": "euclidean"}
# Distances that differ by rounding are ties: the same profile in another row of a matrix is rarely the same to the last bit.
_TIE = 1e-9


def discrimination(
    predicted: ArrayLike,
    observed: ArrayLike,
    own: ArrayLike,
    *,
    metric: Literal["cosine", "l1", "l2"] = "cosine",
    exclude: ArrayLike | None = None,
) -> np.ndarray:
    r"""Perturbation discrimination: how near is each predicted effect to its own observed effect, among all observed ones?

    .. math:: 1 - k / (Q - 1),\quad
        k = \#\{q \ne p: d(\hat\delta_p, \delta_q) < d(\hat\delta_p, \delta_p)\} + \tfrac12\,\#\{q \ne p: \text{equal}\}

    Range [0, 1]: 1 where no other perturbation is nearer, 0.5 is chance. The *observed* effects are ranked for one prediction
    (PerturBench ranks predictions for one observation). A prediction that is the same for all perturbations scores 0.5 on
    average (one of no effect exactly 0.5 by cosine), however well it fits the mean: what this metric is for. Noise of the
    observed effects pulls it towards 0.5; by ``"l1"`` and ``"l2"`` short observed effects, such as those of many cells, are
    near to everything.

    Parameters
    ----------
    predicted
        (P, genes) predicted effects, each against the controls it started from.
    observed
        (Q, genes) observed effects of all candidates, measured against independent controls.
    own
        (P,) row of ``observed`` that each prediction is of.
    metric
        ``"cosine"``, ``"l1"`` or ``"l2"``.
    exclude
        Genes to leave out, boolean: (genes,) for all, or (P, genes) for each prediction. Leave out *all* genes that are
        targets in the screen: a knocked-down gene gives its perturbation away. Where only the own target is left out, a
        prediction without information wins by moving the targets of all others.

    Returns
    -------
    (P,) float64; NaN with fewer than two candidates, or where all genes are left out.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, ``own`` is no row of ``observed``, or the metric is unknown.

    References
    ----------
    ``pds_cosine`` of the Virtual Cell Challenge 2026 (cell-eval2), with the same treatment of ties.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import discrimination
    >>> observed = np.eye(3)
    >>> discrimination(np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), observed, [0, 1])
    array([1. , 0.5])
    """
    predicted, observed = _effects(predicted, "predicted"), _effects(observed, "observed")
    own, keep = _check(predicted, observed, own, metric, exclude)
    n_candidates = observed.shape[0]
    if n_candidates < 2 or predicted.size == 0:
        return np.full(len(predicted), np.nan)
    if keep.ndim == 1:
        distances = _distances(predicted[:, keep], observed[:, keep], metric)
    else:
        rows = ((p[None, k], observed[:, k]) for p, k in zip(predicted, keep, strict=True))
        distances = np.concatenate([_distances(p, q, metric) for p, q in rows])
    mine = np.take_along_axis(distances, own[:, None], axis=1)
    tied = np.abs(distances - mine) <= _TIE * np.maximum(np.abs(mine), 1.0 if metric == "cosine" else 0.0)
    nearer = (distances < mine) & ~tied
    rank = nearer.sum(axis=1) + 0.5 * (tied.sum(axis=1) - 1)
    return np.where(keep.any(axis=-1), 1.0 - rank / (n_candidates - 1), np.nan)


def _distances(predicted: np.ndarray, observed: np.ndarray, metric: str) -> np.ndarray:
    """(P, Q); an effect of zero has no direction, and cosine distance 1 from all."""
    if metric != "cosine":
        return cdist(predicted, observed, _METRICS[metric])
    unit = []
    for effects in (predicted, observed):
        norm = np.linalg.norm(effects, axis=1, keepdims=True)
        unit.append(np.divide(effects, norm, out=np.zeros_like(effects), where=norm > 0))
    return 1.0 - unit[0] @ unit[1].T


def _effects(x: ArrayLike, name: str) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(
            f"{name}: expected a (perturbations, genes) matrix of effects, got an array of shape {x.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        raise ValueError(f"{name}: {bad.size} of {len(x)} effects hold NaN or infinite values (first in row {bad[0]}).")
    return x


def _check(predicted, observed, own, metric, exclude) -> tuple[np.ndarray, np.ndarray]:
    """``own`` as indices, and which genes stay, (genes,) or (P, genes)."""
    if metric not in _METRICS:
        raise ValueError(f"metric: expected 'cosine', 'l1' or 'l2', got {metric!r}.")
    n_genes = observed.shape[1]
    if predicted.shape[1] != n_genes:
        raise ValueError(f"predicted has {predicted.shape[1]} genes and observed {n_genes}: they need the same genes.")
    own = np.asarray(own)
    if own.shape != (len(predicted),) or (own.size and own.dtype.kind not in "iu"):
        raise ValueError(f"own: expected {len(predicted)} row indices, got {own.dtype} of shape {own.shape}.")
    bad = np.flatnonzero((own < 0) | (own >= len(observed)))
    if bad.size:
        raise ValueError(
            f"own: {bad.size} of {own.size} are no row of observed (0 to {len(observed) - 1}): {own[bad][:8]}."
        )
    left_out = np.zeros(n_genes, dtype=bool) if exclude is None else np.asarray(exclude)
    if left_out.dtype != bool or left_out.shape not in ((n_genes,), predicted.shape):
        raise ValueError(
            f"exclude: expected a boolean mask of shape ({n_genes},) or {predicted.shape}, got {left_out.dtype} of shape "
            f"{left_out.shape}."
        )
    return own.astype(np.intp), ~left_out
