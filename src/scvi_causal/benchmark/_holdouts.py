"""Which perturbed cells each fold of a task holds out; the choice itself is that of :func:`scvi_causal.data.assign_split`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal.data import _holdout
from scvi_causal.data._messages import listed, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._screen import Screen
    from ._tasks import Task

MAX_PAIRS = 30
"""Pairs of a perturbation and a context that are held out one at a time; more are held out in folds."""


@dataclass(frozen=True)
class Held:
    """What a fold holds out.

    Attributes
    ----------
    cells
        (cells,) mask of the perturbed cells that no model sees.
    scored
        Canonical labels among them that are predicted and scored.
    description
        In words.
    note
        What could not be done as asked.
    """

    cells: np.ndarray
    scored: frozenset[str]
    description: str
    note: str = ""


def hold_out(
    screen: Screen, task: Task, seed: int, enough: Callable[[np.ndarray], bool], max_pairs: int = MAX_PAIRS
) -> Iterator[Held]:
    """What each fold of a task holds out.

    Parameters
    ----------
    screen
        The data.
    task
        The question; not ``"seen"``, which holds out no population.
    seed
        Of the folds.
    enough
        Tells of a mask of perturbed cells whether any population in it can be scored.
    max_pairs
        Up to so many pairs are held out one at a time.
    """
    columns = _holdout.Screen.read(
        screen.adata,
        screen.perturbation_key,
        screen.setup["control_category"],
        screen.setup["perturbation_separator"],
        task.covariate_key,
    )
    # the same generator for every fold, as assign_split has it: the folds are parts of one permutation
    choice = _holdout.Choice(
        columns, 1 / task.n_folds, None, task.n_folds, task.holdout, task.combo_seen, np.random.default_rng([seed, 0])
    )
    if task.kind == "context-perturbation":
        yield from _pairs(screen, task, choice, seed, enough, max_pairs)
        return
    how = {"unseen": _tokens, "combination": _combinations, "context": _contexts}
    yield from how[task.kind](screen, task, choice, seed)


def _fresh(choice: _holdout.Choice, seed: int, **changes) -> _holdout.Choice:
    return replace(choice, rng=np.random.default_rng([seed, 0]), **changes)


def _quietly(hold: Callable, choice: _holdout.Choice) -> tuple[np.ndarray, str]:
    """Cells held out, and what the splitter warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cells = hold(choice)
    return cells, " ".join(str(w.message) for w in caught)


def _labels(screen: Screen, cells: np.ndarray) -> list[str]:
    return [str(label) for label in pd.unique(screen.labels[cells])]


def _fold_numbers(task: Task, n_units: int, noun: str) -> list[int | None]:
    if task.holdout is not None:
        return [None]
    if n_units < task.n_folds:
        raise ValueError(
            f"task={task.kind!r} holds out each {noun} once, in {task.n_folds} folds, and there {'is' if n_units == 1 else 'are'} "
            f"only {plural(n_units, noun)}. "
            + (
                f"Pass n_folds={n_units}."
                if n_units > 1
                else "Ask another question: task='seen' (unseen cells of every perturbation)"
                + (", or task='context' where there are several contexts." if noun == "token" else ".")
            )
        )
    return list(range(task.n_folds))


def _tokens(screen: Screen, task: Task, choice: _holdout.Choice, seed: int) -> Iterator[Held]:
    singles = {label for label, tokens in screen.tokens.items() if len(tokens) == 1}
    if not singles:
        raise ValueError(
            "task='unseen' predicts single perturbations, and every perturbed cell of this screen has several tokens. Use "
            "task='combination', with combo_seen=0 for combinations of unseen tokens."
        )
    for fold in _fold_numbers(task, len(screen.targets), "token"):
        cells, note = _quietly(_holdout.hold_out_tokens, _fresh(choice, seed, fold=fold))
        scored = [label for label in _labels(screen, cells) if label in singles]
        # a combination with a held-out token takes no seen one with it: only the tokens asked for are scored
        part = _held_tokens(screen, cells)
        scored = [label for label in scored if screen.tokens[label][0] in part]
        yield Held(cells, frozenset(scored), f"every cell that carries {listed(sorted(part))}", note)


def _held_tokens(screen: Screen, cells: np.ndarray) -> set[str]:
    """Tokens that occur in held-out cells only."""
    kept = {token for label in _labels(screen, ~cells) for token in screen.tokens[label]}
    return {token for label in _labels(screen, cells) for token in screen.tokens[label]} - kept


