"""GIM on simulated drugs with hidden targets: the graph, the targets, unseen dosages and unseen drugs.

    python benchmarks/gim_synthetic.py
    python benchmarks/gim_synthetic.py --sets d10 hard --seeds 100 101

Problems that are done stay in ``benchmarks/runs/gim_synthetic``: a run that was stopped goes on (``--fresh`` forgets them). Problems are drawn from ``scvi_causal.data.simulate_drugs`` with consecutive fresh seeds, none dropped; GIM runs with its
defaults. Black boxes map features and dosage to means: ridge, a network, and the network of GIM itself.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pandas as pd
import scvi
import torch
from _common import QUIET, ROOT, say, write_page
from scipy.linalg import sqrtm
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score

from scvi_causal import GIM
from scvi_causal.data import simulate_drugs

RUNS = ROOT / "benchmarks" / "runs" / "gim_synthetic"
ONE_DOSE = {"dosages": (1.0,), "new_dosages": (0.5,)}
# name: what it is, arguments of the simulation, arguments of GIM, number of problems
SETS = {
    "d10": ("10 nodes, 40 drugs x 4 dosages", {"n_nodes": 10}, {}, 12),
    "d20": ("20 nodes, 60 drugs x 4 dosages", {"n_nodes": 20, "n_drugs": 60}, {}, 6),
    "d20-part": ("20 nodes, 40 drugs x 4 dosages, 10 classes", {"n_nodes": 20, "n_classes": 10}, {}, 6),
    "d10-K40": ("10 nodes, 40 drugs, one dosage", {"n_nodes": 10, **ONE_DOSE}, {}, 6),
    "d50": ("50 nodes, 100 drugs x 4 dosages", {"n_nodes": 50, "n_drugs": 100}, {}, 2),
    "hard": (
        "10 nodes, 40 drugs x 4 dosages, hard interventions",
        {"n_nodes": 10, "intervention": "hard"},
        {"intervention": "hard"},
        5,
    ),
}
PARTS = ("new dosage", "new drug")
METHODS = ("black boxes", "GIM", "GIM, true graph")
TEXT = """Distances between predicted and true interventional means (Euclidean, in standard deviations of the controls; lower is
better), on *known drugs at new dosages* and on *new drugs*, means over problems; ± is the standard error over problems. W2: 2-Wasserstein
distance between the predicted and the true population, as Gaussians (black boxes take the covariance of the controls).
"true graph" is GIM that is told which edges there are. No model sees a cell of a new dosage or drug."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="*", help="of the problems; by default 100, 101, ...")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--fresh", action="store_true", help="do all problems anew")
    options = parser.parse_args()
    rows, graphs = [], []
    for name in options.sets:
        _, simulation, model, n = SETS[name]
        for seed in options.seeds or range(100, 100 + n):
            scores, graph = [], []
            for method in options.methods:
                done = RUNS / f"{name}-{seed}-{method.replace(' ', '_')}.json"
                if options.fresh or not done.exists():
                    done.parent.mkdir(parents=True, exist_ok=True)
                    done.write_text(json.dumps(one_problem(name, simulation, model, seed, method), default=float))
                for found, more in zip((scores, graph), json.loads(done.read_text()), strict=True):
                    found += more
            rows += scores
            graphs += graph
            say(f"{name} {seed} " + " ".join(f"{k}={v:.3g}" for k, v in graph[0].items() if isinstance(v, float | int)))
    report(pd.DataFrame(rows), pd.DataFrame(graphs), options.sets)


def one_problem(name: str, simulation: dict, model: dict, seed: int, method: str) -> tuple[list[dict], list[dict]]:
    """Scores on one problem, and what GIM says of graph and targets."""
    problem = simulate_drugs(seed=seed, **simulation)
    conditions = problem.conditions
    rows, graphs = [], []

    def score(method: str, means: np.ndarray, covariances: np.ndarray) -> None:
        for part in PARTS:
            at = np.flatnonzero(conditions["part"] == part)
            truth = problem.means.to_numpy()[at]
            distance = np.linalg.norm(means[at] - truth, axis=1).mean()
            w2 = np.mean(
                [wasserstein(means[k], covariances[k], problem.means.to_numpy()[k], problem.covariances[k]) for k in at]
            )
            rows.append({"set": name, "seed": seed, "method": method, "part": part, "distance": distance, "w2": w2})

    if method == "black boxes":
        for box, (means, covariances) in black_boxes(problem, seed).items():
            score(box, means, covariances)
        return rows, graphs
    fitted, seconds = fit(problem, seed, {**model, "grn": "none" if method == "GIM" else "mask"})
    means, covariances = fitted.get_population(
        conditions["perturbation"].tolist(), dosage=conditions["dosage"].tolist(), use_seen=False
    )
    if covariances is None:
        covariances = np.array([np.cov(draw(fitted, k, conditions), rowvar=False) for k in range(len(conditions))])
    score(method, means.to_numpy(), covariances)
    graphs.append({"set": name, "seed": seed, "method": method, **judge(fitted, problem), "CPU-seconds": seconds})
    return rows, graphs


