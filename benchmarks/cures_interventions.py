"""Are interventions more than one axis, and does the network matter? Default against the published model.

    python benchmarks/cures_interventions.py rank
    python benchmarks/cures_interventions.py graph

The published model at a reduced size (64 or 128 nodes, 256 hidden units), with its loss and its schedule of 100 epochs.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from _common import draw, fit, load, say, write_page
from simulated_graph import SETUP, effect, hold_out, networks, score, summarise

import scvi_causal
from scvi_causal import metrics
from scvi_causal.data import simulate_screen

PAPER = {"preset": "paper", "n_hidden": 256}
RANK_TEXT = """Matrix of the total effects of all trained perturbations on genes (expected log1p expression of the same control
cells under the perturbation minus under control). `effective rank`: participation ratio of its squared singular values,
(sum)^2 / sum of squares: 1 if all effects lie on one axis, at most the number of perturbations; `largest axis`: share of
the sum of squares that the first singular vector holds; `cosine`: median absolute cosine of two perturbations. For the
published model also of its latent effects, delta (I - B)^-1. `observed`: the effects of the other half of the cells, whose
noise raises the rank; `observed, both halves`: from the products of effects in one half and in the other, in which noise
cancels on average; `truth`: of the simulation."""
GRAPH_TEXT = """Held-out knock-downs as in simulated_graph.md; every model with the right network (edges as a mask for the
published model, with signs for the default) and with a random one of the same numbers of regulators and targets.
`pearson`, `pearson others` (without the gene that is knocked down), `mse ratio`: see there. That the network changes little
in the published model was to be expected: u enters only through the first layer W of the decoder, and W (I - B)^-T in the
place of W gives the same outputs without any network (check P12 of the specification, a test of this package). In the
default the nodes are genes, and there is no such layer."""


def spectrum(effects: np.ndarray, others: np.ndarray | None = None) -> dict[str, float]:
    """Effective rank of (n_perturbations, n) effects.

    Parameters
    ----------
    others
        The same effects from independent cells.
    """
    product = effects @ (effects if others is None else others).T
    values = np.linalg.eigvalsh((product + product.T) / 2)
    unit = effects / np.maximum(np.linalg.norm(effects, axis=1, keepdims=True), 1e-12)
    cosine = np.abs(unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return {
        "effective rank": float(values.sum() ** 2 / (values**2).sum()),
        "largest axis": float(values.max() / values.sum()),
        "cosine": float(np.median(cosine)) if others is None else np.nan,
    }


def on_genes(model, tokens, sources) -> np.ndarray:
    """(n_tokens, n_genes) effects on expected log1p expression."""
    control = draw(model, "control", sources, sample=False).mean(0)
    return np.stack([draw(model, token, sources, sample=False).mean(0) - control for token in tokens]).astype(float)


def rank_rows(data: str, model, name: str, tokens, sources) -> list[dict]:
    """Rank on genes, and of the latent effects where there are any."""
    rows = [{"data": data, "model": name, **spectrum(on_genes(model, tokens, sources))}]
    if model._preset == "paper":
        latent = model.get_perturbation_embedding(list(tokens)).X.astype(float)
        rows.append({"data": data, "model": f"{name}, latent", **spectrum(latent)})
    for row in rows:
        say(str(row))
    return rows


def rank_papalexi(seed: int, epochs: int) -> list[dict]:
    """All 25 knock-outs, half of the cells."""
    adata, x, labels = load("papalexi21_thp1_eccite.h5ad")
    train, test = metrics.split_controls(np.ones(len(labels), dtype=bool), labels, seed=seed)
    adata.obs["split"] = np.where(np.isin(np.arange(len(labels)), test), "test", "train")
    tokens = sorted(set(labels) - {"control"})
    mean = [{name: x[half[labels[half] == name]].mean(0) for name in set(labels)} for half in (train, test)]
    first, second = (np.stack([m[token] - m["control"] for token in tokens]).astype(float) for m in mean)
    data = "Papalexi"
    rows = [
        {"data": data, "model": "observed", **spectrum(second)},
        {"data": data, "model": "observed, both halves", **spectrum(first, second)},
    ]
    setup = {"size_factor_key": "library_size_full"}
    sources = train[labels[train] == "control"]
    for name, options in {"default": {}, "paper": PAPER | {"n_latent": 64}}.items():
        model, _ = fit(scvi_causal.SCCVAE, adata, setup, seed, train_options(name, epochs), **options)
        rows += rank_rows(data, model, name, tokens, sources)
    return rows


def train_options(name: str, epochs: int) -> dict:
    """The default decides about its own epochs."""
    return {"max_epochs": epochs} if name.startswith("paper") else {}


def simulated(seed: int, epochs: int) -> tuple[list[dict], list[dict]]:
    """Held-out scores with the right and a random network, and ranks over the trained perturbations."""
    sim = simulate_screen(n_genes=100, n_perturbations=60, n_cells_per_perturbation=100, n_control=1000, seed=seed)
    adata, held_out, known = sim.adata, hold_out(sim, seed), networks(sim, seed)
    sources = np.flatnonzero(adata.obs["perturbation"].to_numpy() == "control")
    tokens = sorted(set(sim.tokens) - set(held_out))
    scores, ranks = [], [{"data": "simulation", "model": "truth", **spectrum(sim.effects.loc[tokens].to_numpy())}]
    for model_name, options in {"default": {}, "paper": PAPER | {"n_latent": 128}}.items():
        for network in ("right", "random"):
            adata.uns["grn"] = known[network]
            options = options | {"graph": "prior"}
            name = f"{model_name}, {network} network"
            model, seconds = fit(scvi_causal.SCCVAE, adata, SETUP, seed, train_options(model_name, epochs), **options)
            new = score(name, seed, sim, {token: effect(model, token, sources, seed) for token in held_out})
            scores += new
            say(f"seed {seed}, {name}: {seconds:.0f} CPU-s, {summarise(pd.DataFrame(new)).round(3).to_dict('records')}")
            if network == "right":
                ranks += rank_rows("simulation", model, name, tokens, sources)
    return scores, ranks


def main() -> None:
    """Answer one of the two questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=["rank", "graph"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=100, help="of the published model")
    options = parser.parse_args()
    rows, ranks = [], []
    for i, seed in enumerate(options.seeds):
        seeds = options.seeds[: i + 1]
        if options.question == "rank":
            ranks += rank_papalexi(seed, options.epochs)
            report_rank(ranks, seeds, options.epochs)
        else:
            scores, found = simulated(seed, options.epochs)
            rows, ranks = rows + scores, ranks + found
            report_graph(rows, ranks, seeds, options.epochs)


