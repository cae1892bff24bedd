"""Empirical-Bayes shrinkage of effects that were estimated from population means: how much of each estimate is noise.

Pure arrays. Effects are taken apart into nested deviations: the mean over tokens, each token around it, the mean of a context
around what its tokens do elsewhere, each condition of a context around that. Every part is a known linear combination of
rows with known sampling noise, and is multiplied by the share of it that noise does not explain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags, identity

_MOST_BLOCKS = 4
_FEWEST_GENES = 25  # per block on average: a factor that is estimated from fewer is mostly chance
_N_STEPS = 30  # of the weights of a mean, which settle within ten


@dataclass(frozen=True)
class RowNoise:
    r"""Sampling variance of rows (conditions in contexts) and of linear combinations of rows.

    A row is the mean of its own cells minus that of controls, which rows share:
    :math:`\mathrm{Cov}(r, s) = \delta_{rs} o_r + \sum_k l_{rk} l_{sk} c_k`.

    Parameters
    ----------
    own
        (n_rows, n_genes) variance of the mean of the perturbed cells of each row.
    loading
        (n_rows, n_controls) share of each group of controls in what is subtracted.
    shared
        (n_controls, n_genes) variance of the mean of each group of controls.
    """

    own: np.ndarray
    loading: np.ndarray
    shared: np.ndarray

    def of(self, coefficients: csr_matrix, less: np.ndarray | None = None) -> np.ndarray:
        """(n, n_genes) variance of combinations of rows.

        Parameters
        ----------
        coefficients
            (n, n_rows)
        less
            (n_rows,) taken off the coefficients of each; written out, because the difference would be dense.
        """
        own, shared = coefficients.power(2) @ self.own, coefficients @ self.loading
        if less is not None:
            own = own - 2.0 * (coefficients @ (less[:, None] * self.own)) + less**2 @ self.own
            shared = shared - less @ self.loading
        return np.maximum(own, 0.0) + shared**2 @ self.shared

    def of_entries(self, coefficients: csr_matrix, genes: np.ndarray) -> np.ndarray:
        """(n,) variance of one gene of each combination."""
        entries = coefficients.tocoo()
        own = entries.data**2 * self.own[entries.col, genes[entries.row]]
        shared = (coefficients @ self.loading) ** 2 * self.shared[:, genes].T
        return np.bincount(entries.row, own, minlength=len(genes)) + shared.sum(1)

    def summed(self, blocks: np.ndarray) -> RowNoise:
        """Sums over blocks of genes in the place of genes; ``blocks`` (n_genes, n_blocks) is an indicator."""
        return RowNoise(self.own @ blocks, self.loading, self.shared @ blocks)


@dataclass(frozen=True)
class Shrunken:
    """Effects after shrinkage, and what was left of each part of them.

    Parameters
    ----------
    effect
        (n_rows, n_genes) expected effects given the estimates.
    kept
        (n_tokens, n_genes) factors of the tokens' deviations from their mean.
    mean_kept, mean_noise
        (n_genes,) factors of that mean, and its sampling variance.
    """

    effect: np.ndarray
    kept: np.ndarray
    mean_kept: np.ndarray
    mean_noise: np.ndarray

    def variance(self, sampling: np.ndarray) -> np.ndarray:
        """(n_tokens, n_genes) posterior variance of responses with the given sampling variance.

        A normal mean that is shrunk by the factor f has the posterior variance f times its sampling variance.
        """
        return self.kept * sampling + np.maximum(self.mean_kept - self.kept, 0.0) * self.mean_noise


def stein_factor(energy: np.ndarray, noise: np.ndarray) -> np.ndarray:
    r"""Positive-part James-Stein factors :math:`\max(0,\, 1 - \mathrm{noise} / \mathrm{energy})`.

    The energy of an estimate (its sum of squares over genes) is on average that of the truth plus the noise: the factor is the
    moment estimate of :math:`\tau^2 / (\tau^2 + \sigma^2)`, which minimises the squared error of a multiple of the estimate.

    Parameters
    ----------
    energy
        Sums of squares of estimates.
    noise
        Sums of their sampling variances.

    Examples
    --------
    >>> import numpy as np
    >>> stein_factor(np.array([4.0, 1.0, 0.0]), np.array([1.0, 2.0, 0.0])).tolist()
    [0.75, 0.0, 0.0]
    """
    return np.where(energy > noise, 1.0 - noise / np.where(energy > 0, energy, 1.0), 0.0)


def sure_factor(values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    r"""Stein factors of single entries that are surely more than noise, and 0 for all others.

    A perturbation that changes two genes of a thousand has little energy in all, and a factor of many genes takes these two for noise. What
    exceeds :math:`\sqrt{2 \ln n}` standard errors, as no entry of n does by chance (Donoho and Johnstone, *Biometrika* 1994), is judged by itself.

    Parameters
    ----------
    values, noise
        (n_rows, n_genes) estimates and their sampling variances. A gene without counts in a row has no variance there: no variance is taken
        to be smaller than that of the row and the gene at large.

    Examples
    --------
    >>> import numpy as np
    >>> sure_factor(np.array([[10.0, 1.0], [-1.5, 0.5]]), np.ones((2, 2))).tolist()
    [[0.99, 0.0], [0.0, 0.0]]
    """
    typical = np.outer(noise.sum(1), noise.sum(0)) / max(float(noise.sum()), 1e-300)
    least = 1e-12 * float((values**2).max(initial=0.0)) + 1e-300
    energy = values**2 / np.maximum(np.maximum(noise, typical), least)
    return np.where(energy > 2.0 * np.log(max(energy.size, 2)), 1.0 - 1.0 / np.maximum(energy, 1.0), 0.0)


def noise_blocks(noise: np.ndarray) -> np.ndarray:
    """(n_genes, n_blocks) indicator of blocks of genes with similar noise, each with about the same share of all noise.

    A single factor would be that of the few noisiest genes. Noise does not depend on effects, so that neither do the blocks.

    Parameters
    ----------
    noise
        (n_genes,) typical sampling variances.
    """
    n_blocks = int(np.clip(len(noise) // _FEWEST_GENES, 1, _MOST_BLOCKS))
    order = np.argsort(noise, kind="stable")
    before = np.cumsum(noise[order]) - noise[order]
    block = np.empty(len(noise), dtype=np.int64)
    block[order] = np.minimum(n_blocks * before / max(noise.sum(), 1e-300), n_blocks - 1).astype(np.int64)
    return np.eye(n_blocks)[block]


def mean_weights(values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Weights of a mean that a few strong members do not decide: the inverse of each member's own variance.

    That is its noise plus the excess of its squared distance from the mean of the *others* (its distance from a mean of which
    it is a part would make the nearest member ever heavier). Fixed point, from the inverse noise on.

    Parameters
    ----------
    values
        (n, n_genes)
    noise
        (n,) sums over genes of the sampling variances.

    Returns
    -------
    (n,) weights that sum to 1.
    """
    noise = noise + 1e-9 * max(noise.max(), (values**2).sum(1).max()) + 1e-300
    weight = 1.0 / noise
    weight = weight / weight.sum()
    if len(values) < 3:  # of two, neither is the odd one out
        return weight
    spread, energy = np.zeros(len(values)), (values**2).sum(1)
    for _ in range(_N_STEPS):
        rest, mean = 1.0 - weight, weight @ values
        share = weight**2 * (noise + spread)
        of_others = (share.sum() - share) / rest**2
        distance = (energy - 2.0 * (values @ mean) + mean @ mean) / rest**2
        spread = np.maximum(distance - noise - of_others, 0.0)
        weight = 1.0 / (noise + spread)
        weight = weight / weight.sum()
    return weight


