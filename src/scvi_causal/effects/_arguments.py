"""What callers pass, checked and put into the one form that the rest works with."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
from scipy import sparse
from scvi import settings

from scvi_causal.data._messages import did_you_mean, listed, plural

from ._collect import Cells
from ._influence import Method
from ._variance import FEW_CLUSTERS, FEWEST_CLUSTERS, ClusterVariance

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ._collect import Predictor, Reader

_COLUMNS = frozenset(
    "perturbation contrast dosage gene method mean mean_contrast estimate se ci_low ci_high band_low band_high statistic pvalue "
    "padj n_cells n_perturbed n_contrast n_clusters balance_z flag feature difference z n_others".split()
)
_RANDOM_SETS = 200  # of cells whose influence values are summed before the bootstrap


def check_options(method, level, cluster_variance, predicted) -> None:
    for name in [method] if isinstance(method, str) else method:
        if name not in get_args(Method):
            raise ValueError(
                f"method={name!r} is not one of {listed(get_args(Method))}.{did_you_mean(str(name), get_args(Method))}"
            )
        if name != "group" and predicted is None:
            raise ValueError(f"method={name!r} needs predictions (predicted=); 'group' needs none.")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1, such as 0.95.")
    if cluster_variance not in get_args(ClusterVariance):
        raise ValueError(f"cluster_variance={cluster_variance!r} is not one of {listed(get_args(ClusterVariance))}.")


def check_rows(rows: ArrayLike | None, n_cells: int) -> np.ndarray:
    rows = np.arange(n_cells) if rows is None else np.asarray(rows)
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    if not len(rows):
        raise ValueError("There is no cell to estimate from.")
    if len(np.unique(rows)) < len(rows):
        raise ValueError("rows names cells twice: a cell counts once.")
    return rows


def make_reader(y, n_cells: int, rows: np.ndarray) -> tuple[Reader, int]:
    if callable(y):
        return y, y(rows[:1]).shape[1]
    y = y.tocsr() if sparse.issparse(y) else np.asarray(y)
    if y.ndim != 2 or y.shape[0] != n_cells:
        raise ValueError(f"y has the shape {y.shape}, and treatment names {plural(n_cells, 'cell')}.")
    n_bad = int((~np.isfinite(y.data if sparse.issparse(y) else y)).sum())
    if n_bad:
        raise ValueError(f"y holds {n_bad} NaN or infinite values.")
    return lambda some: y[some], y.shape[1]


def make_predictor(predicted) -> Predictor | None:
    if predicted is None or callable(predicted):
        return predicted
    known = {str(name): x for name, x in predicted.items()}

    def predict(rows: np.ndarray, treatments: list[str]):
        for name in treatments:
            if name not in known:
                raise ValueError(
                    f"predicted has nothing for {name!r}; it has {listed(known)}.{did_you_mean(name, known)} Give "
                    "the predictions of all cells under every perturbation and under the contrast."
                )
            yield known[name][rows]

    return predict


def pick_targets(perturbations, labels: np.ndarray, contrast: str | None) -> list[str]:
    if perturbations is None:
        found = [label for label in np.unique(labels) if label != contrast]
        if not found:
            raise ValueError(
                f"All {plural(len(labels), 'cell')} received {contrast!r}: there is no effect to estimate."
            )
        return found
    asked = [perturbations] if isinstance(perturbations, str) else [str(p) for p in perturbations]
    if not asked:
        raise ValueError("perturbations is empty: pass at least one label.")
    return list(dict.fromkeys(asked))


def make_groups(group, n_cells: int, rows: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Groups with one row each, and the group of each of the rows."""
    if group is None:
        return pd.DataFrame(index=[0]), np.zeros(len(rows), dtype=np.int64)
    frame = (
        group.reset_index(drop=True) if isinstance(group, pd.DataFrame) else pd.DataFrame({"group": np.asarray(group)})
    )
    if len(frame) != n_cells:
        raise ValueError(f"group has {len(frame):,} rows, and treatment names {plural(n_cells, 'cell')}.")
    if not frame.shape[1]:
        return make_groups(None, n_cells, rows)
    frame = frame.iloc[rows]
    missing = int(frame.isna().any(axis=1).sum())
    if missing:
        raise ValueError(
            f"{plural(missing, 'cell')} have no group (NaN). Leave them out (rows=), or give them a label."
        )
    taken = [name for name in frame.columns if name in _COLUMNS]
    if taken:
        raise ValueError(f"group has columns {listed(taken)}, names that the result needs for its own: rename them.")
    by = frame.astype(str).groupby(list(frame.columns), sort=True, observed=True)
    code = by.ngroup().to_numpy()
    _, first = np.unique(code, return_index=True)
    return frame.iloc[first].reset_index(drop=True), code


def make_cells(labels, cluster, rows, simultaneous: bool, rng) -> Cells:
    """Codes of treatments and clusters; for bands over independent cells, of random sets within each treatment."""
    n_cells = len(labels)
    treatment, found = pd.factorize(labels)
    names = {str(name): i for i, name in enumerate(found)}
    code = np.zeros(n_cells, dtype=np.int64)
    if cluster is None:
        if not simultaneous:
            return Cells(treatment, names, code, 1)
        shuffled = rng.permutation(rows)
        ordered = shuffled[np.argsort(treatment[shuffled], kind="stable")]
        code[ordered] = np.arange(len(ordered)) % _RANDOM_SETS
        return Cells(treatment, names, code, _RANDOM_SETS)
    cluster = pd.Series(np.asarray(cluster))
    if len(cluster) != n_cells:
        raise ValueError(f"cluster has {len(cluster):,} values, and treatment names {plural(n_cells, 'cell')}.")
    code[rows], found = pd.factorize(cluster.iloc[rows])
    missing = int((code[rows] < 0).sum())
    if missing:
        raise ValueError(
            f"{plural(missing, 'cell')} have no cluster (NaN). Leave them out (rows=), or give them a label."
        )
    return Cells(treatment, names, code, len(found))


def judge_clusters(found: np.ndarray) -> None:
    """Refuse where nothing has enough clusters, warn where few have."""
    if (found < FEWEST_CLUSTERS).all():
        raise ValueError(
            f"No perturbation has cells of {FEWEST_CLUSTERS} clusters in both arms (at most {int(found.max())}): from so few "
            "nobody can tell how much clusters differ. Use clusters of which there are more, or none (cells as independent)."
        )
    none, few = int((found < FEWEST_CLUSTERS).sum()), int(((found >= FEWEST_CLUSTERS) & (found < FEW_CLUSTERS)).sum())
    if none or few:
        warnings.warn(
            f"Of {plural(len(found), 'population')} (perturbation in a group), {few} have only {FEWEST_CLUSTERS} or "
            f"{FEW_CLUSTERS - 1} clusters in an arm, so that intervals are wide and rest on these; {none} have fewer and get "
            "no interval.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
