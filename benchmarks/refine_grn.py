"""Does refinement find edges? Simulated screens with a known graph, then targets of transcription factors on two real screens.

    python benchmarks/refine_grn.py

The prior of a simulated screen lacks edges and has false ones. On real data, the edges of a factor are hidden from the prior and
its targets are ranked.
"""

from __future__ import annotations

import argparse
import time

import anndata as ad
import numpy as np
import pandas as pd
from _common import data_file, prior_file, say, write_page
from sklearn.metrics import average_precision_score

import scvi_causal
from scvi_causal import metrics
from scvi_causal.data import corrupt_grn, simulate_screen

WORLDS = {
    "drop 0.3, add 0.7": {"drop": 0.3, "add": 0.7},
    "drop 0.5, add 1.0": {"drop": 0.5, "add": 1.0},
    "drop 0.3, add 2.0": {"drop": 0.3, "add": 2.0},
}
FORMS = {
    "refined": {},
    "refined, interventions=False": {"interventions": False},
    "refined, keep_other=0.018": {"keep_other": 0.018},
    "refined, regulators='all'": {"regulators": "all"},
}
PAPER = "refined, preset='paper'"
REAL = {
    "papalexi": ("papalexi21_thp1_eccite.h5ad", {"batch_key": "batch"}),
    "kang": ("kang18_pbmc_ifnb.h5ad", {"categorical_covariate_keys": ["cell_type"]}),
}
MIN_TARGETS, N_PARTS = 5, 5
TEXT = {
    "simulated": """150 genes, about 280 true edges, 30 knock-downs of 60 cells each and 1,000 controls, three unmeasured cell states;
the prior has lost the share `drop` of the true edges and has been given `add` false ones per true edge. Mean over seeds. AUPRC over all
ordered pairs of genes; AUPRC of the missing: only the pairs that the prior lacks, so that a good prior does not help. Precision, recall
and F1 of the graph: the prior as it is, and the edges that refinement keeps at its defaults. `absolute correlation, prior first` is the
strongest simple baseline: all prior edges before all others, by absolute correlation. The published refinement (`preset='paper'`) takes minutes, so that it
runs on 60 genes with fewer seeds, beside the default on the same screens.""",
    "real": """Targets of a transcription factor among the measured genes, ranked by the refined weight or by absolute correlation (of residuals
of batch or cell type); average precision. The prior is CollecTRI without a single edge of the factor that is asked for. Labels:
CollecTRI, or ChIP-seq in K562 (another cell line). The base rate is the average precision of a random order. STAT1 is a gene of the
Papalexi panel (7 targets in CollecTRI); the gene IRF1 is in neither panel, and STAT1 not in that of Kang, so that what can be asked of
Kang is every factor with at least 5 targets, in five groups whose edges are hidden together.""",
}


# ---------------------------------------------------------------------- simulated


def matrix_of(edges: pd.DataFrame, genes: pd.Index, value: str | None = None) -> np.ndarray:
    """(genes, genes) of edges, regulators in rows."""
    edges = edges[edges["source"].isin(genes)]
    found = np.zeros((len(genes),) * 2)
    weight = 1.0 if value is None else edges[value].abs().to_numpy()
    found[genes.get_indexer(edges["source"]), genes.get_indexer(edges["target"])] = weight
    return found


def judge(score: np.ndarray, kept: np.ndarray | None, truth: np.ndarray, prior: np.ndarray) -> dict[str, float]:
    off = ~np.eye(len(truth), dtype=bool)
    missing = off & ~prior
    row = {
        "AUPRC": average_precision_score(truth[off], score[off]),
        "AUPRC of the missing": average_precision_score(truth[missing], score[missing]),
    }
    if kept is not None:
        hits = (kept & truth).sum()
        precision, recall = hits / max(kept.sum(), 1), hits / truth.sum()
        new = kept & ~prior
        row |= {
            "edges": kept.sum(),
            "precision": precision,
            "recall": recall,
            "F1": 2 * precision * recall / max(precision + recall, 1e-12),
            "new edges": new.sum(),
            "precision of the new": (new & truth).sum() / new.sum() if new.any() else np.nan,
        }
    return row


def simulated(world: str, seed: int, forms: dict, n_genes: int = 150, n_perturbations: int = 30) -> list[dict]:
    simulation = simulate_screen(
        n_genes=n_genes,
        n_perturbations=n_perturbations,
        n_cells_per_perturbation=60,
        n_control=1000,
        n_factors=3,
        seed=seed,
    )
    adata, genes = simulation.adata, simulation.adata.var_names
    prior = corrupt_grn(simulation.grn, genes=list(genes), seed=seed, **WORLDS[world])
    truth, known = matrix_of(simulation.grn, genes) > 0, matrix_of(prior, genes) > 0
    x = np.asarray(metrics.log1p_normalize(adata.X, adata.obs["library"].to_numpy()).todense())
    correlation = np.abs(np.corrcoef(x.T))
    rows = [
        {"method": "prior", **judge(known.astype(float), known, truth, known)},
        {"method": "absolute correlation", **judge(correlation, None, truth, known)},
        {"method": "absolute correlation, prior first", **judge(known + correlation, None, truth, known)},
    ]
    for name, options in forms.items():
        adata.uns["grn"] = prior
        start = time.process_time()
        table = scvi_causal.refine_grn(adata, size_factor_key="library", accelerator="cpu", seed=seed, **options)
        seconds = time.process_time() - start
        kept = matrix_of(table[table["kept"]], genes) > 0
        row = judge(matrix_of(table, genes, "weight"), kept, truth, known)
        rows.append({"method": name, **row, "CPU-seconds": seconds})
    for row in rows:
        row |= {"world": world, "seed": seed, "genes": n_genes}
    say(f"{world}, seed {seed}: " + ", ".join(f"{row['method']} {row['AUPRC']:.3f}" for row in rows))
    return rows


