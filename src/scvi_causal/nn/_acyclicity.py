r"""How far a weighted graph is from acyclic, as smooth penalties, and the way from a score matrix to a graph without cycles.

All penalties take a matrix :math:`P \ge 0` with the edge i to j in entry (i, j): edge probabilities, or squared weights. Leading
dimensions are batches of graphs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def trace_exponential(p: Tensor) -> Tensor:
    r"""NOTEARS: :math:`\mathrm{tr}\, e^P - d`, zero exactly for acyclic graphs.

    Parameters
    ----------
    p
        (..., d, d) non-negative.

    Returns
    -------
    (...,) penalty. Costs a matrix exponential, which is a dozen products of d x d matrices.

    Examples
    --------
    >>> import torch
    >>> float(trace_exponential(torch.tensor([[0.0, 0.5], [0.5, 0.0]])))
    0.2552...
    """
    return torch.linalg.matrix_exp(p).diagonal(dim1=-2, dim2=-1).sum(-1) - p.shape[-1]


def polynomial(p: Tensor) -> Tensor:
    r"""DAG-GNN: :math:`\mathrm{tr}(I + P/d)^d - d`, zero exactly for acyclic graphs.

    Parameters
    ----------
    p
        (..., d, d) non-negative.

    Returns
    -------
    (...,) penalty.
    """
    d = p.shape[-1]
    power = torch.linalg.matrix_power(_eye(p) + p / d, d)
    return power.diagonal(dim1=-2, dim2=-1).sum(-1) - d


def log_determinant(p: Tensor, s: float = 1.0) -> Tensor:
    r"""DAGMA: :math:`-\log\det(sI - P) + d \log s`, zero exactly for acyclic graphs.

    Only where the spectral radius of P is below ``s``. Outside of this domain the value means nothing (and may be
    negative), so that an optimiser has to start inside, at P = 0, and be kept there.

    Parameters
    ----------
    p
        (..., d, d) non-negative, spectral radius below ``s``.
    s
        Size of the domain.

    Returns
    -------
    (...,) penalty. Costs one factorisation of a d x d matrix.
    """
    sign_and_log = torch.linalg.slogdet(s * _eye(p) - p)
    return p.shape[-1] * math.log(s) - sign_and_log.logabsdet


def spectral_radius(p: Tensor, n_steps: int = 15) -> Tensor:
    r"""NO-BEARS: the largest eigenvalue :math:`u^\top P v / u^\top v` after power steps on :math:`P + 10^{-6}`.

    The vectors are constants for the gradient, which therefore follows one cycle at a time. Never exactly zero: whether a
    graph is acyclic is for :func:`topological_order` to say.

    Parameters
    ----------
    p
        (..., d, d) non-negative.
    n_steps
        Number of power steps.

    Returns
    -------
    (...,) penalty. Costs 2 ``n_steps`` products of a matrix and a vector.
    """
    with torch.no_grad():
        positive = p + 1e-6
        u = v = torch.ones(p.shape[:-1], dtype=p.dtype, device=p.device)
        for _ in range(n_steps):
            v = torch.nn.functional.normalize(torch.einsum("...ij,...j->...i", positive, v), dim=-1)
            u = torch.nn.functional.normalize(torch.einsum("...ij,...i->...j", positive, u), dim=-1)
    value = torch.einsum("...i,...ij,...j->...", u, p, v)
    return value / (u * v).sum(-1).clamp_min(1e-12)


ACYCLICITY: dict[str, Callable[..., Tensor]] = {
    "logdet": lambda p: log_determinant(p, s=2.0),
    "trace-exp": trace_exponential,
    "polynomial": polynomial,
    "spectral": spectral_radius,
}
"""Penalties by name; the log-determinant with the domain that standardised data stay within."""


def _eye(p: Tensor) -> Tensor:
    return torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)


def topological_order(adjacency: np.ndarray) -> np.ndarray | None:
    """Order in which every node comes after its parents (Kahn), or ``None`` if there is a cycle.

    Parameters
    ----------
    adjacency
        (d, d) edge i to j where entry (i, j) is not zero.

    Examples
    --------
    >>> import numpy as np
    >>> topological_order(np.array([[0, 0], [1, 0]])).tolist()
    [1, 0]
    >>> topological_order(np.array([[0, 1], [1, 0]])) is None
    True
    """
    edges = np.asarray(adjacency) != 0
    n_parents = edges.sum(0)
    free = np.flatnonzero(n_parents == 0).tolist()
    order = []
    while free:
        node = free.pop(0)
        order.append(node)
        children = np.flatnonzero(edges[node])
        n_parents[children] -= 1
        free.extend(children[n_parents[children] == 0].tolist())
    return np.asarray(order, dtype=np.int64) if len(order) == len(edges) else None


def greedy_dag(score: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """Acyclic graph of the strongest edges: they are added from the top, unless one closes a cycle.

    Parameters
    ----------
    score
        (d, d) how strong the edge i to j is; only edges above ``threshold`` are looked at.
    threshold
        See ``score``.

    Returns
    -------
    (d, d) bool

    Examples
    --------
    >>> import numpy as np
    >>> greedy_dag(np.array([[0, 3.0, 0], [2.0, 0, 1.0], [0, 0, 0]])).astype(int).tolist()
    [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    """
    score = np.asarray(score, dtype=float)
    d = len(score)
    source, target = np.nonzero((score > threshold) & ~np.eye(d, dtype=bool))
    order = np.argsort(-score[source, target], kind="stable")
    graph = np.zeros((d, d), dtype=bool)
    reaches = np.eye(d, dtype=bool)  # every node reaches itself
    for i, j in zip(source[order], target[order], strict=True):
        if reaches[j, i]:
            continue
        graph[i, j] = True
        if not reaches[i, j]:
            reaches[np.ix_(reaches[:, i], reaches[j])] = True
    return graph
