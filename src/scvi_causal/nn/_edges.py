"""Edges of a graph, sorted by target: softmax over what comes into a node, and one sparse product to pass values along."""

from __future__ import annotations

import warnings
from functools import cached_property

import torch
from torch import Tensor

_CHUNK = 2**18  # numbers held at once where the gradient of edge values is gathered


class Edges:
    """Edge list in the order of its targets, with what sparse products need.

    Parameters
    ----------
    source, target
        (n_edges,) int64 nodes; ``target`` must be in ascending order.
    n_sources, n_targets
        Number of nodes on either side.

    Examples
    --------
    >>> import torch
    >>> edges = Edges(torch.tensor([0, 1]), torch.tensor([1, 1]), 2, 2)
    >>> propagate(torch.tensor([0.25, 0.75]), edges, torch.tensor([[4.0], [8.0]])).tolist()
    [[0.0], [7.0]]
    """

    def __init__(self, source: Tensor, target: Tensor, n_sources: int, n_targets: int):
        self.source, self.target = source, target
        self.n_sources, self.n_targets = n_sources, n_targets

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def rows(self) -> Tensor:
        """(n_targets + 1,) where the edges into each target start."""
        return _starts(self.target, self.n_targets)

    @cached_property
    def by_source(self) -> tuple[Tensor, Tensor, Tensor]:
        """Edges in the order of their sources: their places, where each source starts, and their targets."""
        order = torch.argsort(self.source, stable=True)
        return order, _starts(self.source[order], self.n_sources), self.target[order]


def _starts(sorted_nodes: Tensor, n_nodes: int) -> Tensor:
    return torch.searchsorted(sorted_nodes, torch.arange(n_nodes + 1, device=sorted_nodes.device))


def sort_edges(source: Tensor, target: Tensor, n_sources: int, n_targets: int) -> tuple[Edges, Tensor]:
    """Edges in any order as :class:`Edges`, and the order in which they now stand."""
    order = torch.argsort(target * n_sources + source)
    return Edges(source[order], target[order], n_sources, n_targets), order


def edge_softmax(logits: Tensor, edges: Edges) -> Tensor:
    r"""Attention of each edge among those that lead to the same target.

    :math:`S_{ij} = e^{\ell_{ij}} / \sum_{j'} e^{\ell_{ij'}}`; edges that are left out have no part in the sum, which is the
    masked softmax of graph refinement.

    Parameters
    ----------
    logits
        (n_edges,)
    edges
        The edges.

    Returns
    -------
    (n_edges,) weights; those into one target sum to 1.
    """
    from torch_geometric.utils import softmax  # here, because importing torch_geometric takes seconds

    return softmax(logits, edges.target, num_nodes=edges.n_targets)


def propagate(values: Tensor, edges: Edges, x: Tensor) -> Tensor:
    r"""Pass the values of nodes along weighted edges, :math:`y_i = \sum_j v_{ij} x_j`, as one sparse product.

    Parameters
    ----------
    values
        (n_edges,) weights.
    edges
        The edges.
    x
        (n_sources, width) values of the sources.

    Returns
    -------
    (n_targets, width)

    Notes
    -----
    Neither the forward pass nor the gradients make anything of the size edges x width, as gathering messages would.
    """
    with torch.autocast(x.device.type, enabled=False):  # there are no sparse products in half precision
        return _SparseProduct.apply(values, x.to(values.dtype), edges)


class _SparseProduct(torch.autograd.Function):
    """CSR times dense; the gradient of the values is a product sampled at the edges.

    torch's own gradient of a CSR product is dense or missing, depending on the release.
    """

    @staticmethod
    def forward(ctx, values: Tensor, x: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.edges = edges
        return _multiply(edges.rows, edges.source, values, edges.n_sources, x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        values, x = ctx.saved_tensors
        edges, grad_values, grad_x = ctx.edges, None, None
        grad = grad.contiguous()
        if ctx.needs_input_grad[0]:
            grad_values = _sampled_product(grad, x, edges)
        if ctx.needs_input_grad[1]:
            order, starts, target = edges.by_source
            grad_x = _multiply(starts, target, values[order], edges.n_targets, grad)
        return grad_values, grad_x, None


def _multiply(starts: Tensor, columns: Tensor, values: Tensor, n_columns: int, x: Tensor) -> Tensor:
    return _csr(starts, columns, values, n_columns) @ x


def _csr(starts: Tensor, columns: Tensor, values: Tensor, n_columns: int) -> Tensor:
    """A sparse matrix; torch says once per process that these are in beta, which helps nobody here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return torch.sparse_csr_tensor(starts, columns, values, (len(starts) - 1, n_columns), check_invariants=False)


def _sampled_product(grad: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """(n_edges,) inner products of the rows of ``grad`` and ``x`` that each edge joins."""
    if grad.is_cuda or torch.backends.mkl.is_available():
        zeros = torch.zeros(len(edges), dtype=x.dtype, device=x.device)
        pattern = _csr(edges.rows, edges.source, zeros, edges.n_sources)
        return torch.sparse.sampled_addmm(pattern, grad, x.t(), beta=0.0).values()
    step = max(1, _CHUNK // x.shape[1])
    parts = zip(edges.target.split(step), edges.source.split(step), strict=True)
    return torch.cat([torch.linalg.vecdot(grad.index_select(0, i), x.index_select(0, j)) for i, j in parts])