def table_of(rows: pd.DataFrame) -> pd.DataFrame:
    numbers = [c for c in rows.columns if c not in ("method", "world", "seed", "genes", "part")]
    return rows.groupby(["world", "method"], sort=False)[numbers].mean().reset_index().set_index("world")


# ---------------------------------------------------------------------- real


def labels_of(adata: ad.AnnData) -> dict[str, pd.DataFrame]:
    genes = set(adata.var_names)
    found = {}
    for name, file in {"CollecTRI": "grn_collectri_human.csv.gz", "K562 ChIP": "grn_chipseq_K562.csv.gz"}.items():
        edges = pd.read_csv(prior_file(file))
        edges = edges[edges["source"].isin(genes) & edges["target"].isin(genes) & (edges["source"] != edges["target"])]
        found[name] = edges.drop_duplicates(["source", "target"])[["source", "target", "weight"]]
    return found


def residual_correlation(adata: ad.AnnData, keys: list[str]) -> pd.DataFrame:
    """Absolute correlation over the cells that are trained on, within batches or cell types."""
    adata = adata[adata.obs["split"] != "test"]
    x = np.asarray(metrics.log1p_normalize(adata.X, adata.obs["library_size_full"].to_numpy()).todense())
    for _, rows in adata.obs.groupby(keys, observed=True).indices.items():
        x[rows] -= x[rows].mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.nan_to_num(np.abs(np.corrcoef(x.T)))
    return pd.DataFrame(found, adata.var_names, adata.var_names)


def ranked(adata: ad.AnnData, setup: dict, factors: list[str], labels: dict, seed: int, cells: str) -> list[dict]:
    """Average precision of the factors, all of whose edges are hidden."""
    prior = labels["CollecTRI"]
    adata.uns["grn"] = prior[~prior["source"].isin(factors)]
    used = (
        np.full(adata.n_obs, True)
        if cells == "all"
        else (adata.obs["perturbation"].astype(str) == "control").to_numpy()
    )
    valid = np.random.default_rng(seed).random(adata.n_obs) < 0.1
    adata.obs["split"] = np.where(used, np.where(valid, "valid", "train"), "test")
    regulators = sorted(set(prior["source"]) | set(factors))
    table = scvi_causal.refine_grn(
        adata,
        split_key="split",
        size_factor_key="library_size_full",
        regulators=regulators,
        accelerator="cpu",
        seed=seed,
        n_listed=10**7,
        **setup,
    )
    correlation = residual_correlation(adata, [setup.get("batch_key", "cell_type")])
    genes, rows = adata.var_names, []
    for factor in factors:
        others = genes != factor
        mine = table[table["source"] == factor].set_index("target")["weight"].abs().reindex(genes).fillna(0.0)
        for name, edges in labels.items():
            is_target = genes.isin(edges.loc[edges["source"] == factor, "target"])[others]
            if is_target.sum() < MIN_TARGETS:
                continue
            rows.append(
                {
                    "cells": cells,
                    "factor": factor,
                    "labels": name,
                    "targets": is_target.sum(),
                    "base rate": is_target.mean(),
                    "correlation": average_precision_score(is_target, correlation.loc[factor].to_numpy()[others]),
                    "refined": average_precision_score(is_target, mine.to_numpy()[others]),
                    "seed": seed,
                }
            )
    return rows


def real(seeds: list[int]) -> pd.DataFrame:
    rows = []
    for name, (file, setup) in REAL.items():
        adata = ad.read_h5ad(data_file(file))
        labels = labels_of(adata)
        counts = labels["CollecTRI"]["source"].value_counts()
        factors = ["STAT1"] if name == "papalexi" else sorted(counts[counts >= MIN_TARGETS].index)
        parts = [factors] if name == "papalexi" else [factors[i::N_PARTS] for i in range(N_PARTS)]
        for seed in seeds:
            for cells in ("all", "controls"):
                for part in parts:
                    rows += [{"screen": name, **row} for row in ranked(adata, setup, part, labels, seed, cells)]
                say(f"{name}, {cells}, seed {seed}")
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--paper-seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--real-seeds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    rows = [row for world in WORLDS for seed in options.seeds for row in simulated(world, seed, FORMS)]
    small = {"refined": {}, PAPER: {"preset": "paper", "split_key": None}}
    few = [row for seed in options.paper_seeds for row in simulated(next(iter(WORLDS)), seed, small, 60, 20)]
    long, published = pd.DataFrame(rows), pd.DataFrame(few)
    parts = [("## Simulated screens\n\n" + TEXT["simulated"], table_of(long))]
    if len(published):
        parts.append(("60 genes, with the published refinement:", table_of(published)))
    found = real(options.real_seeds) if options.real_seeds else pd.DataFrame()
    if len(found):
        numbers = ["targets", "base rate", "correlation", "refined"]
        per_factor = found.groupby(["screen", "cells", "labels", "factor"], sort=False)[numbers].mean()
        summary = per_factor.groupby(["screen", "cells", "labels"], sort=False)[numbers].mean()
        better = (per_factor["refined"] > per_factor["correlation"]).groupby(["screen", "cells", "labels"], sort=False)
        summary.insert(0, "factors", per_factor.groupby(["screen", "cells", "labels"], sort=False).size().astype(str))
        summary["share of factors better"] = better.mean()
        parts.append(("## Real screens\n\n" + TEXT["real"], summary.reset_index().set_index("screen")))
    every = pd.concat([long.assign(part="simulated"), published.assign(part="published"), found.assign(part="real")])
    write_page("refine_grn", "Refining a network", parts, options.seeds, every)


if __name__ == "__main__":
    main()
