"""Does a network help graphVCI? IFN-beta in a cell type where it was never seen, with four networks.

    python benchmarks/graphvci_kang.py

The prior (CollecTRI), the prior refined on the training cells of each fold, none, and a random network with the degrees of the
prior. What is done stays in ``benchmarks/runs/graphvci_kang``: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pandas as pd
from _common import ROOT, prior_file, say, write_page
from _screens import SETTINGS, SIZE_FACTOR, load_screen
from scipy import stats

from scvi_causal import benchmark
from scvi_causal.benchmark import ModelSpec
from scvi_causal.data import degree_matched_random_grn, validate_grn

COLUMNS = ["r2_de", "pearson_effect", "mse_ratio", "energy", "variance_ratio"]
NONE = "GraphVCI, none"
VARIANTS = {
    "prior": ({"graph": "prior"}, "collectri"),
    "refined": ({"graph": "refined"}, "collectri"),
    "none": ({"graph": "none"}, None),
    "random": ({"graph": "prior"}, "random"),
}
TEXT = """Each of the 8 cell types of Kang 2018 in turn: its IFN-beta cells are never trained on. graphVCI with four networks, everything else
the same: CollecTRI among the 1,000 genes ({n_edges:,} edges); the same refined on the training cells of the fold; no network (every gene is coded
by itself); a random network in which every gene has the degrees it has in CollecTRI. At most {n_cells} cells of each type and condition and
{epochs} epochs in batches of {batch}, so that these scores are for comparison with each other, not with the tables of other pages. Mean over
folds and seeds."""

DIFFERENCES = """Difference to graphVCI without a network over the cell types, seeds averaged: mean, 95 % interval (t), and the Wilcoxon
signed-rank test, uncorrected. `mse_ratio` is better where it is lower."""


def small_kang(n_cells: int):
    """The screen with a cap on the cells of each population, and the two networks."""
    adata = load_screen("kang")
    rng = np.random.default_rng(0)
    groups = adata.obs.groupby(["cell_type", "perturbation"], observed=True).indices.values()
    keep = np.sort(np.concatenate([rng.permutation(rows)[:n_cells] for rows in groups]))
    adata = adata[keep].copy()
    collectri = pd.read_csv(prior_file("grn_collectri_human.csv.gz")).drop_duplicates(["source", "target"])
    adata.uns["collectri"] = validate_grn(collectri[collectri["source"] != collectri["target"]], adata.var_names)
    adata.uns["random"] = degree_matched_random_grn(adata.uns["collectri"], seed=0)
    return adata


def specs(train: dict, names: list[str]) -> dict[str, ModelSpec]:
    found = {"VCI": ModelSpec("VCI", train=train, valid_size=0.1)} if "vci" in names else {}
    for name in names:
        if name in VARIANTS:
            kwargs, key = VARIANTS[name]
            setup = {} if key is None else {"grn_key": key}
            found[f"GraphVCI, {name}"] = ModelSpec("GraphVCI", kwargs, setup=setup, train=train, valid_size=0.1)
    return found


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Mean over cell types and seeds, and the standard deviation of that mean over seeds."""
    of_seed = results.groupby(["model", "seed"], sort=False)[[*COLUMNS, "fit_cpu_s"]].mean()
    table = of_seed.groupby("model", sort=False).mean()
    spread = of_seed[COLUMNS[:3]].groupby("model", sort=False).std().add_prefix("sd ")
    return table.join(spread)


def compare(results: pd.DataFrame) -> pd.DataFrame:
    """Differences to the model without a network; seeds share their cell types, so that these are what is counted."""
    table = results.pivot_table(index="context", columns="model", values=COLUMNS[:3])
    rows = []
    for metric in COLUMNS[:3]:
        scores = table[metric]
        for model in (name for name in scores if name.startswith("GraphVCI") and name != NONE and NONE in scores):
            gap = (scores[model] - scores[NONE]).dropna()
            low, high = gap.mean() + np.array([-1, 1]) * stats.t.ppf(0.975, len(gap) - 1) * gap.std() / len(gap) ** 0.5
            p = stats.wilcoxon(gap).pvalue if gap.any() else 1.0
            row = {"model": model, "metric": metric, "difference": gap.mean(), "low": low, "high": high, "p": p}
            rows.append({**row, "cell types": str(len(gap))})
    return pd.DataFrame(rows).set_index("model") if rows else pd.DataFrame()


def main() -> None:
    """Run what is not done, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=["vci", *VARIANTS])
    parser.add_argument("--cells", type=int, default=300, help="of each cell type and condition, at most")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    adata = small_kang(options.cells)
    train = {"max_epochs": options.epochs, "batch_size": options.batch_size}
    result = benchmark.run(
        adata,
        models={**specs(train, options.variants), "Additive": "Additive"},
        out=ROOT / "benchmarks" / "runs" / "graphvci_kang",
        size_factor_key=SIZE_FACTOR,
        seeds=tuple(options.seeds),
        command=" ".join(["python", "benchmarks/graphvci_kang.py", *sys.argv[1:]]),
        progress=say,
        report=False,
        **SETTINGS["kang"],
    )
    results = result.results[result.results["status"] == "ok"]
    sizes = {"n_cells": options.cells, "epochs": options.epochs, "batch": options.batch_size}
    text = TEXT.format(n_edges=len(adata.uns["collectri"]), **sizes)
    parts = [(text, summary(results))]
    differences = compare(results)
    if len(differences):
        parts.append(("## Against no network\n\n" + DIFFERENCES, differences))
    columns = ["model", "seed", "context", *COLUMNS, "fit_cpu_s"]
    write_page("graphvci_kang", "Does a network help graphVCI?", parts, options.seeds, results[columns])


if __name__ == "__main__":
    main()
