"""Write both reports from the same blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class ReportFiles(NamedTuple):
    """Where a report was written."""

    html: Path
    markdown: Path
    figures: Path


def write_report(result, out: str | Path, *, name: str = "report", metrics: Sequence[str] | None = None) -> ReportFiles:
    """Write ``<name>.html`` (self-contained), ``<name>.md`` and ``figures/*.png`` into ``out``.

    Parameters
    ----------
    result
        With ``results`` and ``ceiling`` (DataFrames), ``config`` (dict), and, for the pictures of effects,
        ``effects(populations)``: given a list of (perturbation, context), a DataFrame of effects with one column per gene
        and the index levels ``model`` (``"observed"`` for the truth), ``seed``, ``fold``, ``perturbation``, ``context``.
        Without it, or where it returns no rows, these pictures are left out. Of ``config``, the arguments of ``run`` are
        read by their names, and ``title``, ``command``, ``commit``, ``versions`` (dict), ``data`` (dict of facts: name,
        cells, genes ...), ``models`` (dict of texts) and ``machine``; whatever is missing is not mentioned.
    out
        Folder; made if it is not there.
    name
        Of the two files.
    metrics
        Shown in the tables; ``None`` is the headline metrics.

    Returns
    -------
    The paths of the two files and of the folder of figures.
    """
    raise NotImplementedError(Path(out))
