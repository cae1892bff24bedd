"""Which cells are trained on, predicted from, predicted, and measured against, for every task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal.data._messages import plural
from scvi_causal.metrics import split_controls

from ._holdouts import MAX_PAIRS, Held, hold_out

if TYPE_CHECKING:
    from ._screen import Screen
    from ._tasks import Controls, Task

MAX_SOURCES = 1_000
"""Control cells that predictions start from at most, per context."""


@dataclass(frozen=True, eq=False)
class Population:
    """One population to predict: the cells of a perturbation in a context.

    Attributes
    ----------
    perturbation, context
        What it is: a canonical label, and the values of the covariates (``""`` if there are none).
    kind
        In which way it is new, such as ``"1 of 2 tokens seen"``.
    observed
        Positions of the held-out cells.
    source
        Positions of the control cells that predictions start from: half A, at most :data:`MAX_SOURCES` of it.
    reference
        Positions of the control cells that no model sees (half B): observed effects are measured against them.
    """

    perturbation: str
    context: str
    kind: str
    observed: np.ndarray
    source: np.ndarray
    reference: np.ndarray

    @property
    def title(self) -> str:
        """For figures and tables."""
        return f"{self.perturbation} in {self.context}" if self.context else self.perturbation


@dataclass(frozen=True, eq=False)
class Fold:
    """One way to hold cells out; independent of the models.

    Attributes
    ----------
    question
        The task.
    index
        Number of the fold within the task.
    seed
        Of the split.
    train
        Positions of the training cells: the only ones that ``fit`` gets.
    populations
        What is predicted and scored.
    controls
        ``"independent"`` halves, or ``"shared"``.
    description
        What is held out, in words.
    n_left_out
        Held-out populations that are not scored: too small, or beyond ``max_populations``.
    note
        What could not be done as asked, for the report; ``""`` if nothing.
    """

    question: Task
    index: int
    seed: int
    train: np.ndarray
    populations: tuple[Population, ...]
    controls: str = "independent"
    description: str = ""
    n_left_out: int = 0
    note: str = ""

    @property
    def task(self) -> str:
        """Kind of the task."""
        return self.question.kind

    @property
    def contexts(self) -> tuple[str, ...]:
        """Contexts with scored populations."""
        return tuple(dict.fromkeys(p.context for p in self.populations))

    @property
    def model_seed(self) -> int:
        """Seed of the models: another one for each fold and seed, the same for all models."""
        return int(np.random.SeedSequence([self.seed, self.index]).generate_state(1)[0] % 2**31)

    @property
    def digest(self) -> str:
        """Hash of all positions and names."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.task}|{self.index}|{self.seed}|{self.controls}".encode())
        digest.update(np.ascontiguousarray(self.train, dtype=np.int64).tobytes())
        for p in self.populations:
            digest.update(f"|{p.perturbation}|{p.context}|{p.kind}|".encode())
            for cells in (p.observed, p.source, p.reference):
                digest.update(np.ascontiguousarray(cells, dtype=np.int64).tobytes())
        return digest.hexdigest()


def make_folds(
    screen: Screen,
    task: Task,
    seed: int = 0,
    controls: Controls = "independent",
    *,
    min_cells: int = 10,
    max_populations: int | None = None,
    max_pairs: int = MAX_PAIRS,
) -> list[Fold]:
    """All folds of a task.

    Parameters
    ----------
    screen
        The data.
    task
        The question.
    seed
        Of folds and control halves.
    controls
        ``"independent"``: the control cells of contexts with scored populations are halved; half A trains and is predicted
        from, half B is measured against and never seen. ``"shared"``: all control cells are both, which inflates scores;
        to show just that.
    min_cells
        Cells that a population needs to be scored; a context needs twice as many control cells.
    max_populations
        Populations to score per fold at most, the largest first.
    max_pairs
        Up to so many pairs of a perturbation and a context are held out one at a time.

    Raises
    ------
    ValueError
        If the data cannot answer the question; says what would.
    """
    if min_cells < 4:
        raise ValueError(f"min_cells={min_cells}: a noise ceiling needs at least 4 cells, 2 in each half.")
    if controls not in ("independent", "shared"):
        raise ValueError(f"controls={controls!r} is neither 'independent' nor 'shared'.")
    halves = _Halves(screen, seed, controls, min_cells)
    if task.kind == "seen":
        held = [Held(~screen.is_control, frozenset(screen.tokens), "half of the cells")]
        folds = [_seen_fold(screen, task, halves, max_populations)]
    else:
        held = list(hold_out(screen, task, seed, lambda cells: bool(halves.groups(cells)[0]), max_pairs))
        folds = [_fold(screen, task, i, part, halves, max_populations) for i, part in enumerate(held)]
    if not any(fold.populations for fold in folds):
        raise ValueError(_nothing_to_score(halves, held, min_cells))
    return [fold for fold in folds if fold.populations]


