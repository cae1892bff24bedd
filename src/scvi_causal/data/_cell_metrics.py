"""What quality control looks at, per cell: counts, genes, shares of groups of genes, doublets."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from ._messages import did_you_mean, listed, plural
from ._scan import scan_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = logging.getLogger("scvi_causal.data")

METRICS = ("counts", "genes", "mito", "ribo", "hb")

# Genes of human and mouse, upper or lower case. Prefixes alone would count RPS6KA1 (a kinase) as ribosomal and HBEGF (a growth
# factor) as haemoglobin.
PATTERNS = {
    "mito": r"^MT-",
    "ribo": r"^RP(SA|LP\d|[SL]\d+(A|AL|X|Y\d|L\d?)?)$",
    "hb": r"^HB(A\d|B|D|E\d|G\d|M|Q\d[AB]?|Z|[AB]-.+)$",
}
# as published; human symbols
PAPER_PATTERNS = {"mito": r"^MT-", "ribo": r"^(RPS|RPL)", "hb": r"^HB[^(P)]"}
# values of a dense or backed matrix that are in memory at a time
_MAX_VALUES = 2**22


def cell_metrics(
    adata: AnnData,
    columns: Mapping[str, str | None],
    patterns: Mapping[str, str],
    layer: str | None,
    gene_symbols: str | None,
    ignore_case: bool = True,
) -> dict[str, np.ndarray]:
    """(cells,) values of each metric: from a column of obs where one is named, else from the counts.

    A metric whose column is ``None``, or whose pattern fits no gene, is left out.
    """
    found = {name: _from_column(adata, key, name) for name, key in columns.items() if key is not None}
    asked = [name for name in METRICS if name not in columns]
    sets = {name: _genes_like(adata, patterns[name], gene_symbols, ignore_case) for name in asked if name in patterns}
    empty = [name for name, genes in sets.items() if not genes.any()]
    if empty:
        logger.info(f"Quality flags left out, as no gene has a name that fits: {listed(empty)}.")
    wanted = [name for name in asked if name not in empty]
    if wanted:
        x = adata.X if layer is None else adata.layers[layer]
        _refuse_transformed(x, "X" if layer is None else f"layers[{layer!r}]")
        found |= _from_counts(x, wanted, {name: sets[name] for name in wanted if name in sets}, found.get("counts"))
    return {name: found[name] for name in METRICS if name in found}


def _from_column(adata: AnnData, key: str, name: str) -> np.ndarray:
    if key not in adata.obs:
        raise ValueError(
            f"columns[{name!r}]={key!r} is no column of obs.{did_you_mean(key, adata.obs)} It has {listed(adata.obs)}."
        )
    values = adata.obs[key]
    try:
        values = values.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"obs[{key!r}], named for {name!r}, holds values of type {values.dtype}, no numbers."
        ) from error
    if (n := int((~np.isfinite(values)).sum())) > 0:
        raise ValueError(
            f"{plural(n, 'cell')} of {values.size:,} have no finite value in obs[{key!r}], named for {name!r}: fill or "
            "remove them."
        )
    return values


def _refuse_transformed(x, place: str) -> None:
    """Raise if these are no counts: the sum of logs is no library, and its median absolute deviation no measure of depth."""
    scan = scan_matrix(x, counts=True, max_values=_MAX_VALUES)
    for kind, n in (("negative", scan.n_negative), ("fractional", scan.n_fractional)):
        if n:
            examples = ", ".join(f"{value:g}" for *_, value in scan.examples[kind])
            raise ValueError(
                f"{place} has {plural(n, f'{kind} value')} ({examples}), and quality is judged from raw counts: pass the layer that "
                "holds them as layer=, or columns of obs with counts and genes per cell as columns={'counts': ..., 'genes': ...}."
            )


def _genes_like(adata: AnnData, pattern: str, gene_symbols: str | None, ignore_case: bool) -> np.ndarray:
    """(genes,) mask of the genes whose name fits."""
    if gene_symbols is not None and gene_symbols not in adata.var:
        raise ValueError(
            f"gene_symbols={gene_symbols!r} is no column of var.{did_you_mean(gene_symbols, adata.var)} It has "
            f"{listed(adata.var)}."
        )
    names = adata.var_names if gene_symbols is None else adata.var[gene_symbols].astype(str)
    fits = re.compile(pattern, re.IGNORECASE if ignore_case else 0).search
    return np.array([bool(fits(str(name))) for name in names], dtype=bool)


def _from_counts(
    x, wanted: list[str], sets: dict[str, np.ndarray], library: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Counts, genes with a count, and percentages of the counts that lie in sets of genes.

    The percentages are of ``library`` where it is known: those of a cut panel depend on what else is in the panel.
    """
    # in the precision of the counts, which scipy would copy otherwise; whole numbers below 2^24 are exact in float32
    members = np.column_stack([np.ones(x.shape[1]), *sets.values()]).astype(np.result_type(x.dtype, np.float32))
    sums, genes = np.zeros((x.shape[0], members.shape[1])), np.zeros(x.shape[0])
    for rows, block in _row_blocks(x):
        sums[rows] = block @ members
        genes[rows] = _n_positive(block)
    if (n := int((~np.isfinite(sums[:, 0])).sum())) > 0:
        raise ValueError(f"{plural(n, 'cell')} of {x.shape[0]:,} hold NaN or infinite counts: remove these cells.")
    total = sums[:, :1] if library is None else library[:, None]
    share = 100 * np.divide(sums[:, 1:], total, out=np.zeros_like(sums[:, 1:]), where=total > 0)
    found = {"counts": sums[:, 0], "genes": genes} | dict(zip(sets, share.T, strict=True))
    return {name: found[name] for name in wanted}


