"""Gasperini 2019, several guides per cell: does a model know what each target does to its gene, and keep still elsewhere?

    python benchmarks/gasperini.py --models Additive SAMSVAE CRADLEVAE

A population of cells with one label is not what there is to predict in such a screen: 280 of the 307 labels are combinations, of eight
cells at most. So the truth is a regression on the held-out half: log1p expression on batch and targets, other targets being held
fixed. Models are trained as in ``reports.py gasperini``, on the other half, whatever the cells carry, and asked for single targets
and for the combinations of the held-out cells.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import scipy.sparse as sp
from _common import say, write_page
from _screens import SIZE_FACTOR, cradle_vae, gpo_vae, load_screen

from scvi_causal import SAMSVAE
from scvi_causal.benchmark._folds import make_folds
from scvi_causal.benchmark._isolation import isolated
from scvi_causal.benchmark._job import Scoring
from scvi_causal.benchmark._model_job import make_predictor
from scvi_causal.benchmark._models import ModelSpec
from scvi_causal.benchmark._prepared import prepare
from scvi_causal.benchmark._screen import Screen
from scvi_causal.benchmark._tasks import Task
from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.base._shrinkage import shrink_effects

MODELS = ["ControlMean", "PerturbedMean", "Additive", "SCCVAE", "VCI", "SAMSVAE", "CRADLEVAE", "GPOVAE"]
WITH_MORE = {"CRADLEVAE": cradle_vae, "GPOVAE": gpo_vae}
SURE = -4.0  # z in the training half: of 366 genes and 27 targets, none by chance
FEWEST_EFFECT = 1e-3  # below it a slope is one of rounding
N_SOURCES = 300  # for combinations
TEXT = """{n_train:,} training and {n_test:,} held-out cells, 366 genes, 27 targets (promoters and enhancers, silenced by CRISPRi). A target has {fewest} to {most}
held-out cells (first seed; numbers are means over seeds). Effects are changes of the mean of log(1 + counts per 10,000). {n_cis} targets have a gene that they silence in the training half
(z below {sure:.0f}): their own for promoters, the most reduced one for enhancers.

