"""A control cell of the same stratum for each cell, chosen by index."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scvi import REGISTRY_KEYS, settings

from scvi_causal._constants import CAUSAL_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scvi.data import AnnDataManager

_N_NAMED = 5


def get_control_mask(adata_manager: AnnDataManager) -> np.ndarray:
    """Return which cells carry no perturbation; shape `(n_cells,)`.

    A cell whose perturbation the model does not know has a NaN in its row of dosages and is not a control.
    """
    dosage = sparse.csr_matrix(adata_manager.get_from_registry(CAUSAL_KEYS.PERTURBATION))
    cell_of_entry = np.repeat(np.arange(dosage.shape[0]), np.diff(dosage.indptr))
    return np.bincount(cell_of_entry[dosage.data != 0], minlength=dosage.shape[0]) == 0


def _covariates(adata_manager: AnnDataManager, with_batch: bool) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return name, categories and code per cell of the batch and each categorical covariate."""
    found = []
    registered = adata_manager.data_registry
    if with_batch and REGISTRY_KEYS.BATCH_KEY in registered:
        state = adata_manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY)
        codes = np.asarray(adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).ravel()
        found.append((state["original_key"], np.asarray(state["categorical_mapping"]), codes))
    if REGISTRY_KEYS.CAT_COVS_KEY in registered:
        state = adata_manager.get_state_registry(REGISTRY_KEYS.CAT_COVS_KEY)
        table = np.asarray(adata_manager.get_from_registry(REGISTRY_KEYS.CAT_COVS_KEY))
        for column, name in enumerate(state["field_keys"]):
            found.append((name, np.asarray(state["mappings"][name]), table[:, column]))
    # One category tells nothing apart: an unused batch key is registered as such.
    return [(name, categories, codes) for name, categories, codes in found if len(categories) > 1]


def get_strata(adata_manager: AnnDataManager, *, with_batch: bool = True) -> np.ndarray:
    """Return the code of batch and categorical covariates of each cell.

    Parameters
    ----------
    adata_manager
        Manager of a registered AnnData.
    with_batch
        Whether cells of different batches are in different strata.

    Returns
    -------
    Code per cell, shape `(n_cells,)`, int64; 0 everywhere without batch and covariates. Codes depend on the registered
    categories only, so those of a query can be held against those of the training data.

    Examples
    --------
    >>> from scvi_causal import ControlMean
    >>> from scvi_causal.data import simulate_screen
    >>> adata = simulate_screen(n_genes=10, n_perturbations=2, n_cell_types=2, seed=0).adata
    >>> ControlMean.setup_anndata(adata, categorical_covariate_keys=["cell_type"])
    >>> sorted(set(get_strata(ControlMean(adata).adata_manager).tolist()))
    [0, 1]
    """
    strata = np.zeros(adata_manager.adata.n_obs, dtype=np.int64)
    for _, categories, codes in _covariates(adata_manager, with_batch):
        strata = strata * len(categories) + codes.astype(np.int64)
    return strata


def stratum_label(adata_manager: AnnDataManager, cell: int) -> str:
    """Return the stratum of a cell in words, such as `"batch=2, cell_type=B cells"`."""
    parts = [f"{name}={categories[int(codes[cell])]}" for name, categories, codes in _covariates(adata_manager, True)]
    return ", ".join(parts) or "all cells"


