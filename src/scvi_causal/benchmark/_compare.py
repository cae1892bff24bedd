"""Paired comparisons: each model against the best simple baseline and against no change, population by population."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._resampling import bootstrap_means, interval
from ._scale import best_baseline, of_model, scale_of, unit_name, unit_of
from ._sign_flips import flip_test, pairs_needed
from ._tables import leaking, metric_names, models_of, oriented_means, select, triples

if TYPE_CHECKING:
    from collections.abc import Sequence

BEST, NO_CHANGE = "best baseline", "no change"
ALPHA = 0.05
COLUMNS = [
    "model", "metric", "reference", "reference_model", "difference", "low", "high", "p", "p_adjusted", "won", "n", "unit",
    "n_needed", "skill", "skill_low", "skill_high", "verdict",
]  # fmt: skip


def compare(
    results: pd.DataFrame,
    ceiling: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    populations: str = "detectable",
    no_change: str | None = "ControlMean",
    n_boot: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every model with the best simple baseline, and everything with predicting no change.

    Parameters
    ----------
    results
        One row per model, fold, population and seed.
    ceiling
        One row per fold, population and seed; decides which populations are detectable, and where skill is 1.
    metrics
        Names of :data:`~scvi_causal.metrics.METRICS`; ``None`` is the headline metrics.
    populations
        ``"detectable"``, ``"indistinguishable"`` or ``"all"``, see :func:`summary`.
    no_change
        Name of the model that predicts no change; ``None``, or a name that did not run, leaves that comparison out.
    n_boot
        Resamples of the bootstrap.
    seed
        Of the bootstrap.

    Returns
    -------
    One row per model, metric and reference:

    - ``difference`` of the means over populations, turned so that positive is better (``|x - best|`` on metrics that are
      best in between), with its 95 % interval ``low``, ``high``: bootstrap over perturbations, whose contexts stay
      together, widened for few perturbations;
    - ``p`` of a sign-flip test of the mean over ``n`` pairs (``unit``: perturbations, averaged over contexts; contexts
      where there is one perturbation only), and ``p_adjusted``, corrected over all models and metrics that are compared with
      the same reference, step-down by the largest statistic; baselines, which are compared with no change only, are a
      family of their own. Both are exact if models that are equally good might as well have swapped their scores;
    - ``won``: share of the pairs in which the model is better, ties half;
    - ``n_needed``: from how many pairs on a p below 0.05 is possible at all;
    - ``skill`` with its interval from the same resamples, against the best baseline only;
    - ``verdict``: "better" or "worse" if the corrected p is below 0.05 and the interval of the difference lies on the same
      side of zero; "mixed" if only the first holds (a few large differences carry the mean); "too few perturbations to
      tell" (or contexts) if no result of this many pairs could be significant; "leak, not judged"; "not scored"; else
      "no difference shown".

    The best baseline is chosen per metric after the fact, which favours the baseline slightly. Perturbations of one fold
    share a fitted model: the interval is about other perturbations, not about another training, which seeds show.
    """
    metrics = metric_names(results, metrics)
    flags, leaks = models_of(results), leaking(results)
    results, ceiling = select(results, ceiling, populations), select(ceiling, ceiling, populations)
    scores, top, baselines = oriented_means(results, ceiling, metrics)
    options = {"n_boot": n_boot, "seed": seed}
    rows = []
    for metric in metrics:
        best = best_baseline(scores, baselines, metric)
        shown = scale_of(scores, top, baselines, metric, seed=seed)["shown"]
        for model, is_baseline in flags.items():
            if best is not None and not is_baseline:
                row = _pairs(scores, model, best, metric, **options)
                skill = _skill(scores, top, model, best, metric, **options) if shown and row["n"] else {}
                rows.append(row | skill | {"reference": BEST, "family": (BEST, False)})
            if no_change in flags.index and model != no_change:
                row = _pairs(scores, model, no_change, metric, **options)
                rows.append(row | {"reference": NO_CHANGE, "family": (NO_CHANGE, is_baseline)})
    table = pd.DataFrame(rows, columns=[*COLUMNS, "family", "pairs"])
    return _judge(table, leaks, seed)[COLUMNS]


def _pairs(scores: pd.DataFrame, model: str, reference: str, metric: str, n_boot: int, seed: int) -> dict:
    """Difference, interval and test of one model against one reference on one metric."""
    row = {"model": model, "metric": metric, "reference_model": reference, "n": 0, "unit": "perturbation"}
    present = scores.index.unique("model")
    if model not in present or reference not in present:
        return row
    pairs = pd.concat(
        [of_model(scores, name, metric) for name in (model, reference)], axis=1, keys=["model", "reference"]
    ).dropna()
    if pairs.empty:
        return row
    difference, units = pairs["model"] - pairs["reference"], unit_of(pairs.index)
    means = bootstrap_means(difference.to_numpy(), units.to_numpy(), n_boot=n_boot, seed=seed)
    low, high = interval(means, units.nunique())
    per_unit = difference.groupby(units).mean()
    won = float(np.mean((per_unit > 0) + 0.5 * (per_unit == 0)))
    found = {"difference": difference.mean(), "low": low, "high": high, "won": won}
    return row | found | {"n": len(per_unit), "unit": unit_name(pairs.index), "pairs": per_unit}


def _skill(scores, top, model: str, best: str, metric: str, n_boot: int, seed: int) -> dict:
    """Skill and its interval; numerator and denominator come from the same resamples."""
    three = triples(scores, top, model, best, metric)
    if three.empty:
        return {}
    units = unit_of(three.index)
    span = pd.concat([three["model"] - three["zero"], three["one"] - three["zero"]], axis=1)
    over, under = span.mean()
    if under <= 0:
        return {}
    means = bootstrap_means(span.to_numpy(), units.to_numpy(), n_boot=n_boot, seed=seed)
    means = means[means[:, 1] > 0]  # where the scale closes there is no ratio
    low, high = interval(means[:, 0] / means[:, 1], units.nunique())
    return {"skill": over / under, "skill_low": low, "skill_high": high}


def _judge(table: pd.DataFrame, leaks: Sequence[str], seed: int) -> pd.DataFrame:
    """Add p-values, the number of pairs that is needed, and the verdict."""
    table[["p", "p_adjusted"]] = np.nan
    table["n_needed"] = pairs_needed(ALPHA)
    # a leak is not judged, and what is not judged is no test to correct for
    of_leak = table["model"].isin(leaks)
    for _, rows in table[table["n"] > 0].groupby(["family", of_leak]):
        # units in one order, so that a sign is the same unit's in every column
        pairs = pd.concat(rows["pairs"].to_list(), axis=1).sort_index()
        table.loc[rows.index, "p"], adjusted = flip_test(pairs.to_numpy(), seed=seed)
        if not of_leak[rows.index[0]]:
            table.loc[rows.index, "p_adjusted"] = adjusted
    table["verdict"] = [verdict_of(row, row["model"] in leaks) for _, row in table.iterrows()]
    return table


def verdict_of(row: pd.Series, leak: bool = False) -> str:
    """The verdict in words, see :func:`compare`."""
    if row["n"] == 0:
        return "not scored"
    if leak:
        return "leak, not judged"
    if row["p_adjusted"] < ALPHA:
        if row["low"] > 0:
            return "better"
        return "worse" if row["high"] < 0 else "mixed"
    if row["n"] < row["n_needed"]:
        return f"too few {row['unit']}s to tell"
    return "no difference shown"
