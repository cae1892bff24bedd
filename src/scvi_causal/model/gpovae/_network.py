"""The decoder of a network: a node that is a measured gene is its log share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scvi_causal.model.samsvae._network import CountDecoder


class NodeLoadings(nn.Module):
    """Log shares from basal state and nodes: nodes move their own gene one to one, and the genes that are no nodes freely.

    Parameters
    ----------
    n_basal, n_nodes, n_genes, n_output
        Sizes; ``n_output`` may have a share for the genes that are not in the panel.
    n_measured
        Number of nodes that are measured genes.
    """

    def __init__(self, n_basal: int, n_nodes: int, n_genes: int, n_output: int, n_measured: int):
        super().__init__()
        self.n_basal, self.n_nodes, self.n_genes, self.n_output = n_basal, n_nodes, n_genes, n_output
        self.basal = nn.Linear(n_basal, n_output, bias=False)
        nn.init.normal_(self.basal.weight, std=0.1)
        n_others = n_genes - n_measured
        self.others = nn.Linear(n_nodes, n_others, bias=False) if n_others else None
        if n_others:
            nn.init.zeros_(self.others.weight)
        # where each output comes from: a node, one of the other genes, or nothing (the last place)
        self.register_buffer("origin", torch.full((n_output,), n_nodes + n_others))

    def set_nodes(self, gene: Tensor) -> Tensor:
        """Tell which gene (n_nodes,) each node is, -1 for none; returns the genes that are no nodes."""
        origin = torch.full_like(self.origin, self.n_nodes + (0 if self.others is None else self.others.out_features))
        measured = (gene >= 0).nonzero().squeeze(1)
        origin[gene[measured]] = measured.to(origin)
        others = torch.tensor(sorted(set(range(self.n_genes)) - set(gene.tolist())), dtype=torch.int64)
        origin[others] = self.n_nodes + torch.arange(len(others)).to(origin)
        self.origin.copy_(origin)
        return others

    def forward(self, u: Tensor) -> Tensor:
        """(..., n_output) from (..., n_basal + n_nodes)."""
        basal, nodes = u[..., : self.n_basal], u[..., self.n_basal :]
        parts = [nodes] if self.others is None else [nodes, self.others(nodes)]
        return self.basal(basal) + F.pad(torch.cat(parts, -1), (0, 1))[..., self.origin]


class NetworkDecoder(CountDecoder):
    """:class:`CountDecoder` of basal state and nodes, in which the nodes act on log shares only along :class:`NodeLoadings`.

    What a mask leaves out does not happen, then, and what a cell is like enters through the basal state.

    Parameters
    ----------
    n_basal, n_nodes, n_measured
        Width of the basal state, nodes, and those of them that are measured genes.
    n_genes, n_hidden, n_layers, n_covariates, rest
        As for :class:`CountDecoder`.
    """

    def __init__(
        self,
        n_basal: int,
        n_nodes: int,
        n_measured: int,
        n_genes: int,
        n_hidden: int,
        n_layers: int,
        n_covariates: int = 0,
        rest: bool = False,
    ):
        super().__init__(n_basal, n_genes, n_hidden, n_layers, n_covariates, linear=True, rest=rest)
        self.n_basal = n_basal
        self.loadings = NodeLoadings(n_basal, n_nodes, n_genes, n_genes + int(rest), n_measured)

    def blocks(self, u: Tensor, covariates: Tensor | None) -> Tensor:
        """(..., n_output) what the blocks make of the basal state."""
        return super().blocks(u[..., : self.n_basal], covariates)
