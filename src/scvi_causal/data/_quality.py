"""Which cells pass quality control: six flags, from medians and median absolute deviations (MAD)."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import stats
from scvi import settings

from scvi_causal._constants import UNS_KEY

from ._cell_metrics import METRICS, PAPER_PATTERNS, PATTERNS, cell_metrics, scrublet_doublets
from ._holdout import Screen, read_columns
from ._messages import did_you_mean, listed, plural
from ._quality_thresholds import ALL, QUALITY_FLAGS, check_thresholds, columns_of, fit_thresholds, flag_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anndata import AnnData

logger = logging.getLogger("scvi_causal.data")

_PRESETS = {
    "recommended": {"fit_on": "controls", "log_counts": True, "zero_mad": "skip"},
    "paper": {"fit_on": "all", "log_counts": False, "zero_mad": "keep"},
}
# a perturbation of as many cells, with so much more of a flag than the controls have, is named in the log
_MIN_CELLS, _LARGE_EXCESS = 20, 0.2
_CHOICES = {"fit_on": ("controls", "all"), "log_counts": (True, False), "zero_mad": ("skip", "keep")}


def annotate_quality(
    adata: AnnData,
    *,
    preset: Literal["recommended", "paper"] = "recommended",
    columns: Mapping[str, str | None] | None = None,
    batch_key: str | None = None,
    split_key: str | None = None,
    n_mads: float = 3.0,
    fit_on: Literal["controls", "all"] | None = None,
    log_counts: bool | None = None,
    zero_mad: Literal["skip", "keep"] | None = None,
    patterns: Mapping[str, str] | None = None,
    gene_symbols: str | None = None,
    doublets: bool = True,
    thresholds: pd.DataFrame | None = None,
    layer: str | None = None,
    perturbation_key: str = "perturbation",
    control_category: str | Iterable[str] = "control",
    separator: str | None = "+",
    key_added: str = "quality",
    seed: int = 0,
) -> None:
    r"""Label each cell ``"pass"`` or ``"fail"`` in ``adata.obs[key_added]``, ready for ``CRADLEVAE.setup_anndata(quality_key=...)``.

    A cell fails if one of six flags is set, with :math:`m` the median and :math:`\mathrm{MAD}` the median of :math:`|v - m|`,
    not scaled:

    ============== ==========================================================
    ``low_counts`` counts :math:`< m - k\,\mathrm{MAD}`
    ``low_genes``  genes with a count :math:`< m - k\,\mathrm{MAD}`
    ``high_mito``  mitochondrial percentage :math:`> m + k\,\mathrm{MAD}`
    ``high_ribo``  ribosomal percentage :math:`> m + k\,\mathrm{MAD}`
    ``high_hb``    haemoglobin percentage :math:`> m + k\,\mathrm{MAD}`
    ``doublet``    called by Scrublet (:func:`scanpy.pp.scrublet`), batch by batch
    ============== ==========================================================

    Each flag is written to ``obs[f"{key_added}_{flag}"]``, the thresholds with what they come from to
    ``uns[f"{key_added}_thresholds"]``, and the settings to ``uns["scvi_causal"][key_added]``. The counts stay as they are.

    Parameters
    ----------
    adata
        The screen, with raw counts.
    preset
        ``"paper"`` is as published: :math:`m` and MAD of all cells, counts and genes as they are, a MAD of 0 taken literally,
        human prefixes of gene names. The default repairs what is weak about this, by the options below.
    columns
        Metrics that are columns of ``obs`` already: ``{"counts": "library_size_full", "mito": "p_mito"}``, with the keys
        ``counts``, ``genes``, ``mito``, ``ribo``, ``hb`` and ``doublet`` (boolean). Needed where the panel of genes was cut:
        what is left says little about a whole cell. ``None`` leaves a flag out. Fractions do as well as percentages.
    batch_key
        Column of ``obs``; thresholds are fitted batch by batch, so that a shallow batch does not fail as a whole. A batch of fewer
        than 50 cells to fit on takes the thresholds of all batches together.
    split_key
        Column of ``obs`` from :func:`assign_split`; thresholds are fitted on its ``"train"`` cells only.
    n_mads
        :math:`k`. On a normal distribution 3 MADs, the default and published value, are 2.02 standard deviations: 2 % of
        perfectly good cells are beyond, for each flag. 4.45 MADs are the usual 3 standard deviations.
    fit_on
        ``"controls"`` (default) or ``"all"`` cells. A perturbation that kills or swells cells is part of all cells, and moves the
        threshold by which its own cells are judged.
    log_counts
        Fit counts and genes on the scale of log(1 + v) (default). They are skewed: on the scale of counts the threshold tends to
        be negative, and no cell can fail.
    zero_mad
        Where more than half of the cells have the same value the MAD is 0, and every cell beyond that value fails (``"keep"``);
        the default ``"skip"`` sets no threshold (NaN), so that the flag is ``False``.
    patterns
        Regular expressions (upper and lower case are the same) for the names of the genes of ``mito``, ``ribo`` and ``hb``,
        instead of the built-in ones for human and mouse symbols. A flag of which no gene has the name is left out.
    gene_symbols
        Column of ``var`` with the names of genes, where ``var_names`` are identifiers.
    doublets
        Whether to call Scrublet, which takes most of the time, and copies one batch at a time.
    thresholds
        Table from ``uns[f"{key_added}_thresholds"]`` of other cells: nothing is fitted, its thresholds are applied. For query
        data, or for cells that a model generated, which are to be judged as the observed ones were. Metrics then come from the columns
        that the thresholds were fitted on, unless ``columns`` names some.
    layer
        Layer of the counts; ``None`` is ``X``.
    perturbation_key, control_category, separator
        As for ``setup_anndata``.
    key_added
        See above.
    seed
        Of Scrublet's simulated doublets.

    Raises
    ------
    ValueError
        If a column is missing or has values that are not finite, there are no cells to fit on, or thresholds do not fit.

    Warns
    -----
    UserWarning
        If a batch has too few cells to be fitted alone, or Scrublet finds no threshold in one.

    References
    ----------
    Baek et al., *CRADLE-VAE*, AAAI 2025; Wolock et al., *Scrublet*, Cell Systems 2019.

    Examples
    --------
    >>> from scvi_causal.data import annotate_quality, simulate_screen
    >>> adata = simulate_screen(n_genes=20, n_perturbations=3, n_control=200, seed=0).adata
    >>> annotate_quality(adata, doublets=False)
    >>> list(adata.obs["quality"].cat.categories), adata.uns["quality_thresholds"]["flag"].tolist()
    (['pass', 'fail'], ['low_counts', 'low_genes'])
    """
    given = {"fit_on": fit_on, "log_counts": log_counts, "zero_mad": zero_mad}
    options = _options(preset, given, n_mads, columns, patterns)
    if columns is None and thresholds is not None:
        columns = columns_of(thresholds)
    columns = dict(columns or {})
    doublets = doublets and "doublet" not in columns
    known_doublets = columns.pop("doublet", None)
    own = dict(PATTERNS if preset == "recommended" else PAPER_PATTERNS) | dict(patterns or {})
    ignore_case = preset == "recommended" or patterns is not None
    values = cell_metrics(adata, columns, own, layer, gene_symbols, ignore_case)
    batches = _batches(adata, batch_key)
    screen = None
    if thresholds is None:
        if options["fit_on"] == "controls":
            screen = Screen.read(adata, perturbation_key, control_category, separator, None)
        fit = _cells_to_fit(adata, screen, split_key)
        thresholds = fit_thresholds(values, columns, batches, fit, options)
    else:
        thresholds = check_thresholds(thresholds, values, columns, batches)
    flags = flag_cells(values, batches, thresholds)
    if known_doublets is not None:
        flags["doublet"] = _known_doublets(adata, known_doublets)
    elif doublets:
        flags["doublet"] = _call_doublets(adata, layer, batches, seed)
    if not flags:
        raise ValueError("No flag is left to judge cells by: leave fewer of them out.")
    if screen is not None:
        _log_effects(flags, screen)
    for flag in QUALITY_FLAGS:
        if flag in flags:
            adata.obs[f"{key_added}_{flag}"] = flags[flag]
        elif f"{key_added}_{flag}" in adata.obs:  # of an earlier call with other flags
            del adata.obs[f"{key_added}_{flag}"]
    failed = np.any(list(flags.values()), axis=0)
    adata.obs[key_added] = pd.Categorical(np.where(failed, "fail", "pass"), categories=["pass", "fail"])
    adata.uns[f"{key_added}_thresholds"] = thresholds
    used = {"preset": preset, **options, "batch_key": batch_key or "none", "split_key": split_key or "none"}
    adata.uns[UNS_KEY] = {**dict(adata.uns.get(UNS_KEY, {})), key_added: used}
    logger.info(f"Quality: {plural(int(failed.sum()), 'cell')} of {adata.n_obs:,} fail ({failed.mean():.1%}).")


def describe_quality(
    adata: AnnData,
    quality_key: str = "quality",
    *,
    perturbation_key: str = "perturbation",
    control_category: str | Iterable[str] = "control",
    separator: str | None = "+",
) -> pd.DataFrame:
    """How many cells fail, perturbation by perturbation.

    A perturbation whose cells fail more often than control cells acts on what the flags look at: its "artifact" is partly its
    effect, and a model that takes the artifact out takes this part of the effect out as well.

    Parameters
    ----------
    adata
        The screen, after :func:`annotate_quality`.
    quality_key
        Column of ``obs`` with ``"pass"`` and ``"fail"``.
    perturbation_key, control_category, separator
        As for ``setup_anndata``.

    Returns
    -------
    DataFrame with one row per perturbation, the one that fails most first: ``n_cells``, ``fail`` (share of its cells), the share of
    each flag, ``difference`` (share minus that of the control cells) and ``padj`` (Fisher's exact test against the control cells,
    two-sided, adjusted by Benjamini and Hochberg; NaN for the control).

    Raises
    ------
    ValueError
        If a column is missing or holds other values.

    Examples
    --------
    >>> from scvi_causal.data import annotate_quality, describe_quality, simulate_screen
    >>> adata = simulate_screen(n_genes=20, n_perturbations=3, n_control=200, seed=0).adata
    >>> annotate_quality(adata, doublets=False)
    >>> describe_quality(adata).columns.tolist()
    ['n_cells', 'fail', 'low_counts', 'low_genes', 'difference', 'padj']
    """
    (quality,) = read_columns(adata, quality_key)
    unknown = sorted(set(quality.astype(str)) - {"pass", "fail"})
    if unknown:
        raise ValueError(f"obs[{quality_key!r}] holds {listed(unknown)} beside 'pass' and 'fail'.")
    screen = Screen.read(adata, perturbation_key, control_category, separator, None)
    columns = {"fail": (quality.astype(str) == "fail").to_numpy()}
    for flag in QUALITY_FLAGS:
        if f"{quality_key}_{flag}" in adata.obs:
            columns[flag] = adata.obs[f"{quality_key}_{flag}"].to_numpy(dtype=bool)
    groups = pd.DataFrame(columns).groupby(np.asarray(screen.labels, dtype=object)[screen.codes])
    table, failed = groups.mean(), groups["fail"].sum()
    table.insert(0, "n_cells", groups.size())
    is_control = np.array([not tokens for tokens in screen.tokens])  # labels of a screen are sorted, as groups are
    n, k = int(table.loc[is_control, "n_cells"].sum()), int(failed[is_control].sum())
    table["difference"] = table["fail"] - k / n
    pvalue = [
        stats.fisher_exact([[int(a), int(m - a)], [k, n - k]]).pvalue
        for a, m in zip(failed[~is_control], table.loc[~is_control, "n_cells"], strict=True)
    ]
    table["padj"] = np.nan
    if pvalue:
        table.loc[~is_control, "padj"] = stats.false_discovery_control(pvalue)
    return table.rename_axis(perturbation_key).sort_values("fail", ascending=False, kind="stable")


# ---------------------------------------------------------------------- arguments


def _options(preset, given: dict, n_mads, columns, patterns) -> dict:
    """The preset with what was given; all errors that need no cells."""
    if preset not in _PRESETS:
        raise ValueError(f"preset={preset!r} is not one of {listed(_PRESETS)}.")
    options = _PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}={value!r} is not one of {listed(_CHOICES[name])}.")
    if not np.isfinite(n_mads) or n_mads <= 0:
        raise ValueError(f"n_mads={n_mads!r}: expected a positive number of median absolute deviations, e.g. 3.")
    for argument, names, known in (
        ("columns", columns or {}, [*METRICS, "doublet"]),
        ("patterns", patterns or {}, list(PATTERNS)),
    ):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"{argument} names {listed(unknown)}; known are {listed(known)}.{did_you_mean(unknown[0], known)}"
            )
    return options | {"n_mads": float(n_mads)}


def _batches(adata: AnnData, batch_key: str | None) -> np.ndarray:
    if batch_key is None:
        return np.full(adata.n_obs, ALL, dtype=object)
    return read_columns(adata, batch_key)[0].astype(str).to_numpy(dtype=object)


def _cells_to_fit(adata: AnnData, screen: Screen | None, split_key: str | None) -> np.ndarray:
    """(cells,) mask."""
    what = "cell" if screen is None else "control cell"
    fit = np.ones(adata.n_obs, dtype=bool) if screen is None else screen.is_control
    if split_key is not None:
        fit = fit & (read_columns(adata, split_key)[0].astype(str) == "train").to_numpy()
        what += f" with obs[{split_key!r}] = 'train'"
    if not fit.any():
        raise ValueError(f"There is no {what} to fit thresholds on.")
    return fit


def _known_doublets(adata: AnnData, key: str) -> np.ndarray:
    (values,) = read_columns(adata, key)
    if not set(values.unique()) <= {True, False}:
        raise ValueError(f"columns['doublet']={key!r} holds {listed(values.unique())}: expected True and False.")
    return values.to_numpy(dtype=bool)


def _call_doublets(adata: AnnData, layer: str | None, batches: np.ndarray, seed: int) -> np.ndarray:
    called, silent = scrublet_doublets(adata, layer, batches, seed)
    if silent:
        warnings.warn(
            f"Scrublet found no threshold in {plural(len(silent), 'batch', 'batches')} ({listed(silent)}): no cell of these is "
            "called a doublet. Name a column with known doublets, columns={'doublet': ...}, if there is one.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return called


def _log_effects(flags: dict[str, np.ndarray], screen: Screen) -> None:
    """Say which flags look like the effect of a perturbation: far more of its cells have them than of the controls."""
    size = np.bincount(screen.codes)
    for flag, failed in flags.items():
        share = np.bincount(screen.codes, weights=failed) / size
        excess = share - failed[screen.is_control].mean()
        far = np.flatnonzero((excess > _LARGE_EXCESS) & (size >= _MIN_CELLS))
        if far.size:
            far = far[np.argsort(-excess[far])]
            logger.warning(
                f"The flag {flag!r} may be an effect rather than an artifact: {share[far[0]]:.0%} of the cells of "
                f"{screen.labels[far[0]]!r} have it, {failed[screen.is_control].mean():.0%} of the control cells. So it is for "
                f"{listed([screen.labels[i] for i in far])}. Leave it out with columns={{{QUALITY_FLAGS[flag]!r}: None}}, or "
                "see scvi_causal.data.describe_quality."
            )