@dataclass(eq=False)
class _Halves:
    """The control cells of each context, halved once, whatever is predicted there."""

    screen: Screen
    seed: int
    controls: str
    min_cells: int

    def __post_init__(self) -> None:
        screen = self.screen
        self.context_names, self.context_codes = np.unique(screen.contexts.astype(str), return_inverse=True)
        self.label_names, self.label_codes = np.unique(screen.labels.astype(str), return_inverse=True)
        self._found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def groups(self, cells: np.ndarray, scored: frozenset[str] | None = None) -> tuple[list, int]:
        """(label, context, positions) of the populations among ``cells`` that can be scored, and how many cannot."""
        rows = np.flatnonzero(cells & ~self.screen.is_control)
        keys = self.label_codes[rows] * len(self.context_names) + self.context_codes[rows]
        order = np.argsort(keys, kind="stable")
        found, start = np.unique(keys[order], return_index=True)
        kept, n_left_out = [], 0
        for key, members in zip(found, np.split(rows[order], start[1:]), strict=True):
            label, context = self._names(key)
            if scored is not None and label not in scored:
                continue
            if len(members) < self.min_cells or self.n_controls(context) < 2 * self.min_cells:
                n_left_out += 1
                continue
            kept.append((label, context, members))
        return kept, n_left_out

    def pairs(self, cells: np.ndarray) -> list[tuple[str, str]]:
        """(label, context) of the cells, each once."""
        keys = self.label_codes[cells] * len(self.context_names) + self.context_codes[cells]
        return [self._names(key) for key in np.unique(keys)]

    def _names(self, key: int) -> tuple[str, str]:
        label, context = divmod(int(key), len(self.context_names))
        return str(self.label_names[label]), str(self.context_names[context])

    def of_context(self, context: str) -> np.ndarray:
        """Mask of the control cells of a context."""
        code = np.searchsorted(self.context_names, context)
        return self.screen.is_control & (self.context_codes == code)

    def n_controls(self, context: str) -> int:
        return int(self.of_context(context).sum())

    def split(self, context: str) -> tuple[np.ndarray, np.ndarray]:
        """Half A and half B of the control cells of a context; twice all of them if they are shared."""
        if context not in self._found:
            mask = self.of_context(context)
            shared = (np.flatnonzero(mask),) * 2
            self._found[context] = shared if self.controls == "shared" else split_controls(mask, seed=self.seed)
        return self._found[context]

    def sources(self, cells: np.ndarray) -> np.ndarray:
        """At most :data:`MAX_SOURCES` of the cells that predictions may start from."""
        if len(cells) <= MAX_SOURCES:
            return cells
        return np.sort(np.random.default_rng([self.seed, 3]).choice(cells, MAX_SOURCES, replace=False))


