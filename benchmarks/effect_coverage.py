"""Do 95 % intervals of average effects cover in 95 %, where the truth is known?

    python benchmarks/effect_coverage.py

Genes are replicates of one another in the simulations of arrays. A part can be run alone: `effect_coverage.py designs`.
Other models than Additive are trained with the first seed only, and in two of the simulated settings.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
from _common import QUIET, fit, say, write_page
from scipy import stats

import scvi_causal
from scvi_causal.data import simulate_screen
from scvi_causal.effects import StratumPredictions, estimate_effects, marginal_mean, standard_error

N, SHARE, TRUTH = 600, 0.15, 2.0
METHODS = ["group", "robust", "tuned"]

TEXT = {
    "designs": """## The designs of the specification

600 cells, 15 % treated, z ~ N(0, 1), y = 2 + 1.5 z + N(0, 0.25) under treatment; `f` is what is predicted for each cell.
`sd` is what the estimates really scatter by, `SE` their mean standard error, `coverage` that of 95 % intervals, `unbalanced` and `reconstructed` the
shares of estimates with these flags. The last three designs break the assumption: predictions that know the
outcome of the treated cells (`reconstruction`: 1 too high elsewhere) or are 0.7 higher for them.""",
    "inferred": """## States that are known, and states that are inferred from the outcome

A control arm and 8 perturbations, 1,200 cells, predictions of every cell from its own state plus the effect of the target. `known
state`: measured before the perturbation; `effects` are estimated from all cells or, `cross-fit`, from the other half. `inferred`: the
state is the outcome minus the estimated effect of what the cell received, which is what an autoencoder can do at best. Its
intervals leave out the error of that effect, and no balance test sees it, but the flag "reconstructed" does: the reason why `get_marginal_effects` predicts
from strata unless told otherwise.""",
    "clusters": """## Clusters

Effects of guides or donors scatter by `between` cell standard deviations. `independent`: intervals as if cells were independent;
`sandwich`: C / (C - 1) and t with C - 1 degrees of freedom; `jackknife`: the default. Guides are nested in treatments (8 for
control), donors have both arms and their own response.""",
    "rare": """## Genes that few cells express

50 perturbed cells and 1,000 controls, 4,000 genes without an effect that `expected` of 50 cells express. `Welch`: intervals as they come;
`coverage`: those of the package, which adds two cells to the variance of an arm in which fewer than ten express the gene. `called`:
share with an adjusted p-value below 0.05. `four times`: coverage of the truth and share found (p < 0.05) if four times as many perturbed
cells express them.""",
    "strata": """## Strata that are spread unevenly

Three batches that differ by one cell standard deviation, predictions that are the means of the controls of a batch plus one effect, as of
an additive model. `treated`, `control`: shares of the batches among their cells. The robust estimate is corrected for the
batches; its interval leaves out that their means are estimated, which is felt where shares are very different.""",
    "bands": """## Bands

