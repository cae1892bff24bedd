"""The objective against closed forms (numbers: parity checks of the family)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS, SOURCE_PREFIX
from scvi_causal.model.cradlevae._artifacts import of_quality
from scvi_causal.model.cradlevae._losses import kl_gaussians, published_divergence
from scvi_causal.model.cradlevae._references import lower_median
from scvi_causal.nn import kl_standard_normal

from .conftest import make_batch, make_module, set_profile, zero


def terms(module, batch, seed=0):
    torch.manual_seed(seed)
    return module(batch)


@pytest.mark.parametrize("artifact", ["concat", "add"])
def test_loss_of_the_fixture(batch, artifact):
    """Check 9: class weights of 1/4 and 3/4, masks that are on, and posteriors that are all the same."""
    module = make_module(artifact=artifact)
    zero(module)
    set_profile(module, torch.ones(1, 3))
    with torch.no_grad():
        loss = terms(module, batch)[2]
    rows = torch.tensor([4.780357, 4.780357, 5.728628, 5.728628]) * torch.tensor([0.25, 0.75, 0.25, 0.25])
    torch.testing.assert_close(loss.reconstruction_loss["reconstruction_loss"], rows, atol=1e-5, rtol=0)
    assert float(loss.reconstruction_loss["reconstruction_loss"].mean()) == pytest.approx(1.911168, abs=1e-5)
    assert float(loss.kl_local["kl_mechanisms"].mean()) == pytest.approx(4.605170, abs=2e-4)
    assert float(loss.extra_metrics["artifact_loss"]) == 0.0
    assert float(loss.loss) == pytest.approx(6.5163, abs=1e-3)
    module.options = make_module(artifact=artifact, quality_weights="none").options
    with torch.no_grad():
        loss = terms(module, batch)[2]
    assert float(loss.reconstruction_loss["reconstruction_loss"].mean()) == pytest.approx(5.254492, abs=1e-5)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"n_genes": 1187, "n_tokens": 722, "n_latent": 200, "n_hidden": 400, "n_guide_hidden": 400}, 3_550_774),
        ({"n_genes": 40, "n_tokens": 6, "n_latent": 8, "n_hidden": 16, "n_guide_hidden": 16}, 5_184),
    ],
)
def test_number_of_parameters(sizes, expected):
    """Check 22."""
    module = make_module(**sizes, n_guide_layers=4)
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize("artifact", ["concat", "add"])
def test_one_branch_is_as_good_as_two(batch, artifact):
    """The published objective decodes both branches for all cells and multiplies one of them by zero."""
    module = make_module(artifact=artifact)
    inference, generative, loss = terms(module, batch)
    x, quality = batch[REGISTRY_KEYS.X_KEY], module.quality(batch).float()
    z, shift, value = inference["z"], inference["shift"], inference["artifacts"][:, :, 0]
    covariates, library = module.covariates(batch), module.library(batch)
    good = module.decode(z, module.join(shift, torch.zeros_like(value)), covariates, library)
    bad = module.decode(z, module.join(shift, value.expand_as(z)), covariates, library)
    share = quality.mean()
    both = share * (1 - quality) * module.log_likelihood(x, good) + (1 - share) * quality * module.log_likelihood(
        x, bad
    )
    rec = loss.reconstruction_loss["reconstruction_loss"]
    torch.testing.assert_close(rec, -both.mean(0))
    parameters = list(module.decoder.parameters()) + list(module.artifacts.parameters())
    for one, two in zip(
        torch.autograd.grad(rec.sum(), parameters, retain_graph=True, allow_unused=True),
        torch.autograd.grad(-both.mean(0).sum(), parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
    assert not torch.equal(good[:, 0], bad[:, 0])


@pytest.mark.parametrize("failed", [[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
def test_published_class_weights(batch, failed):
    """Check 13: passing cells weigh the share of failed ones; a batch of one class has no reconstruction."""
    module = make_module()
    batch[CAUSAL_KEYS.QUALITY] = torch.tensor(failed)[:, None]
    weight = module.cell_weight(batch)
    share = sum(failed) / 4
    torch.testing.assert_close(weight, torch.tensor([1 - share if q else share for q in failed]))
    rec = terms(module, batch)[2].reconstruction_loss["reconstruction_loss"]
    assert bool((rec == 0).all()) == (share in (0, 1))


def test_balanced_weights_have_mean_one():
    module = make_module("recommended", n_kinds=3, quality_weights="balanced")
    counts = torch.tensor([60.0, 30.0, 0.0, 10.0])
    module.cells_per_quality.copy_(counts)
    weight = module.cell_weight({CAUSAL_KEYS.QUALITY: torch.tensor([0, 1, 2, 3])[:, None]})
    assert float((weight * counts).sum() / counts.sum()) == pytest.approx(1.0)
    torch.testing.assert_close((weight * counts)[[0, 1, 3]], torch.full((3,), 100 / 3))
    assert float(weight[2]) == 0.0
    module.cells_per_quality.copy_(torch.tensor([60.0, 0.0, 0.0, 0.0]))
    assert float(module.cell_weight({CAUSAL_KEYS.QUALITY: torch.zeros(1, 1)})) == 1.0


def test_divergences():
    """Check 14, and that ours is the KL divergence of torch."""
    one, two = torch.tensor(1.0), torch.tensor(4.0)
    assert float(kl_gaussians(0 * one, one, one, two)) == pytest.approx(0.443147, abs=1e-6)
    assert float(published_divergence(0 * one, one, one, two)) == pytest.approx(0.818147, abs=1e-6)
    a, b = torch.distributions.Normal(0.3, 0.7), torch.distributions.Normal(-1.0, 1.9)
    found = kl_gaussians(a.mean, a.variance, b.mean, b.variance)
    torch.testing.assert_close(found, torch.distributions.kl_divergence(a, b))


def test_lower_median():
    """Check 18."""
    assert lower_median(np.array([[4.0, 0.0], [1.0, 5.0], [3.0, 5.0], [2.0, 9.0]])).tolist() == [2.0, 5.0]


def test_artifact_costs_its_divergence_once():
    """Checks 4 and 12: over the failed cells of an epoch each kind counts once, however many these are."""
    for options in ({"shared_draws": True}, {"shared_draws": False}):
        fixed = {"artifact_loss": "none", "quality_covariate": False}
        module = make_module("recommended", n_kinds=2, n_latent=3, **fixed, **options)
        with torch.no_grad():
            module.artifacts.location.normal_()
        mean, scale = (value.detach() for value in module.artifacts.belief())
        expected = float(kl_standard_normal(mean, scale.square()).sum())
        for copies in (1, 3):
            quality = torch.tensor([0, 1, 2, 1, 0, 1, 0]).repeat(copies)
            module.cells_per_quality.copy_(torch.bincount(quality).float())
            total = 0.0
            for part in quality.split(2):
                none = torch.zeros(len(part), 2)
                out = module.inference(torch.zeros(len(part), 3), none, torch.zeros(len(part), 0), part, n_samples=2)
                total += out["kl_global"].sum(1)
            torch.testing.assert_close(total.detach(), torch.full((2,), expected), rtol=1e-4, atol=1e-4)


def test_validation_has_weights_of_its_own(batch):
    module = make_module("recommended", artifact_loss="none")
    module.cells_per_token.zero_()
    module.validation_cells_per_quality.copy_(torch.tensor([9.0, 4.0]))
    with torch.no_grad():
        module.artifacts.location.fill_(2.0)
    trained = terms(module, batch)[0]["kl_global"].sum()
    validated = terms(module.eval(), batch)[0]["kl_global"].sum()
    torch.testing.assert_close(trained, 4 * validated)


# ---------------------------------------------------------------------- the artifact loss


def artifact_term(module, batch, seed=0):
    return terms(module, batch, seed)[2].extra_metrics["artifact_loss"]


def certain(module) -> None:
    """Global variables without uncertainty, so that two draws of them agree."""
    with torch.no_grad():
        for network in (module.mechanisms.network, module.artifacts.network):
            network.log_variance.weight.zero_()
            network.log_variance.bias.fill_(-30.0)
        module.mechanisms.mask_logits.fill_(30.0)


@pytest.mark.parametrize("kind", ["published", "intended", "matched"])
def test_artifact_loss(batch, kind):
    """Check 15."""
    module = make_module(artifact_loss=kind, n_latent=3)
    profile = torch.tensor([[2.0, 0.0, 1.0], [5.0, 5.0, 0.0]])
    set_profile(module, profile, (0, 1, 0, -1))
    value = artifact_term(module, batch)
    assert float(value) > 0
    changed = {key: v.clone() for key, v in batch.items()}
    changed[REGISTRY_KEYS.X_KEY][3] = 7.0  # no reference
    torch.testing.assert_close(artifact_term(module, changed), value)
    double = make_module(artifact_loss=kind, n_latent=3, artifact_loss_weight=0.2)
    double.load_state_dict(module.state_dict())
    set_profile(double, profile, (0, 1, 0, -1))
    torch.testing.assert_close(artifact_term(double, batch), 2 * value)
    with torch.no_grad():
        for parameter in double.decoder.parameters():
            parameter += 1.0
    torch.testing.assert_close(artifact_term(double, batch), 2 * value)
    set_profile(module, profile, (-1, -1, -1, -1))
    assert "artifact_loss" not in terms(module, batch)[2].extra_metrics


@pytest.mark.parametrize("kind", ["published", "intended"])
def test_artifact_loss_of_a_cell_that_is_its_reference(batch, kind):
    """Check 15: nothing, if global variables are the same; and the quality of a cell plays no role where artifacts do nothing."""
    module = make_module(artifact_loss=kind)
    certain(module)
    set_profile(module, batch[REGISTRY_KEYS.X_KEY], (0, 1, 2, 3))
    assert float(artifact_term(module, batch)) < 1e-5
    set_profile(module, batch[REGISTRY_KEYS.X_KEY].flip(0), (0, 1, 2, 3))
    value = float(artifact_term(module, batch))
    assert value > 1e-3
    with torch.no_grad():
        module.artifacts.network.mean.weight.zero_()
        module.artifacts.network.mean.bias.zero_()
    with_none = float(artifact_term(module, batch))
    batch[CAUSAL_KEYS.QUALITY] = 1 - batch[CAUSAL_KEYS.QUALITY]
    module.other_quality_of_cell = torch.tensor([0, 1, 0, 0])
    assert float(artifact_term(module, batch)) == pytest.approx(with_none, rel=0.05)


def test_published_loss_is_a_sum_and_ours_a_mean():
    """Check 15: twice the cells are twice the published term, and the same lower bound."""
    values = {}
    for kind in ("published", "intended", "matched"):
        module = make_module(artifact_loss=kind)
        certain(module)
        set_profile(module, torch.tensor([[2.0, 0.0, 1.0]]))
        values[kind] = [float(artifact_term(module, make_batch(copies))) for copies in (1, 2)]
    assert values["published"][1] == pytest.approx(2 * values["published"][0], rel=0.01)
    assert values["intended"][1] == pytest.approx(values["intended"][0], rel=0.01)
    assert values["matched"][1] == pytest.approx(values["matched"][0], rel=0.01)


def test_reference_gets_no_gradient_in_the_intended_loss(batch):
    """With the reference held, moving the encoder moves the loss as far as the cell itself moves."""
    grads = {}
    for kind in ("intended", "published"):
        module = make_module(artifact_loss=kind)
        certain(module)
        set_profile(module, torch.tensor([[2.0, 0.0, 1.0]]))
        module.reference_expression = module.reference_expression.requires_grad_()
        inference = terms(module, batch)[0]
        value = module.extra_terms(batch, inference)["artifact_loss"]
        value.backward()
        grads[kind] = module.reference_expression.grad
    assert grads["intended"] is None
    assert float(grads["published"].abs().sum()) > 0


def test_flipped_quality_is_that_of_a_failed_cell(batch):
    """Check 16: a passing cell told that it failed is encoded as a failed cell with the same counts."""
    module = make_module()
    inputs = module._get_inference_input(batch)
    out = module.inference(**inputs)
    flipped = module.join(out["shift"], of_quality(out["artifacts"], 1 - inputs["quality"]))
    found = module.encode(inputs["expression"], flipped, inputs["covariates"])
    batch[CAUSAL_KEYS.QUALITY] = 1 - batch[CAUSAL_KEYS.QUALITY]
    condition = module.join(out["shift"], of_quality(out["artifacts"], module.quality(batch)))
    torch.testing.assert_close(found, module.encode(inputs["expression"], condition, inputs["covariates"]))


# ---------------------------------------------------------------------- predictions


@pytest.mark.parametrize("artifact", ["concat", "add"])
def test_artifact_is_switched_by_quality(batch, artifact):
    """Check 17: without the artifact nothing depends on it; with it, what enters the decoder differs by it, for every cell."""
    module = make_module("recommended", artifact=artifact, n_kinds=2, n_latent=3).eval()
    with torch.no_grad():
        module.artifacts.location.normal_()
    shift = module.condition_of(batch[CAUSAL_KEYS.PERTURBATION])
    entering = {}
    for code in (0, 1, 2):
        batch[CAUSAL_KEYS.QUALITY] = torch.full((4, 1), code)
        entering[code] = module.complete(shift, batch)
    for code in (1, 2):
        change = (entering[code] - entering[0])[:, -3:]
        torch.testing.assert_close(change, module.artifacts.location[code - 1].expand(4, -1))
    with torch.no_grad():
        module.artifacts.location.zero_()
    batch[CAUSAL_KEYS.QUALITY] = torch.zeros(4, 1)
    torch.testing.assert_close(module.complete(shift, batch), entering[0])


def test_kind_of_failure_without_cells_does_nothing(batch):
    module = make_module("recommended", n_kinds=2)
    with torch.no_grad():
        module.artifacts.location.fill_(3.0)
    module.cells_per_quality.copy_(torch.tensor([3.0, 1.0, 0.0]))
    assert module.artifact_values()[1].abs().sum() == 0
    assert module.artifact_values(seed=4)[1].abs().sum() == 0
    assert module.draw_all(5)[1][:, 1].abs().sum() == 0
    batch[CAUSAL_KEYS.QUALITY][0] = 2
    assert torch.isfinite(terms(module, batch)[2].loss)


def test_setting_the_quality_leaves_that_of_the_source(batch):
    module = make_module("recommended").eval()
    with torch.no_grad():
        module.artifacts.location.fill_(2.0)
    own = module.own_condition(batch)
    edited = dict(batch)
    edited[SOURCE_PREFIX + CAUSAL_KEYS.QUALITY] = batch[CAUSAL_KEYS.QUALITY]
    edited[CAUSAL_KEYS.QUALITY] = torch.zeros(4, 1)
    torch.testing.assert_close(module.own_condition(edited), own)
    target = module.complete(module.condition_of(batch[CAUSAL_KEYS.PERTURBATION]), edited)
    torch.testing.assert_close((own - target)[:, 0], torch.tensor([0.0, 2.0, 0.0, 0.0]))


def test_drawn_artifacts_belong_to_kind_and_seed():
    module = make_module("recommended", n_kinds=2, n_latent=5)
    again = module.artifact_values(3)
    torch.testing.assert_close(again, module.artifact_values(3))
    assert not torch.equal(again, module.artifact_values(4))
    assert not torch.equal(again[0], again[1])


@pytest.mark.parametrize("n_kinds", [0, 1, 3])
def test_gradients_reach_everything(n_kinds):
    for preset in ("recommended", "paper"):
        if n_kinds == 0 and preset == "paper":
            continue
        module = make_module(preset, n_kinds=n_kinds)
        batch = make_batch(2)
        batch[CAUSAL_KEYS.QUALITY] = torch.arange(8)[:, None] % (n_kinds + 1)
        batch[CAUSAL_KEYS.INDICES] = torch.arange(8)[:, None]
        other = [0 if q else min(1, n_kinds) for q in batch[CAUSAL_KEYS.QUALITY].flatten().tolist()]
        set_profile(module, torch.tensor([[2.0, 0.0, 1.0]]), [0] * 8, other)
        for _ in range(2):  # the output of the recommended decoder starts at 0
            module.zero_grad()
            terms(module, batch)[2].loss.backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.01 * parameter.grad
        missing = [name for name, p in module.named_parameters() if p.numel() and not bool(p.grad.abs().sum() > 0)]
        assert not missing


def test_divergence_of_drawn_artifacts_is_right_on_average():
    torch.manual_seed(0)
    module = make_module(n_latent=6)
    mean, scale = (value.detach() for value in module.artifacts.belief())
    found = module.artifacts.draw(4000)[1].detach()
    expected = float(kl_standard_normal(mean, scale.square()).sum())
    error = float(found.std()) / math.sqrt(4000)
    assert float(found.mean()) == pytest.approx(expected, abs=5 * error + 1e-3)
