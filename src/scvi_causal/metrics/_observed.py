"""One observed population, made once, against which all models are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


@dataclass(frozen=True, eq=False)
class ObservedPopulation:
    """Observed cells of one (perturbation, context) with their controls: the truth of a table, prepared once for all models.

    Parameters
    ----------
    observed
        (cells, genes) real perturbed cells that no model was trained on, log1p-normalised, dense or sparse.
    source
        Cells (or mean) of the control half that models saw and predicted from.
    reference
        Cells (or mean) of the *other* control half: observed effects are measured against it.
    n_de
        Number of DE genes, see :func:`top_de_genes`.
    pca
        A fitted PCA of training cells (:func:`fit_pca`) for ``energy_pca``; ``None`` leaves it NaN.
    max_cells
        Cells of each population that enter distances at most.
    alpha
        Level of the calls of differential expression, after Benjamini-Hochberg.
    seed
        Of the choice of cells.
    """

    observed: Any
    source: Any
    reference: Any
    n_de: int = 50
    pca: Any = None
    max_cells: int | None = 500
    alpha: float = 0.05
    seed: int = 0

    def score(
        self,
        predicted,
        *,
        average: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
        metrics: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Score predicted cells (or one mean profile).

        Parameters
        ----------
        predicted
            (cells, genes) predicted cells on the same scale, as draws; or one (genes,) mean profile, for which numbers that
            need cells are NaN.
        average
            (genes,) unweighted mean of the mean profiles of the training perturbations: for ``pearson_centred``.
        exclude
            Positions (or mask) of the genes that are perturbed themselves: for ``pearson_others``.
        metrics
            Names of :data:`METRICS` to compute; ``None`` takes all that can be computed from one population.

        Returns
        -------
        ``n_observed``, ``n_predicted`` and the numbers by name, in the order of :data:`METRICS`.
        """
        raise NotImplementedError
