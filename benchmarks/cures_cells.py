"""Does a counterfactual keep the cell it started from, and does it vary like cells? Default against the published model.

Kang, CD4 T cells held out. Of every cell type half of the controls are never trained on: identity is measured on these.
Each call appends a row per model, since the published size takes long: python benchmarks/cures_cells.py paper --epochs 100
"""

from __future__ import annotations

import argparse
from datetime import timedelta

import numpy as np
import pandas as pd
from _common import RESULTS, STAMP, draw, fit, load, say, write_page
from sklearn.neighbors import NearestNeighbors

import scvi_causal
from scvi_causal import metrics

HELD_OUT = "CD4 T"
SETUP = {"categorical_covariate_keys": ["cell_type"], "size_factor_key": "library_size_full"}
MODELS = {
    "default": {},
    "paper": {"preset": "paper"},
    "paper-small": {"preset": "paper", "n_latent": 64, "n_hidden": 256},
}
N_NEIGHBORS = 15
NAME = "cures_cells"
IDENTITY = ["epochs", "r control mean", "r control draw", "r decoded", "r IFNB"]
IDENTITY += ["sd means", "sd posterior", "active", "purity"]
DISPERSION = ["epochs", "variance", "variance 10 %", "variance 90 %", "R2", "Pearson", "energy", "CPU-seconds"]
TEXT = """Kang, CD4 T cells under IFN-beta held out. **Identity** is measured on control cells that were never trained on.

- `r control`: correlation across cells of the counterfactual *to control* with the cell's own log expression, after
  subtracting the mean of the cell type from both; median over expressed genes. `mean` takes expected values, `draw` drawn
  cells. The default abducts the counts of the cell itself, so that it returns the cell by construction; `r decoded` is
  what its decoder alone keeps.
- `r IFNB`: the same between the cell under IFN-beta (drawn) and its own control expression.
- `sd means`, `sd posterior`: spread of the posterior means over cells, and posterior standard deviation (root mean squares
  over dimensions). A collapsed posterior has means that do not vary and a standard deviation of 1.
- `active`: share of latent dimensions whose posterior means have a variance above 0.01.
- `purity`: share of the 15 nearest neighbours of a predicted IFN-beta cell that started from the same cell type.

**Dispersion**, on the held-out CD4 T cells: `variance`: predicted over real variance, median over expressed genes, and the
genes at 10 % and 90 %. `R2`, `Pearson`, `energy`: the numbers of the other benchmarks on this population."""


def expressed(x: np.ndarray) -> np.ndarray:
    """Genes with a mean of at least 0.1 in log1p of counts per 10,000."""
    return np.flatnonzero(x.mean(0) > 0.1)


