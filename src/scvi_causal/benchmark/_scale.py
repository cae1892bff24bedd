"""The skill scale: 0 is the best simple baseline, 1 the noise ceiling, and larger is better for every metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal.metrics import METRICS

from ._resampling import bootstrap_means, interval

if TYPE_CHECKING:
    from collections.abc import Sequence

POPULATION = ["perturbation", "context"]
MIN_UNITS = 6
"""Below this number of perturbations a bootstrap over them says nothing; the ceiling's own intervals decide."""


def oriented(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The same rows with every metric turned so that larger is better: ``x``, ``-x`` or ``-|x - best|``.

    Done row by row, before anything is averaged: a variance ratio of 0.5 in one population and 1.5 in the next is wrong
    twice, while its mean is perfect. Intervals (``<metric>_low``, ``<metric>_high``) are turned along.
    """
    frame = frame.copy()
    for name in metrics:
        metric, bounds = METRICS[name], [f"{name}_low", f"{name}_high"]
        given = [column for column in bounds if column in frame]
        if metric.better == "lower":
            frame[[name, *given]] = -frame[[name, *given]]
            if len(given) == 2:
                frame[bounds] = frame[bounds[::-1]].to_numpy()
        elif metric.better == "closer":
            away = (frame[[name, *given]] - metric.best).abs()
            if len(given) == 2:
                inside = (frame[bounds[0]] <= metric.best) & (metric.best <= frame[bounds[1]])
                frame[bounds[1]] = -away[bounds].min(axis=1, skipna=False).where(~inside, 0.0)
                frame[bounds[0]] = -away[bounds].max(axis=1, skipna=False)
            frame[name] = -away[name]
    return frame


def per_population(frame: pd.DataFrame, columns: Sequence[str], by: Sequence[str] = ()) -> pd.DataFrame:
    """Means over seeds and folds within a population, the first step of every average; the order of rows is kept."""
    keys = [*by, *POPULATION]
    if frame.empty:  # a ceiling that is not done yet has no columns either
        return pd.DataFrame(columns=list(columns), index=pd.MultiIndex.from_tuples([], names=keys), dtype=float)
    return frame.groupby(keys, sort=False, observed=True)[list(columns)].mean()


def of_model(scores: pd.DataFrame, model: str, metric: str) -> pd.Series:
    """One metric of one model by (perturbation, context)."""
    return scores[metric].xs(model, level="model")


def best_baseline(scores: pd.DataFrame, baselines: Sequence[str], metric: str) -> str | None:
    """The baseline with the best mean, of oriented scores by (model, perturbation, context).

    Only baselines that were scored on as many populations as any baseline take part: one that refuses the difficult
    populations would otherwise win by that. ``None`` if no baseline was scored.
    """
    values = scores.loc[scores.index.get_level_values("model").isin(list(baselines)), metric].dropna()
    if values.empty:
        return None
    table = values.groupby(level="model", sort=False).agg(["size", "mean"])
    table = table[table["size"] == table["size"].max()]
    return str(table["mean"].idxmax())


def scale_of(scores: pd.DataFrame, ceiling: pd.DataFrame, baselines: Sequence[str], metric: str, seed: int = 0) -> dict:
    """Where 0 and 1 of the skill scale lie for one metric, and whether the two can be told apart.

    Parameters
    ----------
    scores
        Oriented, by (model, perturbation, context).
    ceiling
        Oriented, by (perturbation, context), with ``<metric>_low`` where it is known.
    baselines
        Names of the simple baselines.
    metric
        Name of the metric.
    seed
        Of the bootstrap.

    Returns
    -------
    ``baseline`` (name), ``zero`` and ``one`` (oriented means over the same populations), ``shown``, and ``why`` not.
    """
    scale = {"baseline": best_baseline(scores, baselines, metric), "zero": np.nan, "one": np.nan, "shown": False}
    if scale["baseline"] is None:
        return scale | {"why": "no baseline was scored"}
    zero = of_model(scores, scale["baseline"], metric)
    one, low = ceiling_of(metric, ceiling, zero.index)
    if one.isna().all():
        return scale | {"zero": zero.mean(), "why": "there is no noise ceiling"}
    pairs = pd.concat([zero, one, low], axis=1, keys=["zero", "one", "low"]).dropna(subset=["zero", "one"])
    if pairs.empty:
        return scale | {"why": "the baseline and the noise ceiling share no population"}
    scale |= {"zero": pairs["zero"].mean(), "one": pairs["one"].mean()}
    units = unit_of(pairs.index)
    if units.nunique() >= MIN_UNITS:
        means = bootstrap_means((pairs["one"] - pairs["zero"]).to_numpy(), units.to_numpy(), seed=seed)
        scale["shown"] = bool(interval(means, units.nunique())[0] > 0)
    else:
        scale["shown"] = bool((pairs["low"] > pairs["zero"]).all())
    return scale | {"why": "" if scale["shown"] else "the ceiling cannot be told apart from the best baseline"}


def ceiling_of(metric: str, ceiling: pd.DataFrame, populations: pd.Index) -> tuple[pd.Series, pd.Series]:
    """Oriented ceiling and its lower bound; the best value where none is measured because none is needed."""
    if metric in ceiling and ceiling[metric].notna().any():
        one = ceiling[metric].reindex(populations)
        low = ceiling[f"{metric}_low"].reindex(populations) if f"{metric}_low" in ceiling else one * np.nan
        return one, low
    known = METRICS[metric].ceiling == "none"
    best = METRICS[metric].best if METRICS[metric].better == "higher" else 0.0
    constant = pd.Series(best if known else np.nan, index=populations)
    return constant, constant


def unit_of(populations: pd.MultiIndex) -> pd.Series:
    """What is resampled and tested, per population: its perturbation; its context if there is one perturbation only.

    Contexts of one perturbation share cells' biology and usually one fitted model, so they are no independent repeats of
    each other; where there is nothing but contexts, they are all there is, and tables name them as the unit.
    """
    return populations.to_frame(index=False)[unit_name(populations)].set_axis(populations)


def unit_name(populations: pd.MultiIndex) -> str:
    """``"perturbation"``, or ``"context"`` where one perturbation was scored in several contexts."""
    n_perturbations, n_contexts = (populations.get_level_values(level).nunique() for level in POPULATION)
    return "context" if n_perturbations == 1 and n_contexts > 1 else "perturbation"
