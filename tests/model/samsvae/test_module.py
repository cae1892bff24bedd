"""The objective against closed forms (numbers: parity checks of the family)."""

from __future__ import annotations

import math

import pytest
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.nn import kl_bernoulli, kl_standard_normal, nb_log_likelihood

from .conftest import COUNTS, DOSAGE, make_module


def terms(module, batch, grad=False):
    torch.manual_seed(0)
    with torch.set_grad_enabled(grad):
        return module(batch)[2]


def test_likelihood_of_counts():
    """Check 8."""
    for x, mu, theta, expected in [(3, 2, 1, -2.314991), (0, 0.5, 2, -0.446367), (7, 4, 0.5, -3.486247)]:
        found = nb_log_likelihood(torch.tensor([[float(x)]]), torch.tensor([[mu + 1e-4]]), torch.tensor([float(theta)]))
        assert float(found) == pytest.approx(expected, abs=1e-5)


def test_loss_of_the_fixture(zero_module, batch):
    """Check 9, without the artifact of CRADLE-VAE: the reconstruction is unweighted."""
    loss = terms(zero_module, batch)
    rows = [4.780357, 4.780357, 5.728628, 5.728628]
    torch.testing.assert_close(loss.reconstruction_loss["reconstruction_loss"], torch.tensor(rows), atol=1e-5, rtol=0)
    assert float(loss.reconstruction_loss["reconstruction_loss"].mean()) == pytest.approx(5.254492, abs=1e-5)
    mechanisms = loss.kl_local["kl_mechanisms"].mean()
    assert float(mechanisms) == pytest.approx(-math.log(0.01) * 2 * 2 / 4, abs=2e-4)  # check 7
    assert float(loss.kl_local["kl_basal"].abs().max()) < 1e-3
    assert float(loss.loss) == pytest.approx(5.254492 + 4.605170, abs=1e-3)


