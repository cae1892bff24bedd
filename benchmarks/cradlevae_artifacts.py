"""Planted artifacts: what CRADLE-VAE takes off, and what is left of the effects, beside its ablations.

    python benchmarks/cradlevae_artifacts.py

Screens of ``simulate_mechanisms``: 20 tokens on 6 latent dimensions, 60 cells each, 400 controls, 100 genes. Cells fail at random, or far
more often under some perturbations than under others. A third of the cells of each condition is held out.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import scvi
from _common import QUIET, RESULTS, say, write_page

from scvi_causal import CRADLEVAE, SAMSVAE, metrics
from scvi_causal.data import simulate_mechanisms

WORLDS = {
    "30 % fail": {"failed": 0.3},
    "30 % fail, confounded": {"failed": 0.3, "failed_spread": 2.0},
    "8 % fail, confounded": {"failed": 0.08, "failed_spread": 2.0},
}
SIZES = {"n_latent": 20}
PAPER = SIZES | {"preset": "paper", "n_hidden": 128, "n_guide_hidden": 100}
# name: how quality is used, options
INTENDED = SIZES | {"artifact_loss": "intended"}
BALANCED = INTENDED | {"quality_weights": "balanced"}
CASES = {
    "default": ("artifact", SIZES),
    "artifact_loss='intended'": ("artifact", INTENDED),
    "artifact_loss='none'": ("artifact", SIZES | {"artifact_loss": "none"}),
    "balanced, intended": ("artifact", BALANCED),
    "quality_weights='published'": ("artifact", SIZES | {"quality_weights": "published"}),
    "balanced, artifact_loss='none'": ("artifact", BALANCED | {"artifact_loss": "none"}),
    "balanced, artifact_loss='matched'": ("artifact", BALANCED | {"artifact_loss": "matched"}),
    "balanced, artifact_loss='published'": ("artifact", BALANCED | {"artifact_loss": "published"}),
    "balanced, matched, quality_covariate=False": (
        "artifact",
        BALANCED | {"quality_covariate": False, "artifact_loss": "matched"},
    ),
    "balanced, intended, artifact='concat'": ("artifact", BALANCED | {"artifact": "concat"}),
    "paper, 600 steps": ("artifact", PAPER),
    "paper, 4000 steps": ("artifact", PAPER | {"n_steps": 4000}),
    "SAMSVAE, all cells": ("nothing", SIZES),
    "SAMSVAE, passing cells": ("passing", SIZES),
    "SAMSVAE, quality a covariate": ("covariate", SIZES),
}
STEPS = 600  # 30,000 are published


def log_normalize(x) -> np.ndarray:
    """(cells, genes) log1p of counts per 10,000."""
    return np.log1p(1e4 * x / x.sum(1, keepdims=True))


def draw_truth(simulation, shift, n, rng) -> np.ndarray:
    """(n, genes) log1p of fresh cells without the artifact."""
    state = rng.normal(size=(n, simulation.shifts.shape[1])) + shift
    rate = np.exp(simulation.log_shares + state @ simulation.loadings)
    library = rng.lognormal(np.log(2000.0), 0.3, (n, 1))
    mean = rate / rate.sum(1, keepdims=True) * library
    return log_normalize(rng.poisson(mean * rng.gamma(10.0, 0.1, mean.shape)))


def fit(adata, how: str, options: dict, seed: int):
    """A trained model."""
    scvi.settings.seed = seed
    n_steps = options.get("n_steps", STEPS)
    options = {key: value for key, value in options.items() if key != "n_steps"}
    cls, setup = (CRADLEVAE, {}) if how == "artifact" else (SAMSVAE, {})
    if how == "covariate":
        setup = {"categorical_covariate_keys": ["quality"]}
    cls.setup_anndata(adata, **setup)
    model = cls(adata, **options)
    n_batches = int(np.ceil((adata.obs["split"] == "train").sum() / 512))
    model.train(max_epochs=max(1, n_steps // n_batches), split_key="split", accelerator="cpu", **QUIET)
    return model


def edited(model, how: str, rows: np.ndarray, seed: int) -> np.ndarray | None:
    """(cells, genes) drawn log1p of failed cells as they would be without the artifact."""
    kwargs = {"indices": rows, "sample": True, "output": "log1p", "key_added": None, "seed": seed}
    if how == "artifact":
        return np.asarray(model.predict_counterfactual(quality="pass", **kwargs).X)
    if how == "covariate":
        own = model.adata.obs["perturbation"].astype(str).to_numpy(dtype=object)[rows]
        return np.asarray(model.predict_counterfactual(own, covariates={"quality": "pass"}, **kwargs).X)
    return None


def energy(adata, cells: np.ndarray, rows: np.ndarray, truth: dict) -> float:
    """Mean over conditions of the energy distance between cells and fresh ones of the same condition without the artifact."""
    labels = adata.obs["perturbation"].astype(str).to_numpy()[rows]
    found = [metrics.energy_distance(cells[labels == t], truth[t]) for t in truth if (labels == t).sum() >= 5]
    return float(np.mean(found))


def one(name: str, world: str, seed: int) -> dict:
    """One model on one screen."""
    how, options = CASES[name]
    simulation = simulate_mechanisms(20, 6, 100, 60, 400, seed=seed, **WORLDS[world])
    adata, tokens = simulation.adata, simulation.masks.index.tolist()
    adata.obs["quality"] = np.where(adata.obs["failed"], "fail", "pass")
    rng = np.random.default_rng(seed)
    held = rng.random(adata.n_obs) < 1 / 3
    adata.obs["split"] = np.where(held, "test", "train")
    failed = adata.obs["failed"].to_numpy()
    if how == "passing":
        adata.obs.loc[failed, "split"] = "test"
    truth = {t: draw_truth(simulation, simulation.shifts.loc[t].to_numpy(), 300, rng) for t in tokens}
    truth["control"] = draw_truth(simulation, 0.0, 300, rng)
    means = {t: draw_truth(simulation, simulation.shifts.loc[t].to_numpy(), 4000, rng).mean(0) for t in tokens}
    control = draw_truth(simulation, 0.0, 4000, rng).mean(0)
    started = time.process_time()
    model = fit(adata, how, options, seed)
    row = {"world": world, "model": name, "seed": seed, "CPU-seconds": time.process_time() - started}
    x = log_normalize(adata.X.toarray())
    rows = np.flatnonzero(held & failed)
    row["before"] = energy(adata, x[rows], rows, truth)
    passing = np.flatnonzero(held & ~failed)
    row["passing"] = energy(adata, x[passing], passing, truth)
    draws = [edited(model, how, rows, s) for s in range(4)] if how in ("artifact", "covariate") else []
    if draws:
        row["after"] = float(np.mean([energy(adata, after, rows, truth) for after in draws]))
        change = x[rows].mean(0) - np.mean([after.mean(0) for after in draws], 0)
        row["artifact"] = float(np.corrcoef(change, simulation.artifact)[0, 1])
    sources = np.flatnonzero((adata.obs["perturbation"] == "control").to_numpy() & ~held & ~failed)
    extra = {"covariates": {"quality": "pass"}} if how == "covariate" else {}
    seen = [t for t in tokens if t in model.seen_tokens_]  # without a passing cell, a token is lost
    drawn = model.predict_counterfactual(seen, indices=sources, sample=True, output="log1p", seed=0, **extra).X
    drawn = drawn.reshape(len(seen), len(sources), -1).mean(1) - x[sources].mean(0)
    drawn = pd.DataFrame(drawn, seen).reindex(tokens, fill_value=0.0).to_numpy()
    true = np.array([means[t] - control for t in tokens])
    pairs = zip(drawn, true, strict=True)
    row["effects"] = float(np.mean([np.corrcoef(d, t)[0, 1] if d.any() else 0.0 for d, t in pairs]))
    row["mse"] = float(((drawn - true) ** 2).sum() / (true**2).sum())
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    for kind, use in (("mean of all", ~held), ("mean of passing", ~held & ~failed)):
        base = x[use & (labels == "control")].mean(0)
        simple = np.array(
            [x[use & (labels == t)].mean(0) - base if (use & (labels == t)).any() else 0 * base for t in tokens]
        )
        row[f"mse, {kind}"] = float(((simple - true) ** 2).sum() / (true**2).sum())
    masks = (model.get_perturbation_masks(seen) > 0.5).reindex(tokens, fill_value=False)
    row["F1"] = simulation.score_masks(masks)["f1"]
    z = model.get_latent_representation()
    for t in truth:  # what differs between perturbations is not the artifact
        z[labels == t] -= z[(labels == t) & ~held].mean(0) if ((labels == t) & ~held).any() else 0.0
    row["fail from z"] = auc(z[held], failed[held], z[~held], failed[~held])
    shift = np.zeros(x.shape[1])
    for t in truth:
        bad, good = ~held & failed & (labels == t), ~held & ~failed & (labels == t)
        if bad.any() and good.any():
            shift += bad.sum() * (x[bad].mean(0) - x[good].mean(0))
    shift /= (~held & failed).sum()
    row["after, mean shift"] = energy(adata, x[rows] - shift, rows, truth)
    return row


def auc(test, label, train, train_label) -> float:
    """Area under the curve of a linear classifier of quality from basal states."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, LogisticRegression(max_iter=500).fit(train, train_label).decision_function(test)))


