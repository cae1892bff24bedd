"""Closed forms of the method: likelihoods, heads, losses, the published sampler, the score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from scvi_causal.metrics import r2_score_genes
from scvi_causal.model.vci._module import VCIModule
from scvi_causal.model.vci._options import PAPER, resolve_options
from scvi_causal.model.vci._outcome import Outcome, log_likelihood
from scvi_causal.model.vci._populations import discriminator_loss, distribution_loss
from scvi_causal.model.vci._treatments import TreatmentTable
from scvi_causal.nn import (
    grouped_energy_distance,
    kernel_density_loss,
    kl_normal,
    matched_log_kernel,
    published_divergence,
)


def module_of(n_genes=6, n_tokens=3, preset="paper", **options) -> VCIModule:
    options = resolve_options(preset, {"n_latent": 4, "n_hidden": 8, **options})
    return VCIModule(n_genes, n_tokens, gene_likelihood="normal", log_normalize=False, options=options)


# ---------------------------------------------------------------------- 1: likelihoods


def test_likelihoods():
    module = module_of(1)
    y = torch.zeros(1, 1)
    found = log_likelihood(module, y, y, Outcome(y, torch.ones(1)), torch.ones(1, 1))
    assert -found.item() == pytest.approx(0.9189385332, abs=1e-6)
    module.gene_likelihood = "nb"
    rate = torch.log1p(torch.tensor([[2.0]]))  # a library of 10,000 makes counts of rates
    for theta in (torch.tensor([1.5]), torch.tensor([[1.5]])):
        outcome = Outcome(rate, theta)
        found = log_likelihood(module, torch.tensor([[3.0]]), y, outcome, torch.tensor([[1e4]]))
        assert found.item() == pytest.approx(-2.1670351, abs=3e-3)  # the soft floor of the rate
        exact = stats.nbinom.logpmf(3, 1.5, 1.5 / (1.5 + float(module.rate(rate))))
        assert found.item() == pytest.approx(exact, abs=1e-5)


def test_the_library_scales_the_mean_of_counts():
    module = module_of(4)
    module.gene_likelihood = "nb"
    location, theta = torch.rand(2, 4) + 1.0, torch.ones(4)
    x = torch.tensor([[3.0, 0.0, 1.0, 2.0]] * 2)
    library = torch.tensor([[500.0], [2000.0]])
    mean = (module.rate(location) * library / 1e4).numpy()
    expected = stats.nbinom.logpmf(x.numpy(), 1.0, 1.0 / (1.0 + mean)).mean(1)
    found = log_likelihood(module, x, torch.log1p(x), Outcome(location, theta), library)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


# ---------------------------------------------------------------------- 2: heads


def test_published_heads_have_a_floor():
    module = module_of().eval()
    y, step = torch.randn(50, 6), module._per_step()
    treatment = module.treatment_code.of_vocabulary(torch.zeros(50, 3))
    mean, scale = module.encode(y, treatment, torch.zeros(50, 0), step)
    assert (mean >= 0).all()
    assert (mean == 0).any()
    assert float(scale.detach().min()) == pytest.approx(0.6941471806, abs=1e-6)
    free = module_of(preset="recommended").eval()
    treatment = free.treatment_code.of_vocabulary(torch.zeros(50, 3))
    mean, scale = free.encode(y, treatment, torch.zeros(50, 0), step)
    assert (mean < 0).any()
    assert (scale < 0.69).any()


def test_shapes_of_the_published_networks():
    options = PAPER
    module = VCIModule(200, 7, None, 2, [3], gene_likelihood="normal", log_normalize=True, options=options)
    linear = [m for m in module.encoder.modules() if isinstance(m, torch.nn.Linear)]
    # [256 + K + 16 J, 128, 128, 2 * 128], K with a column for control
    assert [(m.in_features, m.out_features) for m in linear] == [(256 + 8 + 32, 128), (128, 128), (128, 256)]
    linear = [m for m in module.decoder.modules() if isinstance(m, torch.nn.Linear)] + [module.decoder_head]
    assert [(m.in_features, m.out_features) for m in linear] == [(128 + 8, 128), (128, 128), (128, 400)]
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in module.modules()) == 4
    assert options.n_draws == 30
    assert (options.distribution_loss, options.outcome, options.divergence) == ("match", "sample", "published")


def test_published_treatment_is_one_hot_with_a_column_for_control():
    code = module_of().treatment_code
    dosage = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, -2.0]])
    assert code.of_vocabulary(dosage).tolist() == [[0, 0, 0, 1], [0.5, 0, -2, 0]]
    every = code.tokens(torch.arange(3))
    assert code(dosage, every).tolist() == code.of_vocabulary(dosage).tolist()


# ---------------------------------------------------------------------- 3: the distribution loss


def reference_cells(n=5, n_genes=7, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, n_genes, generator=rng), torch.randn(1, n_genes, generator=rng)


def test_match_is_the_mean_of_log_kernels():
    cells, predicted = reference_cells()
    mean, variance = cells.mean(0, keepdim=True), cells.var(0, correction=0, keepdim=True)
    by_hand = -Normal(cells, 1.0).log_prob(predicted).mean()
    assert float(matched_log_kernel(predicted, mean, variance)) == pytest.approx(float(by_hand), abs=1e-6)
    closed = 0.5 * math.log(2 * math.pi) + (predicted - mean).square().sum() / 14 + variance.mean() / 2
    assert float(by_hand) == pytest.approx(float(closed), abs=1e-6)
    alike = matched_log_kernel(predicted, predicted, torch.zeros_like(predicted))
    assert float(alike) == pytest.approx(0.9189385, abs=1e-6)
    # a kernel density is never below the mean of log kernels (Jensen), and the same for one reference
    assert float(kernel_density_loss(predicted, cells[None])) < float(by_hand)
    one = kernel_density_loss(predicted, cells[None, :1])
    assert float(one) == pytest.approx(float(matched_log_kernel(predicted, cells[:1], 0 * cells[:1])), abs=1e-6)


def table_of(mean, variance, group, n_tokens=3) -> TreatmentTable:
    n_strata, n_treatments = group.shape
    dosage = np.eye(n_tokens)[:n_treatments]
    return TreatmentTable(
        dosage, np.ones(group.shape), group, mean, variance, np.arange(n_strata), np.zeros(n_strata, dtype=int)
    )


def test_match_in_a_batch():
    cells, _ = reference_cells(4, 6)
    module = module_of(6)
    group = np.array([[0, -1, -1], [-1, -1, -1]])
    module.table = table_of(
        cells.mean(0, keepdim=True).numpy(), cells.var(0, correction=0, keepdim=True).numpy(), group
    )
    predicted = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    outputs = {"outcome": predicted, "asked": torch.tensor([0, 0, 4])}  # the third cell has no reference
    loss = distribution_loss(module, outputs)
    loss.backward()
    by_hand = -Normal(cells, 1.0).log_prob(predicted[:2, None]).mean()
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    expected = (predicted[:2] - cells.mean(0)) / (6 * 2)
    torch.testing.assert_close(predicted.grad[:2], expected.detach())
    assert (predicted.grad[2] == 0).all()
    nothing = {"outcome": predicted, "asked": torch.tensor([3, 4, 5])}
    assert distribution_loss(module, nothing).item() == 0.0


def test_energy_distance_by_group():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, generator=rng), torch.randn(25, 3, generator=rng) + 1.0
    group_x, group_y = torch.arange(30) % 3, torch.arange(25) % 2
    found = grouped_energy_distance(x, y, group_x, group_y)
    assert len(found) == 2  # the third group has nothing to be held against
    for g in (0, 1):
        a, b = x[group_x == g], y[group_y == g]
        by_hand = 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()
        # Gram matrices in single precision lose digits where a cell meets itself
        assert found[g].item() == pytest.approx(by_hand.item(), abs=1e-3)


@pytest.mark.parametrize("kind", ["kernel", "energy"])
def test_losses_within_the_batch_prefer_the_right_population(kind):
    module = module_of(6, preset="recommended", distribution_loss=kind)
    rng = torch.Generator().manual_seed(0)
    observed = torch.randn(40, 6, generator=rng)
    outputs = {"expression": observed, "asked": torch.zeros(40).long(), "received": torch.zeros(40).long()}
    loss = {}
    for name, shift in (("right", 0.0), ("wrong", 2.0)):
        predicted = torch.randn(40, 6, generator=rng) + shift
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss[name] = float(distribution_loss(module, {**outputs, "outcome": predicted}))
    assert loss["right"] < loss["wrong"] - 0.3
    # nothing observed under what is asked for: no loss, and a gradient of zero
    predicted = torch.zeros(40, 6, requires_grad=True)
    nothing = {**outputs, "outcome": predicted, "asked": torch.ones(40).long()}
    distribution_loss(module, nothing).backward()
    assert (predicted.grad == 0).all()


# ---------------------------------------------------------------------- 4: the divergence


def test_divergences():
    one, two = torch.ones(1, 128), torch.full((1, 128), 2.0)
    assert float(published_divergence(one, two, 0 * one, two).sum()) == pytest.approx(64)
    assert float(kl_normal(one, two, 0 * one, two).sum()) == pytest.approx(16)
    assert float(kl_normal(one, two, one, two).sum()) == 0
    rng = torch.Generator().manual_seed(0)
    mean, other, scale, wide = (torch.rand(5, 3, generator=rng) + 0.5 for _ in range(4))
    torch.testing.assert_close(
        kl_normal(mean, scale, other, wide), kl_divergence(Normal(mean, scale), Normal(other, wide))
    )
    torch.testing.assert_close(
        published_divergence(mean, scale, other, one[:, :3]), kl_normal(mean, scale, other, one[:, :3])
    )


# ---------------------------------------------------------------------- 15, 16, 17


def test_score():
    truth = np.array([1.0, 2.0, 3.0])
    for predicted, score in (([1, 2, 4], 0.5), ([2, 2, 2], 0.0), ([3, 3, 3], -1.5)):
        assert r2_score_genes(truth, np.array(predicted, dtype=float)) == pytest.approx(score)


def test_discriminator_loss_is_that_of_a_coin_at_the_start():
    module = module_of(6, distribution_loss="discriminator")
    for p in module.discriminator["body"][-1].parameters():
        p.data.zero_()
    cells = torch.randn(4, 6)
    code = torch.zeros(4, module.treatment_code.n_code)
    outputs = {"expression": cells, "outcome": cells.clone().requires_grad_(), "treatment": code, "target": code}
    outputs["contexts"] = {"X": cells}
    loss = discriminator_loss(module, outputs)
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6)
    loss.backward()
    assert outputs["outcome"].grad is None  # the discriminator does not teach the model
