"""The learned gene regulatory network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class GRNMixin:
    """``get_grn``; models that learn a graph override it."""

    def get_grn(self, threshold: float | None = None, **kwargs) -> pd.DataFrame:
        """Learned regulatory network as an edge list.

        Parameters
        ----------
        threshold
            Keep edges with at least this absolute weight.
        **kwargs
            Options of the method.

        Returns
        -------
        DataFrame with the columns ``source``, ``target``, ``weight`` (and where the method has them ``weight_std``,
        ``prior``); direction regulator to target, the format of decoupler.

        Raises
        ------
        NotImplementedError
            If the method learns no graph.
        """
        key = self._field_state("grn").get("original_key")
        prior = f" The prior network that was registered is in adata.uns[{key!r}]." if key else ""
        raise NotImplementedError(
            f"{type(self).__name__} learns no regulatory network, so it has none to return.{prior}"
        )
