"""From the naming of GEARS, CPA, scPerturb and Replogle et al. to ours: ``obs["perturbation"]``, ``"control"``, ``"A+B"``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from ._dosages import parse_dosages
from ._labels import as_control_categories, canonical_labels, looks_like_control
from ._messages import did_you_mean, listed, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

logger = logging.getLogger("scvi_causal.data")

_CONTROL = "control"
_SCPERTURB_COLUMNS = {
    "nperts",
    "perturbation_type",
    "ncounts",
    "ngenes",
    "percent_mito",
    "tissue_type",
    "organism",
    "disease",
    "celltype",
    "dose_unit",
}
_CPA_COLUMNS = {"dose_val", "cov_drug_dose_name", "cov_drug", "cov_drug_dose", "cov_cond", "cond_harm"}


@dataclass(frozen=True)
class _Naming:
    """Where one convention keeps things; the first column that exists is taken."""

    title: str
    perturbation: tuple[str, ...]
    control: tuple[str, ...]
    separator: str | None
    dosage: tuple[str, ...] = ()
    cell_type: tuple[str, ...] = ("cell_type",)
    batch: tuple[str, ...] = ("batch",)
    symbols: tuple[str, ...] = ()
    count: str | None = None
    """Column with the number of tokens, where the separator also occurs inside names."""


_NAMINGS = {
    "gears": _Naming("GEARS", ("condition",), ("ctrl",), "+", ("dose_val",), symbols=("gene_name",)),
    "cpa": _Naming("CPA", ("condition", "cond_harm"), ("ctrl", "control"), "+", ("dose_val", "dose")),
    "scperturb": _Naming(
        "scPerturb", ("perturbation",), ("control",), "_", ("dose_value",), ("celltype", "cell_line"), count="nperts"
    ),
    "replogle": _Naming(
        "Replogle",
        ("gene", "target_gene"),
        ("non-targeting",),
        None,
        batch=("gem_group", "batch_var"),
        symbols=("gene_name",),
    ),
}


def _looks_like_gears(obs: pd.DataFrame) -> bool:
    labels = _distinct(obs, "condition")
    return "ctrl" in labels and any(label.endswith("+ctrl") or label.startswith("ctrl+") for label in labels)


def _looks_like_cpa(obs: pd.DataFrame) -> bool:
    labels = _distinct(obs, "condition")
    return bool(labels & {"ctrl", "control"}) and bool(_CPA_COLUMNS & set(obs)) and not _looks_like_gears(obs)


def _looks_like_scperturb(obs: pd.DataFrame) -> bool:
    return "control" in _distinct(obs, "perturbation") and len(_SCPERTURB_COLUMNS & set(obs)) >= 3


def _looks_like_replogle(obs: pd.DataFrame) -> bool:
    return any("non-targeting" in _distinct(obs, column) for column in ("gene", "target_gene"))


_EVIDENCE: dict[str, tuple[Callable[[pd.DataFrame], bool], str]] = {
    "gears": (_looks_like_gears, "obs['condition'] with 'ctrl' and labels such as 'A+ctrl'"),
    "cpa": (_looks_like_cpa, "obs['condition'] with 'ctrl' or 'control', beside 'dose_val' or 'cov_drug...'"),
    "scperturb": (
        _looks_like_scperturb,
        "obs['perturbation'] with 'control', beside three of 'nperts', 'ncounts', ...",
    ),
    "replogle": (_looks_like_replogle, "obs['gene'] or obs['target_gene'] with 'non-targeting'"),
}


def harmonize(
    adata: AnnData,
    source: Literal["auto", "gears", "cpa", "scperturb", "replogle"] = "auto",
    *,
    perturbation_key: str | None = None,
    control_category: str | Iterable[str] | None = None,
    separator: str | None = "auto",
    dosage_key: str | None = None,
    overwrite: bool = False,
) -> AnnData:
    """AnnData with labels, dosages, covariates and gene names as this package expects them by default.

    ============  ================================  ====================  ==============  ==========================
    ``source``    perturbation                      control               combinations    also read
    ============  ================================  ====================  ==============  ==========================
    gears         ``condition``                     ``ctrl``              ``A+B``         ``dose_val``, ``gene_name``
    cpa           ``condition`` or ``cond_harm``    ``ctrl``/``control``  ``A+B``         ``dose_val`` or ``dose``
    scperturb     ``perturbation``                  ``control``           ``A_B``         ``dose_value``, ``celltype``
    replogle      ``gene`` or ``target_gene``       ``non-targeting``     none            ``gem_group``, ``gene_name``
    ============  ================================  ====================  ==============  ==========================

    An underscore also occurs inside names, so the labels of scPerturb are split only where the column ``nperts`` confirms
    the number of tokens, or ``separator`` says so. Nothing is guessed: where the data contradict the convention, or
    several conventions fit, this raises and says what to pass.

    Parameters
    ----------
    adata
        Data in another naming. Not changed.
    source
        The convention; ``"auto"`` takes the only one that the columns fit, and logs which.
    perturbation_key, control_category, dosage_key
        Instead of the columns and the control label of the convention. With CPA, a column ``control`` of zeros and ones, if
        there is one, has to agree with the labels.
    separator
        What joins tokens, instead of the convention's; None never splits.
    overwrite
        Replace columns of ``obs`` that are there already under our names.

    Returns
    -------
    AnnData that shares ``X``, layers and all else with ``adata``, with its own ``obs`` and ``var``. In ``obs``:
    ``perturbation`` (``"control"``, tokens sorted and joined by ``+``); ``dosage`` where it is not 1 throughout, numeric or
    ``"d1+d2"`` in the order of the tokens, 0 for control; ``cell_type`` and ``batch`` where the convention has them. Where
    there is a column of gene symbols, ``var_names`` become symbols, as the labels are, and the former names are kept in
    ``var["gene_id"]``. The values of ``X`` are not touched (GEARS data hold log-normalised values, not counts).

    Raises
    ------
    ValueError
        If the convention cannot be told, columns or control cells are missing, labels are ambiguous or missing, units of
        dosages are mixed, or columns would be overwritten.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from scvi_causal.data import harmonize
    >>> obs = pd.DataFrame({"condition": ["ctrl", "KLF1+ctrl", "KLF1+BAK1"]}, index=["a", "b", "c"])
    >>> adata = harmonize(anndata.AnnData(np.ones((3, 1), np.float32), obs), source="gears")
    >>> adata.obs["perturbation"].tolist()
    ['control', 'KLF1', 'BAK1+KLF1']
    """
    if adata.isbacked:
        raise ValueError("adata is backed by a file, whose parts cannot be shared: pass adata.to_memory().")
    source = _detect(adata.obs) if source == "auto" else source
    if source not in _NAMINGS:
        raise ValueError(
            f"source={source!r} is not one of {listed(['auto', *_NAMINGS])}.{did_you_mean(source, _NAMINGS)}"
        )
    naming = _NAMINGS[source]
    key = _find(adata.obs, naming.perturbation if perturbation_key is None else (perturbation_key,), naming)
    controls = _controls(adata.obs, key, naming, control_category)
    labels, joint = _joined_labels(adata.obs, key, naming, controls, separator)
    new = {"perturbation": _our_labels(labels, joint, controls)}
    dosage = _dosages(adata.obs, labels, joint, controls, naming, dosage_key)
    if dosage is not None:
        new["dosage"] = dosage
    read = {key, dosage_key}
    existing = [name for name in new if name in adata.obs and name not in read]
    if existing and not overwrite:
        raise ValueError(
            f"obs holds {listed(existing)} already. Pass overwrite=True to replace it, or rename it first; if its labels are "
            "tokens joined by '+' and 'control', there is nothing to harmonize."
        )
    for name, columns in (("cell_type", naming.cell_type), ("batch", naming.batch)):
        found = next((column for column in columns if column in adata.obs), None)
        if found is not None and name not in adata.obs:
            new[name] = adata.obs[found].astype(str).where(adata.obs[found].notna()).to_numpy(object)
    obs = adata.obs.assign(
        **{name: values if name == "dosage" else pd.Categorical(values) for name, values in new.items()}
    )
    logger.info(
        "%s naming: obs[%r] read as the perturbation, %s as control (%s of %s cells).",
        naming.title,
        key,
        listed(controls),
        f"{int((obs['perturbation'] == _CONTROL).sum()):,}",
        f"{adata.n_obs:,}",
    )
    return _with_tables(adata, obs, _symbol_names(adata.var, naming))


# ----------------------------------------------------------------------------------------------------------- recognising
def _detect(obs: pd.DataFrame) -> str:
    fitting = [name for name, (looks_like, _) in _EVIDENCE.items() if looks_like(obs)]
    if len(fitting) == 1:
        logger.info("The columns of obs fit the naming of %s only.", _NAMINGS[fitting[0]].title)
        return fitting[0]
    if fitting:
        raise ValueError(f"the columns of obs fit {listed(fitting)}: say which by `source`.")
    ready = " obs['perturbation'] with 'control' is what this package expects already." * (
        _CONTROL in _distinct(obs, "perturbation")
    )
    expected = "; ".join(f"{name}: {evidence}" for name, (_, evidence) in _EVIDENCE.items())
    raise ValueError(
        f"no known naming fits the columns {listed(obs.columns, limit=20)}.{ready} Expected for {expected}. Pass `source`, with "
        "`perturbation_key` and `control_category` where they differ."
    )


def _distinct(obs: pd.DataFrame, column: str) -> set[str]:
    return set(obs[column].dropna().astype(str).unique()) if column in obs else set()


def _find(obs: pd.DataFrame, columns: Sequence[str], naming: _Naming) -> str:
    for column in columns:
        if column in obs:
            return column
    near = did_you_mean(columns[0], obs.columns)
    raise ValueError(
        f"obs has no column {' or '.join(map(repr, columns))} for the perturbation ({naming.title} naming), it has "
        f"{listed(obs.columns, limit=20)}.{near} Pass perturbation_key."
    )


def _controls(
    obs: pd.DataFrame, key: str, naming: _Naming, control_category: str | Iterable[str] | None
) -> tuple[str, ...]:
    labels = _distinct(obs, key)
    wanted = naming.control if control_category is None else as_control_categories(control_category)
    found = tuple(label for label in wanted if label in labels)
    if not found or (control_category is not None and len(found) < len(wanted)):
        similar = sorted(label for label in labels if looks_like_control(label))
        hint = f" These look like control: {listed(similar)}." if similar else ""
        raise ValueError(
            f"no cell of obs[{key!r}] is labelled {listed(set(wanted) - set(found))}.{hint} Pass control_category."
        )
    if (
        naming is _NAMINGS["cpa"]
        and "control" in obs
        and _distinct(obs, "control") <= {"0", "1", "0.0", "1.0", "False", "True"}
    ):
        flagged = obs["control"].astype(float).to_numpy() == 1
        differing = obs[key].astype(str).to_numpy()[flagged != obs[key].isin(found).to_numpy()]
        if len(differing):
            raise ValueError(
                f"obs['control'] and the control label {listed(found)} disagree in {plural(len(differing), 'cell')}, labelled "
                f"{listed(sorted(set(differing)))}. Pass all control labels as control_category, or drop the column 'control'."
            )
    return found


# ------------------------------------------------------------------------------------------------------- labels, dosages
def _joined_labels(
    obs: pd.DataFrame, key: str, naming: _Naming, controls: tuple[str, ...], separator: str | None
) -> tuple[pd.Series, str | None]:
    """Labels as they are written, and what joins their tokens; scPerturb's are joined anew by ``+``."""
    labels = obs[key].astype(object).map(lambda label: label.strip() if isinstance(label, str) else label)
    canonical_labels(labels, None, controls)  # raises where labels are missing
    if separator != "auto" or naming.count is None:
        return labels, naming.separator if separator == "auto" else separator
    counts = obs[naming.count] if naming.count in obs else pd.Series(np.nan, index=obs.index)
    pairs = pd.DataFrame({"label": labels, "count": pd.to_numeric(counts, errors="coerce")})
    joined: dict[tuple, str | None] = {}
    for label, count in pairs.drop_duplicates().itertuples(index=False):
        joined[label, count] = _split_if_confirmed(label, count, naming.separator, controls)
    keys = list(zip(pairs["label"], pairs["count"].fillna(-1), strict=True))
    lookup = {(label, -1 if pd.isna(count) else count): value for (label, count), value in joined.items()}
    ambiguous = [pair for pair in keys if lookup[pair] is None]
    if ambiguous:
        shown = [label if n < 0 else f"{label} ({naming.count}={n:g})" for label, n in sorted(set(ambiguous), key=str)]
        raise ValueError(
            f"the number of tokens is unclear in {plural(len(ambiguous), 'cell')}: {listed(shown)}. An underscore may join tokens "
            f"or belong to a name. Pass separator='_' to split at each, separator=None to split nowhere, or correct "
            f"obs[{naming.count!r}]."
        )
    return pd.Series([lookup[pair] for pair in keys], index=obs.index, dtype=object), "+"


