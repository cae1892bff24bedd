r"""What the effects say about edges: a spike-and-slab posterior of direct effects, before the first step of training.

Pure arrays. With :math:`P_{jm}` the share of the intervention on m that the one on j brings about (1 for itself), the effect of token j
on node k is :math:`y_{jk} = \sum_m P_{jm} B_{mk}` plus noise: what j does to k through m is not an edge from j to k. The graph may have
cycles, and nodes that nobody perturbed are summed over: an edge is direct given the perturbed ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_matrix
from scipy.special import expit, logit

_N_PRIOR_STEPS = 60
_N_PRIOR_ROUNDS = 4
_N_SWEEPS = 60
_TOLERANCE = 1e-4
_PRIOR_LIMITS = (0.005, 0.5)  # of the probability of an edge
_SMALLEST_SLAB = 0.05  # standard deviation of edges, in log ratios
_OWN_Z = 3.0  # standard errors by which a perturbation has to move its own gene, to say how strong it is
_OWN_SIZE = 0.25  # and log ratio


@dataclass(frozen=True)
class EdgePrior:
    """Prior of edges, learned from all effects together.

    Parameters
    ----------
    probability
        (n_tokens, T) that there is an edge.
    scale
        Standard deviation of the effects of edges.
    """

    probability: np.ndarray
    scale: float


@dataclass(frozen=True)
class EdgePosterior:
    """Posterior of edges, (n_tokens, T) each: log odds, and mean and standard deviation of the weight where there is one."""

    logits: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


def log_odds(effect: np.ndarray, variance: np.ndarray, prior: np.ndarray | float, scale: float) -> np.ndarray:
    r"""Posterior log odds of an effect that is 0, or :math:`N(0, \tau^2)` with the prior probability.

    Examples
    --------
    >>> import numpy as np
    >>> log_odds(np.array([0.0, 3.0]), np.ones(2), 0.5, 1.0).round(3).tolist()
    [-0.347, 1.903]
    """
    total = variance + scale**2
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isfinite(variance), variance / total, 1.0)
        gain = np.where(np.isfinite(variance), effect**2 * (1.0 / variance - 1.0 / total), 0.0)
    return logit(prior) + 0.5 * (np.log(ratio) + gain)


def learn_prior(
    effect: np.ndarray,
    variance: np.ndarray,
    candidates: np.ndarray,
    known: np.ndarray | None = None,
    probability: float | None = None,
    scale: float | None = None,
) -> EdgePrior:
    """Share of pairs with an edge and size of edges, by expectation maximisation (empirical Bayes).

    Parameters
    ----------
    effect, variance
        (n_tokens, T)
    candidates
        (n_tokens, T) pairs that may be edges and whose effect is known.
    known
        (n_tokens, T) pairs of a network that is given. They get a probability of their own: how much a network from elsewhere is worth
        in these cells is learned, not assumed.
    probability, scale
        Do not learn it.
    """
    learn_scale = scale is None
    group = np.zeros(effect.shape, dtype=np.int64) if known is None else known.astype(np.int64)
    n_groups = 1 if known is None else 2
    y, v, code = effect[candidates], variance[candidates], group[candidates]
    share = np.full(n_groups, 0.1 if probability is None else probability)
    # edges are the large effects: the other end would be one group with the variance of all
    if learn_scale:
        scale = max(np.sqrt(np.quantile(y**2, 0.95)) if y.size else 0.0, 2 * _SMALLEST_SLAB)
    for _ in range(_N_PRIOR_STEPS if y.size else 0):
        p = expit(log_odds(y, v, share[code], scale))
        shrunk = scale**2 / (scale**2 + v)
        square = (y * shrunk) ** 2 + v * shrunk
        if learn_scale:
            scale = max(float(np.sqrt((p @ square) / max(p.sum(), 1e-12))), _SMALLEST_SLAB)
        if probability is None:
            share = _shares(p, code, n_groups)
    return EdgePrior(share[group], scale)


def _shares(p: np.ndarray, code: np.ndarray, n_groups: int) -> np.ndarray:
    """(n_groups,) mean probability; one pair more in each group, with that of all: a network of few pairs has not much to say."""
    total = np.bincount(code, p, n_groups) + p.mean()
    return np.clip(total / (np.bincount(code, minlength=n_groups) + 1.0), *_PRIOR_LIMITS)


def own_effects(effect: np.ndarray, variance: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(n_tokens,) what each token does to its own node ``own`` (-1: not measured), 0 where that is not seen for certain."""
    found = np.zeros(len(own))
    token = np.flatnonzero(own >= 0)
    size, noise = effect[token, own[token]], variance[token, own[token]]
    seen = (np.abs(size) > _OWN_Z * np.sqrt(noise)) & (np.abs(size) > _OWN_SIZE)
    found[token] = np.where(seen, size, 0.0)
    return found


