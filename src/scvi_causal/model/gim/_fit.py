"""What happens before and after the epochs: populations, nodes, graph, a first network; then what each seen condition was."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from scvi_causal.model.gim._conditions import part_features, split_parts, varies
from scvi_causal.model.gim._graph import find_graph
from scvi_causal.model.gim._nodes import fit_readout, log_loadings, make_nodes
from scvi_causal.model.gim._options import prior_matrices, search_options
from scvi_causal.model.gim._populations import control_means, group_cells, node_moments, read_populations
from scvi_causal.model.gim._training_set import CellTrainingSet, TrainingSet
from scvi_causal.nn import responsibility

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor

    from scvi_causal.model.gim._graph import FoundGraph
    from scvi_causal.model.gim._model import GIM
    from scvi_causal.model.gim._module import GIMModule
    from scvi_causal.model.gim._nodes import NodeSpace
    from scvi_causal.model.gim._populations import Grouping, NodeMoments, Populations

logger = logging.getLogger(__name__)

_N_DISTIL = 400
_MIN_RESPONSIBLE = 5.0


def fit_before_training(
    model: GIM, train: np.ndarray, valid: np.ndarray, factor: float, device: torch.device, seed: int
) -> None:
    """Everything from the cells to a module that is ready for the joint objective.

    Parameters
    ----------
    model
        The model.
    train, valid
        Rows of the training and validation cells.
    factor
        Share of the steps of the search to take.
    device
        Device of the search.
    seed
        Of the search.
    """
    manager, scale, hard = model.adata_manager, model.scale_, model.module.hard
    populations = read_populations(manager, train, len(model._var_names()), scale)
    tokens = _tokens_of(model, populations.grouping)
    space = make_nodes(manager, populations, model._latent, model._n_nodes, model._var_names(), tokens, scale)
    moments = node_moments(manager, populations.grouping, space, scale, per_set=hard)
    data = moments.statistics.capped(model._max_cells)
    judged = _validation(model, valid, space, moments)
    options = search_options(len(space.names), hard, *model._search)
    use = model._prior_use if (space.genes >= 0).all() else "none"
    penalty, mask = prior_matrices(model._prior_grn(), space.names, use)
    logger.info("Searching the graph of %d nodes; the epochs come after it.", len(space.names))
    found = find_graph(
        data,
        options.scaled(factor),
        hard=hard,
        min_gain=model._min_gain,
        penalty_factor=penalty,
        mask=mask,
        held_out=judged[1].statistics if judged is not None and model._selection == "held-out" else None,
        device=device,
        seed=seed,
    )
    logger.info("Graph of %d nodes with %d edges.", len(space.names), found.graph.sum())
    _fill(model, populations, space, moments, found)
    _make_training_sets(model, populations, moments, found, judged)
    _start_network(model.module, factor)


def _tokens_of(model: GIM, grouping: Grouping) -> np.ndarray:
    return np.asarray(model._vocabulary.tokens, dtype=str)[np.unique(grouping.conditions.indices)]


def _validation(model: GIM, valid: np.ndarray, space: NodeSpace, moments: NodeMoments):
    """Populations of the validation cells whose perturbations can be predicted; ``None`` if there are none."""
    manager = model.adata_manager
    grouping = group_cells(manager, np.sort(valid)) if len(valid) else None
    if grouping is None or not grouping.conditions.shape[0]:
        if model._selection == "held-out":
            raise ValueError(
                "selection='held-out' chooses among restarts by perturbed cells that do not train, and there are none. Name some "
                "perturbations 'valid' in the column given as split_key, or pass validation_size."
            )
        return None
    found = node_moments(manager, grouping, space, model.scale_, per_set=model.module.hard, reference=moments)
    return grouping, found


# ---------------------------------------------------------------------- what was found, into the module


def _fill(model: GIM, populations: Populations, space: NodeSpace, moments: NodeMoments, found: FoundGraph) -> None:
    module, conditions = model.module, populations.grouping.conditions
    features, node = model._vocabulary_inputs(space.names if (space.genes >= 0).all() else np.array([]))
    parts = split_parts(conditions)
    with_dosage = varies(conditions)
    design = part_features(torch.from_numpy(features[parts.token]), torch.from_numpy(parts.dosage), with_dosage)
    if module.combination == "features":
        design = torch.from_numpy(parts.members) @ design
    model.sizes_ = {
        "n_genes": len(model._var_names()),
        "n_nodes": len(space.names),
        "n_parents": max(1, int(found.graph.sum(0).max())),
        "n_features": design.shape[1],
        "n_tokens": len(features),
        "n_token_features": features.shape[1],
        "n_strata": len(populations.controls.strata),
        "n_conditions": conditions.shape[0],
        "n_entries": conditions.nnz,
        "encoded": int(space.encoder is not None),
        "from_obsm": int(space.key is not None),
        "with_dosage": int(with_dosage),
        "own_node": int((node[parts.token] >= 0).any()),
    }
    model.node_names_ = space.names.astype(str)
    model.edge_probability_, model.edge_stability_ = found.probability, found.stability
    model.restarts_ = found.restarts
    module.build(model.sizes_)
    node_effect, loadings = moments.statistics.mean.numpy(), space.loadings * moments.scale[:, None]
    gene_effect, rates = populations.effect, populations.rates
    of_counts = {}
    if rates is not None:
        gene_effect, loadings = populations.log_fold, log_loadings(populations, loadings, space.genes)
        of_counts = {
            "control_rate": control_means(populations.grouping, rates.mean).mean,
            "dispersion": rates.dispersion,
        }
    center, spread = _standardisation(design.numpy(), features.shape[1], model._has_features())
    _copy(
        module,
        **of_counts,
        node_center=moments.controls.mean,
        node_scale=moments.scale,
        readout=fit_readout(node_effect, gene_effect, populations.n, loadings, space.genes),
        feature_center=center,
        feature_scale=spread,
        token_features=features,
        condition_dosage=conditions.data,
        observed=node_effect,
        strata=populations.controls.strata,
        node_gene=np.maximum(space.genes, 0),
        token_node=node,
        token_seen=np.isin(np.arange(len(features)), conditions.indices).astype(np.int64),
        condition_indptr=conditions.indptr,
        condition_tokens=conditions.indices,
        **({} if space.encoder is None else {"encoder": space.encoder}),
    )
    sd = torch.from_numpy(found.log_sd)
    module.mechanisms.fill(found.weight, found.graph, torch.from_numpy(found.intercept), sd, sd)


@torch.no_grad()
def _copy(module: GIMModule, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _standardisation(design: np.ndarray, n_token_features: int, has_features: bool) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of features over the training conditions; indicators of tokens stay as they are."""
    center, spread = design.mean(0), design.std(0)
    spread[spread < 1e-6] = 1.0
    if not has_features:
        center[:n_token_features], spread[:n_token_features] = 0.0, 1.0
    return center, spread


