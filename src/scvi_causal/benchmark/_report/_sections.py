"""The sections of a report, from what matters most to how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_causal.benchmark._compare import BEST, NO_CHANGE
from scvi_causal.benchmark._tables import breakdown, failures, leaks, summary
from scvi_causal.data._messages import plural

from . import _format as fmt
from ._blocks import Block, Bullets, Heading, Table, Text, Warn, code, plain
from ._findings import CEILING, direction_of, title_of
from ._words import scope, verdict, verdict_of_model
from .figures import effect_picture, models_to_show, populations_to_show, score_pictures, skill_picture

if TYPE_CHECKING:
    import pandas as pd

    from ._findings import Findings

MAX_ROWS, MAX_CONTEXTS = 60, 20


def warning_section(found: Findings, missing: list) -> list[Block]:
    """Leaks and unfinished runs come before everything else."""
    rows = leaks(found.results)
    blocks: list[Block] = []
    if missing:
        names = fmt.joined(plain(name) for name in dict.fromkeys(name for name, *_ in missing))
        told = f"{plural(len(missing), 'job')} missing ({names}). Run the same command again."
        blocks.append(Warn(f"**The run is not finished**: {told}"))
    return blocks + [
        Warn(
            f"**LEAK in {plain(row.model)}**: {plain(row.leak)} ({plural(row.rows, 'row')}, such as {plain(row.example)}). Its "
            "scores are shown with this mark, and neither compared nor called best."
        )
        for row in rows.itertuples()
    ]


def summary_section(found: Findings) -> list[Block]:
    """Scores, skill and what follows from them."""
    table = found.summary
    blocks = [
        Heading("Summary"),
        Text(f"**{verdict(found)}**"),
        Text(scope(found)),
        score_table(table, found, found.metrics),
        Text(
            "↑ higher is better, ↓ lower is better, → x closest to x is best. **Bold**: best model or baseline on the metric, "
            "among those scored on all populations. The noise ceiling is what a replicate of the experiment would reach, "
            "not a competitor; a prediction without noise of its own can come out above it where populations are small.",
            small=True,
        ),
    ]
    if table[[f"skill_{m}" for m in found.metrics]].notna().any(axis=None):
        blocks += [Heading("Skill", 3), skill_block(table, found)]
    hidden = found.scales[~found.scales["shown"].astype(bool)] if len(found.scales) else found.scales
    text = "0 is the best simple baseline on that metric, 1 the noise ceiling, on the populations on which the model was scored."
    if len(hidden):
        text += (
            " Without a scale: " + "; ".join(f"{plain(title_of(m))} ({why})" for m, why in hidden["why"].items()) + "."
        )
    blocks.append(Text(text, small=True))
    picture = skill_picture(found)
    blocks += [picture] if picture else []
    if found.models:
        blocks.append(Bullets([verdict_of_model(found, model) for model in found.models]))
    return blocks


def score_table(table: pd.DataFrame, found: Findings, metrics: list[str], *, mark: bool = True) -> Table:
    """Raw means by model, models and baselines in groups, the ceiling apart."""
    columns = {m: fmt.column(table[m]) for m in metrics}
    rows = []
    for i, (model, row) in enumerate(table.iterrows()):
        best = {m for m in metrics if mark and model in found.best.get(m, ())}
        cells = [f"**{columns[m][i]}**" if m in best else columns[m][i] for m in metrics]
        rows.append([_name(model, row), _count(row), *cells])
    header = ["model", "populations", *(f"{plain(title_of(m))} {direction_of(m)}" for m in metrics)]
    return Table(header, rows, groups=_groups(table), apart=frozenset({len(rows) - 1}))


def skill_block(table: pd.DataFrame, found: Findings) -> Table:
    """Skill by model, and which numbers are 0 and 1."""
    shown = [m for m in found.metrics if table[f"skill_{m}"].notna().any()]
    table = table.drop(index=CEILING)
    rows = [[_name(model, row), *fmt.column(row[[f"skill_{m}" for m in shown]], 2)] for model, row in table.iterrows()]
    ends = found.scales.loc[shown]
    rows.append(["0: best simple baseline", *(plain(name) for name in ends["baseline"])])
    return Table(
        ["model", *(plain(title_of(m)) for m in shown)], rows, groups=_groups(table), apart=frozenset({len(rows) - 1})
    )


def _name(model: str, row: pd.Series) -> str:
    return f"{plain(model)} **LEAK**" if row["leak"] else plain(model)


def _count(row: pd.Series) -> str:
    """``25``, or ``15 of 25``, with what happened to the others."""
    scored, asked = int(row["scored"]), int(row["asked"])
    if scored == asked and not row["failed"] and not row["refused"]:
        return str(scored)
    why = ", ".join(word for word in ("failed", "refused") if row[word])
    return f"{scored} of {asked}" + (f" ({why})" if why else "")


def _groups(table: pd.DataFrame) -> dict[int, str]:
    flags = table["is_baseline"].astype(bool).tolist()
    return {flags.index(True): "simple baselines"} if True in flags and not all(flags[: flags.index(True) + 1]) else {}


def comparison_section(found: Findings) -> list[Block]:
    """Paired comparisons with the best baseline and with no change."""
    rows = found.comparisons
    blocks: list[Block] = [Heading("Paired comparisons")]
    if rows.empty:
        return [
            *blocks,
            Text("There is nothing to compare: a comparison needs a model or baseline and a baseline beside it."),
        ]
    several = found.shown["context"].nunique() > 1
    together = (
        "; the contexts of one are averaged for the test and drawn together in the bootstrap." if several else "."
    )
    pairs = (
        "Pairs are contexts, since one perturbation was scored in several: what is found holds for other contexts of this "
        "perturbation, not for other perturbations."
        if found.unit == "context"
        else f"Pairs are perturbations{together}"
    )
    blocks.append(
        Text(
            f"{pairs} Difference of means, turned so that positive is better, with a 95 % bootstrap interval (10,000 resamples, "
            "widened for few pairs). p: sign-flip test of the mean difference, two-sided: the share of all ways to swap model and "
            "baseline, pair by pair, that give a difference as consistent as the observed one. Corrected: the same for the most "
            "consistent of all models and metrics of a table (step-down max-T of Westfall and Young; baselines apart), which holds "
            "the chance of any false finding in the table below 5 %, and takes into account that metrics rise and fall together. "
            f"From {int(rows['n_needed'].max())} pairs on a p below 0.05 is possible. "
            '"No difference shown" does not mean that there is none.'
        )
    )
    rows = rows[(rows["n"] > 0) & ~rows["model"].isin(found.leaks)]
    rows = rows.sort_values("model", key=lambda names: names.map(list(found.flags.index).index), kind="stable")
    best, still = (rows[rows["reference"] == reference] for reference in (BEST, NO_CHANGE))
    if len(best):
        blocks += [Heading("Against the best simple baseline", 3), _comparison_table(best)]
    if len(still):
        blocks += [Heading("Against predicting no change", 3), _still_table(still, found)]
        blocks.append(
            Text("Difference; **bold**: better or worse than no change (corrected p below 0.05).", small=True)
        )
    return blocks


def _comparison_table(rows: pd.DataFrame) -> Table:
    digits = {m: fmt.digits_of(part[["difference", "low", "high"]].stack()) for m, part in rows.groupby("metric")}
    body = []
    for row in rows.itertuples():
        words = f"**{row.verdict}**" if row.verdict in ("better", "worse") else row.verdict
        body.append(
            [
                plain(row.model),
                plain(title_of(row.metric)),
                plain(row.reference_model),
                fmt.with_interval(row.difference, row.low, row.high, digits[row.metric]),
                fmt.with_interval(row.skill, row.skill_low, row.skill_high, 2),
                fmt.share(row.won, row.n),
                fmt.p_value(row.p),
                fmt.p_value(row.p_adjusted),
                words,
            ]
        )
    header = [
        "model",
        "metric",
        "best baseline",
        "difference [95 %]",
        "skill [95 %]",
        "won",
        "p",
        "p (corrected)",
        "verdict",
    ]
    return Table(header, body, n_left=3, left=frozenset({8}))


def _still_table(rows: pd.DataFrame, found: Findings) -> Table:
    """Models and baselines by metrics: the difference to predicting no change."""
    digits = {metric: fmt.digits_of(part["difference"]) for metric, part in rows.groupby("metric")}
    cells = {}
    for row in rows.itertuples():
        text = fmt.number(row.difference, digits[row.metric])
        cells[row.model, row.metric] = f"**{text}**" if row.verdict in ("better", "worse") else text
    models = [m for m in found.flags.index if (rows["model"] == m).any()]
    metrics = [m for m in found.metrics if (rows["metric"] == m).any()]
    body = [[plain(model), *(cells.get((model, m), fmt.MISSING) for m in metrics)] for model in models]
    return Table(["model", *(plain(title_of(m)) for m in metrics)], body)


def population_section(found: Findings) -> list[Block]:
    """Every population: dot plots, tables by context and by kind."""
    blocks: list[Block] = [Heading("Every perturbation")]
    blocks += score_pictures(found)
    kinds = found.shown["kind"].nunique() if "kind" in found.results else 0
    if kinds > 1:
        table = breakdown(found.shown, found.top, "kind", metrics=found.metrics, populations="all")
        blocks.append(Heading("By how much was seen in training", 3))
        for kind in table.index.unique(0):
            blocks += [Text(f"**{plain(kind)}**"), score_table(table.loc[kind], found, found.metrics, mark=False)]
    contexts = found.shown["context"].nunique()
    if 1 < contexts <= MAX_CONTEXTS:
        table = breakdown(found.shown, found.top, "context", metrics=found.metrics, populations="all")
        blocks.append(Heading("By context", 3))
        for metric in found.metrics:
            wide = table[metric].unstack("model")
            wide = wide.reindex(columns=[m for m in [*found.flags.index, CEILING] if m in wide]).dropna(how="all")
            if len(wide):
                blocks += [Text(f"**{plain(title_of(metric))}** {direction_of(metric)}"), _matrix(wide, "context")]
    return blocks


def _matrix(wide: pd.DataFrame, corner: str) -> Table:
    digits = fmt.digits_of(wide.to_numpy().ravel())
    rows = [[plain(name), *fmt.column(row, digits)] for name, row in wide.iterrows()]
    return Table([corner, *(plain(c) for c in wide.columns)], rows)


def effect_section(found: Findings, result) -> list[Block]:
    """Observed against predicted effects, where the run kept them."""
    read = getattr(result, "effects", None)
    populations = populations_to_show(found)
    effects = read(populations) if callable(read) and populations else None
    if effects is None or effects.empty:
        return []
    picture = effect_picture(found, effects, populations, models_to_show(found))
    return [Heading("Effects"), picture] if picture else []


def indistinguishable_section(found: Findings) -> list[Block]:
    """Populations without an effect that can be seen, apart from all averages."""
    blocks: list[Block] = [Heading("Perturbations indistinguishable from control")]
    if found.tested.empty:
        return [*blocks, Text("Not tested.")]
    rows = found.tested[~found.tested["detectable"]]
    if rows.empty:
        return [*blocks, Text("None: the effect of every perturbation can be told from control cells.")]
    blocks.append(
        Text(
            f"{plural(len(rows), 'population')}, in none of the averages above: nothing can be predicted where nothing is seen. "
            "Permutation test of the difference of means against reference controls, Benjamini-Hochberg 0.05 over the "
            "populations of a seed, in at most half of the seeds; p is the median over seeds."
        )
    )
    several = (
        rows.index.get_level_values("context").nunique() > 1 or (rows.index.get_level_values("context") != "").any()
    )
    body = [
        [
            plain(p),
            *([plain(c)] if several else []),
            *_cells(row),
            fmt.p_value(row["p_effect"]),
            fmt.p_value(row["adjusted"]),
        ]
        for (p, c), row in rows.sort_values("p_effect", kind="stable").head(MAX_ROWS).iterrows()
    ]
    header = ["perturbation", *(["context"] if several else []), *(["cells"] if "n_observed" in rows else [])]
    blocks.append(Table([*header, "p", "p (BH)"], body, n_left=1 + several))
    if len(rows) > MAX_ROWS:
        blocks.append(Text(f"The {MAX_ROWS} smallest p of {len(rows)}.", small=True))
    apart = summary(found.results, found.ceiling, metrics=found.metrics, populations="indistinguishable", skill=False)
    if found.which == "detectable":
        blocks += [Text("Scores on these populations alone:"), score_table(apart, found, found.metrics, mark=False)]
    return blocks


def _cells(row: pd.Series) -> list[str]:
    return [fmt.number(row["n_observed"], 0)] if "n_observed" in row else []


def failure_section(found: Findings) -> list[Block]:
    """What failed or was refused, with the reason."""
    rows = failures(found.results)
    if rows.empty:
        return []
    body = [
        [plain(r.model), r.status, str(r.populations), str(r.jobs), plain(r.example), code(r.error)]
        for r in rows.itertuples()
    ]
    header = ["model", "status", "perturbations", "jobs", "such as", "reason"]
    return [Heading("What did not run"), Table(header, body, n_left=2, left=frozenset({4, 5}))]
