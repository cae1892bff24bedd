"""Everything that a report says, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal.benchmark._compare import BEST, compare
from scvi_causal.benchmark._scale import oriented, unit_name
from scvi_causal.benchmark._tables import (
    CEILING,
    detectable,
    leaking,
    metric_names,
    models_of,
    population_scores,
    scales,
    select,
    summary,
)
from scvi_causal.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence


def title_of(metric: str) -> str:
    """Heading of a metric."""
    return METRICS[metric].title


def direction_of(metric: str) -> str:
    """In which direction a metric is better, for the head of a column."""
    found = METRICS[metric]
    return f"→ {found.best:g}" if found.better == "closer" else {"higher": "↑", "lower": "↓"}[found.better]


@dataclass
class Findings:
    """Results of a run with what follows from them; each part is computed when it is first asked for."""

    results: pd.DataFrame
    ceiling: pd.DataFrame
    config: dict
    chosen: Sequence[str] | None = None

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics of the tables."""
        return metric_names(self.results, self.chosen)

    @cached_property
    def flags(self) -> pd.Series:
        """``is_baseline`` by model, models first."""
        return models_of(self.results)

    @cached_property
    def models(self) -> list[str]:
        """Models that are no baselines."""
        return list(self.flags.index[~self.flags])

    @cached_property
    def leaks(self) -> list[str]:
        """Models with a leak."""
        return leaking(self.results)

    def label(self, model: str) -> str:
        """Name of a model in pictures, with a mark if it leaks."""
        return f"{model} (LEAK)" if model in self.leaks else model

    @property
    def no_change(self) -> str:
        """Name of the baseline that predicts no change."""
        return self.config.get("no_change") or "ControlMean"

    @cached_property
    def tested(self) -> pd.DataFrame:
        """Which populations are detectable; empty where that was not tested."""
        if "p_effect" not in self.ceiling or self.ceiling["p_effect"].isna().all():
            return pd.DataFrame()
        return detectable(self.ceiling)

    @cached_property
    def n_populations(self) -> int:
        """Populations that were asked for."""
        return len(self.results[["perturbation", "context"]].drop_duplicates())

    @cached_property
    def which(self) -> str:
        """The populations of the main tables: the detectable ones, or all if there are none."""
        nothing = not self.tested.empty and not self.tested["detectable"].any()
        return "all" if nothing else "detectable"

    @cached_property
    def n_shown(self) -> int:
        """Populations of the main tables."""
        return len(self.shown[["perturbation", "context"]].drop_duplicates())

    @cached_property
    def shown(self) -> pd.DataFrame:
        """The results on the populations of the main tables."""
        return select(self.results, self.ceiling, self.which)

    @cached_property
    def top(self) -> pd.DataFrame:
        """The ceiling of the populations of the main tables."""
        return select(self.ceiling, self.ceiling, self.which)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Main table."""
        return summary(self.shown, self.top, metrics=self.metrics, populations="all")

    @cached_property
    def scales(self) -> pd.DataFrame:
        """Both ends of the skill scale, in raw numbers."""
        return scales(self.shown, self.top, self.metrics)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """All comparisons."""
        options = {"metrics": self.metrics, "populations": "all", "no_change": self.no_change}
        return compare(self.shown, self.top, **options)

    def against_best(self, model: str) -> pd.DataFrame:
        """Comparisons of a model with the best baseline."""
        rows = self.comparisons
        return rows[(rows["model"] == model) & (rows["reference"] == BEST)]

    @cached_property
    def unit(self) -> str:
        """What a pair of the comparisons is: a perturbation, or a context."""
        rows = self.shown[["perturbation", "context"]].drop_duplicates()
        return unit_name(pd.MultiIndex.from_frame(rows)) if len(rows) else "perturbation"

    @cached_property
    def best(self) -> dict[str, set[str]]:
        """Models with the best mean, by metric: of those scored on every population that any model was, without leaks."""
        rows = oriented(self.shown, self.metrics)
        scores = population_scores(rows[~rows["model"].isin(self.leaks)], self.metrics)
        best = {}
        for metric in self.metrics:
            table = scores[metric].dropna().groupby(level="model").agg(["size", "mean"])
            table = table[table["size"] == table["size"].max()]
            best[metric] = set(table.index[np.isclose(table["mean"], table["mean"].max())]) if len(table) > 1 else set()
        return best

    def grid(self, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(populations, models) of a metric, and its ceiling ``value, low, high``, for a picture."""
        values = population_scores(self.shown, [metric])[metric].unstack("model")
        values = values.reindex(columns=[m for m in self.flags.index if m in values])
        names = {metric: "value", f"{metric}_low": "low", f"{metric}_high": "high"}
        names = {old: new for old, new in names.items() if old in self.top and self.top[old].notna().any()}
        if metric not in names:
            return values, pd.DataFrame()
        return values, self.top.groupby(["perturbation", "context"], observed=True)[list(names)].mean().rename(
            columns=names
        )


__all__ = ["CEILING", "Findings", "direction_of", "title_of"]