def pooling(dosage: csr_matrix, precision: np.ndarray) -> csr_matrix:
    """(n_tokens, n_rows) coefficients of the least-squares responses of tokens, rows weighted by ``precision``.

    For single tokens the weighted mean of their rows. Tokens without rows get zeros; those that no row tells apart share.
    """
    weighted = diags(precision / precision.max()) @ dosage
    gram = (dosage.T @ weighted).tocsr()
    size = gram.diagonal()
    if gram.count_nonzero() == np.count_nonzero(size):
        return (diags(1.0 / np.where(size > 0, size, 1.0)) @ weighted.T).tocsr()
    return csr_matrix(np.linalg.solve(gram.toarray() + 1e-6 * size.max() * np.eye(len(size)), weighted.T.toarray()))


@dataclass(frozen=True)
class _Parts:
    """Combinations of rows as a mean and deviations from it, with the factor of each, gene by gene."""

    mean_coefficients: np.ndarray
    mean_factor: np.ndarray
    factor: np.ndarray
    shrunken: np.ndarray


def _take_apart(
    coefficients: csr_matrix, effect: np.ndarray, noise: RowNoise, blocks: np.ndarray, target: np.ndarray | None = None
) -> _Parts:
    """Shrink the combinations of rows towards their mean; ``target`` (n,) names the gene that each acts on, or -1."""
    summed, values = noise.summed(blocks), coefficients @ effect
    weight = mean_weights(values, coefficients.power(2) @ summed.own.sum(1))
    member = np.flatnonzero(target >= 0) if target is not None else np.zeros(0, dtype=np.int64)
    gene = target[member] if target is not None else member
    # what others do to a gene that one of them targets is the mean of the others
    targeted, mean = np.zeros(effect.shape[1]), weight @ values
    np.add.at(targeted, gene, weight[member])
    np.subtract.at(mean, gene, weight[member] * values[member, gene])
    mean = mean / np.where(targeted < 0.999, 1.0 - targeted, np.inf)

    of_mean, deviation = coefficients.T @ weight, values - mean
    mean_factor = stein_factor(mean**2 @ blocks, summed.of(csr_matrix(of_mean))[0]) @ blocks.T
    energy, variance = deviation**2 @ blocks, summed.of(coefficients, of_mean)
    own, own_noise = values[member, gene], noise.of_entries(coefficients[member], gene)
    energy[member] -= deviation[member, gene][:, None] ** 2 * blocks[gene]
    variance[member] -= own_noise[:, None] * blocks[gene]
    factor = stein_factor(np.maximum(energy, 0.0), np.maximum(variance, 0.0)) @ blocks.T
    factor = np.maximum(factor, sure_factor(deviation, noise.of(coefficients, of_mean)))
    shrunken = mean_factor * mean + factor * deviation
    if len(member):
        excess = max(float((own**2 - own_noise).mean()), 0.0)
        factor[member, gene] = excess / np.maximum(excess + own_noise, 1e-300)
        shrunken[member, gene] = factor[member, gene] * own
    return _Parts(of_mean, mean_factor, factor, shrunken)


