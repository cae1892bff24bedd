"""Is the network of GPOVAE more than a ranking of effects? Screens with a known graph, then Papalexi against held-out cells and TF targets.

python benchmarks/gpovae_network.py simulated
python benchmarks/gpovae_network.py papalexi
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import scvi
import torch
from _common import QUIET, RESULTS, load, prior_file, say, write_page
from sklearn.metrics import average_precision_score

from scvi_causal import GPOVAE, metrics
from scvi_causal.data import simulate_screen

WORLDS = {
    "40 of 50 genes perturbed": {"n_genes": 50, "n_perturbations": 40, "n_cells_per_perturbation": 100},
    "30 of 100, three cell states": {
        "n_genes": 100,
        "n_perturbations": 30,
        "n_cells_per_perturbation": 60,
        "n_control": 1000,
        "n_factors": 3,
    },
    "60 of 100, low counts": {
        "n_genes": 100,
        "n_perturbations": 60,
        "n_cells_per_perturbation": 60,
        "n_control": 600,
        "mean_expression": 0.3,
    },
    "60 of 100, 60 % of the cells hit": {
        "n_genes": 100,
        "n_perturbations": 60,
        "n_cells_per_perturbation": 60,
        "n_control": 600,
        "penetrance": 0.6,
    },
}
MEASURES = ("lfc", "wasserstein", "statistic")
# larger steps, so that fewer of them do, one particle and a smaller network of masks: the masks follow the alignment loss all the same
PAPER_TRAINING = {"max_epochs": 60, "plan_kwargs": {"lr": 1e-2}}
PAPER = {
    "preset": "paper",
    "extra_genes": "all",
    "matching": "random",
    "change_threshold": 0.5,
    "n_particles": 1,
    "n_guide_hidden": 100,
    "n_guide_layers": 1,
}
FORMS = {
    "GPOVAE": ({}, {}),
    "GPOVAE, every effect an edge": ({"indirect": "none"}, {}),
    "GPOVAE, before training": ({}, {"max_epochs": 1, "plan_kwargs": {"lr": 0.0}}),
    "GPOVAE, preset='paper'": (PAPER, PAPER_TRAINING),
}
REFERENCES = {"CollecTRI": "grn_collectri_human.csv.gz", "DoRothEA": "grn_dorothea_human_ABCD.csv.gz"}
N_EDGES = (50, 200)
TEXT = {
    "simulated": """Average precision of the true, direct edges among all pairs of a perturbed source and a gene; mean over seeds. No network
is given. Precision and recall: of the edges with a probability of at least 0.5. An edge that goes through genes that nobody perturbed is direct
for the model and not in the truth. Before training: what the effects say, without a single step of the VAE.""",
    "papalexi": """25 knock-outs, 299 genes; the cells are split in halves, once per seed. All rankings are cut at the same number of edges;
