"""Do predictions of real models help average effects? Robust and tuned estimates against group means.

python benchmarks/effect_coverage_models.py
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
from _common import QUIET, fit, say, write_page
from effect_coverage import inside

import scvi_causal
from scvi_causal.data import simulate_screen

MODELS = {
    "Additive": (scvi_causal.Additive, {}, {}),
    "SCCVAE": (scvi_causal.SCCVAE, {}, QUIET),
    "VCI": (scvi_causal.VCI, {}, QUIET),
    "VCI, published": (scvi_causal.VCI, {"preset": "paper"}, {**QUIET, "max_epochs": 50}),
}
METHODS = ["group", "mean", "robust", "tuned"]
ERRORS = """`error`: root mean square of estimate minus truth; `width`: mean width of the 95 % intervals over that of group means of the same
cells; `coverage` of the truth; `unbalanced`, `reconstructed`: shares of rows with these
flags. `mean` is the model alone, which has no interval. `cross-fit`:
predictions by models that were trained without the cell. `VCI, published` is `preset="paper"` with 50 epochs of the published 1,000."""
SIMULATED = f"""## Simulated screens

10 perturbations of 50 genes in counts; three batches that differ and hidden factors that move many genes of a cell together, so that there is
something to gain from knowing a cell. Effects on mean log1p are known by integration. {ERRORS}"""
KANG = f"""## Kang: half of the cells against the other

