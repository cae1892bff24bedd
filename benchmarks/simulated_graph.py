"""Does the right network help? Simulated screens whose causal graph and effects are known.

    python benchmarks/simulated_graph.py

100 genes, 60 knock-downs with 100 cells each, 1,000 controls; 15 knock-downs are held out. Effects are scored against the
truth of the simulation, not against cells.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from _common import draw, fit, say, write_page

import scvi_causal
from scvi_causal import metrics
from scvi_causal.data import Simulation, corrupt_grn, degree_matched_random_grn, grn_overlap, simulate_screen

N_HELD_OUT = 15
SETUP = {"size_factor_key": "library"}
# name: network that is registered (see `networks`), arguments of the model
VARIANTS = {
    "no network": ("right", {"graph": "none"}),
    "right network, signs": ("right", {}),
    "right network, unsigned": ("unsigned", {}),
    "20 % dropped, 20 % false": ("corrupted", {}),
    "random network": ("random", {}),
}
COLUMNS = ["pearson", "pearson others", "mse ratio"]
TEXT = """Held-out knock-downs of simulated screens (100 genes, 60 knock-downs, 15 of them held out; one repetition is one
simulation with its own graph). `pearson`: predicted and true effect over genes, mean over held-out knock-downs;
`pearson others`: the same without the gene that is knocked down, so that knowing the target does not help; `mse ratio`:
squared error over that of predicting no change, median over knock-downs. No model sees the weights of the true network: its
edges come with their signs, or without. `20 % dropped, 20 % false`: edges with signs; the random network has the same
numbers of regulators and targets, and signs. SCCVAE has no features of its own choice here: the default ones, of the
expression of controls. `observed cells`: the mean of the held-out cells themselves minus that of the controls."""


def networks(sim: Simulation, seed: int) -> dict[str, pd.DataFrame]:
    """Right and wrong networks; weights only say the sign."""
    right = sim.grn.assign(weight=np.sign(sim.grn["weight"]))
    return {
        "right": right,
        "unsigned": right.assign(weight=1.0),
        "corrupted": corrupt_grn(right, drop=0.2, add=0.2, genes=sim.adata.var_names.tolist(), seed=seed),
        "random": degree_matched_random_grn(right, seed),
    }


def hold_out(sim: Simulation, seed: int) -> list[str]:
    """Write the split; returns the held-out perturbations."""
    tokens = sorted(sim.tokens)
    held_out = sorted(np.random.default_rng(seed).permutation(tokens)[:N_HELD_OUT].tolist())
    sim.adata.obs["split"] = np.where(sim.adata.obs["perturbation"].isin(held_out), "test", "train")
    return held_out


def effect(model, token: str, sources: np.ndarray, seed: int) -> np.ndarray:
    """Predicted minus control, mean of drawn cells with common random numbers."""
    treated, control = (draw(model, label, sources, seed).mean(0) for label in (token, "control"))
    return treated - control


def score(name: str, seed: int, sim: Simulation, effects: dict[str, np.ndarray]) -> list[dict]:
    """Scores of predicted effects against the truth."""
    rows = []
    for token, predicted in effects.items():
        truth = sim.effects.loc[token].to_numpy()
        others = np.flatnonzero(sim.adata.var_names != token)
        zero = np.zeros_like(truth)
        rows.append(
            {
                "model": name,
                "seed": seed,
                "perturbation": token,
                "pearson": metrics.pearson_effect(truth, predicted, zero),
                # without targets in the graph there is nothing else to predict
                "pearson others": metrics.pearson_effect(truth, predicted, zero, genes=others)
                if np.abs(truth[others]).max() > 1e-3
                else np.nan,
                "mse ratio": metrics.mse_ratio(truth, predicted, zero),
            }
        )
    return rows


def run(seed: int, max_epochs: int | None) -> list[dict]:
    """All models on one simulation."""
    sim = simulate_screen(n_genes=100, n_perturbations=60, n_cells_per_perturbation=100, n_control=1000, seed=seed)
    adata, held_out, known = sim.adata, hold_out(sim, seed), networks(sim, seed)
    labels = adata.obs["perturbation"].to_numpy()
    sources = np.flatnonzero(labels == "control")
    x = metrics.log1p_normalize(adata.X, adata.obs["library"].to_numpy())
    rest = {name: round(grn_overlap(sim.grn, network), 2) for name, network in known.items()}
    say(f"seed {seed}: {len(sim.grn)} edges, of which the networks have {rest}")
    models = {"ControlMean": (scvi_causal.ControlMean, {}), "PerturbedMean": (scvi_causal.PerturbedMean, {})}
    rows = []
    for name, (network, options) in {**dict.fromkeys(models, ("right", None)), **VARIANTS}.items():
        adata.uns["grn"] = known[network]
        if options is None:
            model, _ = fit(*models[name][:1], adata, SETUP, seed)
        else:
            name = f"SCCVAE, {name}"
            model, _ = fit(scvi_causal.SCCVAE, adata, SETUP, seed, {"max_epochs": max_epochs}, **options)
        rows += score(name, seed, sim, {token: effect(model, token, sources, seed) for token in held_out})
    control = metrics.mean_profile(x[sources])
    observed = {token: metrics.mean_profile(x[np.flatnonzero(labels == token)]) - control for token in held_out}
    rows += score("observed cells", seed, sim, observed)
    say(str(summarise(pd.DataFrame(rows)).round(3)))
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over simulations of the mean (Pearson) or median (MSE) over held-out perturbations."""
    groups = table.groupby(["model", "seed"], sort=False)
    of_seed = groups[COLUMNS].mean()
    of_seed["mse ratio"] = groups["mse ratio"].median()
    return of_seed.groupby("model", sort=False)[COLUMNS].mean()


def main() -> None:
    """Run all simulations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    rows = []
    for i, seed in enumerate(options.seeds):
        rows += run(seed, options.epochs)
        report(rows, options.seeds[: i + 1])  # there is something to read before all is done


def report(rows: list[dict], seeds: list[int]) -> None:
    """Write the page and every number."""
    table = pd.DataFrame(rows)
    mean = summarise(table)
    spread = pd.concat([summarise(part) for _, part in table.groupby("seed")]).groupby(level=0, sort=False).std()
    each = pd.concat({seed: summarise(part)["pearson others"] for seed, part in table.groupby("seed")}, axis=1)
    gain = mean.loc["SCCVAE, right network, signs"] - mean.loc["SCCVAE, random network"]
    parts = [
        (TEXT, None),
        ("## Mean over simulations", mean),
        ("Right minus random network: " + ", ".join(f"{name} {value:+.3f}" for name, value in gain.items()), None),
        ("## Standard deviation over simulations", spread),
        ("## `pearson others` of every simulation", each.rename(columns=lambda seed: f"seed {seed}")),
    ]
    write_page("simulated_graph", "Simulated screens: the right and the wrong network", parts, seeds, table)


if __name__ == "__main__":
    main()
