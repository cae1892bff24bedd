"""Is a network better than "perturbing this changes that"? Edges against held-out cells and against a reference network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._grn_pairs import check_pairs, rank_by_effect
from ._grn_universe import PairUniverse, average_precision, keep_first, share_of_first

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HELD_OUT, RANDOM = "held-out effects", "random"


def grn_wasserstein(edges: pd.DataFrame, held_out: pd.DataFrame, *, excess: bool = False) -> float:
    """Mean Wasserstein distance of predicted edges: how far perturbing the source moves the target, in held-out cells.

    Range [0, inf), larger is better, in units of the expression. It falls with the number of edges whatever predicts them, so it
    means something only beside another ranking cut at as many edges (:func:`score_grn`).

    Parameters
    ----------
    edges
        Predicted edges, ``source`` and ``target``. Those that cannot be tested do not count: self-loops, and edges whose source
        was not perturbed or whose target was not measured.
    held_out
        Table of :func:`pair_effects` of cells that the network was not learned from.
    excess
        Subtract what noise alone gives, which is larger for variable targets and for perturbations of few cells.

    Returns
    -------
    float; NaN if no edge can be tested.

    References
    ----------
    Chevalley et al., *CausalBench*, 2022.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.metrics import grn_wasserstein
    >>> pairs = {"source": ["A", "A"], "target": ["B", "C"], "wasserstein": [0.1, 0.5], "wasserstein_null": [0.1, 0.1]}
    >>> pairs = pd.DataFrame(pairs | {"lfc": [0.1, -0.5], "statistic": [0.3, -4.0], "padj": [0.8, 0.001]})
    >>> grn_wasserstein(pd.DataFrame({"source": ["A", "A"], "target": ["C", "A"]}), pairs)
    0.5
    """
    pairs = PairUniverse(held_out)
    return pairs.mean(pairs.place(edges) > 0, pairs.excess if excess else pairs.wasserstein)


def grn_false_omission_rate(
    edges: pd.DataFrame, held_out: pd.DataFrame, *, max_hops: int = 1, alpha: float = 0.05
) -> float:
    """Share of the pairs that the network leaves out although held-out cells show an effect.

    Range [0, 1], 0 is best; a network drawn at random has the share of all pairs with an effect, whatever its size. All pairs that
    can be tested and are left out are counted: nothing is drawn, and another network leaves out other pairs.

    Parameters
    ----------
    edges, held_out
        As in :func:`grn_wasserstein`.
    max_hops
        A pair is left out if no path of at most so many edges leads from the source to the target. With 1, the default, the edge
        itself has to be there; the published measure takes 3, since the effect of a perturbation may be indirect.
    alpha
        False discovery rate of the effects (``held_out["padj"]``).

    Returns
    -------
    float; NaN if no pair is left out.

    Notes
    -----
    The published implementations draw 500 pairs of which most cannot be tested, and count these as true omissions: their numbers
    are lower by the share of pairs that can be tested, and in one of them the draw does not depend on the network.

    References
    ----------
    Chevalley et al., *CausalBench*, 2022.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.metrics import grn_false_omission_rate
    >>> pairs = {"source": ["A", "A"], "target": ["B", "C"], "wasserstein": [0.1, 0.5], "wasserstein_null": [0.1, 0.1]}
    >>> pairs = pd.DataFrame(pairs | {"lfc": [0.1, -0.5], "statistic": [0.3, -4.0], "padj": [0.8, 0.001]})
    >>> [grn_false_omission_rate(pd.DataFrame({"source": ["A"], "target": [t]}), pairs) for t in "BC"]
    [1.0, 0.0]
    """
    if int(max_hops) != max_hops or max_hops < 1:
        raise ValueError(f"max_hops={max_hops!r}: expected a number of edges, 1 or more.")
    pairs = PairUniverse(held_out, alpha)
    connected = pairs.place(edges) > 0 if max_hops == 1 else pairs.reached(edges, int(max_hops))
    return pairs.mean(~connected, pairs.has_effect)


def grn_auprc(
    edges: pd.DataFrame,
    reference: pd.DataFrame,
    candidates: pd.DataFrame,
    *,
    n_edges: int | None = None,
    score: str = "weight",
) -> float:
    """Area under the precision-recall curve (average precision) of ranked edges against a reference network.

    Range [0, 1], 1 is best; a random order has about the share of candidates that are in the reference. Pairs that are not ranked
    come last, as one tie; so a list of few edges is comparable to another of as many (``n_edges``), not to a complete ranking.

    Parameters
    ----------
    edges
        Predicted edges ``source``, ``target`` and their ``score``; the larger its absolute value, the earlier the edge. Without
        such a column all edges are one tie.
    reference
        Edges that are true, ``source`` and ``target``, e.g. CollecTRI.
    candidates
        Pairs that are ranked, ``source`` and ``target``, e.g. the table of :func:`pair_effects`. Of these count the ones whose source
        has an edge in the reference and whose target has one: what was never looked at is not false.
    n_edges
        Rank only so many of the edges (all that tie with the last one are in).
    score
        Column of ``edges``.

    Returns
    -------
    float; NaN if no candidate is in the reference, or all are.

    See Also
    --------
    sklearn.metrics.average_precision_score

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.metrics import grn_auprc
    >>> frame = lambda pairs: pd.DataFrame([tuple(p) for p in pairs], columns=["source", "target"])
    >>> edges = frame(["AB", "AC"]).assign(weight=[-2.0, 1.0])
    >>> grn_auprc(edges, frame(["AB", "DC"]), frame(["AB", "AC", "BC"]))
    1.0
    """
    pairs = PairUniverse(candidates, check=False)
    inside, is_true = pairs.truth(reference)
    ranked = pairs.place(edges, score)
    return average_precision(keep_first(ranked[inside], n_edges), is_true[inside])


def score_grn(
    predicted: pd.DataFrame | Mapping[str, pd.DataFrame],
    held_out: pd.DataFrame,
    training: pd.DataFrame,
    *,
    reference: pd.DataFrame | None = None,
    n_edges: int | Sequence[int] | None = None,
    score: str = "weight",
    by: str | Sequence[str] = ("wasserstein", "statistic"),
    max_hops: int = 1,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Judge predicted edges at matched edge counts, beside rankings that know no network.

    Parameters
    ----------
    predicted
        Edges ``source``, ``target`` and ``score`` (``model.get_grn()``), or several such by name.
    held_out
        Table of :func:`pair_effects` of held-out cells: what is true.
    training
        The same of the training cells: ranked by effect size (:func:`rank_by_effect`), they are the rows that a network has to beat.
    reference
        A network from elsewhere; see :func:`grn_auprc`.
    n_edges
        Numbers of edges at which all rankings are cut. ``None`` takes as many as the shortest prediction has.
    score
        Column that ranks the predicted edges, by absolute value; without it all are one tie. Of edges that tie at the cut, each
        counts in part, so that the order of rows does not matter.
    by
        Measures of the effect size, one row for each. The distance is hard to beat in ``wasserstein``, the statistic in
        ``significant`` and ``auprc_effects``.
    max_hops, alpha
        As in :func:`grn_false_omission_rate`.

    Returns
    -------
    DataFrame indexed by ``(n_edges, ranking)``. The rankings are the predictions (``"predicted"`` if there is one),
    ``"effect size (wasserstein)"`` and so on, ``"held-out effects"`` (the ranking by the held-out cells themselves, by the first
    measure: about what can be reached) and ``"random"`` (what chance gives). Columns:

    ``edges``
        how many count: ``n_edges``, or all that a shorter list has, which is then no fair match;
    ``wasserstein``, ``excess``
        :func:`grn_wasserstein` as it is, and above what noise gives;
    ``significant``
        share of the edges with an effect in the held-out cells;
    ``false_omission_rate``
        :func:`grn_false_omission_rate`;
    ``auprc_effects``
        average precision for the pairs with an effect in the held-out cells;
    ``precision_reference``, ``auprc_reference``
        share of the edges that are in the reference, and :func:`grn_auprc`, both at as many edges between its genes as the prediction
        has there; with several predictions, as the first of them.

    Raises
    ------
    ValueError
        If tables or edges lack columns, an edge is listed twice, or no predicted edge can be tested.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal import data, metrics
    >>> screen = data.simulate_screen(n_genes=12, n_perturbations=6, n_cells_per_perturbation=60, n_control=200, seed=0)
    >>> x, labels = metrics.log1p_normalize(screen.adata.X), screen.adata.obs["perturbation"].to_numpy()
    >>> half = np.random.default_rng(0).random(len(labels)) < 0.5
    >>> held_out, training = (metrics.pair_effects(x[h], labels[h], screen.adata.var_names) for h in (~half, half))
    >>> table = metrics.score_grn(screen.grn, held_out, training)
    >>> table.index.get_level_values("ranking").tolist()
    ['predicted', 'effect size (wasserstein)', 'effect size (statistic)', 'held-out effects', 'random']
    """
    check_pairs(training, "training")
    pairs = PairUniverse(check_pairs(held_out, "held_out"), alpha)
    named = {"predicted": predicted} if isinstance(predicted, pd.DataFrame) else dict(predicted)
    measures = [by] if isinstance(by, str) else list(by)
    added = {f"effect size ({measure})": rank_by_effect(training, measure) for measure in measures}
    added[HELD_OUT] = rank_by_effect(held_out, measures[0])
    if taken := sorted(set(named) & {*added, RANDOM}):
        raise ValueError(f"predicted: the names {taken} are those of the rankings that are added.")
    frames = named | added
    ranked = {name: pairs.place(frame, score if name in named else "weight") for name, frame in frames.items()}
    found = {name: int((ranked[name] > 0).sum()) for name in named}
    if not min(found.values(), default=0):
        empty = [name for name, n in found.items() if not n]
        raise ValueError(
            f"No edge of {empty} can be tested: its sources need to be among the {len(pairs.sources)} perturbed genes and its targets "
            f"among the {len(pairs.targets)} measured ones (of held_out), e.g. {list(pairs.sources[:3])} and {list(pairs.targets[:3])}."
        )
    counts = np.atleast_1d(min(found.values()) if n_edges is None else n_edges)
    first = next(iter(named))
    rows = {}
    for count in counts:
        for name, values in ranked.items():
            rows[int(count), name] = pairs.judge(values, int(count)) | {
                "false_omission_rate": pairs.omission(frames[name], values, int(count), max_hops)
            }
        rows[int(count), RANDOM] = pairs.judge(None, int(count)) | {
            "false_omission_rate": float(pairs.has_effect.mean())
        }
        if reference is not None:
            against = _against_reference(pairs, ranked, reference, int(count), first)
            for name, values in against.items():
                rows[int(count), name] |= values
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["n_edges", "ranking"])


def _against_reference(pairs: PairUniverse, ranked: dict, reference: pd.DataFrame, n_edges: int, first: str) -> dict:
    """Rankings among the genes of the reference, cut at the number of edges that ``first`` has there."""
    inside, is_true = pairs.truth(reference)
    is_true = is_true[inside]
    k = int(round(share_of_first(ranked[first], n_edges)[inside].sum()))
    rows = {}
    for name, values in ranked.items():
        chosen = share_of_first(values[inside], k)
        precision = float(chosen @ is_true / chosen.sum()) if chosen.sum() else float("nan")
        rows[name] = {
            "precision_reference": precision,
            "auprc_reference": average_precision(keep_first(values[inside], k), is_true),
        }
    chance = float(is_true.mean()) if is_true.size else float("nan")
    return rows | {RANDOM: {"precision_reference": chance, "auprc_reference": chance}}