def report_rank(ranks: list[dict], seeds: list[int], epochs: int) -> None:
    """Write the page on ranks."""
    table = pd.DataFrame(ranks)
    mean = table.groupby(["data", "model"], sort=False).mean().reset_index().set_index("data")
    parts = [(RANK_TEXT, None), (f"## Mean over seeds (published model: {epochs} epochs)", mean)]
    write_page("cures_rank", "Cures: effective rank of interventions", parts, seeds, table)


def report_graph(rows: list[dict], ranks: list[dict], seeds: list[int], epochs: int) -> None:
    """Write the page on the network."""
    table, mean = pd.DataFrame(rows), summarise(pd.DataFrame(rows))
    gain = {m: mean.loc[f"{m}, right network"] - mean.loc[f"{m}, random network"] for m in ("default", "paper")}
    found = pd.DataFrame(ranks).drop(columns="data").groupby("model", sort=False).mean()
    parts = [
        (GRAPH_TEXT, None),
        (f"## Mean over simulations (published model: {epochs} epochs)", mean),
        ("## Right minus random network", pd.DataFrame(gain).T.rename_axis("model")),
        ("## Effective rank over the 45 trained knock-downs (see cures_rank.md)", found),
    ]
    write_page("cures_graph", "Cures: does the network matter?", parts, seeds, table)


if __name__ == "__main__":
    main()
