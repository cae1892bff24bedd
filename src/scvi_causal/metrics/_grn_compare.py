"""Is a network better than the effect sizes by more than chance? Differences with intervals over the perturbed sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._grn_pairs import check_pairs, rank_by_effect
from ._grn_universe import AveragePrecision, PairUniverse, keep_first, share_of_first

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# resampling fewer sources says nothing about others
_MIN_SOURCES = 5


def compare_grn(
    predicted: pd.DataFrame,
    held_out: pd.DataFrame,
    training: pd.DataFrame,
    *,
    reference: pd.DataFrame | None = None,
    n_edges: int | None = None,
    score: str = "weight",
    by: str | Sequence[str] = ("wasserstein", "statistic"),
    alpha: float = 0.05,
    n_bootstrap: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Predicted edges minus the ranking by effect size, number by number of :func:`score_grn`, with 95 % intervals.

    The sources are drawn with replacement, each with all of its pairs: pairs of one source share its cells, and the question is
    whether the network would be better for other perturbations too. The edges that count stay the same.

    Parameters
    ----------
    predicted, held_out, training, reference, n_edges, score, by, alpha
        As in :func:`score_grn`; one prediction, one number of edges.
    n_bootstrap
        Number of draws.
    seed
        Of the draws.

    Returns
    -------
    DataFrame indexed by ``(baseline, number)``: ``predicted``, ``baseline_value``, ``difference`` (positive is better, also for
    ``false_omission_rate``), ``low`` and ``high`` (NaN with fewer than five sources), and ``better``, whether ``low`` is above 0.

    Raises
    ------
    ValueError
        As :func:`score_grn`.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal import data, metrics
    >>> screen = data.simulate_screen(n_genes=12, n_perturbations=6, n_cells_per_perturbation=60, n_control=200, seed=0)
    >>> x, labels = metrics.log1p_normalize(screen.adata.X), screen.adata.obs["perturbation"].to_numpy()
    >>> half = np.random.default_rng(0).random(len(labels)) < 0.5
    >>> held_out, training = (metrics.pair_effects(x[h], labels[h], screen.adata.var_names) for h in (~half, half))
    >>> metrics.compare_grn(screen.grn, held_out, training, by="statistic", n_bootstrap=20).loc[
    ...     "effect size (statistic)"
    ... ].shape
    (5, 6)
    """
    check_pairs(training, "training")
    pairs = PairUniverse(check_pairs(held_out, "held_out"), alpha)
    ranked = pairs.place(predicted, score)
    count = int((ranked > 0).sum()) if n_edges is None else int(n_edges)
    if not (ranked > 0).any():
        raise ValueError("No predicted edge can be tested: see scvi_causal.metrics.score_grn.")
    numbers = _numbers(pairs, ranked, count, reference)
    draws = _draws(pairs, n_bootstrap, seed)
    rows = {}
    for measure in [by] if isinstance(by, str) else by:
        other = pairs.place(rank_by_effect(training, measure), "weight")
        for name, (prepare, sign) in numbers.items():
            rows[f"effect size ({measure})", name] = _difference(
                prepare, sign, ranked, other, draws, pairs.source_codes
            )
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["baseline", "number"])
    return table.assign(better=table["low"] > 0)


def _numbers(pairs: PairUniverse, first: np.ndarray, n_edges: int, reference) -> dict[str, tuple[Callable, float]]:
    """By name: what makes of a ranking a function of how often each pair counts; and the direction that is better."""

    def mean(values: np.ndarray, left_out: bool = False) -> Callable:
        def prepare(ranked: np.ndarray) -> Callable[[np.ndarray], float]:
            chosen = share_of_first(ranked, n_edges)
            chosen = 1 - chosen if left_out else chosen
            return lambda times: pairs.mean(times * chosen, values)

        return prepare

    def area(is_true: np.ndarray, inside: np.ndarray, n_edges: int) -> Callable:
        def prepare(ranked: np.ndarray) -> Callable[[np.ndarray], float]:
            precision = AveragePrecision(keep_first(ranked[inside], n_edges), is_true[inside])
            return lambda times: precision(times[inside])

        return prepare

    everywhere = np.ones(pairs.has_effect.size, dtype=bool)
    numbers = {
        "wasserstein": (mean(pairs.wasserstein), 1.0),
        "excess": (mean(pairs.excess), 1.0),
        "significant": (mean(pairs.has_effect), 1.0),
        "false_omission_rate": (mean(pairs.has_effect, left_out=True), -1.0),
        "auprc_effects": (area(pairs.has_effect, everywhere, n_edges), 1.0),
    }
    if reference is not None:
        inside, is_true = pairs.truth(reference)
        k = round(share_of_first(first, n_edges)[inside].sum())
        numbers["auprc_reference"] = (area(is_true, inside, k), 1.0)
    return numbers


def _draws(pairs: PairUniverse, n_bootstrap: int, seed: int) -> np.ndarray:
    """(draws, sources) how often each source is drawn; no draws with too few sources."""
    n = len(pairs.sources)
    size = n_bootstrap if n >= _MIN_SOURCES else 0
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=size).astype(float)


def _difference(prepare: Callable, sign: float, ranked, other, draws: np.ndarray, source_codes: np.ndarray) -> dict:
    first, second = prepare(ranked), prepare(other)
    once = np.ones(ranked.size)
    value, baseline = first(once), second(once)
    each = (draw[source_codes] for draw in draws)
    found = np.array([sign * (first(times) - second(times)) for times in each])
    found = found[np.isfinite(found)]
    low, high = np.percentile(found, [2.5, 97.5]) if found.size else (np.nan, np.nan)
    row = {"predicted": value, "baseline_value": baseline, "difference": sign * (value - baseline)}
    return row | {"low": float(low), "high": float(high)}
