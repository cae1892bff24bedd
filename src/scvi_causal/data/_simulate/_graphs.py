"""Random causal graphs, and wrong graphs to hold against the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

_LARGEST_PROPENSITY = 10.0  # without a bound one regulator may hold most genes, and no other graph has its degrees


def topological_order(edges: pd.DataFrame) -> list[str] | None:
    """Genes ordered so that every regulator precedes its targets, or None where the graph has a cycle.

    Parameters
    ----------
    edges
        Columns ``source`` and ``target``.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.data import topological_order
    >>> topological_order(pd.DataFrame({"source": ["B", "C"], "target": ["A", "B"]}))
    ['C', 'B', 'A']
    """
    children: dict[str, list[str]] = {}
    n_parents: dict[str, int] = {}
    for source, target in zip(edges["source"], edges["target"], strict=True):
        children.setdefault(source, []).append(target)
        n_parents[target] = n_parents.get(target, 0) + 1
        n_parents.setdefault(source, 0)
    ready = [gene for gene, n in n_parents.items() if n == 0]
    order: list[str] = []
    while ready:
        gene = ready.pop()
        order.append(gene)
        for child in children.get(gene, ()):
            n_parents[child] -= 1
            if n_parents[child] == 0:
                ready.append(child)
    return order if len(order) == len(n_parents) else None


def random_grn(
    genes: Sequence[str],
    edges_per_gene: float = 2.0,
    *,
    hub_exponent: float = 1.2,
    weight_range: tuple[float, float] = (0.3, 0.8),
    share_activating: float = 0.7,
    seed: int = 0,
) -> pd.DataFrame:
    """Sparse random acyclic graph in which a few regulators hold most of the edges.

    The number of regulators of a gene is Poisson; which genes they are follows a Pareto law, as the out-degrees of
    measured regulatory networks do. Incoming weights are scaled down where their root sum of squares exceeds 0.9, so
    that expression does not blow up along a path.

    Parameters
    ----------
    genes
        Names of the nodes. Their causal order is random, it is not the order given.
    edges_per_gene
        Mean number of regulators per gene.
    hub_exponent
        Shape of the Pareto law; smaller means stronger hubs.
    weight_range
        Smallest and largest absolute weight: log change of the target per unit of log change of the regulator.
    share_activating
        Share of positive weights.
    seed
        Seed of the generator.

    Returns
    -------
    DataFrame ``source, target, weight``, sorted by source and target.

    Examples
    --------
    >>> from scvi_causal.data import random_grn
    >>> random_grn(["A", "B", "C", "D"], seed=0).columns.tolist()
    ['source', 'target', 'weight']
    """
    rng = np.random.default_rng(seed)
    names = np.asarray(genes, dtype=object)
    order = rng.permutation(len(names))
    propensity = np.minimum(rng.pareto(hub_exponent, len(names)), _LARGEST_PROPENSITY) + 0.1
    edges: list[tuple[str, str]] = []
    for position in range(1, len(order)):
        n_regulators = min(int(rng.poisson(edges_per_gene)), position)
        earlier = order[:position]
        chance = propensity[earlier] / propensity[earlier].sum()
        regulators = rng.choice(earlier, n_regulators, replace=False, p=chance)
        edges += [(names[regulator], names[order[position]]) for regulator in regulators]
    grn = pd.DataFrame(edges, columns=["source", "target"], dtype=object)
    grn = grn.sort_values(["source", "target"], ignore_index=True)
    return grn.assign(weight=draw_weights(grn["target"], rng, weight_range, share_activating))


def draw_weights(
    targets: pd.Series,
    rng: np.random.Generator,
    weight_range: tuple[float, float] = (0.3, 0.8),
    share_activating: float = 0.7,
) -> np.ndarray:
    """One weight per edge; the weights into one gene are scaled down where they would amplify its variance."""
    weights = rng.uniform(*weight_range, len(targets)) * np.where(rng.random(len(targets)) < share_activating, 1, -1)
    norm = np.sqrt(pd.Series(weights**2).groupby(targets.to_numpy()).transform("sum").to_numpy())
    return weights * np.minimum(1.0, 0.9 / np.maximum(norm, 1e-12))


def degree_matched_random_grn(
    edges: pd.DataFrame, seed: int = 0, *, avoid_original: bool = True, swaps_per_edge: int = 10
) -> pd.DataFrame:
    """Wrong graph with the same degrees: the targets of random pairs of edges are swapped.

    Every gene keeps its number of targets and of regulators, and each edge its source and weight, so a model that
    gains from the true graph but not from this one has used *which* gene regulates which. An acyclic graph stays
    acyclic.

    Parameters
    ----------
    edges
        Columns ``source``, ``target`` and any others; self-loops are kept as they are.
    seed
        Seed of the generator.
    avoid_original
        Refuse swaps that bring back an edge of ``edges``. In small dense graphs some original edges remain all the
        same; :func:`grn_overlap` counts them.
    swaps_per_edge
        Number of attempted swaps, divided by the number of edges.

    Returns
    -------
    DataFrame with the columns of ``edges``.

    Examples
    --------
    >>> from scvi_causal.data import degree_matched_random_grn, random_grn
    >>> grn = random_grn([f"G{i}" for i in range(30)], seed=1)
    >>> wrong = degree_matched_random_grn(grn, seed=2)
    >>> bool((wrong["target"].value_counts().sort_index() == grn["target"].value_counts().sort_index()).all())
    True
    """
    rng = np.random.default_rng(seed)
    source, target = edges["source"].to_numpy(object), edges["target"].to_numpy(object).copy()
    acyclic = topological_order(edges) is not None
    present = set(zip(source, target, strict=True))
    original = frozenset(present) if avoid_original else frozenset()
    children: dict[str, set[str]] = {}
    for a, b in present:
        children.setdefault(a, set()).add(b)
    swappable = np.flatnonzero(source != target)
    n_attempts = swaps_per_edge * len(swappable) if len(swappable) > 1 else 0
    for _ in range(n_attempts):
        i, j = rng.choice(swappable, 2, replace=False)
        (a, b), (c, d) = (source[i], target[i]), (source[j], target[j])
        new = {(a, d), (c, b)}
        if a == c or b == d or a == d or c == b or new & present or new & original:
            continue
        _replace(children, ((a, b), (c, d)), ((a, d), (c, b)))
        if acyclic and (_reaches(children, d, a) or _reaches(children, b, c)):
            _replace(children, ((a, d), (c, b)), ((a, b), (c, d)))
            continue
        present -= {(a, b), (c, d)}
        present |= new
        target[i], target[j] = d, b
    return edges.assign(target=target)


def corrupt_grn(
    edges: pd.DataFrame, *, drop: float = 0.0, add: float = 0.0, genes: Sequence[str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Graph with a share of its edges missing and a share of false ones added, as a prior from a database has.

    Parameters
    ----------
    edges
        Columns ``source``, ``target`` and perhaps ``weight``.
    drop
        Share of the edges that go.
    add
        Number of false edges as a share of the edges given. Their weights are drawn from those of the true edges. An
        acyclic graph stays acyclic.
    genes
        Where false edges may start and end; the genes of ``edges`` by default.
    seed
        Seed of the generator.

    Returns
    -------
    DataFrame ``source, target[, weight]``: the edges that stayed, then the false ones.

    Raises
    ------
    ValueError
        If a share is out of range, or the graph has no room for so many false edges.

    Examples
    --------
    >>> from scvi_causal.data import corrupt_grn, random_grn
    >>> grn = random_grn([f"G{i}" for i in range(30)], seed=1)
    >>> len(corrupt_grn(grn, drop=0.5)) == len(grn) - round(0.5 * len(grn))
    True
    """
    if not 0 <= drop <= 1 or add < 0:
        raise ValueError(f"drop must lie in [0, 1] and add be >= 0, got drop={drop} and add={add}.")
    rng = np.random.default_rng(seed)
    nodes = np.asarray(pd.unique(edges[["source", "target"]].to_numpy(object).ravel()) if genes is None else genes)
    acyclic = topological_order(edges) is not None
    taken = set(zip(edges["source"], edges["target"], strict=True))
    kept = edges.iloc[np.sort(rng.permutation(len(edges))[round(drop * len(edges)) :])]
    children: dict[str, set[str]] = {}
    for a, b in taken:
        children.setdefault(a, set()).add(b)
    false: list[tuple[str, str]] = []
    n_false, n_attempts = round(add * len(edges)), 0
    while len(false) < n_false:
        n_attempts += 1
        if n_attempts > 1000 * n_false:
            raise ValueError(
                f"no room for {n_false} false edges among {len(nodes)} genes with {len(edges)} edges: {len(false)} were "
                "found. Lower `add`, or give more `genes`."
            )
        a, b = (str(gene) for gene in rng.choice(nodes, 2, replace=False))
        if (a, b) in taken or (acyclic and _reaches(children, b, a)):
            continue
        taken.add((a, b))
        children.setdefault(a, set()).add(b)
        false.append((a, b))
    added = pd.DataFrame(false, columns=["source", "target"])
    if "weight" in edges:
        added["weight"] = rng.choice(edges["weight"].to_numpy(), n_false) if n_false else np.zeros(0)
    return pd.concat([kept, added], ignore_index=True) if false else kept.reset_index(drop=True)


def grn_overlap(edges: pd.DataFrame, other: pd.DataFrame) -> float:
    """Share of the edges of ``edges`` that ``other`` has too, weights aside.

    Examples
    --------
    >>> from scvi_causal.data import grn_overlap, random_grn
    >>> grn = random_grn(["A", "B", "C", "D"], seed=0)
    >>> grn_overlap(grn, grn)
    1.0
    """
    found = set(zip(other["source"], other["target"], strict=True))
    return float(np.mean([edge in found for edge in zip(edges["source"], edges["target"], strict=True)]))


def _replace(children: dict[str, set[str]], old: Sequence[tuple[str, str]], new: Sequence[tuple[str, str]]) -> None:
    for a, b in old:
        children[a].discard(b)
    for a, b in new:
        children[a].add(b)


def _reaches(children: dict[str, set[str]], start: str, end: str) -> bool:
    """Whether a directed path leads from ``start`` to ``end``."""
    seen, stack = {start}, [start]
    while stack:
        gene = stack.pop()
        if gene == end:
            return True
        fresh = children.get(gene, set()) - seen
        seen |= fresh
        stack.extend(fresh)
    return False
