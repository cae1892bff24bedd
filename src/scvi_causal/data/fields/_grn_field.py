"""Prior gene regulatory network, and the genes that it and every model are tied to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import rich.table
from scvi.data.fields import BaseAnnDataField

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data._grn import edge_indices, grn_fingerprint, grn_from_adjacency, keep_edges, log_kept_edges
from scvi_causal.data._labels import as_control_categories, parse_label
from scvi_causal.data._messages import did_you_mean, listed, plural
from scvi_causal.data._perturbations import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

DEFAULT_GRN_KEY = "grn"


def check_genes(var_names: Sequence[str], model_genes: Sequence[str]) -> None:
    """Raise ``ValueError`` unless query data have the genes of the model, in its order.

    scvi-tools compares only their number, so that other genes would give wrong numbers without a word.
    """
    query = np.asarray([str(g) for g in var_names], dtype=object)
    model = np.asarray([str(g) for g in model_genes], dtype=object)
    if len(query) == len(model) and (query == model).all():
        return
    missing = pd.Index(model).difference(pd.Index(query), sort=False)
    extra = pd.Index(query).difference(pd.Index(model), sort=False)
    fix = "model_genes = model.get_var_names(); adata = adata[:, model_genes].copy()"
    if len(missing):
        raise ValueError(
            f"The data lack {plural(len(missing), 'gene')} of the {len(model):,} of the model: {listed(missing)}"
            + (
                f"; they have {plural(len(extra), 'gene')} that the model does not know: {listed(extra)}"
                if len(extra)
                else ""
            )
            + ". Rename genes that go by another name, and bring all genes of the model, measured in the query; then "
            f"`{fix}` puts them in order."
        )
    if len(extra) or len(query) != len(model):
        raise ValueError(
            f"The data have {len(query):,} genes, the model {len(model):,}: not in the model are {listed(extra)}. "
            f"Keep the genes of the model: `{fix}`."
        )
    moved = int((query != model).sum())
    first = int(np.flatnonzero(query != model)[0])
    raise ValueError(
        f"The data have the genes of the model in another order: {moved:,} of {len(model):,} are out of place, the first at "
        f"position {first} ({query[first]!r} instead of {model[first]!r}). Put them in order: `{fix}`."
    )


def check_extra_tokens(
    extra_tokens: Sequence[str] | None, separator: str | None = "+", control_categories: Iterable[str] = ("control",)
) -> tuple[str, ...]:
    """Distinct sorted tokens; raises ``ValueError`` for what is no list of single tokens."""
    if isinstance(extra_tokens, str):
        raise ValueError(f"extra_tokens={extra_tokens!r} is a string: pass a list, [{extra_tokens!r}].")
    names = sorted({str(token).strip() for token in extra_tokens or ()})
    bad = [name for name in names if len(parse_label(name, separator, control_categories)) != 1]
    if bad:
        raise ValueError(
            f"extra_tokens has {plural(len(bad), 'entry', 'entries')} that are no single tokens: {listed(bad)}. Pass the tokens "
            "of combinations one by one, and no control."
        )
    return tuple(names)


class GRNField(BaseAnnDataField):
    """Edge list in ``adata.uns`` to index arrays in the state registry; nothing is written to the AnnData.

    The graph belongs to the model: query data need none, and one that they carry is not read. Their genes have to be those of
    the model in the same order, which this field checks whether there is a graph or not. It is never empty in the sense of
    scvi-tools for that reason; without a graph the edge arrays have length 0 and ``original_key`` is ``None``. Register it
    first: it writes nothing, so that a query with other genes stays as it was.

    Parameters
    ----------
    grn_key
        Key of ``adata.uns`` with a DataFrame ``source, target[, weight]``, or of ``adata.varp`` with a matrix whose rows are the
        regulators. ``None`` takes ``adata.uns["grn"]`` if it is there.
    perturbation_key
        Column of ``adata.obs`` with the labels. Their tokens may be sources of edges although they are no genes.
    control_category, separator
        How the labels are read; see :class:`PerturbationField`.
    extra_tokens
        Tokens that no cell carries and that will be asked for; they may be sources too.

    Notes
    -----
    State: ``var_names`` (n_vars,), ``source_idx``, ``target_idx`` (n_edges,) int64, ``weight`` (n_edges,) float32, ``extra_nodes``
    (names of the sources with index ``n_vars`` and above), ``extra_tokens``, ``n_edges_given``, ``original_key``, ``fingerprint``.
    """

    VAR_NAMES_KEY = "var_names"
    SOURCE_KEY = "source_idx"
    TARGET_KEY = "target_idx"
    WEIGHT_KEY = "weight"
    EXTRA_NODES_KEY = "extra_nodes"
    EXTRA_TOKENS_KEY = "extra_tokens"
    N_EDGES_GIVEN_KEY = "n_edges_given"
    ORIGINAL_ATTR_KEY = "original_key"
    FINGERPRINT_KEY = "fingerprint"

    def __init__(
        self,
        grn_key: str | None = None,
        perturbation_key: str | None = None,
        control_category: str | Iterable[str] = "control",
        separator: str | None = "+",
        extra_tokens: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self._grn_key = grn_key
        self._perturbation_key = perturbation_key
        self._control_categories = as_control_categories(control_category)
        self._separator = separator
        self._extra_tokens = check_extra_tokens(extra_tokens, separator, self._control_categories)

    @property
    def registry_key(self) -> str:
        return CAUSAL_KEYS.GRN

    @property
    def attr_name(self) -> str:
        return "uns"

    @property
    def attr_key(self) -> str:
        return self._grn_key or DEFAULT_GRN_KEY

    @property
    def is_empty(self) -> bool:
        return False

    def get_data_registry(self) -> dict:
        """Nothing per cell: the loader would index whatever is named here by cell."""
        return {}

    def read(self, adata: AnnData) -> pd.DataFrame | None:
        """The edge list as it is in the AnnData, or ``None``; raises ``ValueError`` if a key was given and is not there."""
        key = self.attr_key
        if key in adata.uns:
            return adata.uns[key]
        if self._grn_key is None:
            return None
        if key in adata.varp:
            return grn_from_adjacency(adata.varp[key], adata.var_names, regulators="rows")
        known = [*adata.uns.keys(), *adata.varp.keys()]
        raise ValueError(
            f"grn_key={key!r} is in neither adata.uns nor adata.varp, which have {listed(known)}.{did_you_mean(key, known)} "
            f"Put an edge list there: adata.uns[{key!r}] = DataFrame with the columns source, target, weight."
        )

    def _tokens(self, adata: AnnData) -> tuple[str, ...]:
        if self._perturbation_key is None or self._perturbation_key not in adata.obs:
            return ()
        labels = adata.obs[self._perturbation_key]
        return Vocabulary.from_labels(labels, self._separator, self._control_categories).tokens

    def _build(self, adata: AnnData) -> tuple[pd.DataFrame | None, pd.DataFrame | None, list[str]]:
        """Edges as given, edges kept and the sources among them that are no genes."""
        given = self.read(adata)
        if given is None:
            return None, None, []
        kept = keep_edges(given, adata.var_names, (*self._tokens(adata), *self._extra_tokens))
        extra = sorted(set(kept["source"]) - set(adata.var_names.astype(str)))
        return given, kept, extra

    def validate_field(self, adata: AnnData) -> None:
        """Raise ``ValueError`` for a graph that is missing, malformed or without a single edge among the genes."""
        super().validate_field(adata)
        self._build(adata)

    def register_field(self, adata: AnnData) -> dict:
        """Return genes and edges."""
        given, kept, extra = self._build(adata)
        genes = np.asarray([str(g) for g in adata.var_names], dtype=object)
        if kept is None:
            source, target, weight = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        else:
            source, target, weight = edge_indices(kept, genes, extra)
            log_kept_edges(len(given), kept, genes)
        return {
            self.VAR_NAMES_KEY: genes,
            self.SOURCE_KEY: source,
            self.TARGET_KEY: target,
            self.WEIGHT_KEY: weight,
            self.EXTRA_NODES_KEY: np.asarray(extra, dtype=object),
            self.EXTRA_TOKENS_KEY: np.asarray(self._extra_tokens, dtype=object),
            self.N_EDGES_GIVEN_KEY: 0 if given is None else len(given),
            self.ORIGINAL_ATTR_KEY: None if kept is None else self.attr_key,
            self.FINGERPRINT_KEY: "" if kept is None else grn_fingerprint(kept),
        }

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Check the genes of query data; the graph stays that of the source."""
        super().transfer_field(state_registry, adata_target, **kwargs)
        check_genes(adata_target.var_names, state_registry[self.VAR_NAMES_KEY])
        return dict(state_registry)

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of edges among the genes."""
        return {"n_grn_edges": len(state_registry[self.SOURCE_KEY])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        """Table of how much of the graph is used; ``None`` without a graph."""
        key = state_registry[self.ORIGINAL_ATTR_KEY]
        if key is None:
            return None
        t = rich.table.Table(title=f"{self.registry_key} State Registry")
        t.add_column("Key", justify="center", style="dodger_blue1", no_wrap=True, overflow="fold")
        t.add_column("Edges kept", justify="center", style="green", no_wrap=True)
        t.add_column("Edges given", justify="center", style="green", no_wrap=True)
        t.add_column("Regulators", justify="center", style="green", no_wrap=True)
        source = state_registry[self.SOURCE_KEY]
        counts = len(source), state_registry[self.N_EDGES_GIVEN_KEY], len(np.unique(source))
        t.add_row(str(key), *(f"{n:,}" for n in counts))
        return t