def test_exact_divergences_of_the_fixture(batch):
    module = make_module(analytic_kl=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.mechanisms.mask_logits.fill_(20.0)
    loss = terms(module, batch)
    assert float(loss.loss) == pytest.approx(5.254492 + 4.605170, abs=1e-4)


def test_standardised_input():
    """Check 10: log(1 + x), mean and unbiased standard deviation over cells, whatever the library."""
    module = make_module()
    logged = COUNTS.log1p()
    module.input_mean.copy_(logged.mean(0))
    module.input_scale.copy_(logged.std(0))
    expected = [[-0.2312, -1.1945, 1.2247], [0.3654, 0.2703, -1.2247], [-1.2511, 1.1945, 0.0], [1.1170, -0.2703, 0.0]]
    found = module.standardize(module.expression(COUNTS, COUNTS.sum(1, keepdim=True)))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prior", [0.1, 0.01])
def test_masks_at_the_start_cost_their_divergence_once(prior):
    """Checks 1 and 4: six tokens in 64 cells; over the cells of the split every token counts once."""
    generator = torch.Generator().manual_seed(0)
    dosage = torch.zeros(64, 6)
    dosage[torch.arange(48), torch.arange(48) % 6] = 1.0
    dosage[:10, 5] = 2.0  # combinations, and dosages other than 1
    module = make_module(n_tokens=6, n_latent=8, guide="mean-field", analytic_kl=True, mask_prior=prior)
    module.cells_per_token.copy_((dosage != 0).sum(0))
    expected = kl_bernoulli(torch.zeros(()), prior) * 6 * 8
    for shared in (True, False):
        module.options = make_module(
            guide="mean-field", analytic_kl=True, mask_prior=prior, shared_draws=shared
        ).options
        parts = torch.randperm(64, generator=generator).split(17)
        total = sum(module.draw_condition(dosage[part], 3)[1].sum(1) for part in parts)
        torch.testing.assert_close(total, expected.expand(3), atol=1e-4, rtol=1e-5)


def test_drawn_divergence_is_right_on_average():
    """Checks 1 and 2: the Monte Carlo form has the exact one as its expectation."""
    for guide in ("mean-field", "correlated", "spike-and-slab"):
        torch.manual_seed(1)
        exact = make_module(n_latent=8, guide=guide, analytic_kl=True, mask_prior=0.3).mechanisms
        drawn = make_module(n_latent=8, guide=guide, mask_prior=0.3).mechanisms
        with torch.no_grad():
            exact.mask_logits.normal_()
            if guide != "correlated":
                exact.location.normal_()
                exact.log_scale.normal_(std=0.3)
        drawn.load_state_dict(exact.state_dict())
        tokens = torch.tensor([0, 1])
        wanted = exact.draw(tokens, 4000).kl.mean(0)
        found = drawn.draw(tokens, 4000).kl
        error = found.std(0) / math.sqrt(4000)
        assert ((found.mean(0) - wanted).abs() < 5 * error + 1e-3).all(), guide


def test_embedding_at_the_start_costs_nothing():
    """Check 2."""
    module = make_module(guide="mean-field", analytic_kl=True, mechanism="dense")
    assert float(module.mechanisms.draw(torch.tensor([0, 1])).kl.detach().abs().max()) < 1e-6


def test_token_without_cells_costs_nothing(batch):
    module = make_module()
    module.cells_per_token.copy_(torch.tensor([2.0, 0.0]))
    _, kl = module.draw_condition(batch[CAUSAL_KEYS.PERTURBATION], 3)
    assert (kl[:, 1] == 0).all()
    assert torch.isfinite(kl).all()


def test_validation_has_weights_of_its_own(batch):
    module = make_module(analytic_kl=True, guide="mean-field")
    module.validation_cells_per_token.fill_(1.0)
    dosage = batch[CAUSAL_KEYS.PERTURBATION]
    trained = module.draw_condition(dosage, 1)[1]
    validated = module.eval().draw_condition(dosage, 1)[1]
    torch.testing.assert_close(validated, 2 * trained)


@pytest.mark.parametrize("shared", [True, False])
def test_shifts_add_up(shared):
    """Check 11: a combination is the sum of its tokens, dosages multiply, a control is not moved."""
    module = make_module(n_tokens=3, shared_draws=shared, guide="mean-field")
    with torch.no_grad():
        module.mechanisms.mask_logits.fill_(30.0)
        module.mechanisms.log_scale.fill_(-30.0)
        module.mechanisms.location.normal_()
    dosage = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    shift, _ = module.draw_condition(dosage, 4)
    assert shift.shape == (4, 4, 2)
    torch.testing.assert_close(shift[:, 2], shift[:, 0] + shift[:, 1], atol=2e-3, rtol=0)
    assert (shift[:, 3] == 0).all()
    torch.testing.assert_close(
        module.condition_of(dosage)[2], dosage[2] @ module.mechanisms.location, atol=1e-4, rtol=0
    )


def test_product_of_gaussians_is_bayes_rule():
    """The posterior of z where the cell says u = z + shift has mean m and variance v, and z has a standard normal prior."""
    module = make_module("recommended", n_latent=4)
    x, shift, none = torch.randn(5, 3), torch.randn(2, 5, 4), torch.zeros(5, 0)
    m, v = module.encoder(x)
    mean, variance = module.encode(x, shift, none)
    m, v, mean, variance = (value.detach() for value in (m, v, mean, variance))
    prior = torch.distributions.Normal(0.0, 1.0)
    z = torch.linspace(-8, 8, 4001)
    density = (
        prior.log_prob(z) + torch.distributions.Normal(m[0, 0] - shift[1, 0, 0], v[0, 0].sqrt()).log_prob(z)
    ).exp()
    density = density / torch.trapezoid(density, z)
    assert float(torch.trapezoid(density * z, z)) == pytest.approx(float(mean[1, 0, 0]), abs=1e-3)
    spread = torch.trapezoid(density * (z - mean[1, 0, 0]) ** 2, z)
    assert float(spread) == pytest.approx(float(variance[1, 0, 0]), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "extra"),
    [({}, 0), ({"guide": "mean-field"}, 0), ({"posterior": "mean-field"}, 0), ({"mechanism": "one-hot"}, 0)],
    ids=["correlated", "mean-field", "mean-field encoder", "conditional"],
)
def test_number_of_parameters(options, extra):
    """The published sizes (as in check 22): decoder, encoder, masks, and the network of the guide."""
    t, latent, h, g, h_e, k_e = 7, 5, 11, 13, 9, 3

    def lin(a, b):
        return a * b + b

    module = make_module("paper", g, t, latent, h, 1, n_guide_hidden=h_e, n_guide_layers=k_e, **options)
    conditional = options.get("mechanism") == "one-hot"
    seen = 0 if options.get("posterior") == "mean-field" else t if conditional else latent
    expected = lin(g + seen, h) + 2 * lin(h, latent) + lin(latent + (t if conditional else 0), h) + lin(h, g) + g
    if not conditional:
        expected += t * latent
        if options.get("guide") == "mean-field":
            expected += 2 * t * latent
        else:
            expected += lin(latent + t, h_e) + (k_e - 1) * lin(h_e, h_e) + 2 * lin(h_e, latent)
    assert sum(p.numel() for p in module.parameters()) == expected


