"""A control for each cell by optimal transport, as published; the foundation draws one of the same stratum instead."""

from __future__ import annotations

from typing import Any

import numpy as np

from scvi_causal.data import condition_codes
from scvi_causal.dataloaders import CausalDataSplitter, get_control_mask
from scvi_causal.model.base._group_moments import ExpressionReader

_COST_SCALE, _REGULARISATION = 100.0, 1.0


def import_transport() -> Any:
    """The POT library; raises ``ImportError`` that says what to do without it."""
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "matching='ot' needs the optional library POT: pip install 'scvi-causal[ot]'. matching='random' takes a control of "
            "the same batch and covariates instead."
        ) from error
    return ot


class FixedPairing:
    """The same partner of a cell each time.

    Parameters
    ----------
    partner
        (n_cells,) rows.
    """

    def __init__(self, partner: np.ndarray):
        self.partner = partner

    def draw(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of the partners of cells."""
        return self.partner[indices]


class NetworkSplitter(CausalDataSplitter):
    """:class:`~scvi_causal.dataloaders.CausalDataSplitter` that may match controls by optimal transport.

    Parameters
    ----------
    adata_manager
        Manager of a registered AnnData.
    match_genes
        Genes by which cells are matched to controls of their split; ``None`` draws controls of the same stratum.
    **kwargs
        As for the base.
    """

    def __init__(self, adata_manager, *args, match_genes: np.ndarray | None = None, **kwargs):
        super().__init__(adata_manager, *args, **kwargs)
        if match_genes is not None:
            self.pairing = FixedPairing(self._matched(np.asarray(match_genes)))

    def _matched(self, genes: np.ndarray) -> np.ndarray:
        dosage = self.adata_manager.get_from_registry("perturbation")
        codes, is_control = condition_codes(dosage)[0], get_control_mask(self.adata_manager)
        read, partner = ExpressionReader(self.adata_manager, "log1p"), np.arange(self.n_obs)
        fallback = self.train_idx[is_control[self.train_idx]]
        for cells in (self.train_idx, self.val_idx, self.test_idx):
            own = cells[is_control[cells]]
            controls = np.sort(own if len(own) else fallback)
            reference = read(controls)[:, genes].toarray()
            for code in np.unique(codes[cells]):
                rows = np.sort(cells[codes[cells] == code])
                if is_control[rows[0]]:
                    continue
                partner[rows] = controls[nearest_by_transport(read(rows)[:, genes].toarray(), reference)]
        return partner


def nearest_by_transport(cells: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """(n,) for each of the cells (n, genes) the control that an entropic transport plan sends most of it to.

    Examples
    --------
    >>> import numpy as np
    >>> nearest_by_transport(np.array([[0.0], [90.0]]), np.array([[100.0], [1.0]])).tolist()
    [1, 0]
    """
    ot = import_transport()
    cost = ot.dist(cells, controls, metric="euclidean") / _COST_SCALE
    plan = ot.sinkhorn(ot.unif(len(cells)), ot.unif(len(controls)), cost, _REGULARISATION)
    return np.asarray(plan).argmax(1)
