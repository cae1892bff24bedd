"""The scorer of the Virtual Cell Challenge, cell-eval2, on predicted and observed counts."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

CONTROL = "non-targeting"
"""The control label of the challenge."""
_COLUMN = "target"


def cell_eval(
    predicted: AnnData,
    observed: AnnData,
    *,
    perturbation_key: str = "perturbation",
    control_category: str = "control",
    layer: str | None = None,
    preset: str = "vcc2026",
    anchors: bool = True,
    n_splits: int = 2,
    seed: int = 0,
    target_genes: Mapping[str, str | None] | None = None,
    n_threads: int = 1,
    **options: Any,
) -> pd.DataFrame:
    r"""Score predicted counts with cell-eval2, as the Virtual Cell Challenge 2026 does.

    Takes what :meth:`~scvi_causal.model.base.CausalModel.predict_counterfactual` returns for a list of perturbations with
    ``output="counts", sample=True``, or the same of any other model. The numbers are cell-eval2's own; with ``anchors`` each of
    the scored ones is put on the scale of the challenge,

    .. math:: s = (u - b) / (r - b)

    where ``b`` is the mean response of the *observed* perturbations (its generic baseline, which sees the test cells and is
    therefore stronger than a mean of training perturbations) and ``r`` a replicate: one half of the observed cells as a
    prediction of the other. Not clipped; 0 is that baseline, 1 is the replicate, and values outside are possible.

    Parameters
    ----------
    predicted
        Predicted cells: integer counts in ``X``, their target in ``obs[perturbation_key]``. Control cells among them are left
        out: cells are compared with the observed controls.
    observed
        Observed cells of the predicted perturbations and of the controls that effects are measured against: integer counts,
        the same genes in the same order. Perturbations that were not predicted are left out. Give controls that no model saw.
    perturbation_key
        Column of ``obs`` in both.
    control_category
        The label of the control cells in ``observed``.
    layer
        Layer of ``observed`` with the counts; ``None`` takes ``X``.
    preset
        Of ``cell_eval2.EvalConfig``.
    anchors
        Whether to compute baseline and replicate, which takes several times as long as the scores.
    n_splits
        Random halves that the replicate is averaged over.
    seed
        Of the baseline's cells and of these halves.
    target_genes
        Gene of each label, to be left out of what its prediction is judged by; ``None`` as a value says that it has none. A label
        that is a gene is its own target without being named here; one gene per label is all that cell-eval2 takes.
    n_threads
        Threads of cell-eval2.
    **options
        Further fields of ``cell_eval2.EvalConfig``.

    Returns
    -------
    DataFrame with one row per metric and the columns ``value``, ``baseline``, ``replicate`` and ``score`` (NaN for the metrics
    that the challenge only shows, and without ``anchors``). ``attrs`` holds the library with its version, the preset, and the
    numbers of cells, genes and perturbations that entered.

    Raises
    ------
    ImportError
        If cell-eval2 is not installed.
    ValueError
        If a label, a gene or the control is missing, or counts are not whole numbers.

    Warns
    -----
    UserWarning
        If an anchor cannot be computed, as where no perturbation has significant genes; its column is NaN then.

    References
    ----------
    Arc Institute, ``cell-eval2`` (MIT), preset ``vcc2026``.

    Examples
    --------
    >>> from scvi_causal.metrics import cell_eval
    >>> predicted = model.predict_counterfactual(["IFNB"], output="counts", sample=True)  # doctest: +SKIP
    >>> cell_eval(predicted, adata)["score"]  # doctest: +SKIP
    """
    library = _import()
    pair = _pair(predicted, observed, perturbation_key, control_category, layer)
    labels = sorted(set(pair["predicted"].obs[_COLUMN]) - {CONTROL})
    config = replace(
        library.EvalConfig.from_preset(preset),
        **{
            "pert_col": _COLUMN,
            "control": CONTROL,
            "num_threads": n_threads,
            "gather_threads": n_threads,
            "target_gene_map": _target_map(labels, pair["observed"].var_names, target_genes),
            **options,
        },
    )
    means = lambda frame: dict(zip(frame["metric"], frame["mean"], strict=True))
    values = means(
        library.aggregate_metrics(library.compute_metrics(pair["predicted"], pair["observed"], config=config))
    )
    table = pd.DataFrame({"value": pd.Series(values, dtype=float)}).rename_axis("metric").sort_index()
    table["baseline"], table["replicate"], table["score"] = np.nan, np.nan, np.nan
    if anchors:
        for column, anchor in _anchors(library, pair["observed"], config, n_splits, seed, means).items():
            table[column] = pd.Series(anchor, dtype=float).reindex(table.index)
        _add_scores(table)
    n_cells = {f"n_{side}": int((cells.obs[_COLUMN] != CONTROL).sum()) for side, cells in pair.items()}
    table.attrs = {
        "library": f"cell-eval2 {version('cell-eval2')}",
        "preset": preset,
        **n_cells,
        "n_controls": int((pair["observed"].obs[_COLUMN] == CONTROL).sum()),
        "n_perturbations": len(labels),
        "n_genes": observed.n_vars,
    }
    return table


def _import():
    try:
        import cell_eval2
    except ImportError as error:
        raise ImportError('This needs cell-eval2: pip install "scvi-causal[cell-eval]"') from error
    return cell_eval2


def _add_scores(table: pd.DataFrame) -> None:
    """Put the members of the challenge on the scale from baseline to replicate."""
    from cell_eval2.competition import competition_members

    span = table["replicate"] - table["baseline"]
    score = (table["value"] - table["baseline"]) / span.where(span.abs() > 1e-9)
    table["score"] = score.where(table.index.isin(competition_members()))


def _anchors(library, observed: AnnData, config, n_splits: int, seed: int, means) -> dict[str, dict[str, float]]:
    """Baseline and replicate by metric; empty, with a warning, where the data do not define one."""
    from cell_eval2.anchor import compute_replicate_anchor

    def baseline():
        # degenerate where no gene is significant: its other numbers still stand
        built = library.build_generic_baseline(observed, config=config, seed=seed, allow_degenerate=True)
        return means(library.aggregate_metrics(built.results))

    def replicate():
        _, anchor = compute_replicate_anchor(observed, config=config, base_seed=seed, n_splits=n_splits)
        return dict(zip(anchor["metric"], anchor["replicate"], strict=True))

    found = {}
    for name, compute in {"baseline": baseline, "replicate": replicate}.items():
        try:
            found[name] = compute()
        except ValueError as error:
            warnings.warn(
                f"cell-eval2 cannot compute its {name} on these data, so there are no scores relative to it: {error}",
                UserWarning,
                stacklevel=3,
            )
    return found


def _target_map(labels: list[str], genes: pd.Index, given: Mapping[str, str | None] | None) -> dict | None:
    """What cell-eval2 is told of target genes: nothing where it finds them by name."""
    given = dict(given or {})
    if not given and not set(labels) & set(genes):
        return {"*": None}  # it refuses a screen of which no label is a gene, unless that is said
    return given or None


def _pair(predicted, observed, key: str, control: str, layer: str | None) -> dict[str, AnnData]:
    """Both sides as cell-eval2 wants them: the same labels, counts in X, and the observed controls on either side."""
    import anndata as ad

    from scvi_causal.data._messages import listed, plural

    labels = {"predicted": _labels(predicted, key, "predicted"), "observed": _labels(observed, key, "observed")}
    if not predicted.var_names.equals(observed.var_names):
        raise ValueError(
            f"predicted ({plural(predicted.n_vars, 'gene')}) and observed ({plural(observed.n_vars, 'gene')}) need the same genes in "
            "the same order: predicted = predicted[:, observed.var_names]."
        )
    targets = sorted(set(labels["predicted"]) - {control})
    _check_labels(targets, set(labels["observed"]), control)
    kept = {side: np.isin(labels[side], targets) for side in labels}
    is_control = labels["observed"] == control
    sources = {"predicted": predicted.X, "observed": observed.X if layer is None else observed.layers[layer]}
    counts = {side: _counts(x[np.flatnonzero(kept[side])], side) for side, x in sources.items()}
    controls = _counts(sources["observed"][np.flatnonzero(is_control)], "observed controls")
    pair = {}
    for side, x in counts.items():
        names = np.concatenate([labels[side][kept[side]], np.full(controls.shape[0], CONTROL)])
        obs = pd.DataFrame({_COLUMN: names}, index=[f"cell_{i}" for i in range(len(names))])
        pair[side] = ad.AnnData(sp.vstack([x, controls], "csr"), obs, pd.DataFrame(index=observed.var_names))
    if any(x.shape[0] == 0 for x in counts.values()):
        raise ValueError(f"There is nothing to score: the predicted labels are {listed(set(labels['predicted']))}.")
    return pair


def _labels(adata: AnnData, key: str, side: str) -> np.ndarray:
    if key not in adata.obs:
        from scvi_causal.data._messages import did_you_mean

        raise ValueError(f"{side}.obs has no column {key!r}.{did_you_mean(key, adata.obs.columns)}")
    return adata.obs[key].astype(str).to_numpy(dtype=object)


def _check_labels(targets: list[str], known: set[str], control: str) -> None:
    from scvi_causal.data._messages import did_you_mean, listed, plural

    if control not in known:
        raise ValueError(
            f"observed holds no cell labelled {control!r} (control_category).{did_you_mean(control, known)} "
            "Effects are measured against observed control cells."
        )
    if control != CONTROL and CONTROL in known:
        raise ValueError(
            f"observed holds cells labelled {CONTROL!r}, cell-eval2's name for controls, beside {control!r}. "
            f"Rename them, or set control_category={CONTROL!r}."
        )
    missing = [label for label in targets if label not in known]
    if missing:
        raise ValueError(
            f"{plural(len(missing), 'predicted perturbation')} of {len(targets)} {'has' if len(missing) == 1 else 'have'} no observed "
            f"cells to be scored against: {listed(missing)}.{did_you_mean(missing[0], known)}"
        )


def _counts(x, side: str) -> sp.csr_matrix:
    """A copy in float32 CSR; refuses what are no counts."""
    x = sp.csr_matrix(x, dtype=np.float32)
    bad = int(((x.data < 0) | (x.data != np.round(x.data))).sum())
    if bad:
        raise ValueError(
            f"{side}: {bad:,} of {x.nnz:,} values that are not zero are no counts (negative or not whole), and cell-eval2 takes raw "
            'counts. Predict with output="counts", sample=True; give the layer of observed counts with layer=.'
        )
    return x
