"""Perturbation labels of the cells as a sparse dosage matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import rich.table
from scvi.data.fields import BaseAnnDataField

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data._labels import as_control_categories, check_separator, factorize_labels, looks_like_control
from scvi_causal.data._messages import did_you_mean, listed, plural
from scvi_causal.data._perturbations import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from scipy.sparse import csr_matrix


class PerturbationField(BaseAnnDataField):
    """Labels in ``adata.obs`` to a (cells x tokens) CSR dosage matrix in ``adata.obsm["_scvi_perturbation"]``.

    The matrix is float32, the row of a control cell is empty. Query data may lack the column, in which case every cell is a
    control. A query cell with a token that the model does not know has a single NaN as its row, so that nothing can take it
    for a control.

    Parameters
    ----------
    perturbation_key
        Column of ``adata.obs`` with the labels.
    control_category
        Label, or labels, of the unperturbed cells.
    separator
        What joins the tokens of a combination; ``None`` never splits.
    dosage_key
        Column of ``adata.obs`` with the dosages; see :func:`~scvi_causal.data.parse_dosages`. ``None`` is 1.
    """

    TOKEN_NAMES_KEY = "token_names"
    CONTROL_CATEGORIES_KEY = "control_categories"
    SEPARATOR_KEY = "separator"
    ORIGINAL_ATTR_KEY = "original_key"
    DOSAGE_KEY = "dosage_key"
    N_CONTROL_CELLS_KEY = "n_control_cells"

    def __init__(
        self,
        perturbation_key: str,
        control_category: str | Iterable[str] = "control",
        separator: str | None = "+",
        dosage_key: str | None = None,
    ) -> None:
        super().__init__()
        self._original_key = perturbation_key
        self._control_categories = as_control_categories(control_category)
        self._separator = check_separator(separator)
        self._dosage_key = dosage_key

    @property
    def registry_key(self) -> str:
        return CAUSAL_KEYS.PERTURBATION

    @property
    def attr_name(self) -> str:
        return "obsm"

    @property
    def attr_key(self) -> str:
        return f"_scvi_{self.registry_key}"

    @property
    def is_empty(self) -> bool:
        return False

    def _labels(self, adata: AnnData, key: str):
        if key not in adata.obs:
            raise ValueError(
                f"{key!r} is not a column of adata.obs; it has {listed(adata.obs.columns, 20)}."
                f"{did_you_mean(key, adata.obs.columns)}"
            )
        return adata.obs[key]

    def _build(self, adata: AnnData) -> tuple[Vocabulary, csr_matrix]:
        """Vocabulary and dosage matrix; raises for everything that is wrong with them, writes nothing."""
        labels = self._labels(adata, self._original_key)
        vocabulary = Vocabulary.from_labels(labels, self._separator, self._control_categories)
        dosages = None if self._dosage_key is None else self._labels(adata, self._dosage_key)
        if not len(vocabulary):
            raise ValueError(
                f"All {adata.n_obs:,} cells of adata.obs[{self._original_key!r}] are controls "
                f"({listed(self._control_categories)}): there is no perturbation to learn from."
            )
        dosage = vocabulary.encode(labels, dosages)
        if np.diff(dosage.indptr).all():
            raise ValueError(self._no_control_message(labels))
        return vocabulary, dosage

    def _no_control_message(self, labels) -> str:
        _, found = factorize_labels(labels)
        near = [name for name in found if looks_like_control(name)]
        return (
            f"No cell of adata.obs[{self._original_key!r}] has the control label {listed(self._control_categories)} among its "
            f"{plural(len(found), 'label')}"
            + (
                f"; {listed(near)} look like one: pass control_category={(near[0] if len(near) == 1 else near)!r}."
                if near
                else "."
            )
            + (
                f" The labels are {listed(sorted(found))}. Pass the label of the unperturbed cells as control_category."
                if not near
                else ""
            )
        )

    def validate_field(self, adata: AnnData) -> None:
        """Raise ``ValueError`` for missing columns, labels, controls, perturbed cells, and for dosages that do not fit."""
        super().validate_field(adata)
        self._build(adata)

    def check(self, adata: AnnData) -> Vocabulary:
        """As :meth:`validate_field`; returns the tokens that were found."""
        return self._build(adata)[0]

    def register_field(self, adata: AnnData) -> dict:
        """Write the dosage matrix, return names of tokens and how labels are read."""
        vocabulary, dosage = self._build(adata)
        adata.obsm[self.attr_key] = dosage
        return self._state(vocabulary, dosage, self._original_key, self._dosage_key)

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Write the dosage matrix of query data over the tokens of the source."""
        super().transfer_field(state_registry, adata_target, **kwargs)
        vocabulary = Vocabulary.from_state(state_registry)
        key, dosage_key = state_registry[self.ORIGINAL_ATTR_KEY], state_registry[self.DOSAGE_KEY]
        if key not in adata_target.obs:
            labels, dosages = np.full(adata_target.n_obs, vocabulary.control_categories[0], dtype=object), None
        else:
            labels = adata_target.obs[key]
            dosages = None if dosage_key is None else self._labels(adata_target, dosage_key)
        dosage = vocabulary.encode(labels, dosages, unknown="nan")
        adata_target.obsm[self.attr_key] = dosage
        return self._state(vocabulary, dosage, key, dosage_key)

    def _state(self, vocabulary: Vocabulary, dosage: csr_matrix, key: str, dosage_key: str | None) -> dict:
        return {
            self.TOKEN_NAMES_KEY: np.asarray(vocabulary.tokens, dtype=object),
            self.CONTROL_CATEGORIES_KEY: np.asarray(vocabulary.control_categories, dtype=object),
            self.SEPARATOR_KEY: vocabulary.separator,
            self.ORIGINAL_ATTR_KEY: key,
            self.DOSAGE_KEY: dosage_key,
            self.N_CONTROL_CELLS_KEY: int((np.diff(dosage.indptr) == 0).sum()),
        }

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of tokens."""
        return {"n_tokens": len(state_registry[self.TOKEN_NAMES_KEY])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        """Table of the tokens and their columns."""
        t = rich.table.Table(title=f"{self.registry_key} State Registry")
        t.add_column("Source Location", justify="center", style="dodger_blue1", no_wrap=True, overflow="fold")
        t.add_column("Tokens", justify="center", style="green", no_wrap=True, overflow="fold")
        t.add_column("scvi-tools Encoding", justify="center", style="dark_violet", no_wrap=True, overflow="fold")
        place = f"adata.obs[{state_registry[self.ORIGINAL_ATTR_KEY]!r}]"
        t.add_row(place, " | ".join(state_registry[self.CONTROL_CATEGORIES_KEY]), "control: empty row")
        for i, token in enumerate(state_registry[self.TOKEN_NAMES_KEY]):
            t.add_row("", str(token), f"column {i}")
        return t
