"""From the arguments of a prediction to rows, sources and targets; everything that can be wrong is found here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scvi import settings

from scvi_causal.data import control_mask
from scvi_causal.data._messages import listed, plural

from ._sources import MAX_SOURCES, Sources, control_pool, match_sources
from ._targets import Mode, Targets, dosage_per_row, dosage_per_target, encode_targets, label_per_row, read_mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from ._model import CausalModel
    from ._scales import Output


@dataclass(frozen=True)
class PredictOptions:
    """How a prediction is made; see :meth:`CausalModel.predict_counterfactual`."""

    output: Output
    sample: bool
    n_samples: int
    seed: int


@dataclass(frozen=True)
class Request:
    """A question, worked out.

    Parameters
    ----------
    mode
        Which kind of question.
    adata
        AnnData that the answer is about.
    cells
        (n,) rows of ``adata`` that the rows of the answer belong to.
    sources
        Cells that the prediction starts from, one per row of the answer.
    targets
        Condition predicted for each row.
    reference
        Condition that ``"delta"`` is taken against, over the same tokens: the own condition of the cell, or of its source
        where the target is the own label. Empty for other outputs.
    """

    mode: Mode
    adata: AnnData
    cells: np.ndarray
    sources: Sources
    targets: Targets
    reference: Targets


def resolve_seed(seed: int | None) -> int:
    """The seed of the call, else that of scvi-tools, else 0: predictions are the same twice unless asked otherwise."""
    if seed is None:
        seed = settings.seed
    return 0 if seed is None else int(seed)


def work_out(
    model: CausalModel,
    perturbation: str | Sequence[str] | None,
    adata: AnnData,
    indices: Sequence[int] | None,
    dosage: float | str | Sequence | None,
    features: pd.DataFrame | None,
    options: PredictOptions,
) -> Request:
    """Work out a question about a registered AnnData; raises ``ValueError`` for what has no answer."""
    mode = read_mode(perturbation)
    if mode == "several targets":
        adata, cells, labels, dosages = _cross(model, adata, indices, list(perturbation), dosage, options.seed)
        own, own_dosages = model._own_conditions(adata, cells)
    else:
        cells = np.arange(adata.n_obs) if indices is None else check_rows(indices, adata.n_obs)
        own, own_dosages = model._own_conditions(adata, cells)
        labels = own if mode == "own label" else label_per_row(perturbation, len(cells))
        dosages = own_dosages if mode == "own label" and dosage is None else dosage_per_row(dosage, len(cells))
    model._refuse_unpredictable(labels, features)

    vocabulary = model._get_vocabulary()
    separator, controls = vocabulary.separator, vocabulary.control_categories
    keep = control_mask(own, separator, controls) | (model.can_abduct and mode != "own label")
    sources = match_sources(model, adata, cells, keep, options.seed)
    _refuse_unknown_sources(model, sources)

    if options.output != "delta":
        own, own_dosages = own[:0], None
    elif mode == "own label":  # the source is a control; what it is held against is itself
        own, own_dosages = np.full(len(cells), controls[0], dtype=object), None
    model._refuse_unpredictable(own, features)
    targets, reference = encode_targets(labels, dosages, own, own_dosages, separator, controls)
    return Request(mode, adata, cells, sources, targets, reference)


def check_rows(indices: Sequence[int], n_obs: int) -> np.ndarray:
    """Positions from positions or a mask; raises ``ValueError`` if they are outside, or none."""
    rows = np.asarray(indices)
    if rows.dtype == bool:
        if rows.shape != (n_obs,):
            raise ValueError(f"indices is a mask of {rows.size:,} cells, the data have {n_obs:,}.")
        rows = np.flatnonzero(rows)
    if not rows.size:
        raise ValueError("indices names no cell: there is nothing to predict.")
    if rows.dtype.kind not in "iu":
        raise ValueError(f"indices are {rows.dtype}: pass positions (0 .. {n_obs - 1}) or a boolean mask.")
    rows = rows.astype(np.int64).ravel()
    outside = rows[(rows < 0) | (rows >= n_obs)]
    if len(outside):
        raise ValueError(f"indices names {plural(len(outside), 'row')} outside 0 .. {n_obs - 1}: {listed(outside)}.")
    return rows


def _cross(model, adata, indices, targets: list, dosage, seed: int) -> tuple[AnnData, np.ndarray, np.ndarray, object]:
    """Every source cell under every target, target by target."""
    if not targets:
        raise ValueError("The list of targets is empty: pass at least one label.")
    if indices is None:
        adata, rows = control_pool(model, adata)
        if len(rows) > MAX_SOURCES:
            rows = np.sort(np.random.default_rng([seed, 1]).choice(rows, MAX_SOURCES, replace=False))
    else:
        rows = check_rows(indices, adata.n_obs)
    labels = np.repeat(np.asarray([str(t) for t in targets], dtype=object), len(rows))
    amounts = dosage_per_target(dosage, targets)
    return adata, np.tile(rows, len(targets)), labels, None if amounts is None else np.repeat(amounts, len(rows))


def _refuse_unknown_sources(model: CausalModel, sources: Sources) -> None:
    """Raise if a source carries tokens that the model does not know: its own condition cannot be taken away."""
    n_bad = int(np.isnan(model._dosage(sources.adata)[sources.rows].data).sum())
    if n_bad:
        raise ValueError(
            f"{plural(n_bad, 'source cell')} carry perturbations that this {type(model).__name__} does not know, so that "
            "their own condition cannot be taken away. Start from control cells (indices=), or from cells with known labels."
        )
