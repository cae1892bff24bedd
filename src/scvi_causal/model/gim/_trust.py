r"""How far features are to be trusted for a token that was never seen, learned by leaving tokens out.

A network that knows twenty perturbations by a hundred features says something about every other, whether the features mean
anything or not. Its word is therefore weighed against the average perturbation: networks that were not shown a token, and
the average without it, are held against what the token did, and the weights are those with the smallest relative squared error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import nnls
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from scvi_causal.model.gim._conditions import own_nodes, part_features
from scvi_causal.model.gim._interventions import Interventions
from scvi_causal.model.gim._network import InterventionNetwork, combine

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.gim._module import GIMModule

_N_FOLDS = 5
_N_STEPS = 400
_FEW_TOKENS = 4


@torch.no_grad()
def set_trust(module: GIMModule, token: np.ndarray, has_features: bool, factor: float, seed: int) -> None:
    """Fill in the average intervention and how far to trust features, from the training conditions.

    Parameters
    ----------
    module
        Trained module, its training set still there, its seen conditions inferred.
    token
        (n_parts,) token of each part of the training set.
    has_features
        Whether tokens are described by features rather than told apart by name.
    factor
        Share of the steps to take.
    seed
        Of folds and networks.
    """
    data, device = module.training_set, module.device
    members, own = data.part_members, own_nodes(data.part_node, module.sizes["n_nodes"])
    of_itself = members @ own > 0  # (K, d)
    seen = Interventions(module.responsibility, module.posterior_size)
    others = torch.where(of_itself, 0.0, 1.0)
    tokens = np.unique(token)
    folds = np.random.default_rng([seed, 8]).permutation(len(tokens)) % min(_N_FOLDS, len(tokens))
    # (n_folds, n_parts) and (n_folds, K): which parts and conditions a fold leaves out
    left = torch.from_numpy(np.array([folds[np.searchsorted(tokens, token)] == f for f in range(folds.max() + 1)])).to(
        device
    )
    out = (left.float() @ members.T) > 0

    average = _average(seen, others, torch.ones_like(members[:, 0]))
    own_seen = Interventions(seen.probability[of_itself][None], seen.size[of_itself][None])
    module.average_probability.copy_(average.probability)
    module.average_size.copy_(average.size)
    if of_itself.any():
        chance = own_seen.probability.mean()
        module.average_own.copy_(torch.stack([chance, own_seen.expected.mean() / chance.clamp_min(1e-6)]))
    if len(tokens) < _FEW_TOKENS:
        return
    known = ~out.any(0) | (members.sum(1) == 1)  # combinations leave several tokens out, which is another question
    logit, size = _fold_networks(module, out, seen, factor, seed) if has_features else (None, None)
    guess, mean = (Interventions(torch.zeros_like(others), torch.zeros_like(others)) for _ in range(2))
    for f, mine in enumerate(out):
        without = _average(seen, others, (~mine).float())
        mean.probability[mine], mean.size[mine] = without.probability, without.size
        if has_features:
            guess.probability[mine] = (torch.sigmoid(logit[f]) * others)[mine]
            guess.size[mine] = size[f][mine]
    itself = Interventions(of_itself.float() * module.average_own[0], of_itself.float() * module.average_own[1])
    observed = data.mean[:, :, 0] - module.total_effect(itself)
    rows = (module.total_effect(guess)[known], module.total_effect(mean)[known], observed[known])
    rows = tuple(row.cpu().numpy() for row in rows)
    first = token[members.argmax(1)[known].cpu().numpy()]
    if len(np.unique(first)) < _FEW_TOKENS:
        return
    weights = _weights(*rows, first)
    module.trust.copy_(torch.from_numpy(weights * _certain_share(weights, *rows, first)))


def _average(seen: Interventions, others: Tensor, use: Tensor) -> Interventions:
    """The average intervention of some conditions on nodes other than the perturbed one."""
    weight = use[:, None] * others
    total = weight.sum(0).clamp_min(1e-6)
    probability = (weight * seen.probability).sum(0) / total
    return Interventions(probability, (weight * seen.expected).sum(0) / total / probability.clamp_min(1e-6))


def _fold_networks(
    module: GIMModule, out: Tensor, seen: Interventions, factor: float, seed: int
) -> tuple[Tensor, Tensor]:
    """(n_folds, K, d) log odds and sizes by networks that were not shown the conditions of their fold."""
    data, device, sizes = module.training_set, module.device, module.sizes
    x = part_features(data.part_features, data.part_dosage, bool(sizes["with_dosage"]))
    members, own = data.part_members, own_nodes(data.part_node, sizes["n_nodes"])
    if module.combination == "features":
        x, own = members @ x, (members @ own).clamp_max(1.0)
    x = (x - module.feature_center) / module.feature_scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [
            InterventionNetwork(
                sizes["n_features"], sizes["n_nodes"], module.n_hidden, module.dropout_rate, bool(sizes["own_node"])
            )
            for _ in range(len(out))
        ]
        skeleton = networks[0].to(device).train()
        parameters, buffers = stack_module_state([network.to(device) for network in networks])

        def answer(p: dict) -> tuple[Tensor, Tensor]:
            call = lambda one: functional_call(skeleton, (one, {}), (x, own))
            logit, size = vmap(call, randomness="different")(p)
            return (logit, size) if module.combination == "features" else combine(logit, size, members)

        matrices = [p for name, p in parameters.items() if p.ndim == 3]
        rest = [p for p in parameters.values() if p.ndim < 3]
        groups = [{"params": matrices, "weight_decay": 1.0}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=3e-3)
        use = (~out).float()[:, :, None]
        target, found = seen.probability, seen.size
        precision = torch.exp(
            -2 * (module.mechanisms.log_target_sd if module.hard else module.mechanisms.log_sd)
        ).detach()
        with torch.enable_grad():
            for _ in range(max(1, round(factor * _N_STEPS))):
                logit, size = answer(parameters)
                agree = binary_cross_entropy_with_logits(logit, target.expand_as(logit), reduction="none")
                missed = target * (size - found).square() * precision
                loss = (use * agree).mean((1, 2)) + (use * missed).sum((1, 2)) / (use * target).sum((1, 2)).clamp_min(
                    1.0
                )
                optimizer.zero_grad()
                loss.sum().backward()
                optimizer.step()
        skeleton.eval()
        return answer(parameters)


def _weights(guess: np.ndarray, mean: np.ndarray, observed: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Weights of features and average, not negative, together at most 1, with the smallest *relative* squared error.

    A prediction misses strong effects by more than weak ones. Were all errors to count alike, a few strong perturbations would decide
    how large the effect of any other is; relative to the size of what was observed, each token counts once, its dosages together.
    """
    size = np.sqrt(_energy(observed, token))[:, None]
    guess, mean, observed = (np.asarray(a, dtype=float) / size for a in (guess, mean, observed))
    design = np.stack([guess.ravel(), mean.ravel()], axis=1)
    target = observed.ravel()
    weights, _ = nnls(design, target)
    if weights.sum() > 1:
        difference = design[:, 0] - design[:, 1]
        share = difference @ (target - design[:, 1]) / max(difference @ difference, 1e-12)
        weights = np.array([np.clip(share, 0, 1), 1 - np.clip(share, 0, 1)])
    return weights.astype(np.float32)


