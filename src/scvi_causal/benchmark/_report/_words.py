"""What was found, in sentences that claim no more than was shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_causal.data._messages import plural

from . import _format as fmt
from ._blocks import plain
from ._findings import title_of

if TYPE_CHECKING:
    import pandas as pd

    from ._findings import Findings


def verdict(found: Findings) -> str:
    """One sentence on all models together."""
    if not found.models:
        return "Only simple baselines were run: there is no model to judge."
    judged = {model: found.against_best(model) for model in found.models if model not in found.leaks}
    judged = {model: rows[rows["n"] > 0] for model, rows in judged.items()}
    judged = {model: rows for model, rows in judged.items() if len(rows)}
    if not judged:
        return "No model could be compared with a simple baseline."
    better = {model: int((rows["verdict"] == "better").sum()) for model, rows in judged.items()}
    worse = {model: int((rows["verdict"] == "worse").sum()) for model, rows in judged.items()}
    winners = [
        f"{plain(m)} (on {n} of {plural(len(judged[m]), 'metric')}" + (f"; worse on {worse[m]})" if worse[m] else ")")
        for m, n in better.items()
        if n
    ]
    if winners:
        return f"Shown to be better than the best simple baseline: {fmt.joined(winners)}."
    if all(rows["verdict"].str.startswith("too few").all() for rows in judged.values()):
        return f"Too few {found.unit}s to tell: with so few, no result could be significant."
    return "No model was shown to be better than the best simple baseline on any metric of the table."


def verdict_of_model(found: Findings, model: str) -> str:
    """What was shown about one model."""
    name = f"**{plain(model)}**"
    if model in found.leaks:
        return f"{name}: **LEAK**, its scores are no evidence and are not compared."
    rows = found.against_best(model)
    rows = rows[rows["n"] > 0]
    if rows.empty:
        state = (
            "failed" if (found.results.loc[found.results["model"] == model, "status"] == "failed").any() else "refused"
        )
        return f"{name}: not scored ({state}; see what did not run)."
    parts = []
    for word, lead in (("better", "better on"), ("worse", "worse on"), ("mixed", "mixed on")):
        metrics = rows.loc[rows["verdict"] == word, "metric"]
        if len(metrics):
            parts.append(f"{lead} {len(metrics)} ({'; '.join(plain(title_of(m)) for m in metrics)})")
    for start, lead in (("no difference", "no difference shown on"), ("too few", f"too few {found.unit}s to tell on")):
        n = int(rows["verdict"].str.startswith(start).sum())
        if n:
            parts.append(f"{lead} {n}")
    text = f"{name} against the best simple baseline, of {plural(len(rows), 'metric')}: {', '.join(parts)}."
    return " ".join(part for part in (text, _wins(found, rows), _skill(rows)) if part)


def _wins(found: Findings, rows: pd.DataFrame) -> str:
    """Where tests cannot tell, at least the count of wins."""
    few = rows[rows["verdict"].str.startswith("too few")]
    if few.empty:
        return ""
    row = few.sort_values(["won", "n"]).iloc[-1]
    ahead, n = int((few["difference"] > 0).sum()), int(row["n"])
    return (
        f"(With {plural(n, found.unit)} no p below 0.05 is possible; {int(row['n_needed'])} would be needed. It is "
        f"ahead on {ahead} of these {len(few)}; at its best, on {plain(title_of(row['metric']))}, it wins "
        f"{fmt.share(row['won'], n)}, p = {fmt.p_value(row['p'])}.)"
    )


def _skill(rows: pd.DataFrame) -> str:
    skills = rows["skill"].dropna()
    if skills.empty:
        return ""
    if len(skills) == 1:
        return f"Skill: {fmt.number(skills.iloc[0], 2)}."
    middle, low, high = (fmt.number(x, 2) for x in (skills.median(), skills.min(), skills.max()))
    return f"Skill: median {middle} over {len(skills)} metrics (from {low} to {high})."


def scope(found: Findings) -> str:
    """On which populations the tables are, and in which order was averaged."""
    several = found.results["context"].nunique() > 1
    unit = "populations (a perturbation in a context)" if several else "perturbations"
    if found.tested.empty:
        which = f"All {found.n_populations} {unit}; whether their effect can be told from control was not tested."
    elif found.which == "all":
        which = (
            f"**None of the {found.n_populations} {unit} has an effect that can be told from control cells.** All are shown "
            "here, and none of these numbers says much."
        )
    else:
        n = int((~found.tested["detectable"]).sum())
        apart = f"the {n} whose effect cannot be told from control are in a table of their own"
        which = (
            f"{found.n_shown} of {found.n_populations} {unit}; {apart}." if n else f"All {found.n_populations} {unit}."
        )
    untested = 0 if found.tested.empty else int((~found.tested["tested"]).sum())
    if untested:
        which += f" Included: {plural(untested, 'population')} for which that could not be tested."
    return f"{which} Means: over seeds and folds within a population first, then over populations with equal weight."
