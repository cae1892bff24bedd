"""Gene regulatory networks as edge lists: DataFrames ``source, target, weight``, direction regulator -> target.

This is the format of decoupler. Genes go by name, which survives subsetting and reordering of the AnnData and leaves no doubt
about the orientation, as matrices do.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, issparse

from ._messages import did_you_mean, listed, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

logger = logging.getLogger("scvi_causal.data")

_COLUMNS = ["source", "target", "weight"]
_OTHER_NAMES = {
    "source": ("tf", "regulator", "source_genesymbol", "from", "parent"),
    "target": ("gene", "target_gene", "target_genesymbol", "to", "child"),
}


def _column_hint(df: pd.DataFrame, missing: Sequence[str]) -> str:
    """How to call :func:`grn_from_edges` on a frame with other column names."""
    by_lower = {str(c).lower(): c for c in df.columns}
    found = {m: next((by_lower[o] for o in _OTHER_NAMES.get(m, ()) if o in by_lower), None) for m in missing}
    call = ", ".join(f"{m}={(found[m] if found[m] is not None else '...')!r}" for m in missing)
    return f"rename them with scvi_causal.data.grn_from_edges(df, {call})"


def _check_frame(df: object) -> pd.DataFrame:
    """Edges as strings and floats, one row per pair; all errors that need no genes."""
    if not isinstance(df, pd.DataFrame):
        raise ValueError(
            f"A GRN is a pandas DataFrame with the columns source, target and, optionally, weight; got {type(df).__name__}. "
            "Make one with scvi_causal.data.grn_from_edges or scvi_causal.data.grn_from_adjacency."
        )
    missing = [c for c in ("source", "target") if c not in df.columns]
    if missing:
        raise ValueError(
            f"The GRN lacks the column{'s' * (len(missing) > 1)} {listed(missing)}; it has {listed(df.columns)}: "
            f"{_column_hint(df, missing)}."
        )
    if "kept" in df.columns:
        df = _only_kept(df)
    if not len(df):
        raise ValueError("The GRN has no edges: leave it out, or pass one with at least one edge.")
    absent = df["source"].isna() | df["target"].isna()
    if absent.any():
        raise ValueError(
            f"The GRN has {plural(int(absent.sum()), 'edge')} of {len(df):,} without a source or a target (NaN), first in row "
            f"{df.index[absent.to_numpy()][0]!r}: remove them, e.g. with df.dropna(subset=['source', 'target'])."
        )
    out = pd.DataFrame({c: df[c].astype(str).to_numpy(dtype=object) for c in ("source", "target")})
    out["weight"] = _check_weights(df)
    doubled = out.duplicated(["source", "target"])
    if doubled.any():
        pairs = (f"{s} -> {t}" for s, t in zip(out["source"][doubled], out["target"][doubled], strict=True))
        raise ValueError(
            f"The GRN repeats {plural(int(doubled.sum()), 'edge')} of {len(out):,}: {listed(pairs)}. Keep one of "
            "each, e.g. with scvi_causal.data.grn_from_edges(df, duplicates='mean')."
        )
    return out


def _only_kept(df: pd.DataFrame) -> pd.DataFrame:
    """Edges that a refinement has kept; the others are in its table so that it can be read."""
    kept = df["kept"].astype(bool)
    if len(df) and not kept.any():
        raise ValueError(
            f"None of the {len(df):,} edges of the GRN is kept (its column 'kept' is False throughout): keep more with a lower "
            "threshold or a larger n_edges, or drop that column."
        )
    return df[kept]


def _check_weights(df: pd.DataFrame) -> np.ndarray:
    if "weight" not in df.columns:
        return np.ones(len(df), dtype=np.float32)
    weight = pd.to_numeric(df["weight"], errors="coerce").to_numpy(dtype=np.float32, na_value=np.nan)
    bad = ~np.isfinite(weight)
    if bad.any():
        raise ValueError(
            f"The GRN has {plural(int(bad.sum()), 'edge')} of {len(df):,} without a finite weight: found "
            f"{listed(pd.unique(df['weight'][bad].astype(str)))}, e.g. for {df['source'][bad].iloc[0]} -> "
            f"{df['target'][bad].iloc[0]}. Remove these edges, or give them a number."
        )
    return weight


def _no_overlap_message(edges: pd.DataFrame, genes: pd.Index) -> str:
    """Why not one edge lies within the genes: other case, identifiers of another kind, ..."""
    message = (
        f"Not one of the {len(edges):,} edges of the GRN joins two of the {len(genes):,} genes of adata.var_names. "
        f"The GRN names {listed(pd.unique(edges['source'])[:3])} -> {listed(pd.unique(edges['target'])[:3])}, "
        f"the AnnData {listed(genes[:3])}. "
    )
    upper = set(genes.str.upper())
    if edges["target"].str.upper().isin(upper).any() and edges["source"].str.upper().isin(upper).any():
        return message + "They agree up to upper and lower case: give the GRN the spelling of adata.var_names."
    if edges["target"].isin(genes).any():
        return message + "Targets are found but no regulator: keep the regulators among the genes of the AnnData."
    return (
        message + "Use the same kind of identifier (symbols or Ensembl ids) and species in both, or leave the GRN out."
    )


def validate_grn(
    df: pd.DataFrame, var_names: Iterable[str] | None = None, extra_nodes: Iterable[str] = ()
) -> pd.DataFrame:
    """Check an edge list and keep the edges among known nodes.

    Parameters
    ----------
    df
        Edges with the columns ``source`` (regulator), ``target`` and, optionally, ``weight`` (1 by default; the sign says
        activation or repression). Where there is a column ``kept`` (see :func:`scvi_causal.refine_grn`), only the edges it
        marks count. Other columns are left out of the result.
    var_names
        Genes, matched with upper and lower case. Edges outside are dropped, and how many is logged. ``None`` keeps all.
    extra_nodes
        Names that may be a *source* although they are no genes, e.g. drugs.

    Returns
    -------
    New DataFrame ``source, target, weight`` (``str``, ``str``, float32).

    Raises
    ------
    ValueError
        If columns are missing, there are no edges, names or weights are NaN, weights are infinite, an edge is listed twice,
        or no edge is left.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.data import validate_grn
    >>> edges = pd.DataFrame({"source": ["A", "A"], "target": ["B", "Z"]})
    >>> validate_grn(edges, var_names=["A", "B", "C"])
      source target  weight
    0      A      B     1.0
    """
    if var_names is None:
        return _check_frame(df)
    kept = keep_edges(df, var_names, extra_nodes)
    log_kept_edges(len(df), kept, var_names)
    return kept


def keep_edges(df: pd.DataFrame, var_names: Iterable[str], extra_nodes: Iterable[str] = ()) -> pd.DataFrame:
    """As :func:`validate_grn` on genes, without a word in the log."""
    edges, genes = _check_frame(df), _as_names(var_names)
    kept = restrict_grn(edges, genes, extra_nodes)
    if not len(kept):
        raise ValueError(_no_overlap_message(edges, genes))
    return kept


def log_kept_edges(n_given: int, kept: pd.DataFrame, var_names: Iterable[str]) -> None:
    """Say how much of a graph is used."""
    genes = _as_names(var_names)
    n_isolated = int((~(genes.isin(kept["source"]) | genes.isin(kept["target"]))).sum())
    logger.info(
        f"GRN: kept {len(kept):,} of {n_given:,} edges, from {kept['source'].nunique():,} regulators; "
        f"{n_isolated:,} of {len(genes):,} genes have no edge."
    )


def _as_names(names: Iterable) -> pd.Index:
    return pd.Index([str(n) for n in names], dtype=object)


def restrict_grn(
    df: pd.DataFrame, genes: Iterable[str], extra_nodes: Iterable[str] = (), drop_self_loops: bool = False
) -> pd.DataFrame:
    """Edges whose target is among ``genes`` and whose source is among ``genes`` or ``extra_nodes``; may be none.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.data import restrict_grn
    >>> edges = pd.DataFrame({"source": ["A", "drug"], "target": ["A", "B"], "weight": [1.0, -1.0]})
    >>> len(restrict_grn(edges, ["A", "B"])), len(restrict_grn(edges, ["A", "B"], ["drug"], drop_self_loops=True))
    (1, 1)
    """
    genes = _as_names(genes)
    keep = df["target"].isin(genes) & df["source"].isin(genes.append(_as_names(extra_nodes)))
    if drop_self_loops:
        keep &= df["source"] != df["target"]
    return df.loc[keep].reset_index(drop=True)


def grn_from_edges(
    df: pd.DataFrame,
    source: str = "source",
    target: str = "target",
    weight: str | None = None,
    duplicates: Literal["error", "first", "mean", "max"] = "error",
) -> pd.DataFrame:
    """Edge list with our column names from one with any others, e.g. GRNBoost2's ``TF, target, importance``.

    Parameters
    ----------
    df
        One row per edge.
    source, target, weight
        Columns of the regulator, its target and the weight. ``weight=None`` takes ``"weight"`` if it is there, else 1.
    duplicates
        What becomes of an edge that is listed several times: an error, its first row, the mean weight, or the weight that is
        largest in absolute value.

    Returns
    -------
    DataFrame ``source, target, weight``.

    Raises
    ------
    ValueError
        As :func:`validate_grn`, or if a column is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.data import grn_from_edges
    >>> boost = pd.DataFrame({"TF": ["A", "A"], "target": ["B", "B"], "importance": [2.0, 4.0]})
    >>> grn_from_edges(boost, source="TF", weight="importance", duplicates="mean")
      source target  weight
    0      A      B     3.0
    """
    if duplicates not in ("error", "first", "mean", "max"):
        raise ValueError(f"duplicates={duplicates!r} is not one of 'error', 'first', 'mean', 'max'.")
    if weight is None and "weight" in df.columns:
        weight = "weight"
    asked = {"source": source, "target": target} | ({} if weight is None else {"weight": weight})
    for ours, theirs in asked.items():
        if theirs not in df.columns:
            raise ValueError(
                f"{ours}={theirs!r} is not a column of the edge list; it has {listed(df.columns)}."
                f"{did_you_mean(theirs, df.columns)}"
            )
    out = pd.DataFrame({ours: df[theirs].to_numpy() for ours, theirs in asked.items()})
    if duplicates != "error" and out.duplicated(["source", "target"]).any():
        if "weight" not in out or duplicates == "first":
            out = out.drop_duplicates(["source", "target"])
        elif duplicates == "mean":
            out = out.groupby(["source", "target"], sort=False, observed=True, as_index=False)["weight"].mean()
        else:
            largest = out["weight"].abs().sort_values(ascending=False, kind="stable").index
            out = out.loc[largest].drop_duplicates(["source", "target"]).sort_index()
    return _check_frame(out.reset_index(drop=True))


def grn_from_adjacency(
    matrix: np.ndarray | pd.DataFrame,
    genes: Iterable[str] | None = None,
    regulators: Literal["rows", "columns"] = "rows",
) -> pd.DataFrame:
    """Edge list of the non-zero entries of an adjacency matrix.

    Parameters
    ----------
    matrix
        (n_genes, n_genes) weights, dense or sparse; or a DataFrame, which may be rectangular (regulators by targets).
    genes
        Names of rows and columns; not needed for a DataFrame.
    regulators
        Whether the regulators are the ``"rows"`` (entry ``[i, j]`` is the edge ``i -> j``) or the ``"columns"``.

    Returns
    -------
    DataFrame ``source, target, weight``, sorted by row, then column, of the matrix.

    Raises
    ------
    ValueError
        If the shape does not fit the genes, names are duplicated, or entries are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.data import grn_from_adjacency
    >>> grn_from_adjacency(np.array([[0.0, 2.0], [0.0, 0.0]]), ["A", "B"], regulators="columns")
      source target  weight
    0      B      A     2.0
    """
    if regulators not in ("rows", "columns"):
        raise ValueError(f"regulators={regulators!r} is not one of 'rows', 'columns'.")
    if isinstance(matrix, pd.DataFrame):
        rows, columns, values = _as_names(matrix.index), _as_names(matrix.columns), matrix.to_numpy()
    else:
        if genes is None:
            raise ValueError("An adjacency matrix without names needs genes=, the names of its rows and columns.")
        rows = columns = _as_names(genes)
        values = matrix if issparse(matrix) else np.asarray(matrix)
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"An adjacency matrix of shape {values.shape} does not fit {len(rows):,} genes.")
    doubled = rows[rows.duplicated()].union(columns[columns.duplicated()])
    if len(doubled):
        raise ValueError(
            f"The adjacency matrix repeats {plural(len(doubled), 'gene name')}: {listed(doubled)}. Make them unique."
        )
    entries = coo_array(values)
    order = np.lexsort((entries.col, entries.row))
    row, col, weight = entries.row[order], entries.col[order], entries.data[order]
    nonzero = weight != 0
    names = rows.to_numpy()[row[nonzero]], columns.to_numpy()[col[nonzero]]
    source, target = names if regulators == "rows" else names[::-1]
    return _check_frame(
        pd.DataFrame({"source": source, "target": target, "weight": weight[nonzero].astype(np.float32)})
    )


def edge_indices(
    df: pd.DataFrame, genes: Iterable[str], extra_nodes: Iterable[str] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source index, target index and weight of each edge; an extra node has the index ``n_genes`` + its place."""
    genes = _as_names(genes)
    source = genes.append(_as_names(extra_nodes)).get_indexer(df["source"].astype(str))
    target = genes.get_indexer(df["target"].astype(str))
    outside = (source < 0) | (target < 0)
    if outside.any():
        names = pd.unique(np.concatenate([df["source"][source < 0].astype(str), df["target"][target < 0].astype(str)]))
        raise ValueError(
            f"The GRN has {plural(int(outside.sum()), 'edge')} with names outside the genes: {listed(names)}. "
            "Drop them first with scvi_causal.data.restrict_grn(df, genes)."
        )
    weight = df["weight"].to_numpy(np.float32) if "weight" in df.columns else np.ones(len(df), np.float32)
    return source.astype(np.int64), target.astype(np.int64), weight


