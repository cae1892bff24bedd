"""What masks leave of an effect, and the remainder that keeps it."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch
from scipy import stats
from scipy.sparse import csr_matrix

from scvi_causal import SAMSVAE
from scvi_causal.data import simulate_mechanisms
from scvi_causal.model.base._drawn_effect import log1p_slope
from scvi_causal.model.samsvae._remainder import Remainder, gauss_newton_step

from .conftest import make_module

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def test_step_is_the_minimum():
    """Against the normal equations of each gene, with tokens that are seen only together and one that is not seen."""
    rng = np.random.default_rng(0)
    dosage = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0.5, 2, 0], [1, 0, 0, 0]])
    slope, missing = rng.uniform(0.1, 1, (5, 3)), rng.normal(size=(5, 3))
    noise, before = rng.uniform(0.01, 0.1, (5, 3)), rng.normal(size=(4, 3))
    found = gauss_newton_step(csr_matrix(dosage), slope, missing, noise, before)
    for g in range(3):
        design = slope[:, g, None] * dosage / np.sqrt(noise[:, g, None])
        right = design.T @ (missing[:, g] / np.sqrt(noise[:, g])) - before[:, g]
        np.testing.assert_allclose(found[:, g], np.linalg.solve(design.T @ design + np.eye(4), right), atol=1e-5)
    np.testing.assert_allclose(found[3], -before[3], atol=1e-5)  # only the prior speaks


def test_step_of_one_token():
    """Without noise all that is missing; with nothing but noise, nothing."""
    one = csr_matrix(np.ones((1, 1)))
    precise = gauss_newton_step(one, np.array([[0.5]]), np.array([[0.2]]), np.array([[1e-9]]), np.zeros((1, 1)))
    assert precise.item() == pytest.approx(0.4, rel=1e-6)
    noisy = gauss_newton_step(one, np.array([[0.5]]), np.array([[0.2]]), np.array([[1e9]]), np.zeros((1, 1)))
    assert abs(noisy.item()) < 1e-6


def test_slope_of_the_mean_of_logs():
    """The slope in the log of the mean, from counts alone, against a difference of expectations."""
    k = np.arange(4000)
    for mean, theta, per_count in [(0.05, 0.5, 3.0), (2.0, 1.5, 1.0), (40.0, 5.0, 0.2)]:

        def expected(mu, values, theta=theta):
            return (stats.nbinom.pmf(k, theta, theta / (theta + mu)) * values).sum()

        logs = np.log1p(per_count * k)
        numeric = (expected(mean * np.exp(1e-4), logs) - expected(mean * np.exp(-1e-4), logs)) / 2e-4
        slope = log1p_slope(torch.from_numpy(k[:, None].astype(float)), torch.tensor(per_count)).numpy()[:, 0]
        assert expected(mean, slope) == pytest.approx(numeric, rel=1e-4)


def test_remainders_add_up_and_are_additions_to_log_shares():
    module = make_module("recommended", n_tokens=3, n_genes=4)
    module.remainder.mean.copy_(torch.randn(3, 4))
    dosage = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    shift = module.remainder_of(dosage)
    torch.testing.assert_close(shift[2], shift[0] + shift[1])
    torch.testing.assert_close(shift[1], 2.0 * module.remainder.mean[1])
    assert (shift[3] == 0).all()
    z, none, library = torch.randn(4, 2), torch.zeros(4, 0), torch.full((4, 1), 1e6)
    before = module.decode(z, torch.zeros(4, 2), none, library)
    after = module.decode(z, torch.zeros(4, 2), none, library, shift)
    expected = before * shift.exp()
    torch.testing.assert_close(after, expected / expected.sum(1, keepdim=True) * 1e6, rtol=1e-4, atol=1e-2)
    assert make_module("paper").remainder_of(dosage) is None


def test_draws_belong_to_token_and_seed():
    remainder = Remainder(3, 5000)
    remainder.mean.fill_(0.3)
    remainder.scale[:2] = 0.5
    both = remainder(torch.tensor([[1.0, 1.0, 1.0]]), seed=7)
    alone = [remainder(torch.eye(3)[[i]], seed=7) for i in range(3)]
    torch.testing.assert_close(both, sum(alone), atol=1e-5, rtol=0)
    assert not torch.equal(alone[0], remainder(torch.eye(3)[[0]], seed=8))
    assert not torch.equal(alone[0], alone[1])
    assert (alone[2] == remainder(torch.eye(3)[[2]])).all()  # without uncertainty a draw is the expectation
    assert float(alone[0].std()) == pytest.approx(0.5, rel=0.05)
    # the expected share is that of the expected remainder
    assert float(alone[0].exp().mean()) == pytest.approx(np.exp(0.3), rel=0.05)


# ---------------------------------------------------------------------- on data


@pytest.fixture(scope="module")
def dense_world():
    """Tokens that also do something to every gene, which no few dimensions carry; one combination, no cell of which is trained on."""
    world = simulate_mechanisms(
        n_tokens=8, n_latent=3, n_genes=40, n_cells_per_token=120, n_control=300, n_combinations=1, seed=5
    )
    adata = world.adata
    rng = np.random.default_rng(0)
    own = {token: np.exp(rng.normal(scale=0.4, size=adata.n_vars)) for token in world.masks.index}
    x = adata.X.toarray()
    for i, label in enumerate(adata.obs["perturbation"].astype(str)):
        factor = np.prod([own[token] for token in label.split("+") if token in own], axis=0)
        x[i] = rng.poisson(x[i] * factor)
    adata.X = csr_matrix(x.astype(np.float32))
    combined = adata.obs["perturbation"].astype(str).str.contains("+", regex=False).to_numpy()
    adata.obs["split"] = np.where(combined, "test", "train")
    return adata


def fit(adata, epochs=5, **options):
    scvi.settings.seed = 0
    SAMSVAE.setup_anndata(adata)
    model = SAMSVAE(adata, n_latent=6, n_hidden=16, **options)
    model.train(max_epochs=epochs, split_key="split", **QUIET)
    return model


def effect_of(model, label, **options):
    """Drawn effect and observed effect of a population."""
    adata = model.adata
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    control = np.flatnonzero(labels == "control")
    drawn = model.predict_counterfactual([label], indices=control, sample=True, output="log1p", seed=0, **options).X
    x = np.asarray(np.log1p(adata.X.toarray() / adata.X.sum(1) * 1e4))
    return drawn.mean(0) - x[control].mean(0), x[labels == label].mean(0) - x[control].mean(0)


def test_nothing_is_lost(dense_world):
    """Effects of training conditions come out as they are, and a combination gets the sum of what its tokens do."""
    kept, lost = fit(dense_world.copy()), fit(dense_world.copy(), remainder=False)
    combination = next(label for label in dense_world.obs["perturbation"].unique() if "+" in label)
    for label, enough, gain in [("T00", 0.05, 0.5), ("T04", 0.05, 0.5), (combination, 0.5, 0.7)]:
        (drawn, observed), (without, _) = effect_of(kept, label), effect_of(lost, label)
        error, other = ((drawn - observed) ** 2).sum(), ((without - observed) ** 2).sum()
        assert error < enough * (observed**2).sum()
        assert error < gain * other
    average = kept.get_average_treatment_effects("T00", n_samples=100, seed=0).to_numpy()[0]
    assert np.corrcoef(average, effect_of(kept, "T00")[1])[0, 1] > 0.9
    rows = np.flatnonzero(dense_world.obs["perturbation"] == "T00")[:40]
    bounds = [model.get_iwelbo(indices=rows, n_particles=20, seed=0).mean() for model in (kept, lost)]
    assert bounds[0] > bounds[1]
    np.testing.assert_allclose(effect_of(kept, "control")[0], 0.0, atol=1e-5)


def test_uncertainty_is_about_that_of_the_means(dense_world):
    model = fit(dense_world.copy())
    scale = model.module.remainder.scale
    assert (scale > 0).any()
    # a token with 120 cells, and a gene with a typical share: the error of a log ratio is a few hundredths to a few tenths
    assert 0.02 < float(scale.median()) < 0.4


def test_further_training_starts_from_no_remainder(dense_world):
    model = fit(dense_world.copy())
    first = model.module.remainder.mean.clone()
    model.train(max_epochs=1, split_key="split", **QUIET)
    second = model.module.remainder.mean
    assert float((second - first).abs().mean()) < 0.5 * float(first.abs().mean())


def test_unseen_tokens_have_none(dense_world):
    adata = dense_world.copy()
    adata.obs.loc[adata.obs["perturbation"].astype(str).str.contains("T03"), "split"] = "test"
    model = fit(adata, 2)
    token = model._vocabulary.index("T03")
    assert (model.module.remainder.mean[token] == 0).all()
    assert (model.module.remainder.scale[token] == 0).all()


def test_it_goes_with_one_hot_perturbations(dense_world):
    """The remainder asks nothing of what carries the rest of an effect."""
    drawn, observed = effect_of(fit(dense_world.copy(), 2, mechanism="one-hot"), "T00")
    assert ((drawn - observed) ** 2).sum() < 0.1 * (observed**2).sum()
