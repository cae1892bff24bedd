"""Tables of a benchmark, from its rows.

The order of averaging is the same everywhere: over seeds and folds within a population (a perturbation in a context) first,
then over populations, each with the same weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal.data._messages import did_you_mean, listed
from scvi_causal.metrics import METRICS

from ._resampling import benjamini_hochberg
from ._scale import POPULATION, ceiling_of, of_model, oriented, per_population, scale_of

if TYPE_CHECKING:
    from collections.abc import Sequence

CEILING = "noise ceiling"
WHICH = ("detectable", "indistinguishable", "all")
RESOURCES = ["fit_cpu_s", "predict_cpu_s", "score_cpu_s", "wall_s", "peak_memory_mb"]


# ---------------------------------------------------------------------- which metrics, models and populations


def metric_names(results: pd.DataFrame, metrics: Sequence[str] | None = None) -> list[str]:
    """The metrics asked for; ``None`` takes the headline metrics that have a number, in the order of ``METRICS``."""
    if metrics is None:
        return [m.name for m in METRICS.values() if m.headline and m.name in results and results[m.name].notna().any()]
    unknown = [str(name) for name in metrics if name not in METRICS]
    if unknown:
        hint = did_you_mean(unknown[0], METRICS)
        raise ValueError(
            f"Not among the metrics: {listed(unknown)}.{hint} They are {listed(METRICS, limit=len(METRICS))}."
        )
    return [name for name in metrics if name in results]


def models_of(results: pd.DataFrame) -> pd.Series:
    """``is_baseline`` by model: models first, then baselines, each in the order in which they were run."""
    flags = results.groupby("model", sort=False, observed=True)["is_baseline"].first().astype(bool)
    return pd.concat([flags[~flags], flags[flags]])


def leaking(results: pd.DataFrame) -> list[str]:
    """Models with a leak in any row."""
    return [m for m in models_of(results).index if (results.loc[results["model"] == m, "leak"].fillna("") != "").any()]


def detectable(ceiling: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Which populations differ from control cells at all.

    Benjamini-Hochberg over the populations of a seed, on ``p_effect``; with several seeds (other halves of the control
    cells) a population counts as detectable if it is in more than half of them.

    Parameters
    ----------
    ceiling
        Rows of the noise ceiling: one per population, fold and seed.
    alpha
        False discovery rate.

    Returns
    -------
    By (perturbation, context): ``n_observed`` where it is known, ``p_effect`` (median over seeds), ``share`` of seeds in
    which the population is detectable, ``tested``, and ``detectable``. What could not be tested is not called
    indistinguishable.
    """
    rows = ceiling.copy()
    rows["adjusted"] = rows.groupby("seed", observed=True)["p_effect"].transform(benjamini_hochberg)
    # a comparison with NaN is False, and a mean over False would call "not tested" the same as "not detected"
    rows["share"] = (rows["adjusted"] < alpha).astype(float).where(rows["adjusted"].notna())
    groups = rows.groupby(POPULATION, sort=False, observed=True)
    table = groups[["p_effect", "adjusted"]].median().join(groups["share"].mean())
    if "n_observed" in rows:
        table.insert(0, "n_observed", groups["n_observed"].median())
    table["tested"] = table["share"].notna()
    table["detectable"] = ~table["tested"] | (table["share"] > 0.5)
    return table


def select(frame: pd.DataFrame, ceiling: pd.DataFrame, which: str = "detectable") -> pd.DataFrame:
    """The rows of ``frame`` whose population is detectable, indistinguishable from control, or all."""
    if which not in WHICH:
        raise ValueError(f"populations={which!r} is none of {listed(WHICH)}.{did_you_mean(which, WHICH)}")
    if which == "all" or "p_effect" not in ceiling:
        return frame
    flags = detectable(ceiling)["detectable"]
    wanted = flags.index[flags] if which == "detectable" else flags.index[~flags]
    rows = pd.MultiIndex.from_frame(frame[POPULATION])
    keep = rows.isin(wanted)
    if which == "detectable":  # a population without a ceiling was not tested
        keep |= ~rows.isin(flags.index)
    return frame[keep]


