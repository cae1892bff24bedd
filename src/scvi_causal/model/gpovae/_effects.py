"""What each token does to each gene in the training cells: log ratios of population means, and how well they are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.base._shrinkage import pooling
from scvi_causal.model.samsvae._start import PSEUDOCOUNT, compared_cells, log_ratio

if TYPE_CHECKING:
    from scvi.data import AnnDataManager


@dataclass(frozen=True)
class TokenEffects:
    """Effects of tokens on genes.

    Parameters
    ----------
    effect
        (n_tokens, n_genes) log ratio of mean expression to that of controls, at dosage 1; 0 for tokens without training cells.
    variance
        (n_tokens, n_genes) sampling variances; infinite for these.
    seen
        (n_tokens,) whether a token has training cells.
    """

    effect: np.ndarray
    variance: np.ndarray
    seen: np.ndarray

    def response(self) -> np.ndarray:
        """(n_genes,) largest effect of any token on each gene, in standard errors."""
        return (np.abs(self.effect[self.seen]) / np.sqrt(self.variance[self.seen])).max(0)


def token_effects(manager: AnnDataManager, rows: np.ndarray, n_genes: int) -> TokenEffects:
    """Log ratios within batches and covariates, pooled over these by precision; combinations are taken apart by least squares.

    Ratios rather than differences of log1p: effects that spread along a path multiply on this scale. Where quality is registered, failed
    cells are held against failed controls: what makes cells fail is no edge.

    Parameters
    ----------
    manager, rows, n_genes
        Data, training cells, number of genes.
    """
    rows, within = compared_cells(manager, rows)
    found = condition_effects(manager, rows, n_genes, log_normalize=True, within=within)
    before = found.control
    after = np.maximum(np.expm1(np.log1p(before) + found.effect), 0.0)
    ratio = log_ratio(before, found.effect, rest=True)
    # the variances are those of differences of log1p, by its slope at the larger mean; first back to means
    slope = (1.0 + np.maximum(before, after)) ** 2
    own, controls = found.noise.own * slope, (found.variance - found.noise.own) * slope
    # few counts that happen to be alike are not precise: no condition is less variable than conditions are on average
    n_cells = found.n_cells[:, None]
    own = np.maximum(own, (own * n_cells**2).sum(0) / n_cells.sum() / n_cells)
    variance = (own + np.maximum(controls, 0.0)) / (0.5 * (before + after) + PSEUDOCOUNT) ** 2
    variance = np.maximum(variance, 1e-6)
    pool = _pooling(found.dosage, variance)
    seen = (found.dosage != 0).any(0)
    pooled = pool.power(2) @ variance
    pooled[~seen] = np.inf
    return TokenEffects(pool @ ratio, pooled, seen)


def _pooling(dosage: np.ndarray, variance: np.ndarray) -> csr_matrix:
    """(n_tokens, n_rows) coefficients by which rows become tokens, noisier rows counting less."""
    return csr_matrix(pooling(csr_matrix(dosage), 1.0 / variance.mean(1)))