def mediated_shares(effect: np.ndarray, variance: np.ndarray, prior: EdgePrior, own: np.ndarray) -> np.ndarray:
    """(n_tokens, n_tokens) by which share each token brings about the intervention of each other one.

    That of j on m is what j does to the expression of m, relative to what the intervention on m does to it; where the latter is not
    seen (a gene that is not measured, or a knock-out that leaves the transcript), nothing is mediated.

    Parameters
    ----------
    effect, variance
        (n_tokens, T) effects.
    prior
        Of edges; shares are shrunk by it.
    own
        (n_tokens,) node of each token that is a measured gene with training cells, else -1.
    """
    share = np.eye(len(effect))
    size = own_effects(effect, variance, own)
    mediator = np.flatnonzero(size)
    size = size[mediator]
    y, v = effect[:, own[mediator]], variance[:, own[mediator]]
    odds = log_odds(y, v, prior.probability[:, own[mediator]], prior.scale)
    with np.errstate(invalid="ignore"):
        shrunk = np.where(np.isfinite(v), y * prior.scale**2 / (prior.scale**2 + v), 0.0)
    moved = np.where(odds > 0, expit(odds) * shrunk / size, 0.0)
    share[:, mediator] = np.clip(moved, -1.0, 1.0)
    share[np.diag_indices(len(share))] = 1.0
    return share


def learn_direct_effects(
    effect: np.ndarray,
    variance: np.ndarray,
    candidates: np.ndarray,
    shares: np.ndarray,
    prior: EdgePrior,
    known: np.ndarray | None = None,
    probability: float | None = None,
) -> tuple[EdgePosterior, EdgePrior]:
    """:func:`direct_effects`, whose prior probability is learned too: there are fewer direct effects than effects.

    Parameters
    ----------
    effect, variance, candidates, known, probability
        As for :func:`learn_prior`.
    shares
        As for :func:`direct_effects`.
    prior
        Where to start.
    """
    found = direct_effects(effect, variance, prior, shares, candidates)
    if probability is not None or not candidates.any():
        return found, prior
    group = np.zeros(effect.shape, dtype=np.int64) if known is None else known.astype(np.int64)
    for _ in range(_N_PRIOR_ROUNDS):
        share = _shares(expit(found.logits)[candidates], group[candidates], int(group.max()) + 1)
        prior = EdgePrior(share[group], prior.scale)
        found = direct_effects(effect, variance, prior, shares, candidates)
    return found, prior


def direct_effects(
    effect: np.ndarray, variance: np.ndarray, prior: EdgePrior, shares: np.ndarray, candidates: np.ndarray
) -> EdgePosterior:
    """Variational posterior of direct effects, by coordinate ascent over sources.

    Parameters
    ----------
    effect, variance
        (n_tokens, T)
    prior
        Of edges.
    shares
        (n_tokens, n_tokens) see :func:`mediated_shares`; the identity makes every effect a direct one.
    candidates
        (n_tokens, T) pairs that may be edges; the effects of the others (on the own gene) are not explained.

    Examples
    --------
    >>> import numpy as np
    >>> y, v = (
    ...     np.array([[-2.0, -1.0, -0.5], [0.0, -2.0, -1.0]]),
    ...     np.full((2, 3), 1e-3),
    ... )  # a chain of three, two of them perturbed
    >>> prior = EdgePrior(np.full((2, 3), 0.1), 1.0)
    >>> shares = mediated_shares(y, v, prior, np.array([0, 1]))
    >>> found = direct_effects(y, v, prior, shares, np.array([[False, True, True], [True, False, True]]))
    >>> (found.logits > 0).astype(int).tolist()
    [[0, 1, 0], [0, 0, 1]]
    """
    usable = candidates & np.isfinite(variance)
    weight = np.where(usable, 1.0 / np.where(usable, variance, 1.0), 0.0)
    prior_odds, slab = logit(prior.probability), prior.scale**2
    columns = csc_matrix(shares)
    mean = np.zeros(effect.shape)
    logits, scale = prior_odds.copy(), np.full(effect.shape, prior.scale)
    expected, residual = np.zeros(effect.shape), np.where(usable, effect, 0.0)
    # a source whose own effects are large is settled first, so that others are explained by it
    order = np.argsort(-(weight * residual**2).sum(1), kind="stable")
    for _ in range(_N_SWEEPS):
        change = 0.0
        for source in order:
            part = slice(columns.indptr[source], columns.indptr[source + 1])
            rows, share = columns.indices[part], columns.data[part][:, None]
            without = residual[rows] + share * expected[source]
            precision = (weight[rows] * share**2).sum(0) + 1.0 / slab
            pull = (weight[rows] * share * without).sum(0)
            mean[source], scale[source] = pull / precision, np.sqrt(1.0 / precision)
            logits[source] = prior_odds[source] - 0.5 * (np.log(precision * slab) - pull**2 / precision)
            new = np.where(candidates[source], expit(logits[source]) * mean[source], 0.0)
            change = max(change, float(np.abs(new - expected[source]).max(initial=0.0)))
            residual[rows] = without - share * new
            expected[source] = new
        if change < _TOLERANCE:
            break
    return EdgePosterior(logits, mean, scale)
