"""Graphs as index arrays: acyclic ones from any, and random ones."""

from __future__ import annotations

import numpy as np


def break_cycles(source: np.ndarray, target: np.ndarray, n_nodes: int, weight: np.ndarray | None = None) -> np.ndarray:
    """Say which edges to keep so that no cycle is left.

    Feedback loops are common in curated networks, while a linear structural equation model is solved along an order of its
    nodes. Few and light edges are given up: the heuristic of Eades, Lin and Smyth (1993), as in igraph.

    Parameters
    ----------
    source, target
        (n_edges,) node indices.
    n_nodes
        Number of nodes.
    weight
        (n_edges,) how much each edge is worth; all the same by default.

    Returns
    -------
    (n_edges,) bool, ``False`` for self-loops and for the edges given up.

    Examples
    --------
    >>> import numpy as np
    >>> break_cycles(np.array([0, 1, 2]), np.array([1, 2, 0]), 3).sum()
    np.int64(2)
    """
    import igraph

    source, target = np.asarray(source), np.asarray(target)
    keep = source != target
    rows = np.flatnonzero(keep)
    graph = igraph.Graph(n=n_nodes, edges=np.column_stack([source[rows], target[rows]]).tolist(), directed=True)
    if not graph.is_dag():
        value = None if weight is None else np.abs(np.asarray(weight)[rows]).tolist()
        keep[rows[graph.feedback_arc_set(value, "eades")]] = False
    return keep


def random_dag_mask(n_nodes: int, density: float, seed: int) -> np.ndarray:
    """(n_nodes, n_nodes) float32 mask with each entry above the diagonal set with probability ``density``.

    Examples
    --------
    >>> mask = random_dag_mask(50, 0.1, seed=0)
    >>> bool((mask == mask * (1 - mask.T)).all())
    True
    """
    rng = np.random.default_rng(seed)
    return np.triu(rng.random((n_nodes, n_nodes)) < density, 1).astype(np.float32)