def _split_if_confirmed(label: object, count: float, separator: str, controls: tuple[str, ...]) -> object:
    """The label with its tokens joined by ``+``; None where the count of tokens does not settle what they are."""
    if not isinstance(label, str) or label in controls:
        return label
    parts = label.split(separator)
    if len(parts) == 1 and "+" not in label and not count > 1:
        return label
    if pd.isna(count):
        return None
    if count == 1:
        return label
    for found in (parts, label.split("+")):
        if len(found) == count:
            return "+".join(found)
    return None


def _our_labels(labels: pd.Series, separator: str | None, controls: tuple[str, ...]) -> np.ndarray:
    written = canonical_labels(labels, separator, controls)
    tokens = {
        label: () if label == controls[0] else (label,) if separator is None else tuple(label.split(separator))
        for label in dict.fromkeys(written)
    }
    plus = sorted({token for found in tokens.values() for token in found if "+" in token})
    if plus:
        raise ValueError(
            f"{plural(len(plus), 'token')} contain a plus sign, which joins tokens here: {listed(plus)}. Rename them first, for "
            "example by obs[column].str.replace('+', 'plus')."
        )
    if any(_CONTROL in found for found in tokens.values()):
        raise ValueError(f"{_CONTROL!r} is the name of a perturbation here; pass it in control_category too.")
    ours = {label: "+".join(sorted(found)) or _CONTROL for label, found in tokens.items()}
    return np.array([ours[label] for label in written], dtype=object)


