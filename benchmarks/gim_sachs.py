"""GIM on the signalling proteins of Sachs 2005: graph, targets of reagents, a reagent that was left out.

    python benchmarks/gim_sachs.py

Logarithms of the fluorescence of 11 proteins under a baseline stimulation and 8 further reagents. The consensus graph has 20 edges, two
of which form a cycle, so that no acyclic graph agrees with it entirely.
"""

from __future__ import annotations

import argparse

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from _common import QUIET, data_file, say, write_page
from sklearn.metrics import average_precision_score

import scvi_causal
from scvi_causal import GIM
from scvi_causal.model.gim._graph import find_graph
from scvi_causal.model.gim._objective import Statistics
from scvi_causal.model.gim._search import SearchOptions

TEXT = {
    "graph": """Against the consensus graph; means over seeds, each of which trains on another 90 % of the cells (± standard deviation). SHD:
edges missing, superfluous or reversed. F1 of directed edges, and of the skeleton (which pairs are joined); AUPRC over ordered pairs. "without
interventions" is the same search on the control cells alone, or on all cells as if none had been treated. Correlation: as many of
the strongest absolute correlations as the consensus has edges, in both directions for AUPRC, in a random one for SHD and F1.""",
    "targets": """Rank of the annotated target among the 11 proteins: by the posterior probability of being a target (ties by size), and by
the absolute observed change, which is what differential expression says. Means over seeds. Most of these reagents inhibit the activity of
their target, not its abundance or its phosphorylation, so that a shift of the target itself need not be there to be found.""",
    "unseen": """One reagent after the other is left out and predicted from features: which protein it is known to act on, and whether it activates
or inhibits. `pearson`: between predicted and observed changes of the 11 means; `mse_ratio`: squared error over that of predicting
no change. Half of the control cells train, changes are measured against the other half.""",
}


def load() -> ad.AnnData:
    adata = ad.read_h5ad(data_file("sachs05_tcell_signalling.h5ad"))
    adata.X = np.log(np.asarray(adata.X.todense() if hasattr(adata.X, "todense") else adata.X) + 1.0).astype(np.float32)
    return adata


def truth_of(adata: ad.AnnData) -> np.ndarray:
    place = {name: i for i, name in enumerate(adata.var_names)}
    found = np.zeros((adata.n_vars,) * 2, dtype=bool)
    for edge in adata.uns["consensus_edges"]:
        source, target = edge.split("->")
        found[place[source], place[target]] = True
    return found


def fit(adata: ad.AnnData, seed: int, setup: dict | None = None, train: dict | None = None, **options) -> GIM:
    adata = adata.copy()
    GIM.setup_anndata(adata, **(setup or {}))
    scvi.settings.seed = seed
    model = GIM(adata, **options)
    model.train(accelerator="cpu", **QUIET, **(train or {}))
    return model


# ---------------------------------------------------------------------- graph


def judge(name: str, seed: int, graph: np.ndarray, score: np.ndarray, truth: np.ndarray) -> dict:
    wrong = graph != truth
    both, skeleton, true_skeleton = (graph & truth).sum(), graph | graph.T, truth | truth.T
    off = ~np.eye(len(truth), dtype=bool)
    return {
        "method": name,
        "seed": seed,
        "edges": int(graph.sum()),
        "SHD": int(np.triu(wrong | wrong.T, 1).sum()),
        "F1": 2 * both / max(graph.sum() + truth.sum(), 1),
        "skeleton F1": 2 * (skeleton & true_skeleton).sum() / max(skeleton.sum() + true_skeleton.sum(), 1),
        "AUPRC": average_precision_score(truth[off], score[off]),
    }


def of_model(model: GIM) -> tuple[np.ndarray, np.ndarray]:
    names = model.adata.var_names
    graph, score = np.zeros((len(names),) * 2, dtype=bool), np.zeros((len(names),) * 2)
    edges, listed = model.get_grn(), model.get_grn(candidates=True)
    graph[names.get_indexer(edges["source"]), names.get_indexer(edges["target"])] = True
    value = listed["probability"] + listed["weight"].abs()
    score[names.get_indexer(listed["source"]), names.get_indexer(listed["target"])] = value
    return graph, score


