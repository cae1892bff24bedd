"""Planted sparse masks: what SAMS-VAE recovers, beside its ablations.

    python benchmarks/samsvae_masks.py

Screens of ``simulate_mechanisms``: 30 tokens on 8 latent dimensions, 60 cells each, 400 controls, 100 genes. Models have 20
dimensions. A tenth of the cells is held out for the bound on the likelihood.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import scvi
from _common import QUIET, say, write_page

from scvi_causal import SAMSVAE
from scvi_causal.data import simulate_mechanisms

SIZES = {"n_latent": 20}
PAPER = SIZES | {"preset": "paper", "n_hidden": 128, "n_guide_hidden": 100}
# name: options of the model, of the training, how many seeds
CASES = {
    "default": (SIZES, {"max_epochs": 150}, 5),
    "no start at effects": (SIZES | {"start_at_effects": False}, {"max_epochs": 150}, 5),
    "no remainder": (SIZES | {"remainder": False}, {"max_epochs": 150}, 5),
    "without masks: mechanism='dense'": (SIZES | {"mechanism": "dense"}, {"max_epochs": 150}, 5),
    "mechanism='one-hot'": (SIZES | {"mechanism": "one-hot"}, {"max_epochs": 150}, 5),
    "mask_prior=0.01": (SIZES | {"mask_prior": 0.01}, {"max_epochs": 150}, 5),
    "posterior='network'": (SIZES | {"posterior": "network"}, {"max_epochs": 150}, 5),
    "guide='mean-field'": (SIZES | {"guide": "mean-field"}, {"max_epochs": 150}, 5),
    "mask_gradient='relaxed'": (SIZES | {"mask_gradient": "relaxed"}, {"max_epochs": 150}, 5),
    "paper, 600 steps": (PAPER, {"max_epochs": 150}, 5),
}
TEXT = """Precision, recall and F1 of masks with a probability above 1/2, after matching latent dimensions to the true ones; `F1 by size`:
of the largest shifts, as many as there are true ones, which a model without masks has too. `effects`: correlation of the
average effects (means of counts per 10,000, relative to control) with those of the true model, mean over tokens. `IWELBO`: of held-out
cells, 50 particles, above that of the default on the same seed. Means over seeds, of F1 also the standard deviation. The screens are those on which the start at effects was
developed (seeds 0 to 2) and two more."""


def true_effects(simulation, n: int = 4000) -> np.ndarray:
    """(tokens, genes) change of mean counts per 10,000, relative to control, from many states."""
    rng = np.random.default_rng(0)
    state = rng.normal(size=(n, simulation.shifts.shape[1]))

    def means(shift):
        rate = np.exp(simulation.log_shares + (state + shift) @ simulation.loadings)
        return (1e4 * rate / rate.sum(1, keepdims=True)).mean(0)

    control = means(0.0)
    return np.array([means(shift) / control - 1 for shift in simulation.shifts.to_numpy()])


def one(name: str, seed: int) -> dict:
    """One model on one screen."""
    options, train, _ = CASES[name]
    simulation = simulate_mechanisms(seed=seed)
    adata, tokens = simulation.adata, simulation.masks.index.tolist()
    held = np.random.default_rng(seed).random(adata.n_obs) < 0.1
    adata.obs["split"] = np.where(held, "test", "train")
    started = time.process_time()
    scvi.settings.seed = seed
    SAMSVAE.setup_anndata(adata)
    model = SAMSVAE(adata, **options)
    model.train(split_key="split", **QUIET, **train)
    row = {"model": name, "seed": seed, "CPU-seconds": time.process_time() - started}
    if options.get("mechanism", "sparse") == "sparse":
        row |= simulation.score_masks(model.get_perturbation_masks(tokens) > 0.5)
    if options.get("mechanism") != "one-hot":
        size = np.abs(model.get_perturbation_embedding(tokens).X)
        cut = np.sort(size.ravel())[-int(simulation.masks.to_numpy().sum())]
        row["F1 by size"] = simulation.score_masks(size >= cut)["f1"]
    x = adata.X.toarray()[(adata.obs["perturbation"] == "control").to_numpy()]
    control = 1e4 * (x / x.sum(1, keepdims=True)).mean(0)
    found = model.get_average_treatment_effects(tokens, transform="mean", n_samples=200, seed=0).to_numpy() / control
    row["effects"] = np.mean([np.corrcoef(f, t)[0, 1] for f, t in zip(found, true_effects(simulation), strict=True)])
    row["IWELBO"] = model.get_iwelbo(indices=np.flatnonzero(held), n_particles=50, seed=0).mean()
    return row


def main() -> None:
    """All models on all screens; a page after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    options, rows = parser.parse_args(), []
    for name in options.cases:
        for seed in range(CASES[name][2]):
            rows.append(one(name, seed))
            say(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
        report(rows)


def report(rows: list[dict]) -> None:
    """Write the page."""
    table = pd.DataFrame(rows)
    base = table[table["model"] == "default"].set_index("seed")["IWELBO"]
    table["IWELBO"] -= base.reindex(table["seed"]).to_numpy()
    by_model = table.groupby("model", sort=False)
    out = by_model.mean(numeric_only=True).drop(columns="seed")
    if "f1" in out:
        out.insert(list(out.columns).index("f1") + 1, "sd of f1", by_model["f1"].std())
    out.insert(0, "screens", by_model.size())
    write_page("samsvae_masks", "SAMS-VAE: recovery of planted masks", [(TEXT, out)], sorted(set(table["seed"])), table)


if __name__ == "__main__":
    main()
