"""Linear structural equation models: how a shift at one node reaches the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseSEM(nn.Module):
    r"""Linear SEM whose nodes stand in topological order, with a 0/1 mask over the strictly upper triangle.

    For exogenous input :math:`x` (a row vector) the nodes take the values :math:`u = x + u (B \circ M)`, that is
    :math:`u = x (I - B \circ M)^{-1}`; entry :math:`B_{ij}` is the edge from node i to node j. A shift intervention adds to
    :math:`x`. The inverse is never formed: a unit triangular solve is cheaper and more accurate.

    Parameters
    ----------
    mask
        (d, d) 0/1 mask; must be strictly upper triangular. Saved with the module.
    init_sd
        Standard deviation of the initial weights. ``None`` scales it by the square root of the number of parents, so that
        the last nodes do not start with the variance that a chain of random weights piles up.

    Examples
    --------
    >>> import torch
    >>> sem = DenseSEM(torch.ones(3, 3).triu(1))
    >>> _ = sem.weight.data.copy_(torch.tensor([[0, 0.5, 0], [0, 0, 2], [0, 0, 0]]))
    >>> sem(torch.tensor([[1.0, 0.3, 0.0]])).tolist()
    [[1.0, 0.800000011920929, 1.600000023841858]]
    """

    def __init__(self, mask: Tensor, init_sd: float | None = 0.1):
        super().__init__()
        mask = torch.as_tensor(mask, dtype=torch.float32)
        if mask.ndim != 2 or mask.shape[0] != mask.shape[1] or bool(mask.tril().any()):
            raise ValueError(
                f"The mask has shape {tuple(mask.shape)} and {int(mask.tril().ne(0).sum())} entries on or below the diagonal; "
                "it has to be square and strictly upper triangular (nodes in topological order)."
            )
        self.register_buffer("mask", mask)
        scale = init_sd if init_sd is not None else 0.1 / mask.sum(0).clamp(min=1).sqrt()
        self.weight = nn.Parameter(torch.randn(mask.shape) * scale)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.mask.shape[0]

    def adjacency(self) -> Tensor:
        """(d, d) weights; entry (i, j) is the edge from node i to node j."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """Values of the nodes, (n, d), for exogenous input ``x`` (n, d)."""
        system = torch.eye(self.n_nodes, dtype=x.dtype, device=x.device) - self.adjacency().to(x.dtype)
        return torch.linalg.solve_triangular(system, x, upper=True, left=False, unitriangular=True)


class SparseSEM(nn.Module):
    r"""Linear SEM on an edge list, for graphs with many nodes and few edges.

    On a directed acyclic graph the series :math:`\sum_k B^k` ends at the longest path, so that walking the edges that many
    times is exact, and neither a d x d matrix nor its inverse is needed.

    Parameters
    ----------
    edge_index
        (2, n_edges) int64, sources in the first row, targets in the second; without cycles.
    n_nodes
        Number of nodes.
    weight
        (n_edges,) initial weights; zeros by default.

    Examples
    --------
    >>> import torch
    >>> sem = SparseSEM(torch.tensor([[0, 1], [1, 2]]), 3, torch.tensor([0.5, 2.0]))
    >>> sem(torch.tensor([[1.0, 0.0, 0.0]])).tolist()
    [[1.0, 0.5, 1.0]]
    """

    def __init__(self, edge_index: Tensor, n_nodes: int, weight: Tensor | None = None):
        super().__init__()
        edge_index = torch.as_tensor(edge_index, dtype=torch.int64)
        self.n_nodes = n_nodes
        self.depth = _longest_path(edge_index, n_nodes)
        self.register_buffer("edge_index", edge_index)
        start = torch.zeros(edge_index.shape[1]) if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        self.weight = nn.Parameter(start.clone())

    def adjacency(self) -> Tensor:
        """(d, d) dense weights, for small graphs and for tests."""
        dense = torch.zeros(self.n_nodes, self.n_nodes, dtype=self.weight.dtype, device=self.weight.device)
        return dense.index_put((self.edge_index[0], self.edge_index[1]), self.weight, accumulate=True)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the nodes, (n, d), for exogenous input ``x`` (n, d)."""
        source, target = self.edge_index
        total = reached = x
        for _ in range(self.depth):
            reached = torch.zeros_like(x).index_add(1, target, reached[:, source] * self.weight)
            total = total + reached
        return total


def _longest_path(edge_index: Tensor, n_nodes: int) -> int:
    """Number of edges of the longest path; raises ``ValueError`` on a cycle."""
    level = torch.zeros(n_nodes, dtype=torch.int64)
    source, target = edge_index.cpu()
    for _ in range(n_nodes):
        raised = level.scatter_reduce(0, target, level[source] + 1, "amax")
        if torch.equal(raised, level):
            return int(level.max()) if n_nodes else 0
        level = raised
    if not len(source):
        return 0
    raise ValueError("The edges contain a cycle; remove one edge of each first, see scvi_causal.nn.break_cycles.")