def _dosages(
    obs: pd.DataFrame,
    labels: pd.Series,
    separator: str | None,
    controls: tuple[str, ...],
    naming: _Naming,
    dosage_key: str | None,
) -> np.ndarray | None:
    """Dosages in the order of the sorted tokens; None where all are 1 or none are given."""
    if dosage_key is not None and dosage_key not in obs:
        raise ValueError(f"obs has no column {dosage_key!r} for the dosage.{did_you_mean(dosage_key, obs.columns)}")
    columns = naming.dosage if dosage_key is None else (dosage_key,)
    key = next((column for column in columns if column in obs), None)
    if key is None or obs[key].isna().all():
        return None
    perturbed = ~labels.isin(controls)
    units = sorted(_distinct(obs[perturbed.to_numpy()], "dose_unit")) if key == "dose_value" else []
    if len(units) > 1:
        raise ValueError(
            f"dosages are in {listed(units)} (obs['dose_unit']): convert obs['dose_value'] to one unit first."
        )
    values = obs[key].astype(object).where(obs[key].notna(), np.nan)
    parsed = parse_dosages(labels, values, separator, controls)
    if all(dosage == 1 for found in parsed for dosage in found):
        return None
    if all(len(found) <= 1 for found in parsed):
        return np.array([found[0] if found else 0.0 for found in parsed])
    return np.array(["+".join(f"{dosage:g}" for dosage in found) or "0" for found in parsed], dtype=object)


