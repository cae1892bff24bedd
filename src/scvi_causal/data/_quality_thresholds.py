"""Thresholds of quality control: fitted batch by batch, applied to cells, handed on to other cells."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scvi import settings

from ._messages import listed, plural

QUALITY_FLAGS = {
    "low_counts": "counts",
    "low_genes": "genes",
    "high_mito": "mito",
    "high_ribo": "ribo",
    "high_hb": "hb",
    "doublet": "doublet",
}
"""Flag to the metric that it looks at."""
ALL = "all"
"""The batch where there are none."""
# the standard error of a MAD of this many normal values is 16 %
_MIN_CELLS = 50
_COLUMNS = ["batch", "flag", "metric", "source", "n_cells", "median", "mad", "threshold"]
_COUNTED = ""


@dataclass(frozen=True)
class Rule:
    """From values to a threshold."""

    low: bool
    log: bool

    @classmethod
    def of(cls, metric: str, log_counts: bool) -> Rule:
        return cls(low=metric in ("counts", "genes"), log=log_counts and metric in ("counts", "genes"))

    def fit(self, values: np.ndarray, n_mads: float, skip_zero: bool) -> tuple[float, float, float]:
        """Median, MAD (both on the scale of the fit) and threshold (on the scale of the values)."""
        values = np.log1p(values) if self.log else values
        median = float(np.median(values))
        mad = float(np.median(np.abs(values - median)))
        if mad == 0 and skip_zero:
            return median, mad, float("nan")
        threshold = median - n_mads * mad if self.low else median + n_mads * mad
        return median, mad, float(np.expm1(threshold)) if self.log else threshold


def fit_thresholds(
    values: dict[str, np.ndarray], columns: dict[str, str | None], batches: np.ndarray, fit: np.ndarray, options: dict
) -> pd.DataFrame:
    """One row per batch and flag; ``source`` is the column of obs that the metric came from, empty for the counts."""
    rows, names = [], sorted(set(batches))
    few = [name for name in names if (fit & (batches == name)).sum() < _MIN_CELLS] if len(names) > 1 else []
    if few:
        warnings.warn(
            f"{plural(len(few), 'batch', 'batches')} of {len(names)} have fewer than {_MIN_CELLS} cells to fit on and take the "
            f"thresholds of all batches together: {listed(few)}.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    for name in names:
        cells = fit if name in few else fit & (batches == name)
        for flag, metric in QUALITY_FLAGS.items():
            if metric in values:
                rule = Rule.of(metric, options["log_counts"])
                found = rule.fit(values[metric][cells], options["n_mads"], options["zero_mad"] == "skip")
                rows.append((name, flag, metric, columns.get(metric, _COUNTED), int(cells.sum()), *found))
    return pd.DataFrame(rows, columns=_COLUMNS)


def columns_of(table: pd.DataFrame) -> dict[str, str | None]:
    """Columns of obs that the metrics of a table came from; ``None`` for metrics that it has not."""
    if not {"metric", "source"} <= set(table):
        return {}
    found = dict(zip(table["metric"].astype(str), table["source"].astype(str), strict=True))
    named = {metric: source for metric, source in found.items() if source != _COUNTED}
    return named | {metric: None for metric in QUALITY_FLAGS.values() if metric not in found and metric != "doublet"}


def check_thresholds(
    table: pd.DataFrame, values: dict, columns: dict[str, str | None], batches: np.ndarray
) -> pd.DataFrame:
    """A table from other cells, for the flags and batches there are, and for metrics that mean the same."""
    missing = [c for c in ("batch", "flag", "threshold") if c not in table]
    if missing:
        raise ValueError(f"thresholds lacks the columns {listed(missing)}: take it from uns['quality_thresholds'].")
    if {"metric", "source"} <= set(table):
        of_table = dict(zip(table["metric"].astype(str), table["source"].astype(str), strict=True))
        for metric in [m for m in of_table if m in values]:
            given = columns.get(metric) or _COUNTED
            if given != of_table[metric]:
                before, now = (f"obs[{name!r}]" if name else "the counts" for name in (of_table[metric], given))
                raise ValueError(
                    f"The thresholds of {metric!r} were fitted on {before}, and here it is read from {now}, which is another scale. Leave columns "
                    "out, and those of the thresholds are taken, or name them alike."
                )
    known = set(table["batch"].astype(str))
    unknown = [] if known == {ALL} else sorted(set(batches) - known)
    if unknown:
        raise ValueError(
            f"thresholds were fitted for the batches {listed(sorted(known))}, these cells come from {listed(unknown)}: pass the "
            "same batch_key, or thresholds that were fitted without one."
        )
    asked = set(table["flag"]) - {"doublet"}
    absent = sorted(QUALITY_FLAGS.get(flag, flag) for flag in asked if QUALITY_FLAGS.get(flag) not in values)
    if absent:
        raise ValueError(
            f"thresholds are for {listed(absent)} too, which these cells do not have: name them in columns."
        )
    return table


def flag_cells(values: dict[str, np.ndarray], batches: np.ndarray, thresholds: pd.DataFrame) -> dict[str, np.ndarray]:
    """(cells,) booleans by flag; nothing is below or above NaN."""
    flags = {}
    for flag, rows in thresholds.groupby("flag", sort=False, observed=True):
        cuts = pd.Series(rows["threshold"].to_numpy(dtype=float), index=rows["batch"].astype(str))
        cut = cuts.iloc[0] if list(cuts.index) == [ALL] else cuts.reindex(batches).to_numpy()
        metric = QUALITY_FLAGS[flag]
        flags[flag] = values[metric] < cut if Rule.of(metric, False).low else values[metric] > cut
    return flags
