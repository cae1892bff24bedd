"""Small screens of arrays, with predictions that vary from cell to cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest


@dataclass
class Toy:
    """Cells of three treatments, in two groups, with predictions for each."""

    y: np.ndarray
    treatment: np.ndarray
    group: np.ndarray
    stratum: np.ndarray
    predicted: dict[str, np.ndarray]

    def rows(self, group: str) -> np.ndarray:
        return np.flatnonzero(self.group == group)


@pytest.fixture
def toy() -> Toy:
    return make_toy()


def make_toy(n_cells: int = 300, n_genes: int = 5, seed: int = 0) -> Toy:
    rng = np.random.default_rng(seed)
    treatment = rng.choice(["control", "A", "B"], n_cells, p=[0.5, 0.3, 0.2])
    group = rng.choice(["x", "z"], n_cells)
    stratum = rng.integers(0, 3, n_cells)
    state = rng.normal(size=(n_cells, n_genes)) + stratum[:, None]
    effect = {"control": 0.0, "A": 1.0, "B": -0.5}
    y = state + rng.normal(0, 0.5, state.shape) + np.array([effect[t] for t in treatment])[:, None]
    y[:, -1] = np.round(np.maximum(y[:, -1], 0))  # a gene with many zeros
    predicted = {t: 0.7 * state + shift + rng.normal(0, 0.2, state.shape) for t, shift in effect.items()}
    return Toy(y, treatment, group, stratum, predicted)