def _make_training_sets(model: GIM, populations: Populations, moments: NodeMoments, found: FoundGraph, judged) -> None:
    module, grouping = model.module, populations.grouping
    data = moments.statistics.capped(model._max_cells)
    parts = _parts(module, grouping.conditions)
    model._part_tokens = split_parts(grouping.conditions).token
    if not module.n_mechanism_hidden:
        module.training_set = TrainingSet(data, module.mechanisms, parts, module.hard)
        if judged is not None:
            held, found_moments = judged
            module.validation_set = TrainingSet(
                found_moments.statistics.capped(model._max_cells),
                module.mechanisms,
                _parts(module, held.conditions),
                module.hard,
            )
        return
    start, n = torch.from_numpy(1 - found.off), torch.from_numpy(populations.n)
    module.training_set = CellTrainingSet(
        data, module.mechanisms, parts, module.hard, _condition_of_cells(model, grouping), start, n
    )
    if judged is not None:
        held, found_moments = judged
        sets = found_moments.statistics.capped(model._max_cells)
        n_cells = torch.from_numpy(np.bincount(held.condition[held.condition >= 0], minlength=held.conditions.shape[0]))
        module.validation_set = CellTrainingSet(
            sets,
            module.mechanisms,
            _parts(module, held.conditions),
            module.hard,
            _condition_of_cells(model, held),
            torch.zeros(held.conditions.shape[0], module.mechanisms.n_nodes),
            n_cells.double(),
        )