`cis`: sum of the predicted effects on these genes, over that of the held-out cells; `weaker`: without the strongest target. `cis error`: root mean squared error of them, sampling error taken off. `MSE`: squared
error over all genes and targets, over that of predicting nothing; sampling error of the held-out cells is taken off both, so that 0 is perfect. `MSE elsewhere`: the same without the
{n_cis} pairs; where nothing happens both are noise, so it is given per 10,000 values, not as a ratio. `several`: in the {n_several} held-out cells with more than one target, the slope of
observed on predicted effects on the silenced genes of the cell, with its standard error; 1 is right, below it the prediction is too strong."""
CIS_TEXT = "Effects on the silenced genes, first seed. `observed`: held-out cells, with the standard error."


class Regression:
    """Effects of all targets on all genes in some of the cells, by least squares, one intercept per batch."""

    def __init__(self, screen: Screen, rows: np.ndarray):
        carried = np.array([[t in screen.tokens[label] for t in screen.targets] for label in screen.labels[rows]])
        batch = pd.get_dummies(screen.adata.obs["batch"].iloc[rows]).to_numpy(dtype=float)
        design, x = sp.csr_matrix(np.hstack([batch, carried])), screen.x[rows]
        inverse = np.linalg.inv((design.T @ design).toarray())
        total = (design.T @ x).toarray()
        coefficients = inverse @ total
        squares = np.asarray(x.multiply(x).sum(0)).ravel() - (total * coefficients).sum(0)
        n = batch.shape[1]
        self.effect = coefficients[n:]
        self.error = np.sqrt(np.outer(inverse.diagonal()[n:], squares / (len(rows) - len(inverse))))
        self.n_cells = carried.sum(0)
        self.base = batch @ coefficients[:n]
        self.labels = screen.labels[rows]


def silenced(screen: Screen, train: Regression) -> list[tuple[int, int]]:
    """(target, gene) of the targets that silence a gene in the training half."""
    z = train.effect / train.error
    genes = list(screen.adata.var_names)
    own = [genes.index(t) if t in genes else int(row.argmin()) for t, row in zip(screen.targets, z, strict=True)]
    return [(t, gene) for t, gene in enumerate(own) if z[t, gene] < SURE]


def shrunken(screen: Screen, adata) -> np.ndarray:
    """(targets, genes) effects in the training half after empirical-Bayes shrinkage: what no network is needed for."""
    SAMSVAE.setup_anndata(adata, batch_key="batch", size_factor_key=SIZE_FACTOR)
    model = SAMSVAE(adata)
    found = condition_effects(model.adata_manager, np.arange(adata.n_obs), adata.n_vars, True, of_logs=True)
    target = np.array([list(adata.var_names).index(t) if t in adata.var_names else -1 for t in screen.targets])
    effect = shrink_effects(found.effect, found.noise, found.dosage, found.context, target).effect
    return effect[found.dosage.argmax(0)]


def predicted_effects(predictor, sources, labels: list[str], x: np.ndarray) -> np.ndarray:
    """(labels, genes) change of the mean of the sources, whose expression is ``x``."""
    answer = predictor.predict(sources, labels)
    place = answer.obs["perturbation"].astype(str).to_numpy()
    mean = [np.asarray(answer.X[place == label].mean(0)).ravel() for label in labels]
    return np.array(mean) - np.asarray(x.mean(0)).ravel()


def score(found: np.ndarray, held: Regression, pairs: list[tuple[int, int]]) -> dict[str, float]:
    """The numbers of one model."""
    t, g = np.array(pairs).T
    noise, effect = held.error**2, held.effect
    excess, weaker = (found - effect) ** 2 - noise, effect[t, g] > effect[t, g].min()
    elsewhere = np.ones(effect.shape, dtype=bool)
    elsewhere[t, g] = False
    return {
        "cis": found[t, g].sum() / effect[t, g].sum(),
        "weaker": found[t, g][weaker].sum() / effect[t, g][weaker].sum(),
        "cis error": np.sqrt(max(excess[t, g].mean(), 0.0)),
        "MSE": excess.sum() / (effect**2 - noise).sum(),
        "MSE elsewhere": 1e4 * excess[elsewhere].mean(),
    }


def slope_of_several(
    found: dict[str, np.ndarray], held: Regression, x, screen: Screen, pairs: list[tuple[int, int]]
) -> tuple[float, float]:
    """Slope and standard error of observed on predicted effects, in cells with several targets, on the genes they silence."""
    gene = {screen.targets[t]: g for t, g in pairs}
    predicted, observed = [], []
    for i, label in enumerate(held.labels):
        tokens = screen.tokens[label]
        for g in {gene[token] for token in tokens if token in gene} if len(tokens) > 1 else ():
            predicted.append(found[label][g])
            observed.append(x[i, g] - held.base[i, g])
    p, o = np.array(predicted), np.array(observed)
    if np.abs(p).max() < FEWEST_EFFECT:
        return np.nan, np.nan
    slope = p @ o / (p @ p)
    return slope, np.sqrt(p**2 @ (o - slope * p) ** 2) / (p @ p)


class Seed:
    """One split of the cells: the truth, what is scored, and the rows found so far."""

    def __init__(self, screen: Screen, seed: int):
        self.screen, self.seed = screen, seed
        self.fold = make_folds(screen, Task("seen"), seed)[0]
        self.prepared = prepare(screen, self.fold, Scoring())
        test = np.setdiff1d(np.arange(len(screen.labels)), self.fold.train)
        self.train, self.held, self.x = Regression(screen, self.fold.train), Regression(screen, test), screen.x[test]
        self.pairs = silenced(screen, self.train)
        self.several = sorted({label for label in self.held.labels if len(screen.tokens[label]) > 1})
        self.rows, held = [], self.held
        self.table = pd.DataFrame({"target": [screen.targets[t] for t, _ in self.pairs]})
        self.table["gene"] = [screen.adata.var_names[g] for _, g in self.pairs]
        self.table["observed"] = [f"{held.effect[t, g]:.2f} ± {held.error[t, g]:.2f}" for t, g in self.pairs]

    def add(self, name: str, effect: np.ndarray, joint: np.ndarray) -> None:
        """Score (targets, genes) effects, and those of the combinations ``several``."""
        found = dict(zip(self.several, joint, strict=True))
        slope, error = slope_of_several(found, self.held, self.x, self.screen, self.pairs)
        row = {"seed": self.seed, "model": name, **score(effect, self.held, self.pairs), "several": slope, "± ": error}
        say(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
        self.rows.append(row)
        self.table[name] = [effect[t, g] for t, g in self.pairs]

    def add_training_half(self) -> None:
        """The regression on the training cells, as it is and shrunken; combinations are sums."""
        data = self.prepared.training_data(ModelSpec("Additive"))
        carried = [[t in self.screen.tokens[label] for t in self.screen.targets] for label in self.several]
        for name, effect in (("regression", self.train.effect), ("shrunken", shrunken(self.screen, data))):
            self.add(f"training half, {name}", effect, np.array(carried) @ effect)

    def add_model(self, name: str) -> None:
        """Fit and ask a model."""
        spec = WITH_MORE[name]("gasperini") if name in WITH_MORE else ModelSpec(name)
        source, x = self.fold.populations[0].source, self.screen.x
        with isolated(self.fold.model_seed):
            predictor = make_predictor(spec, self.screen, self.fold.model_seed)
            predictor.fit(self.prepared.training_data(spec))
            sources = self.prepared.source_data("")
            effect = predicted_effects(predictor, sources, list(self.screen.targets), x[source])
            few = sources[:N_SOURCES].copy()
            joint = predicted_effects(predictor, few, self.several, x[source[:N_SOURCES]])
        self.add(name, effect, joint)

    def facts(self) -> dict:
        """Numbers of the text."""
        held = self.held
        return {
            "n_train": len(self.fold.train),
            "n_test": len(held.labels),
            "fewest": held.n_cells.min(),
            "most": held.n_cells.max(),
            "n_cis": len(self.pairs),
            "n_several": sum(len(self.screen.tokens[label]) > 1 for label in held.labels),
            "sure": SURE,
        }


def main() -> None:
    """Fit, ask, compare, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    screen = Screen.build(load_screen("gasperini"), size_factor_key=SIZE_FACTOR)
    seeds = [Seed(screen, seed) for seed in options.seeds]
    for seed in seeds:
        seed.add_training_half()
        for name in options.models:
            seed.add_model(name)
    scores = pd.concat([pd.DataFrame(seed.rows) for seed in seeds])
    means = scores.drop(columns="seed").groupby("model", sort=False).mean()
    title = "Gasperini 2019: what targets do to their genes, in cells with several guides"
    parts = [(TEXT.format(**seeds[0].facts()), means), (CIS_TEXT, seeds[0].table.set_index("target"))]
    write_page("gasperini", title, parts, options.seeds, scores)


if __name__ == "__main__":
    main()