def _combinations(screen: Screen, task: Task, choice: _holdout.Choice, seed: int) -> Iterator[Held]:
    joint = {label for label, tokens in screen.tokens.items() if len(tokens) > 1}
    if not joint:
        raise ValueError(
            "task='combination' needs cells with several tokens, and no label of "
            f"obs[{screen.perturbation_key!r}] has more than one"
            f" (separator {screen.setup['perturbation_separator']!r}). Use task='unseen', or set perturbation_separator."
        )
    for fold in _fold_numbers(task, len(joint), "combination"):
        if task.combo_seen is None:
            drawn = _fresh(choice, seed, fold=fold)
            if (
                fold is not None
            ):  # each combination once, also where a token of it occurs nowhere else: the kind says so
                drawn.holdout = drawn.draw(sorted(joint), "combination")[0]
            cells, note = _quietly(_holdout.hold_out_combinations, drawn)
            scored = [label for label in _labels(screen, cells) if label in joint]
            yield Held(cells, frozenset(scored), f"the combinations {listed(sorted(scored))}", note)
            continue
        # tokens have to be hidden for that, which no partition of the combinations does: each fold is a new draw
        drawn = replace(choice, rng=np.random.default_rng([seed, 0, fold]))
        cells, note = _quietly(_holdout.hold_out_combinations, drawn)
        hidden = _held_tokens(screen, cells)
        scored = [
            label
            for label in _labels(screen, cells)
            if label in joint and len(set(screen.tokens[label]) - hidden) == task.combo_seen
        ]
        description = (
            f"every cell that carries {listed(sorted(hidden))}; scored are combinations with {task.combo_seen} seen"
        )
        yield Held(cells, frozenset(scored), description, note)


def _contexts(screen: Screen, task: Task, choice: _holdout.Choice, seed: int) -> Iterator[Held]:
    levels, is_control = choice.screen.levels, screen.is_control
    values = sorted(set(levels[~is_control]))
    if len(values) < 2:
        raise ValueError(
            f"task='context' leaves out each value of obs[{task.covariate_key!r}] in turn, and only {listed(values)} has "
            "perturbed cells: nothing would be left to learn from. Use task='unseen' or task='seen'."
        )
    for value in task.holdout or values:
        cells, note = (
            _quietly(_holdout.hold_out_pairs, _fresh(choice, seed, holdout=[value]))
            if task.holdout
            else (
                (levels == value) & ~is_control,
                "",
            )
        )
        description = (
            f"{value[0]} in {value[1]}"
            if isinstance(value, tuple)
            else f"all perturbed cells with {task.covariate_key} = {value}"
        )
        yield Held(cells, frozenset(_labels(screen, cells)), description, note)


def _pairs(
    screen: Screen, task: Task, choice: _holdout.Choice, seed: int, enough: Callable, max_pairs: int
) -> Iterator[Held]:
    levels, labels = choice.screen.levels, screen.labels
    table = pd.DataFrame({"label": labels, "level": levels})[~screen.is_control].drop_duplicates()
    elsewhere = table["label"].value_counts()
    several = table[table["label"].map(elsewhere) > 1].sort_values(["label", "level"])
    if task.holdout is None and several.empty:
        raise ValueError(
            f"task='context-perturbation' needs perturbations that occur with several values of obs[{task.covariate_key!r}], "
            "and every perturbation has one. Use task='unseen' or task='context'."
        )
    units = task.holdout or [
        (label, level)
        for label, level in several.itertuples(index=False)
        if enough((labels == label) & (levels == level))
    ]
    if task.holdout is None and len(units) > max_pairs:
        for fold in range(task.n_folds):
            cells, note = _quietly(_holdout.hold_out_pairs, _fresh(choice, seed, fold=fold))
            pairs = table[cells[table.index]]
            shown = [f"{label} in {level}" for label, level in pairs.itertuples(index=False)]
            yield Held(cells, frozenset(pairs["label"]), f"{plural(len(pairs), 'pair')}: {listed(shown)}", note)
        return
    for unit in units:
        cells, note = _quietly(_holdout.hold_out_pairs, _fresh(choice, seed, holdout=[unit]))
        description = f"{unit[0]} in {unit[1]}" if isinstance(unit, tuple) else f"all perturbed cells of {unit}"
        yield Held(cells, frozenset(_labels(screen, cells)), description, note)