held-out effects are the other half's own. *Direct* edges are what is left after taking off what goes through other knocked-out genes, *total*
ones every effect. With half of CollecTRI given, the other half is asked for, and edges that were given do not count.""",
}


def fit(adata, seed: int, options: dict, training: dict, **setup) -> GPOVAE:
    scvi.settings.seed = seed
    GPOVAE.setup_anndata(adata, **setup)
    model = GPOVAE(adata, **options)
    model.train(**{**QUIET, "accelerator": "cpu", **training})
    return model


# ---------------------------------------------------------------------- simulated


def simulated(world: str, seed: int, forms: dict) -> list[dict]:
    screen = simulate_screen(seed=seed, **WORLDS[world])
    adata, true = screen.adata, set(zip(screen.grn["source"], screen.grn["target"], strict=True))
    del adata.uns["grn"]
    x = metrics.log1p_normalize(adata.X, adata.obs["library"].to_numpy())
    pairs = metrics.pair_effects(x, adata.obs["perturbation"].to_numpy(), adata.var_names)
    index = pd.MultiIndex.from_frame(pairs[["source", "target"]].astype(str))
    is_true = np.array([pair in true for pair in index])

    def average_precision(edges: pd.DataFrame) -> float:
        weight = edges.astype({"source": str, "target": str}).set_index(["source", "target"])["weight"].abs()
        return average_precision_score(is_true, weight.reindex(index).fillna(0.0))

    rows = [
        {"ranking": f"effect size ({by})", "AUPRC": average_precision(metrics.rank_by_effect(pairs, by))}
        for by in MEASURES
    ]
    rows.append({"ranking": "random", "AUPRC": is_true.mean()})
    for name, (options, training) in forms.items():
        start = time.process_time()
        model = fit(adata, seed, options, training, size_factor_key="library")
        seconds = time.process_time() - start
        edges = model.get_grn()
        hits = sum(edge in true for edge in zip(edges["source"], edges["target"], strict=True))
        rows.append(
            {
                "ranking": name,
                "AUPRC": average_precision(model.get_grn(min_probability=0.0)),
                "edges": len(edges),
                "precision": hits / max(len(edges), 1),
                "recall": hits / is_true.sum(),
                "CPU-seconds": seconds,
            }
        )
    for row in rows:
        row |= {"world": world, "seed": seed}
    say(f"{world}, seed {seed}: " + ", ".join(f"{row['ranking']} {row['AUPRC']:.3f}" for row in rows))
    return rows


def write_simulated(seeds: list[int], forms: dict, worlds: list[str]) -> None:
    long = pd.DataFrame([row for world in worlds for seed in seeds for row in simulated(world, seed, forms)])
    before = RESULTS / "gpovae_network_simulated.csv"
    if before.exists() and len(worlds) < len(WORLDS):  # the other worlds stay as they are
        kept = pd.read_csv(before)
        long = pd.concat([kept[~kept["world"].isin(worlds)], long])
    mean = long.groupby(["world", "ranking"], sort=False).mean(numeric_only=True).drop(columns="seed")
    by_world = long.pivot_table(index="ranking", columns="world", values="AUPRC", sort=False)
    parts = [(TEXT["simulated"], by_world), ("By world:", mean.reset_index().set_index("world"))]
    write_page("gpovae_network_simulated", "GPOVAE: direct edges of simulated screens", parts, seeds, long)


# ---------------------------------------------------------------------- Papalexi


def reference(name: str) -> pd.DataFrame:
    edges = pd.read_csv(prior_file(REFERENCES[name])).drop_duplicates(["source", "target"])
    return edges[edges["source"] != edges["target"]][["source", "target"]]


def without(edges: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Edges that are not among the known ones."""
    pairs = set(zip(known["source"], known["target"], strict=True))
    keep = [pair not in pairs for pair in zip(edges["source"].astype(str), edges["target"].astype(str), strict=True)]
    return edges[keep]


def papalexi(seed: int, with_paper: bool) -> pd.DataFrame:
    adata, x, labels = load("papalexi21_thp1_eccite.h5ad")
    adata.uns.pop("grn", None)
    is_training = np.random.default_rng(seed).random(adata.n_obs) < 0.5
    adata.obs["split"] = np.where(is_training, "train", "test")
    training, held_out = (metrics.pair_effects(x[h], labels[h], adata.var_names) for h in (is_training, ~is_training))
    collectri = reference("CollecTRI")
    given = collectri[np.random.default_rng([seed, 1]).random(len(collectri)) < 0.5]
    setup = {"size_factor_key": "library_size_full", "batch_key": "batch"}
    model = fit(adata, seed, {}, {"split_key": "split"}, **setup)
    found = {
        "GPOVAE, direct": model.get_grn(min_probability=0.0),
        "GPOVAE, total": model.get_grn(min_probability=0.0, effects="total"),
    }
    sizes = {"GPOVAE, direct": len(model.get_grn()), "GPOVAE, total": len(model.get_grn(effects="total"))}
    adata.uns["half"] = given[given["target"].isin(adata.var_names) & given["source"].isin(model.seen_tokens_)]
    prior = fit(adata, seed, {}, {"split_key": "split"}, grn_key="half", **setup)
    with_prior = {
        "GPOVAE, direct, half given": prior.get_grn(min_probability=0.0),
        "GPOVAE, total, half given": prior.get_grn(min_probability=0.0, effects="total"),
    }
    sizes["GPOVAE, direct, half given"] = len(prior.get_grn())
    if with_paper:
        options = {"split_key": "split", **PAPER_TRAINING}
        paper = fit(adata, seed, PAPER, options, **setup)
        found["GPOVAE, preset='paper'"] = paper.get_grn(min_probability=0.0)
        sizes["GPOVAE, preset='paper'"] = len(paper.get_grn())
    rows = []
    for name in REFERENCES:
        table = metrics.score_grn(found, held_out, training, reference=reference(name), n_edges=N_EDGES)
        rows.append(table.reset_index().assign(reference=name))
    unknown = {name: without(edges, given) for name, edges in {**found, **with_prior}.items()}
    table = metrics.score_grn(
        unknown,
        held_out[pairs_not_in(held_out, given)],
        training[pairs_not_in(training, given)],
        reference=without(collectri, given),
        n_edges=N_EDGES,
    )
    rows.append(table.reset_index().assign(reference="hidden half of CollecTRI"))
    result = pd.concat(rows).assign(seed=seed)
    result["edges found"] = result["ranking"].map(sizes)
    say(f"Papalexi, seed {seed}")
    return result


