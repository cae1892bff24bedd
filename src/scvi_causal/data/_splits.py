"""Which cells a model is trained on, and which it has never seen: honest splits of a screen."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scvi import settings

from ._holdout import Choice, Screen, hold_out_combinations, hold_out_pairs, hold_out_tokens, read_columns
from ._messages import listed, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

    from ._holdout import Unit

_MODES = ("cell", "perturbation", "combination", "covariate")
_VALUES = ["train", "valid", "test"]
_HOLD_OUT = {"perturbation": hold_out_tokens, "combination": hold_out_combinations, "covariate": hold_out_pairs}


def assign_split(
    adata: AnnData,
    by: Literal["cell", "perturbation", "combination", "covariate"] = "perturbation",
    *,
    key_added: str = "split",
    perturbation_key: str = "perturbation",
    control_category: str | Iterable[str] = "control",
    separator: str | None = "+",
    test_size: float = 0.2,
    valid_size: float = 0.1,
    valid_by: Literal["cell", "same"] = "cell",
    fold: int | None = None,
    n_folds: int = 5,
    covariate_key: str | None = None,
    holdout: Unit | Sequence[Unit] | None = None,
    combo_seen: int | None = None,
    stratify_by: str | Sequence[str] | None = None,
    seed: int = 0,
) -> None:
    """Write ``"train"``, ``"valid"`` or ``"test"`` for each cell into ``adata.obs[key_added]``.

    What is held out (``"test"``) depends on ``by``:

    ``"cell"``
        cells of every perturbation: all perturbations are seen.
    ``"perturbation"``
        whole tokens, in combinations too: a cell that carries a held-out token is a test cell, so the token is unseen.
    ``"combination"``
        combinations, of whose tokens ``combo_seen`` are seen. Where tokens have to be unseen for that, all cells that
        carry them are test cells; :func:`describe_split` tells these from the combinations asked for.
    ``"covariate"``
        pairs of a perturbation and a value of ``covariate_key`` (a cell type, say). The perturbation is seen elsewhere, and
        the control cells of that value are seen.

    Control cells are always split by cell, in all three parts: predictions start from the controls of the training part
    and are judged against those of the test part.

    Parameters
    ----------
    adata
        The screen.
    by
        See above.
    key_added
        Column of ``adata.obs`` to write; pass it to ``train(split_key=...)``.
    perturbation_key, control_category, separator
        As for ``setup_anndata``.
    test_size
        Share that is held out: of the cells, tokens, combinations or pairs. Also the share of the control cells. Not used
        for what ``holdout`` names.
    valid_size
        Share for validation: of the cells, those held out for the test aside; with ``valid_by="same"``, of the tokens,
        combinations or pairs that the test leaves.
    valid_by
        ``"cell"`` validates on cells of what is trained on, so that no perturbation is lost; ``"same"`` holds out
        tokens, combinations or pairs for validation as it does for the test, for choosing a model by its performance on
        unseen ones.
    fold, n_folds
        With ``fold`` (0 to ``n_folds - 1``), the test part is one of ``n_folds`` disjoint parts instead of a random
        ``test_size``. Use the same seed for all folds.
    covariate_key
        Column of ``adata.obs``, for ``by="covariate"``.
    holdout
        What exactly to hold out, instead of a random choice: tokens (``by="perturbation"``), combinations
        (``"combination"``), or values or (perturbation, value) pairs of the covariate (``"covariate"``).
    combo_seen
        Number of seen tokens in a held-out combination; all of them by default.
    stratify_by
        Columns of ``adata.obs`` whose values (beside the perturbation) each keep their share when cells are drawn.
    seed
        Seed of the generator.

    Raises
    ------
    ValueError
        If columns, control cells or what ``holdout`` names are missing, if there is too little to split, or if training
        would be left without control or without perturbed cells.

    Examples
    --------
    >>> from scvi_causal.data import assign_split, describe_split, simulate_screen
    >>> adata = simulate_screen(n_perturbations=10, n_cells_per_perturbation=20, n_control=50, seed=0).adata
    >>> assign_split(adata, by="perturbation", fold=0)
    >>> int(describe_split(adata)["seen"].sum())  # control and 8 of 10 perturbations
    9
    """
    _check_arguments(by, test_size, valid_size, valid_by, fold, n_folds, covariate_key, holdout, combo_seen)
    screen = Screen.read(adata, perturbation_key, control_category, separator, covariate_key)
    keys = [stratify_by] if isinstance(stratify_by, str) else list(stratify_by or [])
    keys += [] if covariate_key is None else [covariate_key]
    groups = pd.MultiIndex.from_arrays([screen.codes, *read_columns(adata, keys)]).factorize()[0]
    if isinstance(holdout, str) or (by == "covariate" and isinstance(holdout, tuple)):
        holdout = [holdout]
    # separate streams: the folds of the control cells must not depend on how many numbers the other choices took
    units_rng, valid_rng, cells_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    share = test_size if fold is None else 1 / n_folds

    test = valid = np.zeros(adata.n_obs, dtype=bool)
    if by != "cell":
        hold_out = _HOLD_OUT[by]
        test = hold_out(Choice(screen, share, fold, n_folds, holdout, combo_seen, units_rng))
        if valid_by == "same" and valid_size > 0:
            valid = hold_out(Choice(screen, valid_size, None, n_folds, None, combo_seen, valid_rng, taken=test)) & ~test
    split = np.where(test, "test", np.where(valid, "valid", "train")).astype(object)

    drawn = np.ones(adata.n_obs, dtype=bool) if by == "cell" else screen.is_control
    _draw_cells(split, drawn, groups, share, valid_size, 0.0 if fold is None else fold / n_folds, cells_rng)
    if by != "cell" and valid_by == "cell":
        _draw_cells(split, ~drawn & ~test, groups, 0.0, valid_size, 0.0, cells_rng)
    _fill_control_parts(split, screen.is_control, _VALUES if valid_size > 0 else ["train", "test"])
    _check_result(split, screen, by)
    adata.obs[key_added] = pd.Categorical(split, categories=_VALUES)


def describe_split(
    adata: AnnData,
    split_key: str = "split",
    *,
    perturbation_key: str = "perturbation",
    control_category: str | Iterable[str] = "control",
    separator: str | None = "+",
    covariate_key: str | None = None,
) -> pd.DataFrame:
    """What a split holds, perturbation by perturbation.

    Parameters
    ----------
    adata
        The screen, with a split from :func:`assign_split`.
    split_key
        Column of ``adata.obs`` with the split.
    perturbation_key, control_category, separator
        As for ``setup_anndata``.
    covariate_key
        Column of ``adata.obs``; if given, one row per perturbation and value.

    Returns
    -------
    DataFrame, one row per perturbation: cells in ``train``, ``valid`` and ``test``, ``n_tokens``, ``n_tokens_seen`` (tokens
    that some training cell carries) and ``seen`` (has training cells).

    Raises
    ------
    ValueError
        If a column is missing or the split holds other values.

    Examples
    --------
    >>> from scvi_causal.data import assign_split, describe_split, simulate_screen
    >>> adata = simulate_screen(n_perturbations=4, n_combinations=3, n_cells_per_perturbation=10, seed=0).adata
    >>> assign_split(adata, by="combination")
    >>> table = describe_split(adata)
    >>> table.loc[(table["n_tokens"] == 2) & ~table["seen"], "n_tokens_seen"].tolist()
    [2]
    """
    (split,) = read_columns(adata, split_key)
    split = np.asarray(split, dtype=object)
    unknown = sorted(set(split) - set(_VALUES), key=str)
    if unknown:
        raise ValueError(f"obs[{split_key!r}] holds {listed(unknown)} beside {listed(_VALUES)}.")
    screen = Screen.read(adata, perturbation_key, control_category, separator, covariate_key)
    trained = {token for code in set(screen.codes[split == "train"]) for token in screen.tokens[code]}
    labels = np.asarray(screen.labels, dtype=object)[screen.codes]
    index = [labels] if covariate_key is None else [labels, screen.levels]
    names = [perturbation_key] if covariate_key is None else [perturbation_key, covariate_key]
    table = pd.crosstab(index, split, rownames=names).reindex(columns=_VALUES, fill_value=0).rename_axis(columns=None)
    by_label = dict(zip(screen.labels, screen.tokens, strict=True))
    tokens = [by_label[label] for label in table.index.get_level_values(0)]
    table["n_tokens"] = [len(t) for t in tokens]
    table["n_tokens_seen"] = [sum(token in trained for token in t) for t in tokens]
    table["seen"] = table["train"] > 0
    return table


def _check_arguments(by, test_size, valid_size, valid_by, fold, n_folds, covariate_key, holdout, combo_seen) -> None:
    if by not in _MODES:
        raise ValueError(f"by={by!r} is not one of {listed(_MODES)}.")
    if valid_by not in ("cell", "same"):
        raise ValueError(f"valid_by={valid_by!r} is not one of 'cell', 'same'.")
    share = test_size if fold is None else 1 / max(n_folds, 1)
    if not (0 <= valid_size < 1 and 0 < share < 1 and share + valid_size < 1):
        raise ValueError(
            f"the shares of test ({share:g}) and valid ({valid_size:g}) must leave something to train on: test above 0, their "
            "sum below 1."
        )
    if fold is not None and not 0 <= fold < n_folds:
        raise ValueError(f"fold={fold} does not lie between 0 and n_folds - 1 = {n_folds - 1}.")
    if fold is not None and holdout is not None:
        raise ValueError("fold and holdout exclude each other: either says what is held out.")
    if by == "cell" and holdout is not None:
        raise ValueError(
            "by='cell' draws cells and takes no holdout: choose by='perturbation', 'combination' or 'covariate'."
        )
    if (by == "covariate") != (covariate_key is not None):
        raise ValueError(
            f"covariate_key belongs to by='covariate' and is needed there; got by={by!r}, {covariate_key=}."
        )
    if combo_seen is not None and (by != "combination" or fold is not None or holdout is not None or combo_seen < 0):
        raise ValueError(
            f"combo_seen={combo_seen} is a number of tokens (0, 1, ...) for a random choice with by='combination'; it goes "
            "neither with fold nor with holdout. Change the seed for other choices."
        )


def _draw_cells(
    split: np.ndarray,
    cells: np.ndarray,
    groups: np.ndarray,
    test: float,
    valid: float,
    offset: float,
    rng: np.random.Generator,
) -> None:
    """Send a share of the cells of each group to test and valid, in place; each group keeps a training cell.

    The cells of a group are put in random order and spread evenly over [0, 1) from a random start, so that even groups of
    a few cells give their share on average.
    """
    members = rng.permutation(np.flatnonzero(cells))
    members = members[np.argsort(groups[members], kind="stable")]
    _, start, size = np.unique(groups[members], return_index=True, return_counts=True)
    rank = np.arange(len(members)) - np.repeat(start, size)
    position = ((rank + np.repeat(rng.random(len(size)), size)) / np.repeat(size, size) - offset) % 1.0
    if len(members):
        position[start[np.maximum.reduceat(position, start) < test + valid]] = 1.0
    split[members] = np.select([position < test, position < test + valid], ["test", "valid"], "train")


def _fill_control_parts(split: np.ndarray, is_control: np.ndarray, needed: list[str]) -> None:
    """Where controls are few and none fell into a part, give it one from the largest part, in place."""
    controls = np.flatnonzero(is_control)
    if len(controls) < len(needed):
        raise ValueError(
            f"{plural(len(controls), 'control cell')} cannot be split into {listed(needed)}. Add control cells"
            f"{', or set valid_size=0' if 'valid' in needed else ''}."
        )
    for value in needed:
        if value not in set(split[controls]):
            largest = pd.Series(split[controls]).value_counts().index[0]
            split[controls[split[controls] == largest][0]] = value


def _check_result(split: np.ndarray, screen: Screen, by: str) -> None:
    is_control = screen.is_control
    if not (~is_control & (split == "train")).any():
        raise ValueError(
            f"by={by!r} leaves no perturbed cell for training: every cell carries something that is held out. Hold out less."
        )
    tested = set(screen.codes[split == "test"])
    untested = [label for code, label in enumerate(screen.labels) if by == "cell" and code not in tested]
    if untested:
        message = f"{plural(len(untested), 'perturbation')} have too few cells to be tested: {listed(untested)}."
        warnings.warn(message, UserWarning, stacklevel=settings.warnings_stacklevel)
