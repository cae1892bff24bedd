"""Do representations or predictions of cells depend on what the cells received?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._arguments import check_rows, make_cells, make_groups, make_reader, pick_targets
from ._collect import CHUNK, dense
from ._estimators import Inference, imbalance
from ._multiple import adjust_pvalues
from ._sums import Arms, ArmSums, F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


def balance_test(
    values: ArrayLike,
    treatment: ArrayLike,
    perturbations: str | Sequence[str] | None = None,
    *,
    group: ArrayLike | pd.DataFrame | None = None,
    cluster: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""Test whether values of cells have the same mean among the cells with a treatment and among all others of the group.

    .. math:: z = (\bar f_a - \bar f_{-a}) \big/ \sqrt{s_a^2 / n_a + s_{-a}^2 / n_{-a}}

    The robust estimator is biased by exactly as much as predictions under the treatment differ, in expectation, between the
    cells that received it and the rest. What should not depend on the treatment: predictions of all cells under one and the
    same treatment, and the latent state of a model that claims to have taken the perturbation out of it. A test that does not
    reject is no proof of balance.

    Parameters
    ----------
    values
        (cells, features): a latent representation, or predictions under a treatment.
    treatment
        (cells,) label of what each cell received.
    perturbations
        Treatments to test; by default all labels.
    group
        (cells,) labels of groups, or a DataFrame whose columns tell groups apart: cells are compared within them.
    cluster
        (cells,) labels of clusters of dependent cells; treatments with fewer than 3 clusters get NaN.
    names
        Names of the features; by default their positions.

    Returns
    -------
    DataFrame, one row per group, perturbation and feature: ``perturbation``, the columns of the group, ``feature``,
    ``difference`` of the means, ``z``, ``pvalue``, ``padj`` (Benjamini and Hochberg over the features of the perturbation and
    group), ``n_perturbed``, ``n_others``.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.effects import balance_test
    >>> rng = np.random.default_rng(0)
    >>> treatment = np.repeat(["control", "A"], 200)
    >>> latent = rng.normal(size=(400, 2)) + np.outer(treatment == "A", [0.0, 1.0])
    >>> (balance_test(latent, treatment, "A")["padj"] < 0.05).tolist()
    [False, True]
    """
    labels = np.asarray(treatment).astype(str).astype(object)
    rows = check_rows(None, len(labels))
    read, n_features = make_reader(values, len(labels), rows)
    targets = pick_targets(perturbations, labels, None)
    groups, code = make_groups(group, len(labels), rows)
    rng = np.random.default_rng(0)
    cells = make_cells(labels, cluster, rows, False, rng)
    inference = Inference(0.95, None if cluster is None else "jackknife", 0, rng)
    features = np.arange(n_features) if names is None else np.asarray(names, dtype=object)
    parts = []
    for g in range(len(groups)):
        members = rows[code == g]
        total = _sums(read, members, cells.cluster, cells.n_clusters, n_features)
        for target in targets:
            treated = _sums(read, members[labels[members] == target], cells.cluster, cells.n_clusters, n_features)
            others = total.minus(treated)
            z, pvalue = imbalance(Arms(treated, None, others), inference)
            empty = not (treated.n_cells and others.n_cells)
            part = {
                "perturbation": target,
                **groups.iloc[g].to_dict(),
                "feature": features,
                "difference": np.full(n_features, np.nan) if empty else treated.mean[F] - others.mean[F],
                "z": -z,  # the correction has the opposite sign
                "pvalue": pvalue,
                "padj": adjust_pvalues(pvalue),
                "n_perturbed": treated.n_cells,
                "n_others": others.n_cells,
            }
            parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _sums(read, rows: np.ndarray, cluster: np.ndarray, n_clusters: int, n_features: int) -> ArmSums:
    sums = ArmSums.empty(n_clusters, n_features)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        sums.add(cluster[part], None, dense(read(part)), None)
    return sums