def to_edge_index(
    df: pd.DataFrame, genes: Iterable[str], extra_nodes: Iterable[str] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges in the form of PyTorch Geometric.

    Parameters
    ----------
    df
        Edge list; all names must be known.
    genes
        Names of the nodes ``0 .. n_genes - 1``.
    extra_nodes
        Names of the nodes from ``n_genes`` on; sources only.

    Returns
    -------
    edge_index
        (2, n_edges) int64, sources in the first row, targets in the second.
    edge_weight
        (n_edges,) float32.

    Raises
    ------
    ValueError
        If an edge touches a name that is not among the nodes.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.data import to_edge_index
    >>> to_edge_index(pd.DataFrame({"source": ["A"], "target": ["C"]}), ["A", "B", "C"])[0].tolist()
    [[0], [2]]
    """
    import torch

    source, target, weight = edge_indices(df, genes, extra_nodes)
    return torch.from_numpy(np.stack([source, target])), torch.from_numpy(weight.copy())


def grn_fingerprint(df: pd.DataFrame) -> str:
    """16 hexadecimal digits that stand for a set of edges, whatever the order of the rows; for provenance."""
    edges = df.sort_values(["source", "target"], kind="stable")
    names = "\n".join(f"{s}\t{t}" for s, t in zip(edges["source"], edges["target"], strict=True))
    digest = hashlib.sha256(names.encode())
    digest.update(np.ascontiguousarray(edges["weight"].to_numpy("<f4")).tobytes())
    return digest.hexdigest()[:16]