def _row_blocks(x) -> Iterator[tuple[slice, object]]:
    """Rows of a matrix that may be dense or on disk; a sparse matrix in memory is one block, which nothing copies."""
    if sp.issparse(x):
        yield slice(None), x
        return
    step = max(1, _MAX_VALUES // max(x.shape[1], 1))
    for start in range(0, x.shape[0], step):
        rows = slice(start, min(start + step, x.shape[0]))
        block = x[rows]
        yield rows, block if sp.issparse(block) else np.asarray(block)


def _n_positive(x) -> np.ndarray:
    """(cells,) number of positive values."""
    if not sp.issparse(x):
        return (x > 0).sum(axis=1)
    x = x if x.format in ("csr", "csc") else x.tocsr()
    others = np.flatnonzero(~(x.data > 0))  # stored zeros are no genes
    n_cells = x.shape[0]
    if x.format == "csr":
        rows = np.searchsorted(x.indptr, others, side="right") - 1
        return np.diff(x.indptr) - np.bincount(rows, minlength=n_cells)
    # in pieces, because counting turns the indices into larger ones
    pieces = (x.indices[start : start + _MAX_VALUES] for start in range(0, x.indices.size, _MAX_VALUES))
    stored = sum((np.bincount(piece, minlength=n_cells) for piece in pieces), np.zeros(n_cells, dtype=np.int64))
    return stored - np.bincount(x.indices[others], minlength=n_cells)


def scrublet_doublets(
    adata: AnnData, layer: str | None, batches: np.ndarray, seed: int
) -> tuple[np.ndarray, list[str]]:
    """Doublets by scanpy's Scrublet, batch by batch since doublets form within one; and the batches without an answer.

    Scrublet finds none where the scores of its simulated doublets have a single mode.
    """
    import scanpy as sc

    called, silent = np.zeros(adata.n_obs, dtype=bool), []
    x = adata.X if layer is None else adata.layers[layer]
    for batch in sorted(set(batches)):
        rows = np.flatnonzero(batches == batch)
        block = x[rows]
        part = AnnData(sp.csr_matrix(block, dtype=np.float32))
        try:
            # exact neighbours: the same on every machine, and what the approximate search returns is not read by every scanpy
            sc.pp.scrublet(part, random_state=seed, verbose=False, use_approx_neighbors=False)
        except ValueError as error:
            raise ValueError(
                f"Scrublet cannot work on the {plural(rows.size, 'cell')} and {plural(x.shape[1], 'gene')} of batch {batch!r} "
                f"({error}). Leave the flag out with doublets=False."
            ) from error
        # cells of fewer than three genes are not looked at and come back as NaN
        called[rows] = part.obs["predicted_doublet"].eq(True).to_numpy()
        if "threshold" not in part.uns["scrublet"]:
            silent.append(batch)
    return called, silent
