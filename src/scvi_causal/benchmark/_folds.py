"""Which cells are trained on, predicted from, predicted, and measured against, for every task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
    task
        Kind of the task.
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

    task: str
    index: int
    seed: int
    train: np.ndarray
    populations: tuple[Population, ...]
    controls: str = "independent"
    description: str = ""
    n_left_out: int = 0
    note: str = ""

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

    Raises
    ------
    ValueError
        If the data cannot answer the question; says what would.
    """
    raise NotImplementedError