def without_interventions(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The search on one population."""
    z = torch.from_numpy((x - x.mean(0)) / x.std(0)).double()
    d = z.shape[1]
    empty = torch.zeros(0, dtype=torch.float64)
    data = Statistics(
        float(len(z)),
        z.mean(0),
        empty,
        torch.zeros(0, d, dtype=torch.float64),
        torch.from_numpy(np.cov(z.numpy(), rowvar=False)),
    )
    found = find_graph(data, SearchOptions(), hard=False, seed=seed)
    return found.graph, found.probability + np.abs(found.weight)


def graphs(adata: ad.AnnData, seeds: list[int]) -> pd.DataFrame:
    truth, rows = truth_of(adata), []
    label = adata.obs["perturbation"].astype(str).to_numpy()
    for seed in seeds:
        for name, options in {"GIM": {}, "GIM, hard": {"intervention": "hard"}}.items():
            rows.append(judge(name, seed, *of_model(fit(adata, seed, **options)), truth))
        rng = np.random.default_rng(seed)
        keep = rng.random(adata.n_obs) < 0.9
        for name, cells in {"controls": (label == "control") & keep, "all cells": keep}.items():
            x = adata.X[cells]
            rows.append(
                judge(f"GIM's search without interventions, {name}", seed, *without_interventions(x, seed), truth)
            )
            strength = np.abs(np.corrcoef(x, rowvar=False)) * ~np.eye(adata.n_vars, dtype=bool)
            top = np.sort(strength[np.triu_indices(len(truth), 1)])[-int(truth.sum())]
            graph = np.triu(strength >= top, 1)
            flip = np.triu(rng.random(graph.shape) < 0.5, 1) & graph
            rows.append(judge(f"correlation, {name}", seed, (graph & ~flip) | flip.T, strength, truth))
        rows.append(judge("no edge", seed, np.zeros_like(truth), np.zeros(truth.shape), truth))
        say(f"seed {seed}: " + ", ".join(f"{r['method']} {r['SHD']}" for r in rows[-7:]))
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------- targets, and a reagent that was left out


def targets(adata: ad.AnnData, seeds: list[int]) -> pd.DataFrame:
    known = adata.obs.groupby("perturbation", observed=True)["target_node"].first().astype(str)
    rows = []
    for name, options in {"GIM": {}, "GIM, hard": {"intervention": "hard"}}.items():
        for seed in seeds:
            table = fit(adata, seed, **options).get_intervention_targets()
            for reagent, mine in table.groupby("perturbation"):
                mine = mine.reset_index(drop=True)
                row = {"method": name, "seed": seed, "reagent": reagent, "target": known[reagent]}
                if known[reagent] in set(mine["node"]):
                    by_change = mine["observed"].abs().rank(ascending=False)
                    at = mine.index[mine["node"] == known[reagent]][0]
                    row |= {"rank": at + 1, "rank by change": by_change[at], "probability": mine["responsibility"][at]}
                row["nodes held to be targets"] = (mine["responsibility"] > 0.5).sum()
                rows.append(row)
    return pd.DataFrame(rows)


def unseen(adata: ad.AnnData, seeds: list[int]) -> pd.DataFrame:
    """Every reagent that another one shares the annotated target with, or all of them, predicted from what it acts on."""
    first = adata.obs.groupby("perturbation", observed=True)[["target_node", "direction"]].first().astype(str)
    reagents = [name for name in first.index if name != "control"]
    nodes = sorted(set(first.loc[reagents, "target_node"]))
    features = pd.DataFrame(0.0, index=reagents, columns=[*nodes, "inhibits"])
    for name in reagents:
        inhibits = first.loc[name, "direction"].lower().startswith(("inhib", "-", "down"))
        features.loc[name, first.loc[name, "target_node"]] = -1.0 if inhibits else 1.0
        features.loc[name, "inhibits"] = float(inhibits)
    adata = adata.copy()
    adata.uns["features"] = features
    label = adata.obs["perturbation"].astype(str).to_numpy()
    models = {
        "no change": (scvi_causal.ControlMean, {}),
        "PerturbedMean": (scvi_causal.PerturbedMean, {}),
        "LinearEffect": (scvi_causal.LinearEffect, {}),
        "GIM": (GIM, {}),
        "GIM, hard": (GIM, {"intervention": "hard"}),
    }
    rows = []
    for seed in seeds:
        source, reference = scvi_causal.metrics.split_controls(label == "control", seed=seed)
        for reagent in reagents:
            held = label == reagent
            held[reference] = True
            adata.obs["split"] = np.where(held, "test", "train")
            observed = adata.X[label == reagent].mean(0) - adata.X[reference].mean(0)
            for name, (model_class, options) in models.items():
                model_class.setup_anndata(adata, perturbation_features_key="features")
                scvi.settings.seed = seed
                model = model_class(adata, **options)
                model.train(split_key="split", **({"accelerator": "cpu", **QUIET} if model_class is GIM else {}))
                predicted = np.asarray(model.predict_counterfactual([reagent], indices=source).X).mean(0) - adata.X[
                    source
                ].mean(0)
                flat = predicted.std() < 1e-9
                rows.append(
                    {
                        "model": name,
                        "seed": seed,
                        "reagent": reagent,
                        "pearson": 0.0 if flat else np.corrcoef(predicted, observed)[0, 1],
                        "mse_ratio": ((predicted - observed) ** 2).sum() / (observed**2).sum(),
                    }
                )
        say(f"left out, seed {seed}")
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    adata = load()
    found, hit, left = graphs(adata, options.seeds), targets(adata, options.seeds), unseen(adata, options.seeds[:3])
    columns = ["edges", "SHD", "F1", "skeleton F1", "AUPRC"]
    mean, spread = (getattr(found.groupby("method", sort=False)[columns], f)() for f in ("mean", "std"))
    graph = pd.DataFrame(
        {c: [f"{m:.2f} ± {s:.2f}" for m, s in zip(mean[c], spread[c], strict=True)] for c in columns}, mean.index
    )
    numbers = ["rank", "rank by change", "probability", "nodes held to be targets"]
    reagents = hit.groupby(["method", "reagent", "target"])[numbers].mean()
    summary = left.groupby("model", sort=False)[["pearson", "mse_ratio"]].mean()
    single = left.pivot_table(index="reagent", columns="model", values="pearson", sort=False)
    parts = [
        ("## Graph\n\n" + TEXT["graph"], graph),
        ("## Targets\n\n" + TEXT["targets"], reagents),
        ("## A reagent that was left out\n\n" + TEXT["unseen"], summary),
        ("`pearson` of every reagent:", single),
    ]
    every = pd.concat([found.assign(part="graph"), hit.assign(part="targets"), left.assign(part="unseen")])
    write_page("gim_sachs", "GIM on Sachs 2005", parts, options.seeds, every)


if __name__ == "__main__":
    main()