def pairs_not_in(pairs: pd.DataFrame, known: pd.DataFrame) -> np.ndarray:
    return pairs.index.isin(without(pairs, known).index)


def write_papalexi(seeds: list[int], with_paper: bool) -> None:
    long = pd.concat([papalexi(seed, with_paper) for seed in seeds])
    columns = [
        "excess",
        "significant",
        "false_omission_rate",
        "auprc_effects",
        "precision_reference",
        "auprc_reference",
    ]
    parts = [(TEXT["papalexi"], None)]
    for name, part in long.groupby("reference", sort=False):
        mean = part.groupby(["n_edges", "ranking"], sort=False)[[*columns, "edges found"]].mean()
        parts.append((f"Reference: {name}", mean.reset_index().set_index("n_edges")))
    write_page("gpovae_network_papalexi", "GPOVAE: its network on Papalexi", parts, seeds, long)


def intervals(seeds: list[int], n_edges: int = 200) -> None:
    """Networks minus rankings by effect size on Papalexi, with intervals over the knock-outs."""
    rows = []
    for seed in seeds:
        adata, x, labels = load("papalexi21_thp1_eccite.h5ad")
        adata.uns.pop("grn", None)
        half = np.random.default_rng(seed).random(adata.n_obs) < 0.5
        adata.obs["split"] = np.where(half, "train", "test")
        training, held_out = (metrics.pair_effects(x[h], labels[h], adata.var_names) for h in (half, ~half))
        setup = {"size_factor_key": "library_size_full", "batch_key": "batch"}
        model = fit(adata, seed, {}, {"split_key": "split"}, **setup)
        for kind in ("direct", "total"):
            edges = model.get_grn(min_probability=0.0, effects=kind)
            table = metrics.compare_grn(
                edges, held_out, training, reference=reference("CollecTRI"), n_edges=n_edges, n_bootstrap=200
            )
            rows.append(table.reset_index().assign(network=f"GPOVAE, {kind}", seed=seed))
        say(f"Papalexi, seed {seed}")
    long = pd.concat(rows)
    long = long[long["number"].isin(["excess", "significant", "auprc_effects", "auprc_reference"])]
    text = "Network minus ranking by effect size at 200 edges, with 95 % intervals over the knock-outs; reference: CollecTRI."
    columns = ["seed", "baseline", "number", "difference", "low", "high", "better"]
    parts = [(text, long.set_index("network")[columns])]
    write_page("gpovae_network_intervals", "GPOVAE: its network on Papalexi, with intervals", parts, seeds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["simulated", "papalexi", "intervals"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--worlds", type=int, nargs="+", default=list(range(len(WORLDS))))
    parser.add_argument("--without-paper", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "simulated":
        chosen = {name: form for name, form in FORMS.items() if not (arguments.without_paper and "paper" in name)}
        write_simulated(arguments.seeds, chosen, [list(WORLDS)[i] for i in arguments.worlds])
    elif arguments.part == "intervals":
        intervals(arguments.seeds)
    else:
        write_papalexi(arguments.seeds, not arguments.without_paper)
