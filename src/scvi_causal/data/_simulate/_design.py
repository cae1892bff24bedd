"""Which perturbations a simulated screen holds, what they act on, and which cells carry them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

_GENES_PER_COMPOUND = 3


@dataclass(frozen=True, eq=False)
class Condition:
    """A perturbation at one dosage; without tokens it is control."""

    label: str
    rows: tuple[int, ...]
    """Positions of its tokens."""
    dosage: tuple[float, ...]
    dosage_label: float | str | None
    """As it stands in ``obs``; None without dosages."""


@dataclass(frozen=True, eq=False)
class Design:
    """Tokens and conditions of a screen; T tokens, G genes."""

    tokens: tuple[str, ...]
    targets: pd.DataFrame
    shifts: np.ndarray  # (T, G)
    penetrance: np.ndarray  # (T,)
    control: Condition
    conditions: tuple[Condition, ...]
    separator: str

    @property
    def labels(self) -> list[str]:
        """Perturbations without control, singles first, each once."""
        return list(dict.fromkeys(condition.label for condition in self.conditions))

    @property
    def index(self) -> pd.Index:
        """Row names of the effect tables."""
        if self.control.dosage_label is None:
            return pd.Index(self.labels, name="perturbation")
        keys = [(condition.label, condition.dosage_label) for condition in self.conditions]
        return pd.MultiIndex.from_tuples(keys, names=["perturbation", "dosage"])

    def draw_cells(self, n_control: int, n_cells: int, rng: np.random.Generator) -> list[Condition]:
        """One condition per cell, in random order."""
        cells = [self.control] * n_control
        for label in self.labels:
            choices = [condition for condition in self.conditions if condition.label == label]
            cells += [choices[i] for i in rng.integers(len(choices), size=n_cells)]
        return [cells[i] for i in rng.permutation(len(cells))]

    def draw_hits(self, cells: Sequence[Condition], rng: np.random.Generator) -> sparse.csr_matrix:
        """(cells, T) bool: the tokens that take effect."""
        row = np.repeat(np.arange(len(cells)), [len(cell.rows) for cell in cells])
        column = np.array([token for cell in cells for token in cell.rows], dtype=int)
        taken = rng.random(len(column)) < self.penetrance[column]
        shape = (len(cells), len(self.tokens))
        return sparse.csr_matrix((taken[taken], (row[taken], column[taken])), shape=shape)

    def dosages(self, cells: Sequence[Condition]) -> sparse.csr_matrix:
        """(cells, T) dosage of the tokens that each cell carries."""
        indptr = np.concatenate([[0], np.cumsum([len(cell.rows) for cell in cells])])
        column = np.array([token for cell in cells for token in cell.rows], dtype=int)
        value = np.array([dosage for cell in cells for dosage in cell.dosage], dtype=float)
        return sparse.csr_matrix((value, column, indptr), shape=(len(cells), len(self.tokens)))


def make_design(
    genes: Sequence[str],
    grn: pd.DataFrame,
    rng: np.random.Generator,
    *,
    perturbations: int | Sequence[str] | pd.DataFrame,
    combinations: int | Sequence[str],
    combination_size: int,
    n_untargeted: int,
    shift: float | tuple[float, float] | Mapping[str, float],
    penetrance: float | Mapping[str, float],
    dosages: Sequence[float] | None,
    control: str,
    separator: str,
) -> Design:
    """Draw the tokens, their targets and the combinations."""
    targets = _make_targets(genes, grn, rng, perturbations, shift, n_untargeted)
    tokens = tuple(sorted(targets["token"].unique()))
    clash = [token for token in tokens if separator in token or token == control]
    if clash:
        raise ValueError(f"tokens {clash} contain the separator {separator!r} or are the control category {control!r}.")
    shifts = np.zeros((len(tokens), len(genes)))
    np.add.at(
        shifts, (pd.Index(tokens).get_indexer(targets["token"]), pd.Index(genes).get_indexer(targets["gene"])),
        targets["shift"].to_numpy(float),
    )  # fmt: skip
    groups = [(i,) for i in range(len(tokens))]
    if isinstance(combinations, int | np.integer):
        groups += _draw_combinations(len(tokens), combinations, combination_size, rng)
    else:
        groups += [_token_rows(label, tokens, separator) for label in combinations]
    levels = [1.0] if dosages is None else [float(dosage) for dosage in dosages]
    if not levels or 0.0 in levels or not np.isfinite(levels).all() or len(set(levels)) < len(levels):
        raise ValueError(f"dosages must be distinct finite numbers other than 0 (0 is control), got {dosages}.")
    text = any(len(group) > 1 for group in groups)
    conditions = [
        Condition(
            separator.join(tokens[i] for i in group),
            group,
            dosage,
            None if dosages is None else separator.join(f"{d:g}" for d in dosage) if text else dosage[0],
        )
        for group in groups
        for dosage in itertools.product(levels, repeat=len(group))
    ]
    no_dosage = None if dosages is None else "0" if text else 0.0
    return Design(
        tokens,
        targets,
        shifts,
        _per_token(penetrance, tokens, default=1.0, name="penetrance", low=0.0, high=1.0),
        Condition(control, (), (), no_dosage),
        tuple(conditions),
        separator,
    )


def _make_targets(genes, grn, rng, perturbations, shift, n_untargeted) -> pd.DataFrame:
    if isinstance(perturbations, pd.DataFrame):
        targets = perturbations[["token", "gene", "shift"]].reset_index(drop=True)
    else:
        if isinstance(perturbations, int | np.integer):
            perturbations = _draw_genes(genes, grn, int(perturbations), rng)
        repeated = pd.Index(perturbations)[pd.Index(perturbations).duplicated()]
        if len(repeated):
            raise ValueError(f"perturbations are named twice: {sorted(set(repeated))}.")
        if isinstance(shift, Mapping):
            value = _per_token(shift, tuple(perturbations), default=-2.0, name="shift")
        else:
            value = np.broadcast_to(shift, (2,)) if np.ndim(shift) == 0 else np.asarray(shift)
            value = rng.uniform(min(value), max(value), len(perturbations))
        targets = pd.DataFrame({"token": list(perturbations), "gene": list(perturbations), "shift": value})
    unknown = sorted(set(targets["gene"]) - set(genes))
    if unknown:
        raise ValueError(
            f"{len(unknown)} perturbed genes are not among the {len(genes)} genes simulated: {unknown[:10]}. For a "
            "perturbation that is no gene, give `perturbations` as a table with columns token, gene, shift."
        )
    compounds = [targets]
    n_genes = min(_GENES_PER_COMPOUND, len(genes))
    for i in range(n_untargeted):
        hit = rng.choice(np.asarray(genes, object), n_genes, replace=False)
        value = rng.uniform(0.5, 1.5, n_genes) * rng.choice([-1, 1], n_genes)
        compounds.append(pd.DataFrame({"token": f"compound_{i}", "gene": hit, "shift": value}))
    return pd.concat(compounds, ignore_index=True)


def _draw_genes(genes, grn, n: int, rng) -> list[str]:
    if n > len(genes):
        raise ValueError(f"n_perturbations={n} exceeds the {len(genes)} genes: give more genes or fewer perturbations.")
    preference = 1.0 + grn["source"].value_counts().reindex(genes, fill_value=0).to_numpy()
    return sorted(rng.choice(np.asarray(genes, object), n, replace=False, p=preference / preference.sum()))


def _draw_combinations(n_tokens: int, n: int, size: int, rng) -> list[tuple[int, ...]]:
    if n == 0:
        return []
    possible = _n_combinations(n_tokens, size)
    if size < 2 or n > possible:
        raise ValueError(f"{n} combinations of {size} tokens were asked for, but {n_tokens} tokens make {possible}.")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < n:
        drawn[tuple(sorted(int(i) for i in rng.choice(n_tokens, size, replace=False)))] = None
    return list(drawn)


def _n_combinations(n: int, size: int) -> int:
    result = 1
    for i in range(size):
        result = result * (n - i) // (i + 1)
    return max(result, 0)


def _token_rows(label: str, tokens: tuple[str, ...], separator: str) -> tuple[int, ...]:
    parts = sorted(set(label.split(separator)))
    unknown = [part for part in parts if part not in tokens]
    if unknown or len(parts) < 2:
        raise ValueError(f"combination {label!r} must join at least two of the tokens {list(tokens)} by {separator!r}.")
    return tuple(tokens.index(part) for part in parts)


def _per_token(value, tokens, *, default: float, name: str, low=-np.inf, high=np.inf) -> np.ndarray:
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - set(tokens))
        if unknown:
            raise ValueError(f"{name} names {unknown}, which are no tokens of this screen: {list(tokens)}.")
        result = np.array([float(value.get(token, default)) for token in tokens])
    else:
        result = np.full(len(tokens), float(value))
    if ((result < low) | (result > high)).any():
        raise ValueError(f"{name} must lie in [{low}, {high}], got {value}.")
    return result