def _condition_of_cells(model: GIM, grouping: Grouping) -> Tensor:
    condition = np.full(model.adata.n_obs, -2, dtype=np.int64)
    condition[grouping.rows] = grouping.condition
    return torch.from_numpy(condition)


def _parts(module: GIMModule, conditions: csr_matrix) -> dict[str, Tensor]:
    parts = split_parts(conditions)
    token = torch.from_numpy(parts.token)
    return {
        "features": module.token_features.cpu()[token],
        "dosage": torch.from_numpy(parts.dosage),
        "node": module.token_node.cpu()[token],
        "members": torch.from_numpy(parts.members),
    }


# ---------------------------------------------------------------------- the network


def _start_network(module: GIMModule, factor: float) -> None:
    """Teach the network the targets and sizes that fit each set best, before it learns together with the causal model."""
    data, mechanisms, network = module.training_set, module.mechanisms, module.network
    with torch.no_grad():
        off, on = TrainingSet.log_likelihoods(data, mechanisms, None)
        target = responsibility(torch.zeros_like(off), off, on, module.target_price)
        size = data.mean[:, :, 0] if module.hard else data.residual(mechanisms)
        precision = torch.exp(-2 * (mechanisms.log_target_sd if module.hard else mechanisms.log_sd))
        own = data.part_members @ (data.part_node[:, None] == torch.arange(mechanisms.n_nodes)).float() > 0
        if module.sizes["own_node"] and own.any():
            network.own_size.fill_(float((target * size)[own].mean()))
    decayed = network.decayed()
    known = {id(p) for p in decayed}
    free = [p for p in network.parameters() if id(p) not in known and p.requires_grad]
    groups = [{"params": decayed, "weight_decay": 1.0}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    network.train()
    for _ in range(max(1, round(factor * _N_DISTIL))):
        logit, guess = data.interventions(module)
        missed = (target * (guess - size).square() * precision).sum() / target.sum().clamp_min(1.0)
        loss = binary_cross_entropy_with_logits(logit, target) + missed
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ---------------------------------------------------------------------- what each seen condition was


@torch.no_grad()
def infer_seen(module: GIMModule) -> None:
    r"""Targets and sizes of the training conditions, from their own cells and from what features say of them.

    The size of an intervention scatters around what the network says with a variance :math:`\tau^2`, estimated from the training
    conditions. Integrated over it, the residual has variance :math:`\sigma^2/n + \tau^2` if the node is a target, and the
    best guess of the size lies between the network and the cells.
    """
    data, mechanisms = module.training_set, module.mechanisms
    module.eval()
    logit, guess = data.interventions(module)
    off, on, found = data.evidence(mechanisms)
    variance = torch.exp(2 * (mechanisms.log_target_sd if module.hard else mechanisms.log_sd)) / data.n[:, None]
    likely = responsibility(logit, off, on, module.target_price)
    excess = likely * ((found - guess).square() - variance)
    pooled = excess.sum() / likely.sum().clamp_min(1e-6)
    enough = likely.sum(0) >= _MIN_RESPONSIBLE
    tau = torch.where(enough, excess.sum(0) / likely.sum(0).clamp_min(1e-6), pooled).clamp_min(1e-4)
    spread = variance + tau
    on = on - 0.5 * (found - guess).square() / spread - 0.5 * torch.log(spread / variance)
    module.responsibility.copy_(responsibility(logit, off, on, module.target_price))
    module.posterior_size.copy_(guess + (found - guess) * tau / spread)