def within(x: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Expression minus the mean of the cell type."""
    out = x.astype(float)
    for name in np.unique(types):
        out[types == name] -= out[types == name].mean(0)
    return out


def identity(predicted: np.ndarray, own: np.ndarray, types: np.ndarray) -> float:
    """Median over genes of the correlation across cells within types; 0 for a gene without variation."""
    a, b = within(predicted, types), within(own, types)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return float(np.median(np.divide((a * b).sum(0), size, out=np.zeros(len(size)), where=size > 1e-8)))


def purity(embedded: np.ndarray, types: np.ndarray) -> float:
    """Mean share of the nearest neighbours that have the type of the cell."""
    near = NearestNeighbors(n_neighbors=N_NEIGHBORS + 1).fit(embedded).kneighbors(embedded, return_distance=False)
    return float((types[near[:, 1:]] == types[:, None]).mean())


def decoded(model, sources: np.ndarray) -> np.ndarray:
    """What the decoder alone makes of the mean state of control cells."""
    import torch

    if model._preset == "paper":
        return draw(model, "control", sources, sample=False)
    z = torch.from_numpy(model.get_latent_representation(indices=sources))
    with torch.no_grad():
        eta = model.module.decode(z, torch.zeros(len(z), 1, dtype=torch.int64))
        return torch.log1p(model.module.rate(eta)).numpy()


def measure(model, x, types, perturbed, source, unseen, pca) -> dict:
    """All numbers of one trained model.

    Parameters
    ----------
    source, unseen
        Control cells of the held-out type that training saw; control cells of all types that it did not see.
    """
    genes, own_type = expressed(x[unseen]), types[unseen]
    own = x[unseen][:, genes]
    mean = model.get_latent_representation(indices=unseen)
    noise = model.get_latent_representation(indices=unseen, give_mean=False, seed=0) - mean
    treated = draw(model, "IFNB", unseen)
    score = metrics.score_counterfactual(
        x[perturbed], draw(model, "IFNB", source), x[source], x[unseen[own_type == HELD_OUT]]
    )
    ratio = metrics.variance_ratio(x[perturbed], draw(model, "IFNB", source))[expressed(x[perturbed])]
    return {
        "r control mean": identity(draw(model, "control", unseen, sample=False)[:, genes], own, own_type),
        "r control draw": identity(draw(model, "control", unseen)[:, genes], own, own_type),
        "r decoded": identity(decoded(model, unseen)[:, genes], own, own_type),
        "r IFNB": identity(treated[:, genes], own, own_type),
        "sd means": float(np.sqrt(mean.var(0).mean())),
        "sd posterior": float(np.sqrt((noise**2).mean())),
        "active": float((mean.var(0) > 0.01).mean()),
        "purity": purity(pca.transform(treated), own_type),
        "variance": float(np.median(ratio)),
        "variance 10 %": float(np.quantile(ratio, 0.1)),
        "variance 90 %": float(np.quantile(ratio, 0.9)),
        "R2": score["r2_de"],
        "Pearson": score["pearson_effect"],
        "energy": score["energy"],
    }


def reference(x, types, perturbed, is_perturbed, unseen, pca) -> list[dict]:
    """What real cells score, and chance."""
    real = np.random.default_rng(0).permutation(np.flatnonzero(is_perturbed))[: len(unseen)]
    share = pd.Series(types[unseen]).value_counts(normalize=True)
    half1, half2 = metrics.split_controls(np.ones(len(perturbed), dtype=bool))
    ratio = metrics.variance_ratio(x[perturbed[half1]], x[perturbed[half2]])[expressed(x[perturbed])]
    cells = {
        "purity": purity(pca.transform(x[real]), types[real]),
        "variance": float(np.median(ratio)),
        "variance 10 %": float(np.quantile(ratio, 0.1)),
        "variance 90 %": float(np.quantile(ratio, 0.9)),
    }
    return [{"model": "real cells", **cells}, {"model": "chance", "purity": float((share**2).sum())}]


def main() -> None:
    """Train and measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", choices=list(MODELS))
    parser.add_argument("--epochs", type=int, help="of the published model; 100 as published by default")
    parser.add_argument("--minutes", type=float, help="stop the published model after so long, at the end of an epoch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    adata, x, labels = load("kang18_pbmc_ifnb.h5ad")
    types, is_control = adata.obs["cell_type"].astype(str).to_numpy(), labels == "control"
    seen, unseen = metrics.split_controls(is_control, types, seed=options.seed)
    held_out = ~is_control & (types == HELD_OUT)
    adata.obs["split"] = np.where(held_out | np.isin(np.arange(adata.n_obs), unseen), "test", "train")
    perturbed, source = np.flatnonzero(held_out), seen[types[seen] == HELD_OUT]
    pca = metrics.fit_pca(x[adata.obs["split"] == "train"], seed=0)
    rows = reference(x, types, perturbed, ~is_control, unseen, pca)
    for name in options.models:
        limits = {"max_epochs": options.epochs, "max_time": options.minutes and timedelta(minutes=options.minutes)}
        train = {} if name == "default" else {key: value for key, value in limits.items() if value}
        say(f"{name}: training")
        model, seconds = fit(scvi_causal.SCCVAE, adata, SETUP, options.seed, train, **MODELS[name])
        epochs = max(len(values) for values in model.history.values())
        row = {"model": name, "epochs": epochs, **measure(model, x, types, perturbed, source, unseen, pca)}
        rows.append(
            {**row, "CPU-seconds": round(seconds), "command": STAMP["command"], "commit": STAMP["commit of src"]}
        )
        say(f"{name}: { {k: round(v, 3) for k, v in row.items() if isinstance(v, float)} }")
    path = RESULTS / f"{NAME}.csv"
    table = pd.DataFrame(rows)
    if path.exists():
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(["model", "epochs"], keep="last")
    order = [*MODELS, "real cells", "chance"]
    table = table.sort_values("model", key=lambda names: names.map(order.index), kind="stable")
    shown = table.set_index("model").drop(columns=["command", "commit"], errors="ignore")
    shown["epochs"] = [str(int(n)) if n == n else "–" for n in shown["epochs"]]
    parts = [(TEXT, None), ("## Identity", shown[IDENTITY]), ("## Dispersion", shown[DISPERSION])]
    write_page(NAME, "Cures: identity and dispersion of cells", parts, options.seed, table)


if __name__ == "__main__":
    main()
