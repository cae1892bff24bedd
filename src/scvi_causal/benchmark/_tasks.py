"""Which question is asked: what a model has never seen when it is judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from scvi_causal.data._messages import did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["seen", "unseen", "combination", "context", "context-perturbation"]
Controls = Literal["independent", "shared"]

_TITLES: dict[str, str] = {
    "seen": "seen perturbations, unseen cells",
    "unseen": "unseen perturbations",
    "combination": "unseen combinations",
    "context": "a context left out",
    "context-perturbation": "a perturbation left out of one context",
}
_NEEDS_COVARIATE = ("context", "context-perturbation")


@dataclass(frozen=True)
class Task:
    """A question to models.

    Parameters
    ----------
    kind
        ``"seen"``: half of the cells of every condition are held out. ``"unseen"``: whole tokens are, in ``n_folds`` parts.
        ``"combination"``: combinations are, whose tokens are seen (all of them, or ``combo_seen``). ``"context"``: all
        perturbed cells with one value of ``covariate_key`` are, each value in turn. ``"context-perturbation"``: pairs of a
        perturbation and a value are, each in turn, or in ``n_folds`` parts where there are more than 30.
    covariate_key
        Column of ``adata.obs`` with the contexts, for the last two kinds.
    n_folds
        Parts of the second and third kind (and of many pairs).
    holdout
        What to hold out instead of folds: tokens, combinations, values of the covariate, or (perturbation, value) pairs;
        all of them in one fold. For ``"context"`` and ``"context-perturbation"`` each is a fold of its own.
    combo_seen
        Number of seen tokens in a held-out combination. ``None``: all, as far as they occur elsewhere.

    Raises
    ------
    ValueError
        If an argument does not fit the kind.

    Examples
    --------
    >>> from scvi_causal.benchmark import Task
    >>> Task("context", covariate_key="cell_type").title
    'a context left out (cell_type)'
    """

    kind: Kind = "unseen"
    covariate_key: str | None = None
    n_folds: int = 5
    holdout: tuple | None = None
    combo_seen: int | None = None

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        if self.kind not in kinds:
            raise ValueError(f"task={self.kind!r} is not one of {listed(kinds)}.{did_you_mean(str(self.kind), kinds)}")
        if self.kind in _NEEDS_COVARIATE and not self.covariate_key:
            raise ValueError(
                f"task={self.kind!r} needs covariate_key: the column of adata.obs whose values are the contexts "
                "(a cell type, a cell line, a donor)."
            )
        if self.n_folds < 2:
            raise ValueError(f"n_folds={self.n_folds}: at least 2 are needed to hold out some and train on others.")
        if self.combo_seen is not None and (self.kind != "combination" or self.combo_seen < 0):
            raise ValueError(
                f"combo_seen={self.combo_seen} is a number of tokens (0, 1, ...) and belongs to task='combination'."
            )
        if self.holdout is not None and self.kind == "seen":
            raise ValueError("task='seen' holds out half of the cells of every condition and takes no holdout.")
        if self.holdout is not None and self.combo_seen is not None:
            raise ValueError("holdout and combo_seen exclude each other: either says which combinations are held out.")
        if self.holdout is not None:
            object.__setattr__(self, "holdout", _as_units(self.holdout))

    @classmethod
    def parse(cls, task: str | Task, **options) -> Task:
        """A task from its name and the options that are not ``None``; a :class:`Task` passes through, completed.

        Options that a kind has no use for (``n_folds`` of ``"seen"``) are ignored, options that contradict it raise.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if isinstance(task, Task):
            return replace(task, **given) if given else task
        return cls(str(task), **given)

    @property
    def title(self) -> str:
        """For tables and reports."""
        return _TITLES[self.kind] + (f" ({self.covariate_key})" if self.kind in _NEEDS_COVARIATE else "")


def _as_units(holdout: str | Sequence) -> tuple:
    """Units as a tuple; lists of two (JSON has no tuples) are pairs."""
    if isinstance(holdout, str):
        return (holdout,)
    units = tuple(tuple(map(str, unit)) if isinstance(unit, list | tuple) else str(unit) for unit in holdout)
    bad = [unit for unit in units if isinstance(unit, tuple) and len(unit) != 2]
    if bad or not units:
        raise ValueError(
            f"holdout={holdout!r} names {'nothing' if not units else 'no pairs'}: pass labels, or (perturbation, value) pairs."
        )
    return units