Interferon beta in eight types of blood cells, the 500 genes that most cells express. Models and estimates have one quarter of the cells of each type
and condition; the truth is what the other three quarters say, whose own error is added to the interval. `within types`: an
effect for each type. `pooled`: one effect over all types together (`groupby=[]`), the truth with the types weighted as in the
cells. {ERRORS}"""


def estimates(model, name: str, cross: bool, **ask) -> pd.DataFrame:
    """Effects by all methods, from strata and, where it can be, from cells; with and without cross-fitting."""
    parts = []
    for start in ("strata", "cells"):
        if start == "cells" and not model.can_abduct:
            continue
        for folds in (0, 2) if cross else (0,):
            options = {"cross_fit": folds, "train_kwargs": MODELS[name][2]} if folds else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = model.get_marginal_effects(method=METHODS, predict_from=start, seed=0, **options, **ask)
            parts.append(table.assign(model=name, start=start + (", cross-fit" if folds else "")))
    table = pd.concat(parts, ignore_index=True)
    table["width"] = table["ci_high"] - table["ci_low"]
    plain = table["method"] == "group"
    table.loc[plain, ["model", "start"]] = "-"
    return table[~plain | ~table.duplicated([*{"perturbation", "cell_type", "gene", "method"} & set(table)])]


def summary(table: pd.DataFrame, keys=("method", "model", "start")) -> pd.DataFrame:
    """One row per method, model and start."""
    by = table.groupby(list(keys), sort=False)
    group = table.loc[table["method"] == "group", "width"].mean()
    out = pd.DataFrame(
        {
            "error": by["error"].agg(lambda e: np.sqrt((e**2).mean())),
            "width": by["width"].mean() / group,
            "coverage": by["covered"].mean(),
            "unbalanced": by["flag"].agg(lambda f: f.str.contains("unbalanced").mean()),
            "reconstructed": by["flag"].agg(lambda f: f.str.contains("reconstructed").mean()),
            "intervals": by.size(),
        }
    )
    out.loc[out["width"].isna(), "coverage"] = np.nan
    order = [METHODS.index(m) for m in out.index.get_level_values("method")]
    return out.iloc[np.argsort(order, kind="stable")]


def simulated(options) -> pd.DataFrame:
    """Screens with known effects."""
    found = []
    for seed in options.seeds:
        made = simulate_screen(
            n_genes=50,
            n_perturbations=10,
            n_control=600,
            n_batches=3,
            batch_sd=0.3,
            n_factors=3,
            factor_sd=0.5,
            seed=seed,
        )
        adata = made.adata
        adata.obs["split"] = np.where(np.random.default_rng(seed).random(adata.n_obs) < 0.9, "train", "valid")
        for name in options.models:
            model_class, kwargs, train = MODELS[name]
            setup = {"size_factor_key": "library", "batch_key": "batch"}
            model, _ = fit(model_class, adata, setup, seed, train, **kwargs)
            table = estimates(model, name, cross=options.cross_fit)
            truth = [made.effects.loc[p, g] for p, g in table[["perturbation", "gene"]].to_numpy()]
            table["error"], table["covered"] = table["estimate"] - truth, inside(table, np.array(truth))
            found.append(table)
            say(f"simulated, seed {seed}: {name}")
    table = pd.concat(found, ignore_index=True)
    return summary(
        table[(table["method"] != "group") | ~table.duplicated(["perturbation", "gene", "method", "estimate"])]
    )


def kang(options) -> pd.DataFrame:
    """A quarter of the cells against the rest."""
    found = []
    for seed in options.seeds:
        adata = scvi_causal.datasets.kang18()
        detected = np.asarray((adata.X > 0).mean(0)).ravel()
        adata = adata[:, np.sort(np.argsort(-detected)[:500])].copy()
        keys = adata.obs["cell_type"].astype(str) + adata.obs["perturbation"].astype(str)
        shuffled = np.random.default_rng(seed).permutation(adata.n_obs)
        ordered = shuffled[np.argsort(keys.to_numpy()[shuffled], kind="stable")]
        part = np.empty(adata.n_obs, dtype=int)
        part[ordered] = np.arange(adata.n_obs) % 4
        adata.obs["split"] = np.where(part == 0, "train", "test")
        other = np.flatnonzero(part > 0)
        for name in options.models:
            model_class, kwargs, train = MODELS[name]
            setup = {"categorical_covariate_keys": ["cell_type"], "size_factor_key": "library_size_full"}
            model, _ = fit(model_class, adata, setup, seed, train, **kwargs)
            reference = model.get_marginal_effects("IFNB", indices=other, method="group").set_index(
                ["cell_type", "gene"]
            )
            share = adata.obs["cell_type"][part == 0].value_counts(normalize=True)
            for groups, ask in (("within types", {}), ("pooled", {"groupby": []})):
                table = estimates(model, name, cross=False, perturbations="IFNB", **ask)
                if groups == "within types":
                    truth = reference.loc[pd.MultiIndex.from_frame(table[["cell_type", "gene"]])]
                    mean, se = truth["estimate"].to_numpy(), truth["se"].to_numpy()
                else:
                    weighted = reference.assign(weight=reference.index.get_level_values(0).map(share).astype(float))
                    by_gene = lambda column, genes=table["gene"]: (
                        column.groupby(level="gene").sum().loc[genes].to_numpy()
                    )
                    mean = by_gene(weighted["estimate"] * weighted["weight"])
                    se = np.sqrt(by_gene((weighted["se"] * weighted["weight"]) ** 2))
                table["error"] = table["estimate"] - mean
                table["covered"] = table["error"].abs() < 1.96 * np.hypot(table["se"], se)
                found.append(table.assign(groups=groups))
            say(f"Kang, seed {seed}: {name}")
    table = pd.concat(found, ignore_index=True)
    repeated = table.duplicated(["groups", "cell_type", "gene", "method", "estimate"])
    table = table[(table["method"] != "group") | ~repeated]
    parts = {name: summary(table[table["groups"] == name]) for name in ("within types", "pooled")}
    return pd.concat(parts, names=["groups"])


def main() -> None:
    """Run both parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["simulated", "kang"], metavar="part", help="simulated, kang")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="model")
    parser.add_argument("--cross-fit", action="store_true", help="also from models trained without the cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    known = {"simulated": (SIMULATED, simulated), "kang": (KANG, kang)}
    pages = [(known[part][0], known[part][1](options)) for part in options.parts]
    long = pd.concat([table.reset_index().assign(part=p) for p, (_, table) in zip(options.parts, pages, strict=True)])
    name = "effect_coverage_models" + ("" if len(pages) == len(known) else f"_{options.parts[0]}")
    write_page(name, "Average effects with the predictions of real models", pages, options.seeds, long)


if __name__ == "__main__":
    main()