def population_scores(results: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Raw scores by (model, perturbation, context), averaged over seeds and folds; rows that failed are left out."""
    return per_population(results[results["status"] == "ok"], metrics, by=["model"])


# ---------------------------------------------------------------------- the summary


def summary(
    results: pd.DataFrame,
    ceiling: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    populations: str = "detectable",
    skill: bool = True,
) -> pd.DataFrame:
    """One row per model, the noise ceiling last.

    Parameters
    ----------
    results
        One row per model, fold, population and seed.
    ceiling
        One row per fold, population and seed.
    metrics
        Names of :data:`~scvi_causal.metrics.METRICS`; ``None`` is the headline metrics.
    populations
        ``"detectable"`` (those whose effect can be told from control cells), ``"indistinguishable"`` (the others) or
        ``"all"``.
    skill
        Adds ``skill_<metric>``: 0 is the best simple baseline on that metric, 1 the noise ceiling, both on the
        populations on which the model was scored; NaN where the two cannot be told apart.

    Returns
    -------
    By model: ``is_baseline``, ``scored`` of ``asked`` populations, ``failed`` and ``refused`` rows, ``leak``, the mean of
    each metric over populations, and the skills. Skill measures a distance on metrics that are best in between
    (``|x - best|``, population by population), so that errors in both directions do not cancel as they do in the mean.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.benchmark._tables import summary
    >>> keys = {"fold": 0, "seed": 0, "perturbation": "A", "context": "", "status": "ok", "leak": ""}
    >>> results = pd.DataFrame(
    ...     [
    ...         {"model": "mine", "is_baseline": False, "pearson_effect": 0.6, **keys},
    ...         {"model": "mean", "is_baseline": True, "pearson_effect": 0.4, **keys},
    ...     ]
    ... )
    >>> ceiling = pd.DataFrame([{"pearson_effect": 0.8, "pearson_effect_low": 0.7, "p_effect": 0.001, **keys}])
    >>> summary(results, ceiling)["skill_pearson_effect"].round(3).to_dict()
    {'mine': 0.5, 'mean': 0.0, 'noise ceiling': 1.0}
    """
    metrics = metric_names(results, metrics)
    flags = models_of(results)  # also of models without a row among the selected populations
    results, rows = select(results, ceiling, populations), select(ceiling, ceiling, populations)
    table = _status(results, flags)
    values = population_scores(results, metrics)
    # by position, so that a model of which nothing was scored keeps its row
    table[metrics] = values.groupby(level="model", sort=False)[metrics].mean().reindex(table.index)
    top = per_population(rows, [m for m in metrics if m in rows])
    known = {m: top[m].mean() if m in top else np.nan for m in metrics}
    if skill:
        skills = skill_table(results, rows, metrics)
        table = table.join(skills.add_prefix("skill_"))
        known |= {f"skill_{m}": 1.0 if skills[m].notna().any() else np.nan for m in metrics}
    last = {
        "is_baseline": False,
        "scored": len(top),
        "asked": len(top),
        "failed": 0,
        "refused": 0,
        "leak": False,
    } | known
    return pd.concat([table, pd.DataFrame([last], index=[CEILING])]).rename_axis("model")


def _status(results: pd.DataFrame, flags: pd.Series) -> pd.DataFrame:
    rows = results.assign(
        population=list(zip(results["perturbation"], results["context"], strict=True)),
        failed=results["status"] == "failed",
        refused=results["status"] == "refused",
    )
    groups = rows.groupby("model", observed=True)
    table = pd.DataFrame({"is_baseline": flags})
    table["scored"] = rows[rows["status"] == "ok"].groupby("model", observed=True)["population"].nunique()
    table["asked"] = groups["population"].nunique()
    table[["failed", "refused"]] = groups[["failed", "refused"]].sum()
    table = table.fillna(0).astype(dict.fromkeys(table.columns[1:], int))
    table["leak"] = table.index.isin(leaking(results))
    return table


def scales(results: pd.DataFrame, ceiling: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """By metric: which baseline is 0 on the skill scale, both ends in raw numbers, and why it is not shown where it is not.

    Models with a leak are no baselines.
    """
    scores, top, baselines = oriented_means(results, ceiling, metrics)
    rows = {metric: scale_of(scores, top, baselines, metric) for metric in metrics}
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=["baseline", "zero", "one", "shown", "why"])
    return table.rename_axis("metric")


def skill_table(results: pd.DataFrame, ceiling: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Skill by model and metric: (model - baseline) / (ceiling - baseline), means over the populations that all three have."""
    scores, top, baselines = oriented_means(results, ceiling, metrics)
    table = pd.DataFrame(np.nan, index=models_of(results).index, columns=list(metrics))
    for metric in metrics:
        scale = scale_of(scores, top, baselines, metric)
        if not scale["shown"]:
            continue
        for model in scores.index.unique("model"):
            three = triples(scores, top, model, scale["baseline"], metric)
            span = (three["one"] - three["zero"]).mean()
            # on few populations the span can close, and the ratio would be noise
            table.loc[model, metric] = (three["model"] - three["zero"]).mean() / span if span > 0 else np.nan
    return table


def triples(scores: pd.DataFrame, top: pd.DataFrame, model: str, baseline: str, metric: str) -> pd.DataFrame:
    """Oriented ``model``, ``zero`` and ``one`` of the populations that have all three."""
    mine, zero = (of_model(scores, name, metric) for name in (model, baseline))
    one, _ = ceiling_of(metric, top, zero.index)
    return pd.concat([mine, zero, one], axis=1, keys=["model", "zero", "one"]).dropna()


def oriented_means(results, ceiling, metrics) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    scores = population_scores(oriented(results, metrics), metrics)
    columns = [c for m in metrics for c in (m, f"{m}_low", f"{m}_high") if c in ceiling]
    top = per_population(oriented(ceiling, [m for m in metrics if m in ceiling]), columns)
    flags, leaks = models_of(results), leaking(results)
    return scores, top, [model for model in flags.index[flags] if model not in leaks]


# ---------------------------------------------------------------------- further tables


def breakdown(
    results: pd.DataFrame,
    ceiling: pd.DataFrame,
    by: str,
    *,
    metrics: Sequence[str] | None = None,
    populations: str = "detectable",
    skill: bool = False,
) -> pd.DataFrame:
    """:func:`summary` of each value of a column of the results (``"context"``, ``"kind"``), by (value, model).

    The rows of the ceiling are those of the same folds, seeds and populations.
    """
    keys = ["fold", "seed", *POPULATION]
    # what is detectable is decided once, over all populations of a seed
    results, rows = select(results, ceiling, populations), select(ceiling, ceiling, populations)
    options = {"metrics": metric_names(results, metrics), "populations": "all", "skill": skill}
    tables = {}
    for value, part in results.groupby(by, sort=True, observed=True):
        if len(rows):
            same = pd.MultiIndex.from_frame(rows[keys]).isin(pd.MultiIndex.from_frame(part[keys]))
        tables[value] = summary(part, rows[same] if len(rows) else rows, **options)
    return pd.concat(tables, names=[by]) if tables else pd.DataFrame()


def seed_spread(
    results: pd.DataFrame,
    ceiling: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    populations: str = "detectable",
) -> pd.DataFrame:
    """Standard deviation over seeds of each model's mean over populations; empty with one seed.

    A seed draws other folds, other halves of the control cells and another start of the model.
    """
    metrics = metric_names(results, metrics)
    if results["seed"].nunique() < 2:
        return pd.DataFrame(columns=metrics)
    rows = select(results, ceiling, populations)
    rows = rows[rows["status"] == "ok"]
    means = per_population(rows, metrics, by=["model", "seed"]).groupby(level=["model", "seed"], sort=False).mean()
    return means.groupby(level="model").std(ddof=1).reindex(models_of(results).index)


def failures(results: pd.DataFrame) -> pd.DataFrame:
    """What failed or was refused: one row per model, status and reason, with the number of populations and of jobs."""
    rows = results[results["status"] != "ok"]
    rows = rows.assign(error=rows["error"].fillna("").replace("", "no reason was given"))
    groups = rows.groupby(["model", "status", "error"], sort=False, observed=True)
    table = groups["perturbation"].agg(populations=lambda x: x.nunique(), example="first").reset_index()
    jobs = rows.drop_duplicates(["model", "status", "error", "fold", "seed"])
    table["jobs"] = jobs.groupby(["model", "status", "error"], sort=False, observed=True).size().to_numpy()
    return table[["model", "status", "error", "populations", "jobs", "example"]]


def leaks(results: pd.DataFrame) -> pd.DataFrame:
    """What looks like a leak: one row per model and finding, with the number of rows and an example."""
    rows = results[results["leak"].fillna("") != ""]
    table = rows.groupby(["model", "leak"], sort=False, observed=True)["perturbation"].agg(rows="size", example="first")
    return table.reset_index()


def resources(results: pd.DataFrame) -> pd.DataFrame:
    """Cost of each model: CPU-seconds of a job (mean), of all jobs, and the highest peak memory, by model.

    A job is one model on one fold and seed; its costs stand in each of its rows.
    """
    present = [column for column in RESOURCES if column in results]
    jobs = results.drop_duplicates(["model", "fold", "seed"])
    groups = jobs.groupby("model", observed=True)
    table = pd.DataFrame({"jobs": groups.size()}).reindex(models_of(results).index)
    for column in present:
        table[column] = groups[column].max() if column == "peak_memory_mb" else groups[column].mean()
    cpu = [column for column in ("fit_cpu_s", "predict_cpu_s") if column in present]
    if cpu:
        table["model_cpu_s_total"] = jobs[cpu].sum(axis=1).groupby(jobs["model"], observed=True).sum()
    return table
