"""Quality classes of the cells: one passes, the others are kinds of failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import rich.table
from scvi.data.fields import BaseAnnDataField

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data._messages import did_you_mean, listed, plural

if TYPE_CHECKING:
    from anndata import AnnData

_HOW = "scvi_causal.data.annotate_quality(adata) makes one"


class QualityField(BaseAnnDataField):
    """A categorical (or bool) column of ``adata.obs`` to codes in ``adata.obs["_scvi_quality"]``: 0 passes, 1 .. K are kinds of failure.

    Parameters
    ----------
    quality_key
        Column of ``adata.obs``.
    pass_category
        Its value for cells that pass; every other value is a kind of failure, in alphabetical order.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"quality": ["fine", "doublet", "fine"]}, index=["a", "b", "c"])
    >>> QualityField("quality", "fine").check(anndata.AnnData(np.ones((3, 1)), obs))[1].tolist()
    [0, 1, 0]
    """

    CATEGORIES_KEY = "categories"
    ORIGINAL_ATTR_KEY = "original_key"

    def __init__(self, quality_key: str, pass_category: str | bool = "pass") -> None:
        super().__init__()
        self._original_key, self._pass_category = quality_key, str(pass_category)

    @property
    def registry_key(self) -> str:
        return CAUSAL_KEYS.QUALITY

    @property
    def attr_name(self) -> str:
        return "obs"

    @property
    def attr_key(self) -> str:
        return f"_scvi_{self.registry_key}"

    @property
    def is_empty(self) -> bool:
        return False

    def validate_field(self, adata: AnnData) -> None:
        """Raise ``ValueError`` if the column is missing, has gaps, or does not have the value of cells that pass."""
        self.check(adata)

    def check(self, adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`validate_field`; returns the classes, the one that passes first, and the code of each cell."""
        values = _values(adata, self._original_key, f"{_HOW}, or name another with quality_key=.")
        found = sorted(set(values))
        if self._pass_category not in found:
            look_alike = did_you_mean(self._pass_category, found)
            if set(found) <= {"True", "False"}:
                look_alike = " Pass quality_pass_category=True if True means that a cell is good, or False if it means that it failed."
            raise ValueError(
                f"No cell of adata.obs[{self._original_key!r}] has the value {self._pass_category!r} of cells that pass; its values are "
                f"{listed(found)}.{look_alike} Name the value of good cells with quality_pass_category=, or, if no cell is good, be less "
                "strict: without any there is nothing that artifacts could be told from."
            )
        categories = np.array([self._pass_category, *(v for v in found if v != self._pass_category)], dtype=object)
        return categories, pd.Index(categories).get_indexer(values)

    def register_field(self, adata: AnnData) -> dict:
        """Write the codes, return the classes."""
        categories, codes = self.check(adata)
        adata.obs[self.attr_key] = codes.astype(np.int64)
        return {self.CATEGORIES_KEY: categories, self.ORIGINAL_ATTR_KEY: self._original_key}

    @classmethod
    def check_query(cls, adata: AnnData, state_registry: dict) -> np.ndarray:
        """(cells,) codes of query cells; raises ``ValueError`` if there are none or unknown ones."""
        key, categories = state_registry[cls.ORIGINAL_ATTR_KEY], list(state_registry[cls.CATEGORIES_KEY])
        how = (
            "judge the query as the training cells were judged: scvi_causal.data.annotate_quality(query, "
            f"thresholds=training.uns['{key}_thresholds'], key_added={key!r})."
        )
        values = _values(
            adata, key, f"The model takes artifacts off cells that failed, and has to know which did: {how}"
        )
        codes = pd.Index(categories).get_indexer(values)
        if (codes < 0).any():
            new = pd.unique(values[codes < 0])
            raise ValueError(
                f"adata.obs[{key!r}] has {plural(len(new), 'quality class', 'quality classes')} that the model does not know, in "
                f"{plural(int((codes < 0).sum()), 'cell')}: {listed(new)}. It knows {listed(categories)} (the first passes)."
                f"{did_you_mean(new[0], categories)} Map them to known ones, or leave these cells out."
            )
        return codes

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Write the codes of query cells over the classes of the source."""
        super().transfer_field(state_registry, adata_target, **kwargs)
        adata_target.obs[self.attr_key] = self.check_query(adata_target, state_registry).astype(np.int64)
        return {
            self.CATEGORIES_KEY: np.asarray(state_registry[self.CATEGORIES_KEY], dtype=object),
            self.ORIGINAL_ATTR_KEY: state_registry[self.ORIGINAL_ATTR_KEY],
        }

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of kinds of failure."""
        return {"n_quality_kinds": len(state_registry[self.CATEGORIES_KEY]) - 1}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        """Table of the classes and their codes."""
        t = rich.table.Table(title=f"{self.registry_key} State Registry")
        t.add_column("Source Location", justify="center", style="dodger_blue1", no_wrap=True, overflow="fold")
        t.add_column("Quality", justify="center", style="green", no_wrap=True, overflow="fold")
        t.add_column("scvi-tools Encoding", justify="center", style="dark_violet", no_wrap=True, overflow="fold")
        for i, name in enumerate(state_registry[self.CATEGORIES_KEY]):
            place = f"adata.obs[{state_registry[self.ORIGINAL_ATTR_KEY]!r}]" if i == 0 else ""
            t.add_row(place, str(name), "0: passes" if i == 0 else str(i))
        return t


def _values(adata: AnnData, key: str, how: str) -> np.ndarray:
    """(cells,) values of a column as strings."""
    if key not in adata.obs:
        raise ValueError(
            f"{key!r}, the quality of cells, is not a column of adata.obs, which has {listed(adata.obs.columns, 20)}."
            f"{did_you_mean(key, adata.obs.columns)} {how}"
        )
    column = adata.obs[key]
    absent = column.isna().to_numpy()
    if absent.any():
        raise ValueError(
            f"adata.obs[{key!r}] has no value (NaN) in {plural(int(absent.sum()), 'cell')} of {adata.n_obs:,}, first "
            f"{listed(adata.obs_names[absent], 3)}. Judge these cells too, or remove them."
        )
    return column.astype(str).to_numpy(dtype=object)
