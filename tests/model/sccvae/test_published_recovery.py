"""P15 of the checks against the publication: the published model finds what a model of its own kind has made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_causal.model.sccvae import PublishedSCCVAEModule

N_GENES, N_NODES, N_TOKENS, N_CELLS, N_STEPS = 30, 6, 4, 32, 300
SWEEP = np.round(np.arange(-1.0, 2.01, 0.1), 1)
"""Strengths relative to the learned one."""


class World:
    """y = (z + c p)(I - B)^-1 D with a linear decoder D; no noise but z."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        weight = 0.3 * self._normal(N_NODES, N_NODES).triu(1)
        loadings = 2 * torch.linalg.qr(self._normal(N_GENES, N_NODES))[0].T
        self.map = torch.linalg.inv(torch.eye(N_NODES) - weight) @ loadings
        spread = torch.softmax(self._normal(N_TOKENS, N_NODES), 1)
        direction = 0.7 * torch.eye(N_NODES)[torch.tensor([0, 2, 3, 5])] + 0.3 * spread
        self.shift = torch.tensor([[3.0], [4], [4], [4]]) * direction
        self.effect = self.shift @ self.map

    def _normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def draw(self, n, token=None, penetrance=1.0):
        z = 0.5 * self._normal(n, N_NODES)
        return (z if token is None else z + penetrance * self.shift[token]) @ self.map


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def module(world):
    """Trained on the published loss with the published schedule of the divergence; a plain loop, and a larger step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = PublishedSCCVAEModule(
            N_GENES, N_TOKENS, N_TOKENS, torch.ones(N_NODES, N_NODES).triu(1), n_hidden=32, log_normalize=False
        )
        module.token_features.copy_(torch.eye(N_TOKENS))
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, N_STEPS)
        tokens = [*range(N_TOKENS), None]  # controls are a class of their own
        dosage = torch.eye(N_TOKENS + 1)[:, :N_TOKENS].repeat_interleave(N_CELLS, 0)
        for step in range(N_STEPS):
            tensors = {
                "X": torch.cat([world.draw(N_CELLS, token) for token in tokens]),
                "control_X": world.draw(N_CELLS * len(tokens)),
                "perturbation": dosage,
                "group": torch.arange(len(tokens)).repeat_interleave(N_CELLS),
            }
            _, _, loss = module(tensors, loss_kwargs={"kl_weight": step / (N_STEPS - 1)})
            optimizer.zero_grad()
            loss.loss.backward()
            optimizer.step()
            scheduler.step()
    return module.eval()


@torch.no_grad()
def mean_profile(module, world, token, relative_strength) -> np.ndarray:
    """Of 1,000 controls, with the same random numbers for every strength."""
    generator = torch.Generator().manual_seed(5)
    x = torch.as_tensor((0.5 * torch.randn(1000, N_NODES, generator=generator)) @ world.map)
    inputs = {
        "strength": module.strength[token : token + 1] * float(relative_strength),
        "features": module.token_features[token : token + 1],
    }
    found = module.counterfactual({"X": x}, torch.ones(1000, 1), inputs, sample_latent=True, generator=generator)
    return found.mean.mean(0).numpy()


@pytest.fixture(scope="module")
def sweeps(module, world):
    """(tokens, strengths, genes)"""
    return np.array([[mean_profile(module, world, token, c) for c in SWEEP] for token in range(N_TOKENS)])


def test_p15_effects_of_seen_tokens(sweeps, world):
    at = {c: int(np.flatnonzero(SWEEP == c)[0]) for c in (0.0, 1.0)}
    for token in range(N_TOKENS):
        found, true = sweeps[token, at[1.0]] - sweeps[token, at[0.0]], world.effect[token].numpy()
        assert np.corrcoef(found, true)[0, 1] > 0.95
        assert 0.8 < np.linalg.norm(found) / np.linalg.norm(true) < 1.2
        others = [np.corrcoef(found, world.effect[o])[0, 1] for o in range(N_TOKENS) if o != token]
        assert max(others) < 0.8  # and not one common axis for all


def test_p15_effect_grows_with_the_strength(sweeps, world):
    for token in range(N_TOKENS):
        projection = sweeps[token] @ world.effect[token].numpy()
        within = (SWEEP >= 0) & (SWEEP <= 1.5)  # beyond what was seen a decoder is free
        assert (np.diff(projection[within]) > 0).all()
        assert projection[0] < projection[-1]


@pytest.mark.parametrize("penetrance", [0.0, 0.5, 1.0])
def test_p15_error_is_least_at_the_penetrance_of_the_simulation(sweeps, world, penetrance):
    for token in range(N_TOKENS):
        observed = world.draw(2000, token, penetrance).mean(0).numpy()
        error = ((sweeps[token] - observed) ** 2).mean(1)
        assert abs(SWEEP[error.argmin()] - penetrance) < 0.21