# --------------------------------------------------------------------------------------------------------------- tables
def _symbol_names(var: pd.DataFrame, naming: _Naming) -> pd.DataFrame:
    """``var`` under gene symbols; genes that share one, or have none, keep their name."""
    column = next((name for name in naming.symbols if name in var), None)
    if column is None or list(var[column].astype(str)) == list(var.index):
        return var.copy()
    symbols = var[column].astype(object).to_numpy()
    usable = ~(var[column].duplicated(keep=False) | var[column].isna() | (var[column].astype(str) == "")).to_numpy()
    names = np.where(usable, symbols, var.index.to_numpy(object)).astype(str)
    if not usable.all():
        logger.warning(
            "%s keep their former name, since their symbol in var[%r] is missing or not theirs alone: %s.",
            plural(int((~usable).sum()), "gene"),
            column,
            listed(dict.fromkeys(var.index[~usable])),
        )
    renamed = var if "gene_id" in var else var.assign(gene_id=var.index.to_numpy())
    return renamed.set_axis(pd.Index(names), axis=0)


def _with_tables(adata: AnnData, obs: pd.DataFrame, var: pd.DataFrame) -> AnnData:
    shared = {name: dict(getattr(adata, name)) for name in ("uns", "layers", "obsm", "varm", "obsp", "varp")}
    result = AnnData(adata.X, obs, var, **shared)
    if adata.raw is not None:
        result.raw = adata.raw.to_adata()
    return result