def fit(problem, seed: int, options: dict) -> tuple[GIM, float]:
    adata = problem.adata.copy()
    adata.uns["grn"] = problem.grn
    GIM.setup_anndata(adata, dosage_key="dosage", perturbation_features_key="features")
    scvi.settings.seed = seed
    started = time.process_time()
    model = GIM(adata, **options)
    model.train(train_size=1.0, accelerator="cpu", **QUIET)
    return model, time.process_time() - started


def draw(model: GIM, k: int, conditions: pd.DataFrame) -> np.ndarray:
    row = conditions.iloc[k]
    cells = np.flatnonzero((model.adata.obs["perturbation"] == "control").to_numpy())
    return np.asarray(
        model.predict_counterfactual([row["perturbation"]], dosage=row["dosage"], indices=cells, sample=True, seed=0).X
    )


# ---------------------------------------------------------------------- black boxes


def black_boxes(problem, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Means (and the covariance of the controls) for all conditions, from features and dosage alone."""
    conditions, obs = problem.conditions, problem.adata.obs
    features = problem.adata.uns["features"].loc[conditions["perturbation"]].to_numpy(dtype=float)
    dosage = conditions[["dosage"]].to_numpy()
    design = np.concatenate([features, dosage, np.log(dosage)], axis=1)
    train = (conditions["part"] == "train").to_numpy()
    key = list(zip(obs["perturbation"].astype(str), obs["dosage"], strict=True))
    means = pd.DataFrame(problem.adata.X).groupby(pd.MultiIndex.from_tuples(key)).mean()
    observed = means.loc[
        list(zip(conditions["perturbation"][train], conditions["dosage"][train], strict=True))
    ].to_numpy()
    controls = problem.adata.X[(obs["perturbation"] == "control").to_numpy()]
    n = len(conditions)
    center, spread = design[train].mean(0), design[train].std(0)
    design = (design - center) / np.where(spread > 1e-6, spread, 1.0)
    found = {
        "no change": np.tile(controls.mean(0), (n, 1)),
        "mean over perturbations": np.tile(observed.mean(0), (n, 1)),
        "ridge": RidgeCV(np.logspace(-3, 3, 13)).fit(design[train], observed).predict(design),
        "MLP": network(design[train], observed, design, seed, skip=False),
        "MLP with a linear skip (the network of GIM)": network(design[train], observed, design, seed, skip=True),
    }
    covariance = np.broadcast_to(np.cov(controls, rowvar=False), (n, *[controls.shape[1]] * 2))
    return {method: (np.asarray(mean), covariance) for method, mean in found.items()}


def network(x: np.ndarray, y: np.ndarray, ask: np.ndarray, seed: int, *, skip: bool, n_steps: int = 1900) -> np.ndarray:
    """The body and the schedule of GIM's network, trained on means."""
    torch.manual_seed(seed)
    x, y, ask = (torch.tensor(a, dtype=torch.float32) for a in (x, y, ask))
    layers = [torch.nn.Linear(x.shape[1], 128), torch.nn.SiLU(), torch.nn.Dropout(0.1)]
    layers += [torch.nn.Linear(128, 128), torch.nn.SiLU(), torch.nn.Dropout(0.1), torch.nn.Linear(128, y.shape[1])]
    body = torch.nn.Sequential(*layers)
    linear = torch.nn.Linear(x.shape[1], y.shape[1], bias=False)
    with torch.no_grad():
        linear.weight.mul_(0.01 * skip)
        body[-1].weight.mul_(0.01)
    params = [*body.parameters(), *(linear.parameters() if skip else ())]
    groups = [{"params": [p for p in params if p.ndim == 2], "weight_decay": 1.0}]
    groups.append({"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps, eta_min=1e-4)
    for _ in range(n_steps):
        loss = (body(x) + linear(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    body.eval()
    with torch.no_grad():
        return (body(ask) + linear(ask)).numpy()


# ---------------------------------------------------------------------- scores


def wasserstein(mean_a, covariance_a, mean_b, covariance_b) -> float:
    """2-Wasserstein distance between Gaussians."""
    root = sqrtm(covariance_b).real
    cross = sqrtm(root @ covariance_a @ root).real
    spread = np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.trace(cross)
    return float(np.sqrt(np.sum((mean_a - mean_b) ** 2) + max(spread, 0.0)))


def judge(model: GIM, problem) -> dict[str, float]:
    """Graph and targets against the truth; a reversed edge counts once."""
    nodes = problem.adata.var_names
    truth, found = np.zeros((len(nodes),) * 2, dtype=bool), np.zeros((len(nodes),) * 2, dtype=bool)
    truth[nodes.get_indexer(problem.grn["source"]), nodes.get_indexer(problem.grn["target"])] = True
    edges = model.get_grn()
    found[nodes.get_indexer(edges["source"]), nodes.get_indexer(edges["target"])] = True
    wrong = truth != found
    listed = model.get_grn(candidates=True)
    score = np.zeros(truth.shape)
    # edges of the graph first, by their weight, then what else is possible
    strength = listed["probability"] + listed["weight"].abs()
    score[nodes.get_indexer(listed["source"]), nodes.get_indexer(listed["target"])] = strength
    off_diagonal = ~np.eye(len(nodes), dtype=bool)
    both = int((truth & found).sum())
    scores = {
        "true edges": int(truth.sum()),
        "SHD": int(np.triu(wrong | wrong.T, 1).sum()),
        "edge F1": 2 * both / max(truth.sum() + found.sum(), 1),
        "edge AUPRC": average_precision_score(truth[off_diagonal], score[off_diagonal]),
    }
    conditions = problem.conditions
    for part in ("train", *PARTS):
        at = np.flatnonzero(conditions["part"] == part)
        asked = conditions.iloc[at]
        prior, _ = model._interventions_of(
            asked["perturbation"].tolist(), asked["dosage"].to_numpy(object), None, use_seen=False
        )
        chance = prior.probability.detach().numpy()
        scores[f"target AUPRC, {part}"] = average_precision_score(
            problem.targets.to_numpy()[at].ravel(), chance.ravel()
        )
    return scores


def report(scores: pd.DataFrame, graphs: pd.DataFrame, sets: list[str]) -> None:
    parts = [(TEXT, None)]
    for value, title in (("distance", "Distance of means"), ("w2", "W2")):
        columns = {}
        for name in sets:
            for part in PARTS:
                mine = scores[(scores["set"] == name) & (scores["part"] == part)].groupby("method", sort=False)[value]
                mean, error = mine.mean(), mine.sem()
                columns[f"{name}, {part}s"] = [
                    f"{m:.3f} ± {e:.3f}" if e == e else f"{m:.3f}" for m, e in zip(mean, error, strict=True)
                ]
                index = mean.index
        parts.append((f"## {title}", pd.DataFrame(columns, index=index)))
    wins = scores.pivot_table(index=["set", "seed", "part"], columns="method", values="distance")
    boxes = wins[[m for m in wins if not m.startswith("GIM")]].min(axis=1)
    better = (wins["GIM"] < boxes).groupby(level=["part", "set"]).agg(["sum", "size"])
    parts.append(("## Problems in which GIM is better than the best black box (chosen after the fact)", better))
    summary = graphs.groupby(["set", "method"], sort=False)[
        [c for c in graphs if c not in ("set", "seed", "method")]
    ].mean()
    shd = (
        graphs[graphs["method"] == "GIM"]
        .groupby("set", sort=False)["SHD"]
        .apply(lambda s: ", ".join(map(str, sorted(s))))
    )
    parts.append(("## Graph and targets\n\nMeans over problems. SHD: edges missing, superfluous or reversed.", summary))
    parts.append(("SHD of every problem:", shd.to_frame()))
    parts.append(("Sets: " + "; ".join(f"`{name}`: {SETS[name][0]}" for name in sets) + ".", None))
    write_page(
        "gim_synthetic", "GIM on simulated drugs", parts, "problems 100, 101, ...", scores.merge(graphs, how="outer")
    )


if __name__ == "__main__":
    main()
