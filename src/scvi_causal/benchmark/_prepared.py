"""What the jobs of one fold share: training and source cells, and the observed side of every score, made once."""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scvi_causal import metrics

from ._leaks import HiddenCells, NoiseFloor, project
from ._screen import DEFAULT_GRN_KEY

if TYPE_CHECKING:
    from ._folds import Fold, Population
    from ._job import Scoring
    from ._models import ModelSpec
    from ._screen import Screen

SPLIT_KEY = "split"
PCA_CELLS = 3_000
"""Training cells that the PCA of the distances is fitted on at most: more move its axes no further."""
KEPT_VALUES = 200_000_000
"""Values that observed populations may keep for the next model; beyond, they are made anew for each."""
MIN_CANDIDATE = 10
"""Cells of a perturbation that is a candidate for discrimination without being scored itself."""


def prepare(screen: Screen, fold: Fold, scoring: Scoring) -> PreparedFold:
    """The shared part of a fold, from the cache of the screen where it is the last one used."""
    key = (fold.digest, scoring)
    if key not in screen.cache:
        screen.cache.clear()  # jobs come fold by fold: one is enough, and memory stays that of one
        screen.cache[key] = PreparedFold(screen, fold, scoring)
    return screen.cache[key]


def group_means(x: Any, codes: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """(groups, genes) means of the rows of ``x`` by group, and (groups,) numbers of cells; rows with code -1 are left out."""
    rows = np.flatnonzero(codes >= 0)
    n = np.bincount(codes[rows], minlength=n_groups)
    ones = np.ones(len(rows), dtype=np.float64)
    indicator = sp.csr_matrix((ones, (codes[rows], rows)), shape=(n_groups, len(codes)))
    sums = indicator @ x
    sums = np.asarray(sums.todense() if sp.issparse(sums) else sums, dtype=np.float64)
    return sums / np.maximum(n, 1)[:, None], n


class PreparedFold:
    """One fold on one screen, ready for models and scores."""

    def __init__(self, screen: Screen, fold: Fold, scoring: Scoring):
        self.screen, self.fold, self.scoring = screen, fold, scoring
        self._populations: dict[int, metrics.ObservedPopulation] = {}
        self._floors: dict[int, NoiseFloor] = {}

    # ------------------------------------------------------------------ what models get

    def training_data(self, spec: ModelSpec) -> AnnData:
        """A copy of the training cells, and of nothing else: raw expression, metadata, and what the set-up names."""
        adata = self._with_metadata({k: x.copy() for k, x in self._training_matrices.items()}, self.fold.train)
        adata.obs[SPLIT_KEY] = pd.Categorical(self._split(spec.valid_size), categories=["train", "valid"])
        shared = [self.screen.setup[key] for key in ("grn_key", "perturbation_features_key")]
        names = {value for value in (*shared, *spec.setup.values()) if isinstance(value, str)}
        for attribute in ("uns", "varm", "varp"):
            given, taken = getattr(self.screen.adata, attribute), getattr(adata, attribute)
            for key in names | {DEFAULT_GRN_KEY}:
                if key in given:
                    taken[key] = deepcopy(given[key])
        return adata

    def source_data(self, context: str) -> AnnData:
        """A copy of the control cells of a context that predictions start from."""
        rows = self._of_context(context).source
        return self._with_metadata(self._matrices(rows), rows)

    @cached_property
    def _training_matrices(self) -> dict[str | None, Any]:
        return self._matrices(self.fold.train)

    def _matrices(self, rows: np.ndarray) -> dict[str | None, Any]:
        adata, layer = self.screen.adata, self.screen.setup["layer"]
        found = {} if adata.X is None else {None: adata.X[rows]}
        return found if layer is None else found | {layer: adata.layers[layer][rows]}

    def _with_metadata(self, matrices: dict[str | None, Any], rows: np.ndarray) -> AnnData:
        screen = self.screen
        obs = screen.adata.obs.iloc[rows].copy()
        for name, column in obs.items():
            if isinstance(column.dtype, pd.CategoricalDtype):
                obs[name] = column.cat.remove_unused_categories()
        obs[screen.perturbation_key] = pd.Categorical(screen.labels[rows].astype(str))
        layers = {name: x for name, x in matrices.items() if name is not None}
        return AnnData(matrices.get(None), obs=obs, var=screen.adata.var.copy(), layers=layers)

    def _split(self, valid_size: float) -> np.ndarray:
        """``"valid"`` for a share of each training population, which keeps a training cell."""
        split = np.full(len(self.fold.train), "train", dtype=object)
        if valid_size > 0:
            rng = np.random.default_rng([self.fold.seed, 4])
            order = rng.permutation(len(split))
            codes = self._codes[self.fold.train][order]
            order, codes = order[np.argsort(codes, kind="stable")], np.sort(codes)
            _, start, size = np.unique(codes, return_index=True, return_counts=True)
            rank = np.arange(len(codes)) - np.repeat(start, size)
            split[order[rank < np.floor(valid_size * np.repeat(size, size))]] = "valid"
        return split

    # ------------------------------------------------------------------ what scores are taken against

    def population(self, i: int) -> metrics.ObservedPopulation:
        """The observed side of population ``i``."""
        if i in self._populations:
            return self._populations[i]
        population, scoring = self.fold.populations[i], self.scoring
        source, reference = self.controls[population.context]
        made = metrics.ObservedPopulation(
            self.screen.x[population.observed],
            source,
            reference,
            n_de=scoring.n_de,
            pca=self.pca,
            max_cells=scoring.max_cells,
            seed=self.fold.seed,
        )
        # what a population computes once is a few dense samples: a genome-wide fold would fill the memory with them
        if (len(self._populations) + 1) * 4 * scoring.max_cells * self.screen.x.shape[1] <= KEPT_VALUES:
            self._populations[i] = made
        return made

    def floor(self, i: int) -> NoiseFloor:
        """Squared error that no honest prediction of population ``i`` falls short of."""
        if i not in self._floors:
            observed = self.population(i)
            self._floors[i] = NoiseFloor(observed.observed, observed.moments.variance)
        return self._floors[i]

    @cached_property
    def hidden(self) -> HiddenCells:
        """The test cells of all populations and the reference controls, which no prediction may contain."""
        hidden = [cells for p in self.fold.populations for cells in (p.observed, p.reference)]
        x = self.screen.x
        return HiddenCells(x, np.concatenate(hidden), self.fold.train, project(x))

    @cached_property
    def pca(self):
        """PCA of training cells; ``None`` where there are too few cells or genes."""
        rows = self.fold.train
        if len(rows) > PCA_CELLS:
            rows = np.sort(np.random.default_rng([self.fold.seed, 5]).choice(rows, PCA_CELLS, replace=False))
        if min(len(rows), self.screen.x.shape[1]) < 3:
            return None
        return metrics.fit_pca(self.screen.x[rows], seed=self.fold.seed)

    @cached_property
    def controls(self) -> dict[str, tuple[metrics.Moments, metrics.Moments]]:
        """Moments of source and reference controls by context."""
        found = {}
        for context in self.fold.contexts:
            population = self._of_context(context)
            x, cells = self.screen.x, (population.source, population.reference)
            found[context] = tuple(metrics.cell_moments(x[rows]) for rows in cells)
        return found

    def _of_context(self, context: str) -> Population:
        return next(p for p in self.fold.populations if p.context == context)

    # ------------------------------------------------------------------ averages over perturbations

    @cached_property
    def _names(self) -> list[tuple[str, str]]:
        """(label, context) of each code."""
        return self._coded[1]

    @cached_property
    def _codes(self) -> np.ndarray:
        """(cells,) code of the label and context of each cell."""
        return self._coded[0]

    @cached_property
    def _coded(self) -> tuple[np.ndarray, list[tuple[str, str]]]:
        labels, label_names = pd.factorize(self.screen.labels)
        contexts, context_names = pd.factorize(self.screen.contexts)
        codes, keys = pd.factorize(labels * len(context_names) + contexts)
        pairs = [divmod(int(key), len(context_names)) for key in keys]
        return codes, [(str(label_names[a]), str(context_names[b])) for a, b in pairs]

    def _means(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and numbers of the ``cells`` of each code."""
        codes = np.full(len(self._codes), -1)
        codes[cells] = self._codes[cells]
        return group_means(self.screen.x, codes, len(self._names))

    @cached_property
    def averages(self) -> dict[str, np.ndarray]:
        """(genes,) what an average training perturbation looks like in each context.

        The unweighted mean of the mean profiles of the training perturbations; where a context has none, the mean of its
        source controls plus the unweighted mean of all training effects.
        """
        mean, n = self._means(self.fold.train)
        control = {c: i for i, (label, c) in enumerate(self._names) if label == self.screen.control and n[i]}
        perturbed = [i for i, (label, _) in enumerate(self._names) if label != self.screen.control and n[i]]
        effects = [mean[i] - mean[control[self._names[i][1]]] for i in perturbed if self._names[i][1] in control]
        found = {}
        for context in self.fold.contexts:
            here = [i for i in perturbed if self._names[i][1] == context]
            if here:
                found[context] = mean[here].mean(0)
            elif effects:
                found[context] = self.controls[context][0].mean + np.mean(effects, axis=0)
        return found

    @cached_property
    def candidates(self) -> dict[str, tuple[list[str], np.ndarray]]:
        """Labels and (candidates, genes) observed effects of all perturbations of each context, for discrimination."""
        if self.fold.task == "seen":
            cells = np.setdiff1d(np.arange(len(self._codes)), self.fold.train)
        else:
            cells = np.arange(len(self._codes))
        mean, n = self._means(cells)
        scored = {(p.perturbation, p.context) for p in self.fold.populations}
        found = {}
        for context in self.fold.contexts:
            rows = [
                i
                for i, (label, c) in enumerate(self._names)
                if c == context and label != self.screen.control and (n[i] >= MIN_CANDIDATE or (label, c) in scored)
            ]
            effects = mean[rows] - self.controls[context][1].mean
            found[context] = [self._names[i][0] for i in rows], effects
        return found

    # ------------------------------------------------------------------ genes that give a perturbation away

    @cached_property
    def _place(self) -> dict[str, int]:
        return {str(gene): i for i, gene in enumerate(self.screen.adata.var_names)}

    def own_genes(self, perturbation: str) -> np.ndarray:
        """Positions of the genes that a perturbation is named after."""
        tokens = self.screen.tokens[perturbation]
        return np.array([self._place[token] for token in tokens if token in self._place], dtype=np.int64)

    @cached_property
    def target_genes(self) -> np.ndarray:
        """(genes,) mask of the genes that any perturbation of the screen is named after."""
        mask = np.zeros(len(self._place), dtype=bool)
        mask[[self._place[token] for token in self.screen.targets if token in self._place]] = True
        return mask