def shrink_effects(
    effect: np.ndarray,
    noise: RowNoise,
    dosage: np.ndarray,
    context: np.ndarray,
    target: np.ndarray | None = None,
) -> Shrunken:
    r"""Shrink effects towards the mean response over tokens, and that towards zero, as far as noise explains them.

    With :math:`\hat\beta_t` the pooled response of a token and :math:`\hat m` their mean (see :func:`mean_weights`),

    .. math::
        \tilde\beta_t = f_0 \hat m + f_t (\hat\beta_t - \hat m), \qquad
        \tilde y_r = \sum_t d_{rt} \tilde\beta_t + f_c \hat g_c + f_r (\hat\rho_r - \hat g_c),

    where :math:`\hat\rho_r = y_r - \sum_t d_{rt} \hat\beta_t` is how a row differs from what its tokens do over all contexts, and
    :math:`\hat g_c` the mean of these in its context. Each f is the :func:`stein_factor` of its part in a block of genes
    (:func:`noise_blocks`); an entry that is surely more than noise has its own (:func:`sure_factor`). Without noise nothing changes, without
    effects little is left.

    Parameters
    ----------
    effect
        (n_rows, n_genes) estimates.
    noise
        Their sampling noise.
    dosage
        (n_rows, n_tokens)
    context
        (n_rows,) context of each row, for instance its cell type.
    target
        (n_tokens,) index of the gene that a token targets, or -1. What tokens do to their targets is shrunk towards zero with a
        variance of its own, for all tokens together: a knock-down moves its target even where it moves nothing else.
    """
    blocks, dosage = noise_blocks(noise.own.mean(0)), csr_matrix(dosage)
    pool = pooling(dosage, 1.0 / np.maximum(noise.own.sum(1), 1e-300))
    seen = np.unique(dosage.indices)
    tokens = _take_apart(pool[seen], effect, noise, blocks, None if target is None else target[seen])
    response, kept = np.zeros((2, dosage.shape[1], effect.shape[1]))
    response[seen], kept[seen] = tokens.shrunken, tokens.factor
    around = effect - dosage @ (pool @ effect)
    if len(np.unique(context)) > 1:
        coefficients = (identity(len(effect)) - dosage @ pool).tocsr()
        for here in np.unique(context):
            rows = np.flatnonzero(context == here)
            around[rows] = _take_apart(coefficients[rows], effect, noise, blocks).shrunken
    mean_noise = noise.of(csr_matrix(tokens.mean_coefficients))[0]
    return Shrunken(dosage @ response + around, kept, tokens.mean_factor, mean_noise)
