"""A code of every gene from a regulatory network, and the decoders that read expression off it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scvi_causal.nn._edges import Edges, edge_softmax, propagate

_LARGEST_EXPONENT = 60.0  # e^-60 is far above the smallest float32
_PAIRS_AT_ONCE = 65_536


class GRNEncoder(nn.Module):
    r"""One graph convolution with a learnable logit on each edge, eq. 6 of graphVCI.

    .. math::
        S_{ij} = \frac{e^{\ell_{ij}}}{\sum_{j' \in N(i)} e^{\ell_{ij'}}}, \qquad Z = \mathrm{ReLU}(S V W + b)

    with the softmax over the edges :math:`j \to i` that lead to gene i, its self-loop among them. Logits start at 1, so that the
    first code of a gene is the plain mean over its regulators and itself; a gene without edges is coded by itself.

    Parameters
    ----------
    edge_index
        (2, n_edges) int64, regulators in the first row, targets in the second. Missing self-loops are added.
    n_genes
        Number of nodes.
    n_features
        Width of the features of genes, which are learned.
    n_hidden
        Width of the code.
    feature_scale
        Standard deviation with which the features start; ``None`` draws uniformly from :math:`\pm 1 / (2 \cdot` ``n_features`` :math:`)`, as
        published.

    Examples
    --------
    >>> import torch
    >>> encoder = GRNEncoder(torch.tensor([[0, 0], [1, 2]]), n_genes=3, n_features=4, n_hidden=5)
    >>> encoder().shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        edge_index: Tensor,
        n_genes: int,
        n_features: int = 128,
        n_hidden: int = 128,
        feature_scale: float | None = None,
    ):
        super().__init__()
        self.n_genes = n_genes
        if feature_scale is None:
            start = (torch.rand(n_genes, n_features) * 2 - 1) / (2 * n_features)
        else:
            start = torch.randn(n_genes, n_features) * feature_scale
        self.features = nn.Parameter(start)
        self.weight = nn.Parameter(torch.empty(n_features, n_hidden))
        nn.init.xavier_uniform_(self.weight)
        self.bias = nn.Parameter(torch.zeros(n_hidden))
        self.set_edges(edge_index)

    def set_edges(self, edge_index: Tensor) -> None:
        """Take other edges; their logits start anew."""
        source, target = with_self_loops(edge_index.to(self.features.device), self.n_genes)
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("target", target, persistent=False)
        self.logits = nn.Parameter(torch.ones(len(source), device=self.features.device))
        self._edges: Edges | None = None

    def _apply(self, fn, recurse: bool = True):
        self._edges = None  # they go where the buffers go
        return super()._apply(fn, recurse)

    def edges(self) -> Edges:
        """The edges, self-loops included, sorted by target."""
        if self._edges is None:
            self._edges = Edges(self.source, self.target, self.n_genes, self.n_genes)
        return self._edges

    def attention(self) -> Tensor:
        """(n_edges,) weight of each edge; those into one gene sum to 1."""
        return edge_softmax(self.logits, self.edges())

    def forward(self) -> Tensor:
        """(n_genes, n_hidden) codes."""
        return torch.relu(propagate(self.attention(), self.edges(), self.features @ self.weight) + self.bias)


