"""Variances of effects from sums: cells one by one, or clusters of dependent cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ._sums import F, H, Y

if TYPE_CHECKING:
    from ._sums import Arms, ArmSums

ClusterVariance = Literal["jackknife", "sandwich"]
FEWEST_CLUSTERS = 3
"""Fewer give no standard error."""
FEW_CLUSTERS = 5
"""Fewer give one, and a warning."""
RARE = 10
"""Fewer cells than this that express a gene do not tell how variable it is."""
_PSEUDO_CELLS = 2  # as in the intervals of Agresti and Coull for proportions
_MANY_CLUSTERS = 400  # from here on degrees of freedom no longer matter, and their cost does


class Weights(NamedTuple):
    r"""An estimate as a linear function of means of arms.

    .. math:: o (\bar y_a - \bar y_c) + b (\bar f_x - \bar f_a) - d (\bar h_x - \bar h_c)
    """

    outcome: float
    target: np.ndarray
    contrast: np.ndarray


class Spread(NamedTuple):
    """Variance of an estimate and its degrees of freedom, gene by gene."""

    variance: np.ndarray
    df: np.ndarray


def point(arms: Arms, weights: Weights) -> np.ndarray:
    """(genes,) the estimate."""
    overall = arms.predicted_mean
    value = _corrected(arms.target.mean, overall[0], Y, F, weights.outcome, weights.target)
    if arms.contrast is not None:
        value = value - _corrected(arms.contrast.mean, overall[1], Y, H, weights.outcome, weights.contrast)
    return value


def _corrected(mean: np.ndarray, overall: np.ndarray, y: int, f: int, outcome: float, slope: np.ndarray) -> np.ndarray:
    return outcome * mean[y] + slope * (overall - mean[f])


def influence_of_arms(arms: Arms, weights: Weights) -> list[tuple[ArmSums, np.ndarray, np.ndarray]]:
    r"""Influence values of the cells of each arm, as ``direction @ (v - mean of the arm) + offset``, v = (y, f, h).

    Returns
    -------
    Arm, (3, genes) direction, (genes,) offset, for each arm that has cells.
    """
    n, overall = arms.n_cells, arms.predicted_mean
    zero = np.zeros_like(overall[0])
    b, d = weights.target + zero, weights.contrast + zero
    if arms.contrast is None:
        d = zero
    found = []
    for arm in arms.present:
        if not arm.n_cells:
            continue
        direction, r = np.stack([zero, b, -d]), n / arm.n_cells
        if arm is arms.target:
            direction += r * np.stack([zero + weights.outcome, -b, zero])
        elif arm is arms.contrast:
            direction -= r * np.stack([zero + weights.outcome, zero, -d])
        mean = arm.mean
        found.append((arm, direction, b * (mean[F] - overall[0]) - d * (mean[H] - overall[1])))
    return found


def spread_of_cells(arms: Arms, weights: Weights, offsets: bool = True) -> Spread:
    r"""Cells are independent: :math:`\sum_k \varphi_k^2 / n^2`, each arm by its n - 1, with Welch's degrees of freedom.

    Parameters
    ----------
    arms, weights
        The estimate.
    offsets
        Whether differences of the mean predictions between arms count as variance, as in the influence function; without
        them arms are centred one by one, as in Welch's test.

    Where fewer than :data:`RARE` cells of an arm express a gene, their scatter says little, and nothing where none does: zero
    variance would make an absent gene certain. Two more cells with the typical value of the gene (root mean square of the
    expressing cells of both arms) are then thought into the arm, and a variance that rests on x events has 2 x degrees of freedom.
    """
    variances, dfs = [], []
    typical = _typical_square(arms)
    for arm, direction, offset in influence_of_arms(arms, weights):
        n = arm.n_cells
        squares = np.einsum("ig,ijg,jg->g", direction, arm.scatter, direction).clip(0.0)
        rare = is_rare(arm) & (arm is not arms.rest and weights.outcome != 0)
        squares += np.where(rare, _PSEUDO_CELLS * typical * direction[Y] ** 2, 0.0)
        squares *= n / (n - 1) if n > 1 else np.nan
        if arm is arms.rest and n == 1:  # one cell that received something else says nothing, and costs nothing
            squares = np.zeros_like(squares)
        variances.append((squares + (n * offset**2 if offsets else 0.0)) / arms.n_cells**2)
        dfs.append(np.where(rare, np.minimum(n - 1, 2 * (arm.nonzero + _PSEUDO_CELLS)), max(n - 1, 1)).clip(1))
    return _welch(variances, dfs)


def is_rare(arm: ArmSums) -> np.ndarray:
    """(genes,) whether few cells of an arm have an outcome other than zero, and others have none."""
    return arm.nonzero < min(RARE, arm.n_cells)


def _typical_square(arms: Arms) -> np.ndarray:
    """(genes,) mean square of the outcomes that are not zero."""
    compared = [arms.target] + ([] if arms.contrast is None else [arms.contrast])
    return sum(arm.second[Y, Y] for arm in compared) / np.maximum(sum(arm.nonzero for arm in compared), 1)


def _welch(variances: list[np.ndarray], dfs: list) -> Spread:
    """Sum of variances that were estimated apart, with Satterthwaite's degrees of freedom."""
    total = sum(variances)
    uncertainty = sum(v**2 / df for v, df in zip(variances, dfs, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(uncertainty > 0, total**2 / uncertainty, sum(dfs))
    return Spread(total, df)


def at_least(spread: Spread, other: Spread, genes: np.ndarray) -> Spread:
    """The less certain of two spreads for some genes, the first for all others."""
    return Spread(
        np.where(genes, np.maximum(spread.variance, other.variance), spread.variance),
        np.where(genes, np.minimum(spread.df, other.df), spread.df),
    )


# ---------------------------------------------------------------------- clusters


def n_clusters(arms: Arms) -> int:
    """Clusters in the smaller of the two arms that are compared."""
    compared = [arms.target] + ([] if arms.contrast is None else [arms.contrast])
    return min(int((arm.n > 0).sum()) for arm in compared)


def spread_of_clusters(arms: Arms, weights: Weights, kind: ClusterVariance) -> Spread:
    r"""Cells of a cluster are dependent, clusters are not.

    ``"jackknife"``: :math:`\tfrac{C-1}{C} \sum_j (\hat\Psi_{(-j)} - \hat\Psi)^2` over clusters left out, with the degrees of
    freedom that equally variable clusters of these sizes would have. ``"sandwich"``:
    :math:`\tfrac{C}{C-1} \sum_j (\sum_{k \in j} \varphi_k)^2 / n^2` with C - 1. Where clusters are nested in the arms (guides, of
    which each has one target), arms are counted and corrected one by one, as in Welch's test.
    """
    deviation = _leave_out(arms, weights) if kind == "jackknife" else cluster_influence(arms, weights) / arms.n_cells
    variances, dfs = [], []
    for members in _sets_of_clusters(arms):
        n = len(members)
        if n < 2:
            continue
        factor = (n - 1) / n if kind == "jackknife" else n / (n - 1)
        variances.append(factor * (deviation[members] ** 2).sum(0))
        dfs.append(_degrees_of_freedom(arms, members) if kind == "jackknife" else n - 1)
    return _welch(variances, dfs)


def cluster_influence(arms: Arms, weights: Weights) -> np.ndarray:
    """(clusters, genes) sums of influence values."""
    total = 0.0
    for arm, direction, offset in influence_of_arms(arms, weights):
        constant = offset - (direction * arm.mean).sum(0)
        total = total + np.einsum("jig,ig->jg", arm.first, direction) + arm.n[:, None] * constant
    return total


def _leave_out(arms: Arms, weights: Weights) -> np.ndarray:
    """(clusters, genes) change of the estimate when a cluster is left out, at fixed weights."""
    present = arms.present
    n = sum(arm.n for arm in present)
    n_left = np.maximum(n.sum() - n, 1.0)[:, None]
    total = sum(arm.first for arm in present)
    overall = (total.sum(0) - total) / n_left[:, None]  # (clusters, 3, genes)
    value = 0.0
    for arm, sign, f, slope in ((arms.target, 1, F, weights.target), (arms.contrast, -1, H, weights.contrast)):
        if arm is None:
            continue
        left = np.maximum(arm.n.sum() - arm.n, 1.0)[:, None, None]
        mean = (arm.first.sum(0) - arm.first) / left
        value = value + sign * (weights.outcome * mean[:, Y] + slope * (overall[:, f] - mean[:, f]))
    return value - point(arms, weights)


def _sets_of_clusters(arms: Arms) -> list[np.ndarray]:
    """Clusters that are corrected together: by arm if each is in one arm only, else all that the two arms are made of."""
    in_target = arms.target.n > 0
    in_contrast = np.zeros_like(in_target) if arms.contrast is None else arms.contrast.n > 0
    others = ~in_target & ~in_contrast & (arms.rest.n > 0)
    nested = not (in_target & in_contrast).any()
    sets = [in_target, in_contrast] if nested else [in_target | in_contrast]
    return [np.flatnonzero(mask) for mask in (*sets, others) if mask.any()]


def _degrees_of_freedom(arms: Arms, members: np.ndarray) -> float:
    r"""Satterthwaite's for the jackknife if the means of all clusters are equally variable.

    Leaving out cluster j, of share w_j, moves the mean of its arm by :math:`-w_j (u_j - \bar u) / (1 - w_j)`: a linear map M of the
    u, and the degrees of freedom are :math:`\mathrm{tr}(MM')^2 / \mathrm{tr}((MM')^2)`.
    """
    n = len(members)
    if n > _MANY_CLUSTERS:
        return n - 1
    product = np.zeros((n, n))
    for arm in (arms.target, arms.contrast):
        size = np.zeros(n) if arm is None else arm.n[members]
        if (size > 0).sum() > 1:
            share = size / size.sum()
            moves = -(share / (1 - share))[:, None] * (np.eye(n) - share)
            product += moves @ moves.T
    if not product.any():  # clusters of neither arm
        return n - 1
    return float(np.trace(product) ** 2 / (product**2).sum())
