"""Which perturbations, combinations or contexts a split holds out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scvi import settings

from ._labels import as_control_categories, canonical_labels, looks_like_control, parse_label
from ._messages import did_you_mean, listed, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

Unit = str | tuple[str, str]
"""A token, a combination, a value of a covariate, or a (perturbation, value) pair."""


@dataclass(frozen=True, eq=False)
class Screen:
    """The columns of ``adata.obs`` that a split looks at; N cells, P perturbations, control among them."""

    codes: np.ndarray  # (N,) perturbation of each cell
    labels: list[str]  # (P,) canonical
    tokens: list[tuple[str, ...]]  # (P,) empty for control
    levels: np.ndarray | None  # (N,) value of the covariate
    separator: str | None
    controls: tuple[str, ...]

    @classmethod
    def read(
        cls,
        adata: AnnData,
        perturbation_key: str,
        control_category: str | Iterable[str],
        separator: str | None,
        covariate_key: str | None,
    ) -> Screen:
        """Read and check the columns."""
        controls = as_control_categories(control_category)
        (given,) = read_columns(adata, perturbation_key)
        codes, labels = pd.factorize(canonical_labels(given, separator, controls), sort=True)
        tokens = [parse_label(label, separator, controls) for label in labels]
        if all(tokens):
            similar = [label for label in labels if looks_like_control(label)]
            hint = f" These look like control: {listed(similar)}." if similar else ""
            raise ValueError(
                f"no cell of obs[{perturbation_key!r}] is labelled {listed(controls)}.{hint} Set control_category."
            )
        levels = None
        if covariate_key is not None:
            levels = read_columns(adata, covariate_key)[0].astype(str).to_numpy(object)
        return cls(codes, list(labels), tokens, levels, separator, controls)

    @property
    def is_control(self) -> np.ndarray:
        """(N,) mask."""
        return self.cells_where([not tokens for tokens in self.tokens])

    def cells_where(self, chosen: Sequence[bool]) -> np.ndarray:
        """(N,) mask of the cells whose perturbation is chosen; ``chosen`` has one entry per perturbation."""
        return np.asarray(chosen, dtype=bool)[self.codes]

    def canonical(self, label: str) -> str:
        """A label as the screen writes it."""
        return str(canonical_labels([label], self.separator, self.controls)[0])


def read_columns(adata: AnnData, keys: str | Sequence[str] | None) -> list[pd.Series]:
    """Columns of ``adata.obs``, without missing values."""
    keys = [] if keys is None else [keys] if isinstance(keys, str) else list(keys)
    for key in keys:
        if key not in adata.obs:
            raise ValueError(f"obs has no column {key!r}.{did_you_mean(key, adata.obs)} It has {listed(adata.obs)}.")
        if (n := int(adata.obs[key].isna().sum())) > 0:
            raise ValueError(
                f"{plural(n, 'cell')} of {adata.n_obs:,} have no value in obs[{key!r}]: fill or remove them."
            )
    return [adata.obs[key] for key in keys]


@dataclass(eq=False)
class Choice:
    """How many units to hold out, or which."""

    screen: Screen
    share: float
    fold: int | None
    n_folds: int
    holdout: Sequence[Unit] | None
    combo_seen: int | None
    rng: np.random.Generator
    taken: np.ndarray | None = None  # (N,) cells that the test has already

    @property
    def free(self) -> np.ndarray:
        """(N,) perturbed cells that can be held out."""
        return ~self.screen.is_control if self.taken is None else ~self.screen.is_control & ~self.taken

    def perturbations(self) -> list[int]:
        """Codes of the perturbations with free cells."""
        return np.unique(self.screen.codes[self.free]).tolist()

    def draw(self, units: list, noun: str) -> tuple[list, int]:
        """The units in the order in which to hold them out, and how many to hold out."""
        n = len(units)
        least = 2 if self.fold is None else self.n_folds
        if n < least:
            raise ValueError(
                f"there are only {plural(n, noun)}, and at least {least} are needed to hold out some and train on others. "
                "Lower n_folds, or split otherwise (by='cell')."
            )
        order = [units[i] for i in self.rng.permutation(n)]
        if self.fold is None:
            return order, min(max(1, round(self.share * n)), n - 1)
        start, stop = (round(n * (self.fold + i) / self.n_folds) for i in (0, 1))
        return order[start:stop], stop - start

    def named(self, given: list[Unit], known: Iterable[Unit], noun: str) -> list[Unit]:
        """What ``holdout`` names, as long as it exists."""
        known = list(known)
        unknown = [unit for unit in given if unit not in known]
        if unknown:
            near = (
                did_you_mean(unknown[0], [k for k in known if isinstance(k, str)])
                if isinstance(unknown[0], str)
                else ""
            )
            raise ValueError(
                f"holdout names {listed(unknown)}, not among the {noun} of this screen: {listed(known)}.{near}"
            )
        return given


def hold_out_tokens(choice: Choice) -> np.ndarray:
    """(N,) cells that carry a held-out token."""
    screen = choice.screen
    tokens = sorted({token for code in choice.perturbations() for token in screen.tokens[code]})
    if choice.holdout is not None:
        chosen = set(choice.named(list(choice.holdout), tokens, "tokens (for combinations: by='combination')"))
    else:
        order, n = choice.draw(tokens, "token")
        chosen = set(order[:n])
    return screen.cells_where([bool(chosen & set(tokens)) for tokens in screen.tokens])


def hold_out_combinations(choice: Choice) -> np.ndarray:
    """(N,) cells of the held-out combinations, and those of tokens that must be unseen for them."""
    screen = choice.screen
    combinations = [code for code in choice.perturbations() if len(screen.tokens[code]) > 1]
    if choice.holdout is not None:
        given = [screen.canonical(label) for label in choice.holdout]
        chosen = set(choice.named(given, [screen.labels[code] for code in combinations], "combinations"))
        return screen.cells_where([label in chosen for label in screen.labels])
    order, n = choice.draw(combinations, "combination")
    if choice.combo_seen is None or all(len(screen.tokens[code]) == choice.combo_seen for code in combinations):
        held_out = set(_with_seen_tokens(order, n, choice))
        return screen.cells_where([code in held_out for code in range(len(screen.labels))])
    hidden = _tokens_to_hide(order, n, choice)
    return screen.cells_where([bool(hidden & set(tokens)) for tokens in screen.tokens])


def _with_seen_tokens(order: list[int], n: int, choice: Choice) -> list[int]:
    """The first ``n`` combinations whose tokens all remain in training."""
    tokens = choice.screen.tokens
    n_conditions: dict[str, int] = {}
    for code in choice.perturbations():
        for token in tokens[code]:
            n_conditions[token] = n_conditions.get(token, 0) + 1
    held_out: list[int] = []
    for code in order:
        if len(held_out) < n and all(n_conditions[token] > 1 for token in tokens[code]):
            held_out.append(code)
            for token in tokens[code]:
                n_conditions[token] -= 1
    if not held_out:
        raise ValueError(
            "no combination can be held out with all its tokens seen in training: each has a token that occurs nowhere else. "
            "Choose combo_seen=0 or 1, or by='perturbation'."
        )
    _warn_if_short(len(held_out), n, "combinations are held out; the tokens of the others occur nowhere else")
    return held_out


def _warn_if_short(n_found: int, n_wanted: int, what: str) -> None:
    if n_found < n_wanted:
        message = f"{n_found} of {n_wanted} {what}."
        warnings.warn(message, UserWarning, stacklevel=settings.warnings_stacklevel)


def _tokens_to_hide(order: list[int], n: int, choice: Choice) -> set[str]:
    """Tokens without which ``n`` combinations have exactly ``combo_seen`` seen tokens."""
    seen, screen = choice.combo_seen, choice.screen
    tokens = {code: set(screen.tokens[code]) for code in order}
    hidden: set[str] = set()
    for code in order:
        if sum(len(t - hidden) == seen < len(t) for t in tokens.values()) >= n:
            break
        visible = sorted(tokens[code] - hidden)
        if len(visible) > seen:
            hidden |= set(choice.rng.choice(visible, len(visible) - seen, replace=False).tolist())
    if not hidden:
        names = listed(sorted(screen.labels[code] for code in order))
        raise ValueError(
            f"no combination can have exactly {seen} seen tokens and an unseen one. The combinations are {names}."
        )
    return hidden


def hold_out_pairs(choice: Choice) -> np.ndarray:
    """(N,) cells of the held-out (perturbation, covariate) pairs."""
    screen = choice.screen
    labels = np.asarray(screen.labels, dtype=object)[screen.codes]
    pairs = sorted(set(zip(labels[choice.free], screen.levels[choice.free], strict=True)))
    if choice.holdout is not None:
        given = [unit if isinstance(unit, str) else (screen.canonical(unit[0]), unit[1]) for unit in choice.holdout]
        known = [*sorted(set(screen.levels)), *pairs]
        chosen = set(choice.named(given, known, "values or (perturbation, value) pairs of the covariate"))
        held_out = {pair for pair in pairs if pair in chosen or pair[1] in chosen}
    else:
        order, n = choice.draw(pairs, "pair of perturbation and covariate")
        held_out = set(_seen_elsewhere(pairs, order, n))
    bare = sorted({level for _, level in held_out} - set(screen.levels[screen.is_control]))
    if bare:
        raise ValueError(
            f"{listed(bare)} have no control cells, from which a prediction could start: hold out other values."
        )
    return pd.MultiIndex.from_arrays([labels, screen.levels]).isin(list(held_out))


def _seen_elsewhere(pairs: list, order: list, n: int) -> list:
    """The first ``n`` pairs whose perturbation remains in training with another value of the covariate."""
    left = pd.Series([label for label, _ in pairs]).value_counts().to_dict()
    held_out = []
    for pair in order:
        if len(held_out) < n and left[pair[0]] > 1:
            left[pair[0]] -= 1
            held_out.append(pair)
    if not held_out:
        raise ValueError(
            "no perturbation occurs with two values of the covariate, so none can be held out in one of them."
        )
    _warn_if_short(len(held_out), n, "pairs are held out; the perturbations of the others occur nowhere else")
    return held_out
