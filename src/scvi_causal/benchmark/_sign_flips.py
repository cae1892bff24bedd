"""Tests of paired differences by their signs, and one correction for all of them that knows how they move together."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

N_FLIPS = 10_000
_BLOCK = 1_000  # patterns of signs at a time
_ROUNDING = 1e-9  # relative: equal arrangements differ by it


def flip_test(differences: np.ndarray, *, n_flips: int = N_FLIPS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    r"""Two-sided p-values of "no difference on average", one by one and corrected for all columns together.

    If two models predict equally well, then on every unit their scores might as well have been swapped, and all differences of
    that unit had the opposite sign. So the same sizes are held against every pattern of signs :math:`\varepsilon`, which all
    columns share:

    .. math:: R = \Bigl|\sum_i d_i\Bigr| \Big/ \sqrt{\textstyle\sum_i d_i^2}, \qquad
        p = \Pr_\varepsilon \bigl(R(\varepsilon d) \ge R(d)\bigr)

    For one column, R orders patterns as Student's t does. The corrected p of a column is the share of patterns in which the
    *largest* R, over the columns that are not more significant, reaches its own (step-down max-T of
    :cite:t:`Westfall1993Resampling`; :cite:t:`Romano2005Exact` for signs). It holds the chance of any false "different" below
    alpha, whichever of the others are real. Holm's correction does so for any dependence, and has to pay for the worst;
    metrics of one model rise and fall together, which is used here.

    Parameters
    ----------
    differences
        (units, tests) differences of paired scores; NaN where a test lacks the unit.
    n_flips
        Patterns of signs. All of them are used where there are no more (up to 14 units), so that p is exact; else random ones
        and the observed one.
    seed
        Of random patterns.

    Returns
    -------
    p, corrected p
        (tests,) each; 1 for a test without any difference.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.benchmark._sign_flips import flip_test
    >>> p, corrected = flip_test(np.array([[1.0, 1.0], [2.0, -1.0], [3.0, 1.0], [2.0, -2.0]]))
    >>> p.tolist(), corrected.tolist()
    ([0.125, 1.0], [0.25, 1.0])
    """
    d = np.nan_to_num(np.asarray(differences, dtype=float))  # a missing unit adds nothing, whatever its sign
    if not d.size:
        return np.ones(d.shape[1]), np.ones(d.shape[1])
    size = np.sqrt((d**2).sum(axis=0))
    unit = d / np.where(size > 0, size, 1.0)
    observed = np.abs(unit.sum(axis=0)) * (1 - _ROUNDING) - _ROUNDING
    order = np.argsort(-observed, kind="stable")
    alone, together = np.zeros(d.shape[1]), np.zeros(d.shape[1])
    signs = sign_patterns(len(d), n_flips, seed)
    for start in range(0, len(signs), _BLOCK):
        flipped = np.abs(signs[start : start + _BLOCK] @ unit)[:, order]
        # the largest over a column and all columns that are less significant than it
        largest = np.maximum.accumulate(flipped[:, ::-1], axis=1)[:, ::-1]
        alone[order] += (flipped >= observed[order]).sum(axis=0)
        together[order] += (largest >= observed[order]).sum(axis=0)
    together[order] = np.maximum.accumulate(together[order])  # no test passes before a more significant one
    return alone / len(signs), together / len(signs)


@lru_cache(maxsize=4)
def sign_patterns(n_units: int, n_flips: int, seed: int) -> np.ndarray:
    """(patterns, n_units) of +1 and -1, the first all +1; one of each two that are opposite, since tests are two-sided."""
    if 2 ** (n_units - 1) <= n_flips:
        signs = np.array(list(product([1.0, -1.0], repeat=n_units - 1))).reshape(2 ** (n_units - 1), n_units - 1)
    else:
        signs = np.random.default_rng(seed).choice([1.0, -1.0], size=(n_flips, n_units - 1))
        signs[0] = 1.0
    signs = np.column_stack([np.ones(len(signs)), signs])
    signs.flags.writeable = False
    return signs


def pairs_needed(alpha: float = 0.05) -> int:
    """From how many pairs on a p below ``alpha`` is possible: the smallest is 2 of all patterns of signs.

    The same with the correction: of all tests the most consistent one needs no other pattern than its own.
    """
    return int(np.floor(1 - np.log2(alpha))) + 1