class _Pool:
    """Control cells sorted by stratum, from which those of any stratum can be drawn at once."""

    def __init__(self, cells: np.ndarray, strata: np.ndarray):
        self.cells = cells[np.argsort(strata, kind="stable")]
        self.strata, self.sizes = np.unique(strata, return_counts=True)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def find(self, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the strata have a control, and for all the place of the stratum in this pool."""
        place = np.minimum(np.searchsorted(self.strata, strata), len(self.strata) - 1)
        return self.strata[place] == strata, place

    def take(self, place: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        return self.cells[self.starts[place] + (uniform * self.sizes[place]).astype(np.int64)]


class ControlPairing:
    """Draws, with replacement, a control cell of the same stratum for each cell.

    A stratum without control falls back to the next coarser one and at last to all controls, with one warning.

    Parameters
    ----------
    is_control
        Which cells are controls; shape `(n_cells,)`.
    strata
        Stratum code of each cell, shape `(n_cells,)`; or several such arrays, the finest first.
    pool
        Rows that may be drawn, e.g. the training cells (those that are no control are left out); all by default.
    describe
        Gives the name of the stratum of a cell, for the warning.

    Raises
    ------
    ValueError
        If the pool has no control.

    Examples
    --------
    >>> import numpy as np
    >>> is_control, strata = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    >>> ControlPairing(is_control, strata).draw(np.array([1, 3]), np.random.default_rng(0)).tolist()
    [0, 2]
    """

    def __init__(
        self,
        is_control: np.ndarray,
        strata: np.ndarray | Sequence[np.ndarray],
        pool: np.ndarray | None = None,
        *,
        describe: Callable[[int], str] | None = None,
    ):
        is_control = np.asarray(is_control, dtype=bool)
        self.strata = [np.asarray(strata)] if isinstance(strata, np.ndarray) else [np.asarray(s) for s in strata]
        pool = np.arange(len(is_control)) if pool is None else np.asarray(pool, dtype=np.int64)
        controls = pool[is_control[pool]]
        if len(controls) == 0:
            raise ValueError(
                f"None of the {len(pool)} cells that partners are drawn from is a control (of {int(is_control.sum())} "
                "controls in the data); move control cells into the training set."
            )
        self._controls = controls
        self._pools = [_Pool(controls, codes[controls]) for codes in self.strata]
        self._describe = describe
        self._warned = False

    @classmethod
    def from_manager(cls, adata_manager: AnnDataManager, pool: np.ndarray | None = None) -> ControlPairing:
        """Pair within batch and categorical covariates, else within the covariates, else with any control."""
        return cls(
            get_control_mask(adata_manager),
            [get_strata(adata_manager), get_strata(adata_manager, with_batch=False)],
            pool,
            describe=lambda cell: stratum_label(adata_manager, cell),
        )

    def draw(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the row of a partner for each of the cells.

        Parameters
        ----------
        indices
            Rows of the cells; shape `(n,)`.
        rng
            Source of randomness.

        Returns
        -------
        Rows of control cells; shape `(n,)`.
        """
        if not self._warned:
            self.warn_unmatched(indices)
        return self.draw_for([codes[indices] for codes in self.strata], rng)

    def draw_for(self, strata: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Return the row of a control of each of the given strata (one array per level, the finest first).

        For cells of another AnnData, whose codes come from :func:`get_strata` with the same registry.
        """
        uniform = rng.random(len(strata[0]))
        partners = self._controls[(uniform * len(self._controls)).astype(np.int64)]
        for pool, codes in zip(reversed(self._pools), reversed(list(strata)), strict=True):
            found, place = pool.find(codes)
            partners = np.where(found, pool.take(place, uniform), partners)
        return partners

    def warn_unmatched(self, indices: np.ndarray) -> None:
        """Warn, once in the life of this object, which strata among the cells have no control in the pool."""
        codes = self.strata[0][indices]
        found, _ = self._pools[0].find(codes)
        if found.all():
            return
        self._warned = True
        strata, first, counts = np.unique(codes[~found], return_index=True, return_counts=True)
        cells = np.asarray(indices)[~found][first]
        names = [
            self._describe(cell) if self._describe else f"stratum {s}" for cell, s in zip(cells, strata, strict=True)
        ]
        listed = "; ".join(f"{name} ({n} cells)" for name, n in list(zip(names, counts, strict=True))[:_N_NAMED])
        more = f"; and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
        warnings.warn(
            f"{int((~found).sum())} cells are in {len(names)} strata without a control to pair with: {listed}{more}. "
            "They are paired with controls of the same covariates in other batches, or else with any control.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