def with_self_loops(edge_index: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """Sources and targets of distinct edges, with a self-loop at every node, sorted by target.

    Examples
    --------
    >>> import torch
    >>> [nodes.tolist() for nodes in with_self_loops(torch.tensor([[0, 0], [1, 0]]), 2)]
    [[0, 0, 1], [0, 1, 1]]
    """
    loops = torch.arange(n_nodes, device=edge_index.device)
    code = torch.cat([edge_index[1] * n_nodes + edge_index[0], loops * n_nodes + loops]).unique()
    target = torch.div(code, n_nodes, rounding_mode="floor")
    return code - target * n_nodes, target


class DotHead(nn.Module):
    r"""Key-independent attention, eq. 9: :math:`o_{im} = h \cdot (W_m g_i + c_m)`.

    Parameters
    ----------
    n_hidden
        Width of h.
    n_graph
        Width of the code of a gene.
    n_outputs
        Parameters of the outcome.
    """

    def __init__(self, n_hidden: int, n_graph: int, n_outputs: int = 1):
        super().__init__()
        self.n_outputs = n_outputs
        self.key = nn.Linear(n_graph, n_hidden * n_outputs)

    def basis(self, genes: Tensor) -> Tensor:
        """(n_outputs, n_genes, n_hidden) of codes of genes (n_genes, n_graph): the same for all cells of a step."""
        return self.key(genes).unflatten(1, (-1, self.n_outputs)).permute(2, 0, 1)

    def forward(self, h: Tensor, basis: Tensor) -> list[Tensor]:
        """``n_outputs`` tensors (cells, n_genes)."""
        return [h @ part.T for part in basis]


class AttentionHead(nn.Module):
    r"""Key-dependent attention, eq. 10: gene i reads from h what stands out for it.

    .. math::
        s_{id} = (A h + B g_i + c)_d, \qquad o_i = \sum_d h_d \, \mathrm{softmax}_d(s_i)

    for every parameter of the outcome, so that :math:`\min(h) \le o_i \le \max(h)`. As the score is a sum of a part of the cell and a part
    of the gene, numerator and denominator are plain matrix products, and nothing of the size cells x genes x features is made.

    Parameters
    ----------
    n_hidden, n_graph, n_outputs
        As in :class:`DotHead`.
    """

    def __init__(self, n_hidden: int, n_graph: int, n_outputs: int = 1):
        super().__init__()
        self.n_outputs = n_outputs
        self.query = nn.Linear(n_hidden, n_hidden * n_outputs, bias=False)
        self.key = nn.Linear(n_graph, n_hidden * n_outputs)

    def basis(self, genes: Tensor) -> Tensor:
        """(n_outputs, n_genes, n_hidden) the part of the score that is the gene's."""
        return self.key(genes).unflatten(1, (-1, self.n_outputs)).permute(2, 0, 1)

    def forward(self, h: Tensor, basis: Tensor) -> list[Tensor]:
        """``n_outputs`` tensors (cells, n_genes)."""
        scores = self.query(h).unflatten(1, (-1, self.n_outputs))
        return [factorised_attention(h, scores[..., m], part) for m, part in enumerate(basis)]


def factorised_attention(h: Tensor, u: Tensor, v: Tensor) -> Tensor:
    r""":math:`o_{bi} = \sum_d h_{bd} \, \mathrm{softmax}_d(u_b + v_i)_d` by two matrix products.

    Parameters
    ----------
    h, u
        (cells, d) values, and the part of the score that is the cell's.
    v
        (genes, d) the part that is the gene's.

    Returns
    -------
    (cells, genes)

    Notes
    -----
    With the maxima taken out, a denominator is at least :math:`e^{-\min(\mathrm{range}\, u_b, \mathrm{range}\, v_i)}`. Pairs for which it could
    vanish are computed directly.
    """
    u = u - u.amax(1, keepdim=True).detach()
    v = v - v.amax(1, keepdim=True).detach()
    e_u, e_v = u.exp(), v.exp()
    denominator = e_u @ e_v.T
    wide_u, wide_v = (-u.detach().amin(1) > _LARGEST_EXPONENT, -v.detach().amin(1) > _LARGEST_EXPONENT)
    if not (bool(wide_u.any()) and bool(wide_v.any())):
        return (h * e_u) @ e_v.T / denominator
    risky = wide_u[:, None] & wide_v[None] & (denominator.detach() < math.exp(-_LARGEST_EXPONENT))
    safe = (h * e_u) @ e_v.T / denominator.masked_fill(risky, 1.0)
    cell, gene = risky.nonzero().unbind(1)
    parts = zip(cell.split(_PAIRS_AT_ONCE), gene.split(_PAIRS_AT_ONCE), strict=True)
    direct = [(h[b] * torch.softmax(u[b] + v[i], 1)).sum(1) for b, i in parts]
    return safe.index_put((cell, gene), torch.cat(direct)) if direct else safe