COLUMNS = {
    "seed": "screens",
    "before": "before",
    "after": "after",
    "after, mean shift": "after, mean shift",
    "artifact": "artifact",
    "fail from z": "quality from z",
    "effects": "effects, r",
    "mse": "effects, error",
    "F1": "F1 of masks",
    "CPU-seconds": "CPU-seconds",
}
TEXT = """Means over screens (seeds). `before`, `after`: energy distance of held-out failed cells, as observed and as edited, to fresh cells of the true model with the same perturbation and
without the artifact (expected 0 for cells that are such), mean over conditions and four draws; `after, mean shift`: failed cells less the mean difference of training cells, log1p scale, which knows that the artifact is
the same in all cells and leaves no counts. `artifact`: correlation of what is taken off with what was planted. `quality from z`: area under the curve of a linear
classifier of quality from basal states of held-out cells, those of each condition centred (0.5 is best). `effects, r` and `effects, error`: drawn cells against the true change of mean log1p expression without the
artifact: Pearson over genes, mean over tokens; squared error relative to no effect. A token without a training cell counts as 0, and as no effect.
Rows come from several runs of the script (`--cases`, `--worlds`, `--seeds`); the defaults were chosen on these screens."""


def report(table: pd.DataFrame) -> None:
    """Write the page."""
    parts: list = [(TEXT, None)]
    for world in [w for w in WORLDS if w in set(table["world"])]:
        rows = table[table["world"] == world]
        by_model = rows.groupby("model")
        out = by_model.mean(numeric_only=True).reindex([m for m in CASES if m in set(rows["model"])])
        out["seed"] = by_model.size()
        simple = rows.drop_duplicates("seed")
        error = {kind: simple[f"mse, {kind}"].mean() for kind in ("mean of all", "mean of passing")}
        text = (
            f"## {world}\n\nError of effects of the mean of all training cells {error['mean of all']:.3f}, of the mean of passing ones "
            f"{error['mean of passing']:.3f}. Energy distance of held-out *passing* cells to fresh ones: {simple['passing'].mean():.3f}."
        )
        out = out[[c for c in COLUMNS if c in out]].rename(columns=COLUMNS)
        parts.append((text, out))
    write_page("cradlevae_artifacts", "CRADLE-VAE: planted artifacts", parts, sorted(set(table["seed"])), table)


def main() -> None:
    """Models on screens; each is added to the results there are, and replaces its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    for world in options.worlds:
        for name in options.cases:
            for seed in options.seeds:
                row = one(name, world, seed)
                say(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
                path, table = RESULTS / "cradlevae_artifacts.csv", pd.DataFrame([row])
                if path.exists():
                    table = pd.concat([pd.read_csv(path), table])
                report(table.drop_duplicates(["world", "model", "seed"], keep="last"))


if __name__ == "__main__":
    main()