400 screens of 100 correlated genes without any effect: share of screens in which the intervals, and the bands of `simultaneous=True`,
contain 0 for all genes (nominal for bands: 0.95; with donors they are Šidák's, which is conservative for correlated genes). `counts`:
log1p of negative binomial counts with a mean of 0.5, so that most values are 0.""",
    "fdr": """## False discovery rates

200 screens of 4 perturbations and 100 correlated genes, of which a share has an effect of half a cell standard deviation. `false
discoveries`: mean share of false ones among the calls with `padj < 0.05` (nominal: at most 0.05 times the share without an effect);
`found`: share of the real ones that are called.""",
    "screens": """## Simulated screens

`simulate_screen` with 20 perturbations of 50 genes in counts, effects on mean log1p that are known by integration. `uneven batches`:
60 % of the perturbed cells outside the first batch are missing; `confounded types`: cell types are spread unevenly over
perturbations, effects asked within types; `types pooled`: the same screens with `groupby=[]`. `unbalanced`: share of rows with
that flag. Coverage over all genes, and over genes that at least half of the controls express (`expressed`). `cross-fit`: predictions from models
trained without the cell (`cross_fit=2`). Group means do not depend on the model. SCCVAE was trained with the first seed only: 1,000 intervals
that share their controls, with the coverage of Additive on the same screen (0.93 where batches are uneven).""",
}


def screens(n_screens: int, n_genes: int = 200, seed: int = 0):
    """State, outcome and treated cells of the specification."""
    rng = np.random.default_rng(seed)
    for _ in range(n_screens):
        z = rng.normal(size=(N, n_genes))
        yield z, TRUTH + 1.5 * z + rng.normal(0, 0.5, z.shape), rng.random(N) < SHARE


def summary(tables: list[pd.DataFrame], truth: float | np.ndarray = TRUTH) -> dict[str, float]:
    """Bias, scatter, standard error, coverage and flags of estimates of one truth."""
    table = pd.concat(tables)
    error = table["estimate"] - truth
    return {
        "bias": error.mean(),
        "sd": error.std(),
        "SE": table["se"].mean(),
        "coverage": inside(table, truth).mean(),
        "unbalanced": table["flag"].str.contains("unbalanced").mean(),
        "reconstructed": table["flag"].str.contains("reconstructed").mean(),
        "replicates": len(table),
    }


def inside(table: pd.DataFrame, truth) -> np.ndarray:
    """Whether intervals contain the truth."""
    return ((table["ci_low"] <= truth) & (table["ci_high"] >= truth)).to_numpy()


# ---------------------------------------------------------------------- arrays


def designs(seeds) -> pd.DataFrame:
    """The Monte Carlo table of the specification, 4,000 replicates a row."""
    cases = {
        "group mean": ("group", lambda z, y, a: 0 * z),
        "f = 2 + 1.5 z (oracle)": ("robust", lambda z, y, a: 2 + 1.5 * z),
        "f = 0": ("robust", lambda z, y, a: 0 * z),
        "f = 10": ("robust", lambda z, y, a: 0 * z + 10),
        "f = -3 + 0.5 z": ("robust", lambda z, y, a: -3 + 0.5 * z),
        "f = -3 + 0.5 z, tuned": ("tuned", lambda z, y, a: -3 + 0.5 * z),
        "f = -2 z": ("robust", lambda z, y, a: -2 * z),
        "f = -2 z, tuned": ("tuned", lambda z, y, a: -2 * z),
        "reconstruction": ("robust", lambda z, y, a: np.where(a[:, None], y, 3 + 1.5 * z)),
        "reconstruction, tuned": ("tuned", lambda z, y, a: np.where(a[:, None], y, 3 + 1.5 * z)),
        "0.7 higher if treated": ("robust", lambda z, y, a: 2 + 1.5 * z + 0.7 * a[:, None]),
    }
    rows = []
    for name, (method, predict) in cases.items():
        found, plug_in = [], []
        for z, y, a in screens(20):
            f, label = predict(z, y, a), np.where(a, "A", "other")
            found.append(estimate_effects(y, label, {"A": f}, "A", contrast=None, method=method))
            if method == "robust":
                plug_in.append(standard_error(marginal_mean(y, f, a, form="plug-in").influence).mean())
        rows.append({"design": name, **summary(found), "plug-in SE": np.mean(plug_in) if plug_in else np.nan})
        say(f"{name}: coverage {rows[-1]['coverage']:.3f}")
    return pd.DataFrame(rows).set_index("design")


def inferred(seeds) -> pd.DataFrame:
    """Predictions of cells from states that are known or inferred."""
    rng, names = np.random.default_rng(0), ["control", *(f"P{i}" for i in range(8))]
    found: dict[str, list] = {}
    for _ in range(20):
        labels = rng.choice(names, 1200, p=[0.3, *([0.7 / 8] * 8)])
        truth = {name: 0.3 * rng.normal(size=200) * (name != "control") for name in names}
        state = rng.normal(size=(1200, 200))
        y = state + rng.normal(0, 0.5, state.shape) + np.stack([truth[name] for name in labels])
        fold = rng.integers(0, 2, 1200)
        for crossed in (False, True):
            seen = [fold != v if crossed else fold >= 0 for v in (0, 1)]
            effect = [
                {n: y[s & (labels == n)].mean(0) - y[s & (labels == "control")].mean(0) for n in names} for s in seen
            ]
            own = np.stack([effect[v][name] for v, name in zip(fold, labels, strict=True)])
            for start, base in (("known state", state), ("inferred", y - own)):
                f = {n: base + np.stack([effect[v][n] for v in fold]) for n in ("P0", "control")}
                table = estimate_effects(y, labels, f, "P0", method=METHODS)
                table["truth"] = np.tile(truth["P0"], 3)
                key = start + (", cross-fit" if crossed else "")
                for method, part in table.groupby("method"):
                    found.setdefault((key if method != "group" else "group mean", method), []).append(part)
    rows = {key: summary(t, pd.concat(t)["truth"]) for key, t in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["state", "method"])


def clusters(seeds) -> pd.DataFrame:
    """Coverage with guides and donors, and if they are ignored."""
    rows, rng = [], np.random.default_rng(0)
    guides = {
        "4 equal": (60,) * 4,
        "4 as in Papalexi": (110, 60, 45, 25),
        "4, one dominates": (180, 30, 20, 10),
        "3": (80,) * 3,
    }
    for name, sizes in guides.items():
        for between in (0.0, 0.3, 1.0):
            cluster = np.r_[np.repeat(np.arange(len(sizes)), sizes), len(sizes) + np.arange(400) % 8]
            treatment = np.where(cluster < len(sizes), "A", "control")
            shift = between * rng.normal(size=(len(sizes) + 8, 4000))
            y = rng.normal(size=(len(cluster), 4000)) + shift[cluster]
            rows.append({"clusters": f"guides: {name}", "between": between, **cluster_rates(y, treatment, cluster)})
    for n in (3, 5, 10):
        for between in (0.0, 0.3, 1.0):
            share = np.linspace(1, 2.5, n)
            cluster = rng.choice(n, 100 * n, p=share / share.sum())
            treated = rng.random(len(cluster)) < 0.4
            y = rng.normal(size=(len(cluster), 4000)) + rng.normal(size=(n, 4000))[cluster]
            y += treated[:, None] * between * rng.normal(size=(n, 4000))[cluster]
            treatment = np.where(treated, "A", "control")
            rows.append({"clusters": f"donors: {n}", "between": between, **cluster_rates(y, treatment, cluster)})
    return pd.DataFrame(rows).set_index(["clusters", "between"])


def cluster_rates(y, treatment, cluster) -> dict[str, float]:
    """Coverage of zero by three formulas, and the mean width of the jackknife's interval over the sandwich's."""
    ask = lambda **kwargs: estimate_effects(y, treatment, method="group", **kwargs)
    tables = {"independent": ask()} | {
        kind: ask(cluster=cluster, cluster_variance=kind) for kind in ("sandwich", "jackknife")
    }
    width = {kind: (t["ci_high"] - t["ci_low"]).mean() for kind, t in tables.items()}
    rates = {kind: inside(t, 0).mean() for kind, t in tables.items()}
    return {**rates, "width, jackknife / sandwich": width["jackknife"] / width["sandwich"]}


def rare(seeds) -> pd.DataFrame:
    """Coverage for genes whose variance a handful of cells has to tell."""
    rows, rng = [], np.random.default_rng(0)
    label = np.repeat(["A", "control"], [50, 1000])
    value = np.log1p(rng.gamma(2, 2, 400_000)).mean()
    for expected in (0.5, 1, 2, 3, 5, 8, 10, 12):

        def draw(fold, share=expected / 50):
            express = rng.random((1050, 4000)) < np.where(label == "A", fold, 1.0)[:, None] * share
            return express * np.log1p(rng.gamma(2, 2, express.shape))

        y = draw(1.0)
        table = estimate_effects(y, label, method="group")
        welch = stats.ttest_ind(y[:50], y[50:], equal_var=False)
        between = welch.confidence_interval()
        p = np.nan_to_num(welch.pvalue, nan=1.0)
        changed, truth = estimate_effects(draw(4.0), label, method="group"), 3 * expected / 50 * value
        row = {
            "expected": expected,
            "Welch": np.mean(~((between.low > 0) | (between.high < 0))),
            "coverage": inside(table, 0).mean(),
            "called, Welch": np.mean(stats.false_discovery_control(p) < 0.05),
            "called": (table["padj"] < 0.05).mean(),
            "four times: coverage": inside(changed, truth).mean(),
            "four times: found": (changed["pvalue"] < 0.05).mean(),
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index("expected")


def strata(seeds) -> pd.DataFrame:
    """Coverage with batches that are spread unevenly over treated cells and controls."""
    even, rows, rng = [1 / 3] * 3, [], np.random.default_rng(0)
    cases = {
        "even": (even, even, 300, 300),
        "as in Papalexi": ([0.57, 0.18, 0.25], [0.4, 0.32, 0.28], 1000, 2386),
        "as in Papalexi, fewer cells": ([0.57, 0.18, 0.25], [0.4, 0.32, 0.28], 300, 300),
        "strong": ([0.8, 0.1, 0.1], even, 300, 300),
        "strong, fewer controls": ([0.8, 0.1, 0.1], even, 1000, 200),
    }
    for name, (treated, control, n_treated, n_control) in cases.items():
        found: dict[str, list] = {}
        for _ in range(10):
            draw = [(n_treated, treated), (n_control, control), (2000, [0.45, 0.28, 0.27])]
            batch = np.concatenate([rng.choice(3, n, p=p) for n, p in draw])
            label = np.repeat(["A", "control", "rest"], [n_treated, n_control, 2000])
            y = rng.normal(size=(len(batch), 1000)) + rng.normal(size=(3, 1000))[batch] + 0.5 * (label == "A")[:, None]
            h = np.stack([y[(label == "control") & (batch == k)].mean(0) for k in range(3)])
            f = {"A": h + y[label == "A"].mean(0) - y[label == "control"].mean(0), "control": h}
            table = estimate_effects(y, label, StratumPredictions(batch, f), "A", method=METHODS)
            for method, part in table.groupby("method"):
                found.setdefault(method, []).append(part)
        shares = {"treated": " ".join(f"{p:.2f}" for p in treated), "control": " ".join(f"{p:.2f}" for p in control)}
        rows += [{"case": name, "method": m, **shares, **summary(t, 0.5)} for m, t in found.items()]
    return pd.DataFrame(rows).set_index(["case", "method"])


def bands(seeds) -> pd.DataFrame:
    """Coverage of all genes together."""
    rows, rng = [], np.random.default_rng(0)
    cases = (
        ("60 cells", 60, 0),
        ("400 cells", 400, 0),
        ("400 cells, 10 donors", 400, 10),
        ("400 cells, counts", 400, 0),
    )
    for name, n, n_clusters in cases:
        inside_all = []
        for seed in range(400):
            label = np.repeat(["A", "control"], [n, 600])
            y = correlated(rng, len(label), 100)
            if "counts" in name:
                y = np.log1p(rng.poisson(rng.gamma(2.0, 0.25, y.shape) * np.exp(0.3 * y[:, :1])))
            donor = rng.integers(0, n_clusters, len(label)) if n_clusters else None
            table = estimate_effects(y, label, method="group", simultaneous=True, cluster=donor, seed=seed)
            inside_all.append([inside(table, 0).all(), ((table["band_low"] <= 0) & (table["band_high"] >= 0)).all()])
        intervals, together = np.mean(inside_all, axis=0)
        rows.append({"screens": name, "intervals": intervals, "bands": together})
    return pd.DataFrame(rows).set_index("screens")


def correlated(rng, n_cells: int, n_genes: int) -> np.ndarray:
    """Cells of correlated genes."""
    return rng.normal(size=(n_cells, 5)) @ rng.normal(size=(5, n_genes)) + rng.normal(size=(n_cells, n_genes))


def fdr(seeds) -> pd.DataFrame:
    """False discoveries among what Benjamini-Hochberg calls."""
    rows, rng = [], np.random.default_rng(0)
    names = ["control", "A", "B", "C", "D"]
    for share in (0.0, 0.1, 0.5):
        for n in (40, 200):
            found = []
            for _ in range(200):
                label = np.repeat(names, [500, n, n, n, n])
                real = {name: rng.random(100) < share * (name != "control") for name in names}
                y = correlated(rng, len(label), 100)
                y /= y.std(0)
                for name in names:
                    y[label == name] += 0.5 * real[name]
                table = estimate_effects(y, label, method="group")
                called = (table["padj"] < 0.05).to_numpy()
                true = np.concatenate([real[name] for name in names[1:]])
                found.append([(called & ~true).sum() / max(called.sum(), 1), called[true].mean() if share else np.nan])
            false, power = np.mean(found, axis=0)
            rows.append({"share with an effect": share, "cells": n, "false discoveries": false, "found": power})
    return pd.DataFrame(rows).set_index(["share with an effect", "cells"])


# ---------------------------------------------------------------------- screens


SETTINGS = {
    "plain": ({}, {}, {}),
    "30 cells a perturbation": ({"n_cells_per_perturbation": 30}, {}, {}),
    "batches": ({"n_batches": 3, "batch_sd": 0.3}, {"batch_key": "batch"}, {}),
    "uneven batches": ({"n_batches": 3, "batch_sd": 0.3, "n_cells_per_perturbation": 200}, {"batch_key": "batch"}, {}),
    "confounded types": (
        {"n_cell_types": 2, "confounding": 1.0, "n_cells_per_perturbation": 200},
        {"categorical_covariate_keys": ["cell_type"]},
        {},
    ),
    "types pooled": (
        {"n_cell_types": 2, "confounding": 1.0, "n_cells_per_perturbation": 200},
        {"categorical_covariate_keys": ["cell_type"]},
        {"groupby": []},
    ),
}


TRAINED = ("plain", "uneven batches")  # settings in which SCCVAE is trained, with the first seed


def simulated(seeds) -> pd.DataFrame:
    """Coverage on screens in counts, by model and method."""
    found = []
    for seed in seeds:
        for name, (simulation, setup, ask) in SETTINGS.items():
            made = simulate_screen(n_genes=50, n_perturbations=20, seed=seed, **simulation)
            adata = made.adata
            if name == "uneven batches":
                rng = np.random.default_rng(seed)
                keep = (adata.obs["batch"] == "batch_0") | (adata.obs["perturbation"] == "control")
                adata = adata[(keep | (rng.random(len(keep)) < 0.4)).to_numpy()].copy()
            adata.obs["split"] = np.where(np.random.default_rng(seed).random(adata.n_obs) < 0.9, "train", "valid")
            for model_class in (scvi_causal.Additive, scvi_causal.SCCVAE):
                if model_class is scvi_causal.SCCVAE and (seed > min(seeds) or name not in TRAINED):
                    continue
                model, _ = fit(model_class, adata, {"size_factor_key": "library", **setup}, seed)
                label = type(model).__name__
                # group means do not depend on the model: once is enough
                wanted = METHODS if model_class is scvi_causal.Additive else METHODS[1:]
                parts = [model.get_marginal_effects(method=wanted, **ask).assign(model=label)]
                if name in TRAINED:
                    train = QUIET if model_class is scvi_causal.SCCVAE else {}
                    crossed = model.get_marginal_effects(method=METHODS[1:], cross_fit=2, train_kwargs=train, **ask)
                    parts.append(crossed.assign(model=f"{label}, cross-fit"))
                table = pd.concat(parts, ignore_index=True)
                by_type = "cell_type" in table
                truth = made.effects_by_cell_type if by_type else made.effects
                keys = ["perturbation", "cell_type"] if by_type else ["perturbation"]
                table["truth"] = [
                    truth.loc[tuple(k) if by_type else k[0], g] for *k, g in table[[*keys, "gene"]].to_numpy()
                ]
                table["covered"], table["error"] = inside(table, table["truth"]), table["estimate"] - table["truth"]
                controls = adata.X[(adata.obs["perturbation"] == "control").to_numpy()]
                detected = pd.Series(np.asarray((controls > 0).mean(0)).ravel(), adata.var_names)
                table["expressed"] = table["gene"].map(detected) >= 0.5
                table["setting"], table["seed"] = name, seed
                found.append(table)
        say(f"screens, seed {seed}")
    table = pd.concat(found)
    table["model"] = table["model"].where(table["method"] != "group", "-")
    keys = ["setting", "method", "model"]
    by = table.groupby(keys, sort=False)
    out = pd.DataFrame(
        {
            "coverage": by["covered"].mean(),
            "expressed": table[table["expressed"]].groupby(keys)["covered"].mean(),
            "bias": by["error"].mean(),
            "error": by["error"].agg(lambda e: np.sqrt((e**2).mean())),
            "SE": by["se"].mean(),
            "unbalanced": by["flag"].agg(lambda f: f.str.contains("unbalanced").mean()),
            "intervals": by.size(),
        }
    )
    order = pd.CategoricalIndex(out.index.get_level_values("setting"), list(SETTINGS), ordered=True)
    return out.iloc[np.argsort(order.codes, kind="stable")]


PARTS = {
    "designs": designs,
    "inferred": inferred,
    "clusters": clusters,
    "rare": rare,
    "strata": strata,
    "bands": bands,
    "fdr": fdr,
    "screens": simulated,
}


def main() -> None:
    """Run the parts and write one page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Of .* population")
    pages, long = [], []
    for part in options.parts:
        table = PARTS[part](options.seeds)
        pages.append((TEXT[part], table))
        long.append(table.reset_index().assign(part=part))
    name = "effect_coverage" if options.parts == list(PARTS) else f"effect_coverage_{'_'.join(options.parts)}"
    write_page(name, "Coverage of average effects", pages, options.seeds, pd.concat(long))


if __name__ == "__main__":
    main()
