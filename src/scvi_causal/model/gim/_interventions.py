"""Distributions over interventions, and which of them were inferred from cells of their own."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.gim._module import GIMModule


@dataclass(frozen=True)
class Interventions:
    """Distribution over interventions for some targets.

    Parameters
    ----------
    probability, size
        (n, d) chance of each node to be a target, and size of the intervention if it is one.
    """

    probability: Tensor
    size: Tensor

    @property
    def expected(self) -> Tensor:
        """(n, d) probability times size."""
        return self.probability * self.size

    def take(self, rows: Tensor) -> Interventions:
        """One row per cell."""
        return Interventions(self.probability[rows], self.size[rows])

    def draw(self, generator: torch.Generator | None) -> Interventions:
        """Decide which nodes are targets, row by row."""
        uniform = torch.rand(self.probability.shape, generator=generator, device=self.probability.device)
        return Interventions((uniform < self.probability).to(self.size.dtype), self.size)

    def draw_by_row(self, dosage: Tensor, seed: int) -> Interventions:
        """Decide which nodes are targets; the same target gets the same draw, whatever else is in the batch."""
        drawn = torch.empty_like(self.probability)
        for i, row in enumerate(dosage.cpu().numpy()):
            key = zlib.crc32(row.tobytes())
            generator = torch.Generator(drawn.device).manual_seed((seed + key) % 2**62)
            uniform = torch.rand(drawn.shape[1], generator=generator, device=drawn.device)
            drawn[i] = (uniform < self.probability[i]).to(drawn.dtype)
        return Interventions(drawn, self.size)


def find_seen(module: GIMModule, dosage: Tensor, index: Tensor) -> dict[int, tuple[int, float]]:
    """Rows of ``dosage`` (n, T) that are training conditions.

    Parameters
    ----------
    module
        The module, for its training conditions.
    dosage
        (n, T) dosages.
    index
        (T,) column of each token in the vocabulary, -1 for a token outside.

    Returns
    -------
    ``{row: (condition, factor)}``, with the factor on what was inferred: where dosages were never varied in training, half of a
    dosage is half of the intervention.
    """
    known = module.seen_lookup()
    found, columns = {}, index.cpu().numpy()
    for i, doses in enumerate(dosage.cpu().numpy()):
        used = np.flatnonzero(doses)
        if not len(used) or (columns[used] < 0).any():
            continue
        own, factor = doses[used], 1.0
        if not module.sizes["with_dosage"] and (own == own[0]).all():
            own, factor = np.ones_like(own), float(own[0])
        condition = known.get(condition_key(columns[used], own))
        if condition is not None:
            found[i] = (condition, factor)
    return found


def distinct_rows(dosage: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of (n, T) dosages, and which of them each row is; without any token all rows are control."""
    if not dosage.shape[1]:
        return dosage[:1], torch.zeros(len(dosage), dtype=torch.int64, device=dosage.device)
    return torch.unique(dosage, dim=0, return_inverse=True)


def condition_key(tokens: np.ndarray, dosage: np.ndarray) -> tuple:
    """What two conditions share if and only if they are the same."""
    order = np.argsort(tokens)
    return tuple(np.asarray(tokens)[order].tolist()), tuple(np.asarray(dosage, dtype=np.float32)[order].tolist())
