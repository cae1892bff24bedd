"""From ``--holdout`` to cells: what is trained on, what is predicted from what, and what is measured against what."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scvi_causal.metrics import split_controls

# below this a mean, a variance and two halves of the cells say nothing
MIN_CELLS = 10
# per model and task the distances cost about half a second; a genome-wide screen has thousands of tasks
MAX_TASKS = 30
# predictions are dense: more cells per population cost memory and change no number that is shown
MAX_SOURCES = 2000


@dataclass(frozen=True)
class Task:
    """One population to predict.

    Attributes
    ----------
    perturbation, context
        What it is: a canonical label, and the values of its covariates (empty if there are none).
    observed
        Positions of the held-out cells.
    source
        Control cells that models see and predict from; at most :data:`MAX_SOURCES` of those they see.
    reference
        Control cells that no model sees; effects are measured against them.
    """

    perturbation: str
    context: str
    observed: np.ndarray
    source: np.ndarray
    reference: np.ndarray

    @property
    def title(self) -> str:
        """For figures and tables."""
        return f"{self.perturbation} in {self.context}" if self.context else self.perturbation


@dataclass(frozen=True)
class Plan:
    """A held-out question: its tasks and the split of all cells."""

    description: str
    tasks: list[Task]
    held_out: np.ndarray
    """(cells,) whether a perturbed cell is held out."""
    split: np.ndarray
    """(cells,) ``"train"``, ``"valid"`` or ``"test"``."""
    left_out: int = 0
    """Tasks beyond :data:`MAX_TASKS`, not scored."""


def plan_holdout(
    holdout: str | None,
    labels: np.ndarray,
    control: str,
    obs: pd.DataFrame,
    covariate_keys: tuple[str, ...],
    *,
    perturbation_key: str = "perturbation",
    seed: int = 0,
) -> Plan:
    """Turn ``--holdout`` into a :class:`Plan`.

    Parameters
    ----------
    holdout
        ``"COLUMN=VALUE"`` (a context) or a perturbation.
    labels
        (cells,) canonical labels.
    control
        The canonical control label.
    obs
        Metadata of the cells.
    covariate_keys
        Columns that make a context. The column of a held-out context belongs to them.
    perturbation_key
        For messages.
    seed
        Of the control halves and of the validation cells.

    Raises
    ------
    ValueError
        If the question does not fit the data; says what would.
    """
    is_control = labels == control
    perturbations = pd.Series(labels[~is_control]).value_counts()
    kind, column, value = _parse(holdout, perturbations, control, obs, perturbation_key)
    if kind == "context":
        inside = obs[column].astype(str).to_numpy() == value
        held_out = inside & ~is_control
        description = f"all perturbed cells with {column} = {value}"
    else:
        held_out = labels == value
        description = f"all cells with {perturbation_key} = {value}"
    _check_training(held_out, is_control, description)

    contexts = _contexts(obs, covariate_keys, len(labels))
    tasks = _tasks(labels, contexts, is_control, held_out, seed)
    if not tasks:
        raise ValueError(_too_few(labels, contexts, is_control, held_out, description))
    split = _split(labels, contexts, held_out, tasks, seed)
    return Plan(description, tasks[:MAX_TASKS], held_out, split, left_out=max(0, len(tasks) - MAX_TASKS))


def _parse(holdout, perturbations: pd.Series, control: str, obs: pd.DataFrame, perturbation_key: str):
    known = list(perturbations.index)
    if not known:
        raise ValueError(f"All cells of obs['{perturbation_key}'] are control cells: there is nothing to hold out.")
    examples = f"The perturbations with most cells: {', '.join(known[:8])}."
    if not holdout:
        raise ValueError(f"--holdout is needed: a perturbation, or COLUMN=VALUE for a context. {examples}")
    if holdout in perturbations.index:
        return "perturbation", None, holdout
    if holdout == control:
        raise ValueError(
            f"--holdout {holdout}: control cells cannot be held out, every prediction starts from them. {examples}"
        )
    column, equals, value = (part.strip() for part in holdout.partition("="))
    if not equals:
        near = difflib.get_close_matches(holdout, known, n=3, cutoff=0.4)
        hint = f"Similar perturbations: {', '.join(near)}." if near else examples
        raise ValueError(f"--holdout {holdout} is no perturbation, and not of the form COLUMN=VALUE. {hint}")
    if column == perturbation_key:
        return _parse(value, perturbations, control, obs, perturbation_key)
    if column not in obs:
        near = difflib.get_close_matches(column, [str(c) for c in obs.columns], n=3, cutoff=0.4)
        hint = (
            f"Similar columns: {', '.join(near)}." if near else f"The columns are: {', '.join(map(str, obs.columns))}."
        )
        raise ValueError(f"--holdout {holdout}: there is no obs column '{column}'. {hint}")
    values = sorted(obs[column].dropna().astype(str).unique())
    if value not in values:
        near = difflib.get_close_matches(value, values, n=3, cutoff=0.4)
        hint = f"Similar values: {', '.join(near)}." if near else f"Its values: {', '.join(values[:12])}."
        raise ValueError(f"--holdout {holdout}: no cell has {column} = '{value}'. {hint}")
    return "context", column, value


def _check_training(held_out: np.ndarray, is_control: np.ndarray, description: str) -> None:
    if not (~held_out & ~is_control).any():
        raise ValueError(
            f"Holding out {description} leaves no perturbed cell to learn from. "
            "Hold out less: one context of several, or one perturbation of several."
        )


def _contexts(obs: pd.DataFrame, covariate_keys: tuple[str, ...], n_cells: int) -> np.ndarray:
    """One string per cell: the values of its covariates; empty without covariates."""
    if not covariate_keys:
        return np.full(n_cells, "", dtype=object)
    return obs[list(covariate_keys)].astype(str).agg(", ".join, axis=1).to_numpy(dtype=object)


def _tasks(labels, contexts, is_control, held_out, seed: int) -> list[Task]:
    """Populations with enough cells, the largest first. The controls of a context are halved once, whatever is predicted."""
    tasks = []
    for context in sorted(set(contexts[held_out])):
        here = contexts == context
        if (is_control & here).sum() < 2 * MIN_CELLS:
            continue
        source, reference = split_controls(is_control & here, seed=seed)
        source = np.sort(np.random.default_rng(seed).permutation(source)[:MAX_SOURCES])
        for perturbation in np.unique(labels[held_out & here]):
            observed = np.flatnonzero(held_out & here & (labels == perturbation))
            if observed.size >= MIN_CELLS:
                tasks.append(Task(str(perturbation), context, observed, source, reference))
    return sorted(tasks, key=lambda task: -task.observed.size)


def _too_few(labels, contexts, is_control, held_out, description: str) -> str:
    found = [
        f"{int((held_out & (contexts == c)).sum())} held-out and {int((is_control & (contexts == c)).sum())} control cells"
        + (f" in {c}" if c else "")
        for c in sorted(set(contexts[held_out]))[:6]
    ]
    return (
        f"Nothing to score among {description}: a population needs at least {MIN_CELLS} held-out cells and {2 * MIN_CELLS} "
        f"control cells of the same covariates. Found: {'; '.join(found) or 'no held-out cell'}."
    )


def _split(labels, contexts, held_out, tasks: list[Task], seed: int, valid_size: float = 0.1) -> np.ndarray:
    """Held-out cells and the reference halves are test cells; a tenth of each other population is for validation."""
    split = np.full(len(labels), "train", dtype=object)
    split[held_out] = "test"
    for task in tasks:
        split[task.reference] = "test"
    rng = np.random.default_rng(seed)
    groups = pd.Series(np.flatnonzero(split == "train")).groupby(
        [labels[split == "train"], contexts[split == "train"]], observed=True, sort=True
    )
    for _, cells in groups:
        split[rng.permutation(cells.to_numpy())[: int(valid_size * len(cells))]] = "valid"
    return split