def _certain_share(
    weights: np.ndarray, guess: np.ndarray, mean: np.ndarray, observed: np.ndarray, token: np.ndarray
) -> np.float32:
    r"""How much of the weights is more than chance, given how much tokens differ in what they gain by them.

    With the mean :math:`\bar g` over tokens of the share of the observed effect that is explained, and its standard error s, this is the positive-part
    factor :math:`\max(0, 1 - s^2 / \bar g^2)`: next to 1 for forty drugs whose features mean something, less for seven reagents.
    """
    error = weights[0] * guess + weights[1] * mean - observed
    _, first = np.unique(token, return_index=True)
    gain = 1 - (_energy(error, token) / _energy(observed, token))[first]
    average, noise = float(gain.mean()), float(gain.var(ddof=1)) / len(gain)
    return np.float32(max(0.0, 1 - noise / average**2) if average > 0 else 0.0)


def _energy(effect: np.ndarray, token: np.ndarray) -> np.ndarray:
    """(n,) mean squared length of the effects of the token of each row."""
    _, group = np.unique(token, return_inverse=True)
    squares = (np.asarray(effect, dtype=float) ** 2).sum(1)
    found = np.bincount(group, squares) / np.bincount(group)
    return np.maximum(found, 1e-12 * max(float(found.max()), 1e-30))[group]
