"""The network as the model uses it: nodes, an acyclic edge list, and a first estimate of its weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_causal.nn import break_cycles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from scvi_causal.model.sccvae._module import SCCVAEModule

logger = logging.getLogger(__name__)

_N_STEPS = 300
_EDGE_SD = 0.3  # of an edge around the common multiple of its prior weight
_SHIFT_SD = 1.0  # of the shift of a token around that of all


@dataclass(frozen=True)
class Network:
    """A network whose nodes are genes (or tokens that are no measured gene).

    Parameters
    ----------
    edge_index
        (2, n_edges) nodes, regulator above target; acyclic.
    weight
        (n_edges,) prior weights, the largest 1 in size.
    node_of_gene, node_of_token
        (n_genes,) and (n_tokens,) node of each, -1 for none.
    names
        (n_nodes,)
    n_removed
        Edges given up to break cycles.
    """

    edge_index: np.ndarray
    weight: np.ndarray
    node_of_gene: np.ndarray
    node_of_token: np.ndarray
    names: np.ndarray
    n_removed: int


def build_network(
    prior: pd.DataFrame, genes: np.ndarray, tokens: np.ndarray, extra_tokens: Sequence[str] = ()
) -> Network:
    """Restrict a prior network to an acyclic one over the genes that have an edge or are perturbed.

    Parameters
    ----------
    prior
        Edges ``source, target, weight``; a source may be a token that is no measured gene.
    genes, tokens
        Names.
    extra_tokens
        Tokens that no cell carries: they are nodes as the others are, since they will be asked for.
    """
    extra = np.setdiff1d(prior["source"].to_numpy(dtype=str), genes)
    names = np.concatenate([genes, extra]).astype(str)
    row_of = {name: i for i, name in enumerate(names)}
    source = np.array([row_of[name] for name in prior["source"]], dtype=np.int64)
    target = np.array([row_of[name] for name in prior["target"]], dtype=np.int64)
    weight = prior["weight"].to_numpy(dtype=float)
    keep = break_cycles(source, target, len(names), weight)
    source, target, weight = source[keep], target[keep], weight[keep]
    perturbed = [row_of[token] for token in (*tokens, *extra_tokens) if token in row_of]
    used = np.unique(np.concatenate([source, target, np.asarray(perturbed, dtype=np.int64)]))
    node = np.full(len(names), -1, dtype=np.int64)
    node[used] = np.arange(len(used))
    return Network(
        edge_index=np.stack([node[source], node[target]]),
        weight=(weight / max(np.abs(weight).max(initial=0.0), 1e-12)).astype(np.float32),
        node_of_gene=node[: len(genes)],
        node_of_token=np.array([node[row_of[token]] if token in row_of else -1 for token in tokens], dtype=np.int64),
        names=names[used],
        n_removed=int((~keep).sum()),
    )


def fit_network(
    module: SCCVAEModule, response: np.ndarray, variance: np.ndarray, control: np.ndarray, prior: np.ndarray
) -> np.ndarray:
    """Estimate edge weights and shifts from the responses of the training tokens that are nodes.

    Each edge is a common multiple of its prior weight plus a deviation that is penalised; each token shifts its node
    by a common amount plus a deviation. What the network explains is returned, the rest is left to the programmes.

    Parameters
    ----------
    module
        Takes the estimates.
    response, variance
        (n_tokens, n_genes) change of log1p expression and its sampling variance; NaN rows are not used.
    control
        (n_genes,) mean expression of the controls.
    prior
        (n_edges,) prior weights.

    Returns
    -------
    (n_tokens, n_genes) what the network explains, zeros for tokens that are no nodes.
    """
    trained = np.isfinite(response).all(1)
    usable = (module.node_of_token.cpu().numpy() >= 0) & trained
    explained = np.zeros(response.shape)
    if not usable.any() or module.sem is None:
        return explained
    rows = torch.from_numpy(np.flatnonzero(usable))
    y = torch.from_numpy(response[usable]).float()
    noise = torch.from_numpy(variance[usable]).float()
    # what neither network nor noise explains has a variance too, or a few precise genes would decide everything
    weight = 1.0 / (noise + noise.median() + 1e-3)
    level = torch.from_numpy(control).float()
    prior_weight = torch.from_numpy(prior).float()
    node = module.node_of_token.cpu()[rows]
    start = _own_shift(module, y, node)
    sem = module.sem.cpu()
    regulators = torch.isin(node, sem.edge_index[0]).nonzero().squeeze(1)
    common, deviation = torch.zeros(1, requires_grad=True), torch.zeros(len(prior), requires_grad=True)
    mean_shift, own = start.mean().reshape(1).requires_grad_(), (start - start.mean()).requires_grad_()
    optimizer = torch.optim.Adam([common, deviation, mean_shift, own], lr=0.05)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, _N_STEPS)

    def predict() -> torch.Tensor:
        edges = common * prior_weight + deviation
        u = torch.zeros(len(rows), sem.n_nodes).scatter(1, node[:, None], (mean_shift + own)[:, None])
        # most genes of a screen regulate nothing: only the others walk along the edges
        u = u.index_copy(0, regulators, torch.func.functional_call(sem, {"weight": edges}, (u[regulators],)))
        fold = module._nodes_to_genes(u)
        if module.log_normalize:
            return torch.log1p(level * fold.clamp(-10, 10).exp()) - torch.log1p(level)
        return fold

    with torch.enable_grad():
        for _ in range(_N_STEPS):
            optimizer.zero_grad()
            misfit = (weight * (y - predict()).square()).sum()
            penalty = deviation.square().sum() / _EDGE_SD**2 + own.square().sum() / _SHIFT_SD**2
            (misfit + penalty).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        explained[usable] = predict().numpy()
        module.sem.weight.copy_(common * prior_weight + deviation)
        module.target_shift[rows] = mean_shift + own
        module.unseen_target_shift.copy_(mean_shift.squeeze())
        fold = torch.zeros(len(trained), module.n_genes)
        fold[rows] = module.network_response(module.target_shift[rows], node)
        module.unseen_network.copy_(_beyond_own_gene(module, fold)[trained].mean(0))
    return explained


def _beyond_own_gene(module: SCCVAEModule, fold: torch.Tensor) -> torch.Tensor:
    """(n_tokens, n_genes) what the network carries to genes other than the one that the token targets."""
    own = module.node_of_token[:, None] == module.node_of_gene[None]
    return fold.masked_fill((own & (module.node_of_gene[None] >= 0)).cpu(), 0.0)


def _own_shift(module: SCCVAEModule, response: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
    """(n_rows,) change of each token's own gene, where it is measured; the mean of these elsewhere, and -1 without any."""
    gene_of_node = {int(n): g for g, n in enumerate(module.node_of_gene.cpu().tolist()) if n >= 0}
    gene = [gene_of_node.get(int(n), -1) for n in node]
    own = torch.tensor([float(response[i, g]) if g >= 0 else float("nan") for i, g in enumerate(gene)])
    known = own[~own.isnan()]
    fallback = known.mean() if len(known) else torch.tensor(-1.0)
    return torch.where(own.isnan(), fallback, own)
