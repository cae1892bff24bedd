"""One run from file to report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scvi_causal import metrics
from scvi_causal.data import canonical_labels

from . import _figures, _models, _report
from ._holdout import Plan, plan_holdout
from ._options import DemoOptions, expression, holds_counts, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

LAYER, OBSERVED_LAYER = "counterfactual", "log1p"
# below this the halves of the real cells share less than a quarter of the variance of their effects
LOW_CEILING = 0.5
NOISY = (
    "The noise ceiling of the effects is low: with so few cells, or so weak an effect, not even real cells predict real "
    "cells, and differences between models mean little."
)
WAY_OUT = (
    "give it features of the perturbations (a table in uns, --features-key), or a network that has them (an edge list in "
    "uns, --grn-key)."
)


class Screen(NamedTuple):
    """The data of a run, ready for models and scores."""

    adata: AnnData
    labels: np.ndarray
    x: object
    """(cells, genes) expression on the scale of the scores."""
    plan: Plan
    is_counts: bool
    name: str

    @property
    def output(self) -> str:
        """What models are asked for: the scale of ``x``."""
        return "log1p" if self.is_counts else "normalized"


def run_demo(options: DemoOptions, say: Callable[[str], None] = lambda _: None) -> pd.DataFrame:
    """Run all of it; returns the table.

    Parameters
    ----------
    options
        What to do.
    say
        Called with every line of progress.

    Raises
    ------
    ValueError
        If something does not fit; nothing is written then.
    """
    import scvi

    screen, options = prepare(options)
    for label, text in _describe(screen).items():
        say(f"{label:<10}{text}")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    previous, scvi.settings.seed = scvi.settings.seed, options.seed
    try:
        runs, left_out = _run_models(screen, options, say)
    finally:
        # setting None again would draw a new global seed
        if previous is not None:
            scvi.settings.seed = previous
    table = _models.tabulate(runs)
    say("\n" + _report.text_table(table) + "\n")
    say("* best model. The noise ceiling is one half of the real cells predicting the other half.")
    if table.loc[_models.CEILING, "pearson_effect"] < LOW_CEILING:
        say(NOISY)
    for name, reason in left_out.items():
        say(f"Not in the table: {name} ({reason.rstrip('.')}).")
    _write(out, screen, options, runs, table, left_out, say)
    return table


def prepare(options: DemoOptions) -> tuple[Screen, DemoOptions]:
    """Read and check the data and plan the question, before anything is trained or written."""
    adata, options, name = load(options)
    obs = adata.obs
    labels = canonical_labels(obs[options.perturbation_key], options.separator, options.control)
    labels = np.asarray(labels).astype(str)
    control = options.control[0]
    if not (labels == control).any():
        found = pd.Series(labels).value_counts()
        raise ValueError(
            f"No cell has the control label {', '.join(options.control)} in obs['{options.perturbation_key}']. "
            f"The labels with most cells: {', '.join(found.index[:8])}. Name the control label with --control."
        )
    keys = _covariates(options)
    plan = plan_holdout(
        options.holdout, labels, control, obs, keys, perturbation_key=options.perturbation_key, seed=options.seed
    )
    raw = expression(adata, options.layer)
    is_counts = holds_counts(raw)
    if is_counts:
        library = None if options.size_factor_key is None else obs[options.size_factor_key].to_numpy()
        x = metrics.log1p_normalize(raw, library)
        adata.layers[OBSERVED_LAYER] = x
    else:
        x = raw
    obs[_models.SPLIT_KEY] = pd.Categorical(plan.split)
    obs[_figures.GROUP_KEY] = pd.Categorical(_groups(labels, control, plan))
    return Screen(adata, labels, x, plan, is_counts, name), options


def _covariates(options: DemoOptions) -> tuple[str, ...]:
    """Columns that are held fixed: those given, and that of a held-out context."""
    column = (options.holdout or "").partition("=")[0].strip() if "=" in (options.holdout or "") else None
    extra = () if column in (None, options.perturbation_key, *options.covariate_keys) else (column,)
    return tuple(options.covariate_keys) + extra


def _groups(labels: np.ndarray, control: str, plan: Plan) -> np.ndarray:
    groups = np.where(labels == control, control, "perturbed, trained").astype(object)
    groups[plan.held_out] = "perturbed, held out"
    return groups


def _describe(screen: Screen) -> dict[str, str]:
    """What is asked of which data, for the screen and for the report."""
    adata, plan = screen.adata, screen.plan
    counts = pd.Series(plan.split).value_counts()
    kind = "counts" if screen.is_counts else "no counts: scored on the scale it has"
    n_perturbations = len(set(screen.labels)) - 1
    facts = {
        "Data": f"{screen.name}: {adata.n_obs:,} cells x {adata.n_vars:,} genes, "
        f"{n_perturbations} perturbation{'s' * (n_perturbations != 1)} ({kind})",
        "Held out": f"{plan.description}: {int(plan.held_out.sum()):,} cells, never trained on",
        "Cells": f"{counts.get('train', 0):,} to train, {counts.get('valid', 0):,} to validate, {counts.get('test', 0):,} to "
        "test (held-out cells, and the half of their controls that effects are measured against)",
    }
    if plan.left_out:
        facts["Scored"] = f"the {len(plan.tasks)} largest of {len(plan.tasks) + plan.left_out} held-out populations"
    return facts


def _run_models(screen: Screen, options: DemoOptions, say) -> tuple[list[_models.Run], dict[str, str]]:
    adata, plan, x = screen.adata, screen.plan, screen.x
    pca = metrics.fit_pca(x[np.flatnonzero(plan.split == "train")], seed=options.seed)
    trained = set(screen.labels[plan.split == "train"]) - {options.control[0]}
    models, left_out = _models.candidates(len(trained), options.features_key is not None)
    setup = {
        "perturbation_key": options.perturbation_key,
        "control_category": list(options.control),
        "perturbation_separator": options.separator,
        "layer": options.layer,
        "batch_key": options.batch_key,
        "categorical_covariate_keys": list(_covariates(options)) or None,
        "size_factor_key": options.size_factor_key,
        "grn_key": options.grn_key,
        "perturbation_features_key": options.features_key,
    }
    score = _models.make_scorer(x, pca, options.n_de, options.seed)
    runs = []
    for i, (name, model_class) in enumerate(models, start=1):
        say(f"[{i}/{len(models)}] {name}: training and predicting")
        train = {"max_epochs": options.max_epochs} if name == "SCCVAE" and options.max_epochs else {}
        run = _models.run_model(
            name,
            model_class,
            adata,
            plan.tasks,
            setup,
            output=screen.output,
            train=train,
            seed=options.seed,
            score=score,
        )
        if run.left_out:
            left_out[name] = run.left_out
        else:
            runs.append(run)
    if not runs:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"No model can answer this question. {reasons}")
    say("Noise ceiling: one half of the held-out cells predicts the other")
    runs.append(_models.ceiling(x, plan.tasks, pca, options.n_de, options.seed))
    return runs, left_out


def _write(out: Path, screen: Screen, options: DemoOptions, runs, table: pd.DataFrame, left_out, say) -> None:
    """Layer, latents, tables, figures, report."""
    adata, plan = screen.adata, screen.plan
    main = _ranked(runs, table)[0]
    if main.name != "SCCVAE":
        say(f"SCCVAE cannot answer this question: {WAY_OUT} Layer and figures are those of {main.name}.")
    say(f"Writing to {out}/")
    table.to_csv(out / "table.csv")
    _models.tabulate_tasks(runs, plan.tasks).to_csv(out / "table_per_population.csv", index=False)
    # each cell under its own label, from a matched control: can be held against the observed layer population by population
    say("  predicting every cell under its own label, from a control ...")
    main.model.predict_counterfactual(output=screen.output, sample=True, key_added=LAYER, seed=options.seed)
    say("  drawing the figures (the UMAP takes longest) ...")
    figures = _draw(out, screen, options, runs, table, say)
    _remove_registration(adata)
    say("  writing the cells and the report ...")
    adata.write_h5ad(out / "results.h5ad", compression="gzip")
    facts = _describe(screen)
    facts["Cells file"] = (
        f"results.h5ad: layers['{LAYER}'] holds cells predicted by {main.name} under their own label from a matched control"
        + (f", layers['{OBSERVED_LAYER}'] the observed cells on the same scale" if screen.is_counts else "")
    )
    if table.loc[_models.CEILING, "pearson_effect"] < LOW_CEILING:
        facts["Caution"] = NOISY
    _report.write_html(
        out / "report.html",
        title=f"Held out: {plan.description}",
        facts=facts,
        table=table,
        figures=figures,
        left_out=left_out,
        command=options.command,
        seed=options.seed,
    )
    names = ["report.html", "table.csv", "results.h5ad", *(path.name for path, _ in figures)]
    say(f"Done: {', '.join(names)}")


def _ranked(runs: list[_models.Run], table: pd.DataFrame) -> list[_models.Run]:
    """SCCVAE first where it could answer, then the baselines by the Pearson of their effects; no change comes last."""
    trained = [run for run in runs if run.model is not None]
    value = table["pearson_effect"].fillna(-np.inf)
    return sorted(trained, key=lambda run: (run.name != "SCCVAE", run.name == "ControlMean", -value[run.name]))


def _remove_registration(adata: AnnData) -> None:
    """Drop what scvi-tools keeps in an AnnData for its own bookkeeping: the file is for people."""
    for place in (adata.obs, adata.obsm, adata.uns):
        for key in [key for key in place if str(key).startswith("_scvi")]:
            del place[key]


def _draw(out: Path, screen: Screen, options: DemoOptions, runs, table: pd.DataFrame, say) -> list[tuple[Path, str]]:
    adata, plan = screen.adata, screen.plan
    # the strongest baseline beside the model, not one that is easy to beat
    main, *others = _ranked(runs, table)[:2]
    figures, task = [], plan.tasks[0]
    if main.name == "SCCVAE":
        key = "X_sccvae"
        adata.obsm[key] = main.model.get_latent_representation()
        columns = _panels(screen, options)
        caption = _figures.draw_latent(
            out / "umap.png", adata, key, main.name, columns, options.control[0], options.seed
        )
        figures.append((out / "umap.png", caption))
    shown = [main, *others]
    caption = _figures.draw_effects(out / "effects.png", screen.x, task, shown, adata.var_names, options.n_de)
    figures.append((out / "effects.png", caption))
    ylabel = "log1p(counts per 10,000)" if screen.is_counts else "expression"
    caption = _figures.draw_genes(out / "genes.png", screen.x, task, main, adata.var_names, ylabel)
    figures.append((out / "genes.png", caption))
    return figures


def _panels(screen: Screen, options: DemoOptions) -> list[str]:
    """Columns to colour by: who was held out, and the covariates that a legend can hold."""
    obs = screen.adata.obs
    # with one perturbation its column says what the groups say
    keys = [options.perturbation_key] if len(set(screen.labels)) > 2 else []
    keys += _covariates(options)
    return [_figures.GROUP_KEY, *(key for key in keys if 1 < obs[key].nunique() <= 25)][:3]