def _fold(screen: Screen, task: Task, index: int, held: Held, halves: _Halves, max_populations: int | None) -> Fold:
    groups, n_left_out = halves.groups(held.cells, held.scored)
    groups, n_more = _largest(groups, max_populations)
    split = {context: halves.split(context) for context in dict.fromkeys(context for _, context, _ in groups)}
    train = ~held.cells
    if halves.controls == "independent":
        for _, reference in split.values():
            train[reference] = False
    if groups and not (train & ~screen.is_control).any():
        raise ValueError(
            f"Holding out {held.description} leaves no perturbed cell to learn from. Hold out less, or ask another question: "
            "task='seen' holds out half of the cells of every perturbation."
        )
    populations = _populations(
        screen, halves, groups, train, {c: (halves.sources(a), b) for c, (a, b) in split.items()}
    )
    return Fold(
        task,
        index,
        halves.seed,
        np.flatnonzero(train),
        populations,
        halves.controls,
        held.description,
        n_left_out + n_more,
        held.note,
    )


def _seen_fold(screen: Screen, task: Task, halves: _Halves, max_populations: int | None) -> Fold:
    """Half of the cells of every condition in every context, controls too."""
    strata = halves.label_codes * len(halves.context_names) + halves.context_codes
    splittable = np.bincount(strata)[strata] > 1
    train = np.ones(len(strata), dtype=bool)
    train[split_controls(splittable, strata, seed=halves.seed)[1]] = False
    controls = screen.is_control
    if halves.controls == "shared":
        train |= controls
    groups, n_left_out = halves.groups(~train)
    groups, n_more = _largest(groups, max_populations)
    split = {}
    for context in dict.fromkeys(context for _, context, _ in groups):
        here = halves.of_context(context)
        reference = here if halves.controls == "shared" else here & ~train
        split[context] = halves.sources(np.flatnonzero(here & train)), np.flatnonzero(reference)
    populations = _populations(screen, halves, groups, train, split)
    description = "half of the cells of every perturbation, and of the control"
    return Fold(
        task,
        0,
        halves.seed,
        np.flatnonzero(train),
        populations,
        halves.controls,
        description,
        n_left_out + n_more,
    )


def _largest(groups: list, limit: int | None) -> tuple[list, int]:
    """The largest groups in their order, and how many are left out."""
    if limit is None or len(groups) <= limit:
        return groups, 0
    if limit < 1:
        raise ValueError(f"max_populations={limit}: at least one population has to be scored.")
    chosen = sorted(sorted(range(len(groups)), key=lambda i: -len(groups[i][2]))[:limit])
    return [groups[i] for i in chosen], len(groups) - limit


def _populations(
    screen: Screen, halves: _Halves, groups: list, train: np.ndarray, split: dict
) -> tuple[Population, ...]:
    """Populations with their controls, in the order of contexts and labels."""
    here = set(halves.pairs(train))
    trained = {label for label, _ in here}
    tokens = {token for label in trained for token in screen.tokens[label]}

    def kind(label: str, context: str) -> str:
        if (label, context) in here:
            return "seen perturbation"
        if label in trained:
            return "seen in other contexts"
        names = screen.tokens[label]
        n_seen = sum(token in tokens for token in names)
        if len(names) == 1:
            return "seen in combinations" if n_seen else "unseen perturbation"
        return f"{n_seen} of {len(names)} tokens seen"

    ordered = sorted(groups, key=lambda group: (group[1], group[0]))
    return tuple(
        Population(label, context, kind(label, context), cells, *split[context]) for label, context, cells in ordered
    )


def _nothing_to_score(halves: _Halves, held: list[Held], min_cells: int) -> str:
    """Why no population of any fold can be scored: the largest ones, and their controls."""
    screen = halves.screen
    cells = np.logical_or.reduce([part.cells & np.isin(screen.labels, list(part.scored)) for part in held])
    table = pd.DataFrame({"context": screen.contexts[cells], "label": screen.labels[cells]}).value_counts().head(6)
    found = [
        f"{n} cells of {label}{f' in {context}' if context else ''} with {plural(halves.n_controls(context), 'control cell')}"
        for (context, label), n in table.items()
    ]
    return (
        f"Nothing that is held out can be scored: a population needs {plural(min_cells, 'held-out cell')} and {2 * min_cells} "
        f"control cells of the same covariates. The largest are {'; '.join(found) or 'none'}. Lower min_cells, register fewer "
        "covariates, or ask another question."
    )
