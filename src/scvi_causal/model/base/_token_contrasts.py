"""Effects of tokens from cells that carry several: a regression over tokens where combinations are too rare to have a mean.

In a screen of high multiplicity nearly every cell is a condition of its own. The mean of one cell is no estimate of a condition, least of
all its logarithm: the log of the mean of few counts lies far below the log of the mean of many. Sums over all cells with a token do not
have that fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, hstack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pieces = Iterator[tuple[slice, csr_matrix]]

FEWEST_CELLS = 10
"""Cells of a combination in a context, below which it is explained by its tokens."""
_RIDGE = 1e-6  # of the largest number of cells; tokens that no cell tells apart share their effect


@dataclass(frozen=True)
class TokenContrasts:
    r"""Coefficients of the tokens of one context in a linear model of cells, with one intercept per batch.

    Parameters
    ----------
    dosage
        (n_units, n_tokens) one token each, at one dosage.
    before, after
        (n_units, n_genes) mean of the cells that carry a unit, without and with what it does. Before and after are those of the
        *same* cells, so that what their other tokens do is in both.
    own
        (n_units, n_genes) sampling variance of the difference that perturbed cells make.
    loading
        (n_units, n_strata) weight of the mean of the controls of each batch in what is subtracted.
    n_cells
        (n_units,) number of cells that would tell as much, had each one unit alone.
    """

    dosage: csr_matrix
    before: np.ndarray
    after: np.ndarray
    own: np.ndarray
    loading: np.ndarray
    n_cells: np.ndarray


def explained_by_tokens(codes: np.ndarray, context: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """(cells,) mask of the cells whose effects are those of their tokens: rare combinations, and single tokens beside them.

    Contexts without a rare combination, and those without a control to start from, have no such cell.

    Parameters
    ----------
    codes
        (cells,) condition of each cell.
    context
        (cells,) its context.
    n_tokens
        (n_conditions,) tokens of each condition; 0 is control.
    """
    carried = n_tokens[codes]
    keys, group = np.unique(codes * (context.max() + 1) + context, return_inverse=True)
    rare = (carried > 1) & (np.bincount(group, minlength=len(keys))[group] < FEWEST_CELLS)
    usable = np.intersect1d(context[rare], context[carried == 0])
    return (rare | (carried == 1)) & np.isin(context, usable)


def token_contrasts(
    pieces: Callable[[], Pieces], dosage: csr_matrix, stratum: np.ndarray, n_genes: int
) -> TokenContrasts:
    r"""Least squares of expression on what cells carry: :math:`x_i = a_{s(i)} + \sum_u 1_{iu} b_u`.

    A unit is a token at a dosage, so that nothing is assumed of how effects depend on dosages.

    Parameters
    ----------
    pieces
        Gives cells ``slice`` of the whole and their expression; called twice.
    dosage
        (cells, n_tokens) of cells of one context, controls among them.
    stratum
        (cells,) batch of each cell, 0, 1, ...
    n_genes
        Number of genes.
    """
    carries, units = _units(dosage)
    n_strata = int(stratum.max()) + 1
    n = len(stratum)
    intercepts = csr_matrix((np.ones(n), (np.arange(n), stratum)), shape=(n, n_strata))
    design = hstack([intercepts, carries], format="csr")
    total = np.zeros((design.shape[1], n_genes))
    for part, x in pieces():
        total += (design[part].T @ x).toarray()
    gram = (design.T @ design).toarray()
    inverse = np.linalg.inv(gram + _RIDGE * gram.diagonal().max() * np.eye(len(gram)))
    coefficients = inverse @ total
    effect, size = coefficients[n_strata:], gram.diagonal()[n_strata:, None]
    after = total[n_strata:] / size
    n_controls = np.bincount(stratum[np.diff(dosage.indptr) == 0], minlength=n_strata)
    of_intercepts = inverse[n_strata:, :n_strata]
    share = np.maximum(inverse.diagonal()[n_strata:] - of_intercepts**2 @ n_controls, 1e-12)
    return TokenContrasts(
        dosage=units,
        before=after - effect,
        after=after,
        own=share[:, None] * _variance(pieces(), design, inverse, coefficients)[n_strata:],
        loading=-of_intercepts * n_controls,
        n_cells=1.0 / share,
    )


def _units(dosage: csr_matrix) -> tuple[csr_matrix, csr_matrix]:
    """(cells, n_units) indicator of what cells carry, and (n_units, n_tokens) what it is."""
    entries = dosage.tocoo()
    pairs, unit = np.unique(np.stack([entries.col, entries.data.astype(np.float64)]), axis=1, return_inverse=True)
    n_units, unit = pairs.shape[1], unit.reshape(-1)
    carries = csr_matrix((np.ones(len(unit)), (entries.row, unit)), shape=(dosage.shape[0], n_units))
    tokens = (pairs[1], (np.arange(n_units), pairs[0].astype(np.int64)))
    return carries, csr_matrix(tokens, shape=(n_units, dosage.shape[1]))


def _variance(pieces: Pieces, design: csr_matrix, inverse: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """(columns, n_genes) residual variance of the cells of each column of the design; where there is but one, of a typical cell."""
    squares, free = np.zeros(coefficients.shape), np.zeros((len(coefficients), 1))
    for part, x in pieces:
        here = design[part]
        squares += here.T @ np.square(x.toarray() - here @ coefficients)
        leverage = here.multiply(here @ inverse).sum(1)
        free += here.T @ (1.0 - np.asarray(leverage).reshape(-1, 1))
    known = free[:, 0] > 0.5
    typical = squares[known].sum(0) / free[known].sum()
    return np.where(known[:, None], squares / np.where(known[:, None], free, 1.0), typical)