def test_gradients_reach_everything(batch):
    for preset in ("recommended", "paper"):
        module = make_module(preset)
        for _ in range(2):  # the output of the recommended decoder starts at 0, and its blocks get no gradient at first
            module.zero_grad()
            loss = terms(module, batch, grad=True).loss
            loss.backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.01 * parameter.grad
        missing = [name for name, p in module.named_parameters() if not bool(p.grad.abs().sum() > 0)]
        assert not missing


def test_rest_of_the_library_is_a_share():
    options = make_module("recommended").options
    from scvi_causal.model.samsvae._module import SAMSVAEModule

    module = SAMSVAEModule(3, 2, 2, 4, 1, has_size_factor=True, options=options)
    share = module.decoder(torch.randn(5, 2)).exp()
    assert share.shape == (5, 3)
    assert (share.sum(1) < 1).all()
    torch.testing.assert_close(make_module().decoder(torch.randn(5, 2)).exp().sum(1), torch.ones(5))


def test_one_hot_is_the_input_of_a_conditional_vae(batch):
    module = make_module(mechanism="one-hot")
    condition, kl = module.draw_condition(batch[CAUSAL_KEYS.PERTURBATION], 5)
    torch.testing.assert_close(condition[0], DOSAGE)
    assert (kl == 0).all()
    assert torch.isfinite(terms(module, batch).loss)


def test_draws_of_shifts_belong_to_token_and_seed():
    module = make_module("recommended", n_tokens=4, n_latent=6)
    with torch.no_grad():
        module.mechanisms.mask_logits.fill_(1.0)
    a = module.shifts(torch.tensor([0, 3]), seed=5)
    b = module.shifts(torch.tensor([3]), seed=5)
    torch.testing.assert_close(a[1:], b)
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(b, module.shifts(torch.tensor([3]), seed=6))


def test_kl_of_the_basal_state_is_that_of_the_posterior(batch):
    exact, drawn = make_module(analytic_kl=True), make_module()
    outputs = exact.inference(**exact._get_inference_input(batch), n_samples=3)
    expected = kl_standard_normal(outputs["qz_mean"], outputs["qz_variance"]).sum(-1)
    torch.testing.assert_close(exact.kl_local(outputs), expected)
    several = {key: outputs[key][:1] for key in ("qz_mean", "qz_variance")}
    noise = torch.randn(20_000, *several["qz_mean"].shape[1:])
    several["z"] = several["qz_mean"] + several["qz_variance"].sqrt() * noise
    torch.testing.assert_close(drawn.kl_local(several).mean(0), expected[0], atol=0.05, rtol=0.05)


def test_library_is_the_size_factor(batch):
    module = make_module()
    torch.testing.assert_close(module.library(batch), COUNTS.sum(1, keepdim=True))
    batch[REGISTRY_KEYS.SIZE_FACTOR_KEY] = torch.full((4, 1), 50.0)
    torch.testing.assert_close(module.library(batch), torch.full((4, 1), 50.0))
