"""The recommended module without training: likelihood, loss, latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial

from .modules import (
    CONFIGS,
    N_GENES,
    eta_and_state,
    make_module,
    make_tensors,
)


@pytest.fixture(params=CONFIGS)
def config(request):
    return request.param


# ---------------------------------------------------------------------- likelihood and loss


def set_dispersion(module) -> None:
    """Another one for every gene."""
    with torch.no_grad():
        module.log_dispersion.copy_(torch.linspace(-1, 2, N_GENES))


def test_likelihood_of_counts_is_that_of_scvi():
    module = make_module("state")
    set_dispersion(module)
    with torch.no_grad():
        eta, library = eta_and_state(module)[0], torch.full((6, 1), 300.0)
        x = make_tensors(module)["X"]
        mu = module.rate(eta) * library / 1e4
        expected = NegativeBinomial(mu=mu, theta=module.dispersion.expand(6, -1)).log_prob(x).sum(1)
        np.testing.assert_allclose(module.log_likelihood(x, eta, library), expected, rtol=1e-4)
    # counts per 10,000, kept above zero
    np.testing.assert_allclose(module.rate(eta), torch.expm1(eta), rtol=1e-3)
    assert (module.rate(torch.tensor([-50.0, 0.0])) > 0).all()


@pytest.mark.parametrize("config", ["normal", "continuous"])
def test_likelihood_of_continuous_data_is_that_of_torch(config):
    module = make_module(config)
    set_dispersion(module)
    with torch.no_grad():
        eta, tensors = eta_and_state(module)[0], make_tensors(module)
        library = module.library(tensors)
        y = module.log_expression(tensors["X"], library)
        expected = torch.distributions.Normal(eta, module.dispersion.sqrt()).log_prob(y).sum(1)
        np.testing.assert_allclose(module.log_likelihood(tensors["X"], eta, library), expected, rtol=1e-4)


def training_tensors(module, dosage) -> dict[str, torch.Tensor]:
    perturbed, control = make_tensors(module, seed=1), make_tensors(module)
    tensors = {**perturbed, **{f"control_{key}": value for key, value in control.items()}}
    return tensors | {"perturbation": torch.tensor([dosage], dtype=torch.float32).expand(6, -1)}


def test_loss_is_a_bound_and_controls_are_not_counted_twice(config):
    module = make_module(config)
    set_dispersion(module)
    for dosage in ([0.0] * 4, [1.0, 0, 0, 1.0]):
        tensors = training_tensors(module, dosage)
        losses = []
        for kl_weight in (0.0, 1.0):
            torch.manual_seed(0)
            _, generated, loss = module(tensors, loss_kwargs={"kl_weight": kl_weight})
            losses.append(loss.loss.item())
        kl = loss.kl_local["kl_local"]
        assert (kl >= 0).all()
        assert losses[1] - losses[0] == pytest.approx(kl.mean().item(), rel=1e-3, abs=1e-3)
        likelihood = module.log_likelihood(
            tensors["control_X"], generated["eta"], module.library(tensors, "control_")
        ).mean()
        if any(dosage):
            likelihood = (
                likelihood
                + module.log_likelihood(tensors["X"], generated["eta_perturbed"], module.library(tensors)).mean()
            )
        assert losses[0] == pytest.approx(-likelihood.item(), rel=1e-4)


def test_unpaired_cells_do_not_pull_at_the_state():
    module = make_module("all")
    torch.manual_seed(0)
    _, generated = module(training_tensors(module, [1.0, 0, 0, 1.0]), compute_loss=False)
    assert generated["eta"].requires_grad
    perturbed = generated["eta_perturbed"]
    if perturbed.requires_grad:
        perturbed.sum().backward()
    of_the_cell = [p for name, p in module.named_parameters() if name.startswith(("encoder", "decoder"))]
    assert of_the_cell
    assert all(p.grad is None for p in of_the_cell)


def test_latents_are_drawn_around_their_mean():
    module = make_module("state")
    tensors = make_tensors(module)
    with torch.no_grad():
        mean = module.latent(tensors)
        draw = lambda seed: module.latent(tensors, give_mean=False, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(draw(0), draw(0))
        many = torch.stack([draw(seed) for seed in range(400)])
        _, variance = module.encode(module.log_expression(tensors["X"], module.library(tensors)), tensors["batch"])
    assert ((many.mean(0) - mean).abs() < 5 * (variance / 400).sqrt()).all()
    np.testing.assert_allclose(many.var(0), variance, rtol=0.4)
