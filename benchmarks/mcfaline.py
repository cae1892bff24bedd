"""A knock-down in a cell line where it was never seen: every pair of McFaline in turn.

    python benchmarks/mcfaline.py

9 knock-downs in 3 glioblastoma lines; the pair that is predicted is held out, the knock-down stays in the other lines and the
line in the other knock-downs. No choice in the models was made with this screen in view.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from _common import COLUMNS, draw, fit, load, say, write_page

import scvi_causal
from scvi_causal import metrics

SETUP = {"categorical_covariate_keys": ["cell_type"], "size_factor_key": "library_size_full"}
MODELS = ["ControlMean", "PerturbedMean", "Additive", "SCCVAE"]
CEILING = "noise ceiling"
TEXT = """Each of the 27 pairs of knock-down and cell line is held out in turn. Of the 100 controls of the line, training sees one half
and predictions start from it; effects are measured against the other half. Mean over pairs. `wins`: share of the pairs whose
squared error is smaller than that of Additive. The screen is thin (46 to 100 cells a pair) and the effects are small: the
noise ceiling, one half of the cells as a prediction of the other, is low, and differences below it mean little."""


def run(seed: int) -> list[dict]:
    """All pairs and models with one split of the controls."""
    adata, x, labels = load("mcfaline23_gbm.h5ad")
    lines, is_control = adata.obs["cell_type"].astype(str).to_numpy(), labels == "control"
    rows = []
    for line in np.unique(lines):
        source, reference = metrics.split_controls(is_control & (lines == line), seed=seed)
        for token in np.unique(labels[~is_control]):
            perturbed = np.flatnonzero((labels == token) & (lines == line))
            split = np.full(adata.n_obs, "train", dtype=object)
            split[np.concatenate([perturbed, reference])] = "test"
            adata.obs["split"] = split
            pair = {"perturbation": token, "cell line": line, "seed": seed}
            for name in MODELS:
                model, seconds = fit(getattr(scvi_causal, name), adata, SETUP, seed)
                predicted = draw(model, token, source, seed)
                score = metrics.score_counterfactual(x[perturbed], predicted, x[source], x[reference], seed=seed)
                rows.append({"model": name, **pair, **score, "CPU-seconds": seconds})
            score = metrics.noise_ceiling(x[perturbed], x[source], x[reference], seed=seed)
            rows.append({"model": CEILING, **pair, **score})
        say(f"seed {seed}, {line}: done")
    return rows


def main() -> None:
    """Run all repetitions and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    table = pd.DataFrame([row for seed in seeds for row in run(seed)])
    order = [*MODELS, CEILING]
    mean = table.groupby("model")[[*COLUMNS, "CPU-seconds"]].mean().reindex(order)
    errors = table.pivot_table(index=["perturbation", "cell line", "seed"], columns="model", values="mse_ratio")
    mean["wins"] = (errors[order].lt(errors["Additive"], axis=0)).mean()
    by_line = table.groupby(["cell line", "model"])[COLUMNS].mean().reset_index()
    by_line["model"] = pd.Categorical(by_line["model"], order)
    by_line = by_line.sort_values(["cell line", "model"]).set_index("cell line")
    parts = [(TEXT, None), ("## Mean over pairs", mean), ("## Every cell line", by_line)]
    write_page("mcfaline", "McFaline: a knock-down in another cell line", parts, seeds, table)


if __name__ == "__main__":
    main()
