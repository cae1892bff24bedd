"""What the options of SCCVAE mean for the data at hand, and which combinations make no sense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.sccvae._network import Network

Preset = Literal["recommended", "paper"]
Graph = Literal["auto", "prior", "random", "full", "none"]

PAPER_SIZES = {"n_latent": 512, "n_hidden": 1024, "graph": "full", "n_features": 50}
DEFAULT_SIZES = {"n_latent": 20, "n_hidden": 128, "graph": "auto", "n_features": 50}


def resolve_graph(graph: str, preset: str, registered: bool) -> str:
    """Graph to use; ``registered`` says whether there is a prior network."""
    if graph == "auto":
        return "prior" if registered else "none"
    if graph == "prior" and not registered:
        raise ValueError(
            "graph='prior' needs a network, and none is registered: put an edge list (source, target, weight) in "
            "adata.uns['grn'] and run SCCVAE.setup_anndata(adata) again, or use graph='none'."
        )
    if graph == "random" and not registered and preset == "recommended":
        raise ValueError("graph='random' rewires the registered network, and none is registered; use graph='none'.")
    if graph == "full" and preset == "recommended":
        raise ValueError(
            "graph='full' is a graph among latent nodes, which the decoder can absorb, so that it says nothing; it exists "
            "with preset='paper'. Use graph='prior' with a registered network, or graph='none'."
        )
    return graph


def resolve_likelihood(gene_likelihood: str, data_type: str, preset: str) -> str:
    """Likelihood to use; raises ``ValueError`` for one that does not suit the data."""
    if preset == "paper":
        if gene_likelihood == "nb":
            raise ValueError(
                "preset='paper' has the published squared error on log data; use gene_likelihood='normal' or the default preset."
            )
        return "normal"
    if gene_likelihood == "nb" and data_type == "continuous":
        raise ValueError(
            "gene_likelihood='nb' needs raw counts, and the data have negative or fractional values. Register the layer with "
            "the counts (layer=), or use gene_likelihood='normal'."
        )
    return ("nb" if data_type == "counts" else "normal") if gene_likelihood == "auto" else gene_likelihood


def upper_triangular(network: Network, n_nodes: int) -> Tensor:
    """Mask of a network whose nodes are put in topological order."""
    import igraph

    graph = igraph.Graph(n=len(network.names), edges=network.edge_index.T.tolist(), directed=True)
    place = np.empty(len(network.names), dtype=np.int64)
    place[graph.topological_sorting()] = np.arange(len(place))
    mask = torch.zeros(n_nodes, n_nodes)
    mask[place[network.edge_index[0]], place[network.edge_index[1]]] = 1.0
    return mask
