"""SAMSVAE on data: what it recovers, what it answers, and what it makes of odd screens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import stats
from scipy.sparse import csr_matrix

from scvi_causal import SAMSVAE
from scvi_causal.data import simulate_mechanisms
from scvi_causal.model.samsvae._measures import expected_log1p
from scvi_causal.model.samsvae._start import sparse_rotation

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def fit(adata, max_epochs=3, seed=0, setup=None, train=None, **options):
    scvi.settings.seed = seed
    SAMSVAE.setup_anndata(adata, **(setup or {}))
    model = SAMSVAE(adata, **{"n_latent": 8, "n_hidden": 16, **options})
    model.train(max_epochs=max_epochs, **QUIET, **(train or {}))
    return model


@pytest.fixture(scope="module")
def world():
    return simulate_mechanisms(
        n_tokens=20, n_latent=5, n_genes=60, n_cells_per_token=50, n_control=300, n_combinations=3, seed=3
    )


@pytest.fixture(scope="module")
def trained(world):
    """A model that saw the single tokens of the world and no combination."""
    adata = world.adata.copy()
    combined = adata.obs["perturbation"].astype(str).str.contains("+", regex=False).to_numpy()
    adata.obs["split"] = np.where(combined, "test", "train")
    return fit(adata, 80, train={"split_key": "split"}, n_latent=12, n_hidden=32)


def test_planted_masks_are_found(world, trained):
    masks = trained.get_perturbation_masks(world.masks.index.tolist())
    score = world.score_masks(masks > 0.5)
    assert score["f1"] > 0.8
    chance = world.score_masks(
        np.random.default_rng(0).permutation((masks > 0.5).to_numpy().ravel()).reshape(masks.shape)
    )
    assert score["f1"] > chance["f1"] + 0.3


def test_without_masks_everything_acts_on_everything(world):
    model = fit(world.adata.copy(), mechanism="dense")
    with pytest.raises(NotImplementedError, match="mechanism='sparse'"):
        model.get_perturbation_masks()
    assert model.module.options.guide == "spike-and-slab"
    assert np.isfinite(model.get_average_treatment_effects("T00", n_samples=10).to_numpy()).all()


def test_effects_are_those_of_the_world(world, trained):
    """Means under each token, against fresh cells of the true model in large number."""
    effect = trained.get_average_treatment_effects(world.masks.index.tolist(), transform="mean", n_samples=100, seed=0)
    rng = np.random.default_rng(0)
    state = rng.normal(size=(2000, world.shifts.shape[1]))

    def means(shift):
        rate = np.exp(world.log_shares + (state + shift) @ world.loadings)
        return (1e4 * rate / rate.sum(1, keepdims=True)).mean(0)

    control = means(0.0)
    truth = np.array([means(shift) - control for shift in world.shifts.to_numpy()])
    correlation = [np.corrcoef(f / control, t / control)[0, 1] for f, t in zip(effect.to_numpy(), truth, strict=True)]
    assert np.median(correlation) > 0.9


def test_unseen_combinations_add_up(world, trained):
    adata, label = trained.adata, sorted(set(world.adata.obs["perturbation"]))
    label = next(name for name in label if "+" in name)
    embedding = trained.get_perturbation_embedding([label, *label.split("+")]).X
    np.testing.assert_allclose(embedding[0], embedding[1] + embedding[2], atol=1e-4)
    assert trained.can_predict(label)["reason"].item() == "combination of predictable tokens"
    source = np.flatnonzero(adata.obs["perturbation"] == "control")
    kwargs = {"indices": source, "sample": True, "output": "log1p", "seed": 0}
    log = trained.predict_counterfactual([label], **kwargs).X.mean(0)
    x = np.log1p(adata.X.toarray() / adata.X.sum(1) * 1e4)
    observed = np.asarray(x)[(adata.obs["perturbation"] == label).to_numpy()].mean(0)
    control = np.asarray(x)[source].mean(0)
    assert np.corrcoef(log - control, observed - control)[0, 1] > 0.8
    assert ((log - observed) ** 2).sum() < 0.4 * ((control - observed) ** 2).sum()


def test_dosage_scales_the_shift(trained):
    one = trained.module.condition_of(torch.eye(20)[:1]).detach()
    torch.testing.assert_close(trained.module.condition_of(2.5 * torch.eye(20)[:1]).detach(), 2.5 * one)


def test_unseen_token_is_refused_without_features(trained):
    table = trained.can_predict(["T00", "T99", "T00+T99"])
    assert table["predictable"].tolist() == [True, False, False]
    with pytest.raises(ValueError, match="T99"):
        trained.predict_counterfactual("T99")
    with pytest.raises(ValueError, match="T99"):
        trained.get_average_treatment_effects(["T99"])
    with pytest.raises(ValueError, match="not in the training cells"):
        trained.get_perturbation_masks(["T99"])


def test_features_predict_an_unseen_token(world):
    """Shifts that are linear in features are found for a token that was held out."""
    adata = world.adata.copy()
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(world.shifts.shape[1], 6))
    adata.uns["f"] = pd.DataFrame(world.shifts.to_numpy() @ turn, world.shifts.index).add_prefix("f")
    held = adata.obs["perturbation"].astype(str).str.contains("T07").to_numpy()
    adata.obs["split"] = np.where(held, "test", "train")
    model = fit(
        adata, 40, setup={"perturbation_features_key": "f"}, train={"split_key": "split"}, n_latent=12, n_hidden=32
    )
    assert model.can_predict("T07")["predictable"].item()
    effect = model.predict_counterfactual(["T07"], output="delta", seed=0).X.mean(0)
    truth = world.shifts.to_numpy()[7] @ world.loadings
    assert np.corrcoef(effect, truth)[0, 1] > 0.4
    model.predict_counterfactual("T07", indices=[0])
    assert adata.uns["scvi_causal"]["counterfactual"]["unseen_tokens_from"] == "features"
    conditional = fit(
        adata, 1, setup={"perturbation_features_key": "f"}, train={"split_key": "split"}, mechanism="one-hot"
    )
    assert not conditional.can_predict("T07")["predictable"].item()


# ---------------------------------------------------------------------- measures


def test_expected_log_of_counts():
    mean = torch.tensor([1e-3, 0.1, 2.0, 50.0, 500.0], dtype=torch.float64)[:, None].expand(5, 3)
    theta = torch.tensor([0.3, 2.0, 100.0], dtype=torch.float64)
    k = np.arange(60_000)
    for i in range(5):
        for j in range(3):
            m, t = float(mean[i, j]), float(theta[j])
            expected = (stats.nbinom.pmf(k, t, t / (t + m)) * np.log1p(k)).sum()
            assert float(expected_log1p(mean, theta)[i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_average_effects_agree_with_draws(trained):
    """Check 23 and 25: log2(1 + counts per 10,000); the effect of nothing is nothing."""
    exact = trained.get_average_treatment_effects(["T00", "T01"], n_samples=400, seed=0)
    again = trained.get_average_treatment_effects(["T01", "T00"], n_samples=400, seed=0)
    np.testing.assert_allclose(exact, again.loc[exact.index], rtol=1e-4, atol=1e-5)
    drawn = trained.get_average_treatment_effects(["T00", "T01"], analytic=False, n_samples=6000, seed=1)
    assert list(drawn.columns) == list(trained.adata.var_names)
    assert np.abs(exact - drawn).to_numpy().max() < 0.15
    assert np.corrcoef(exact.to_numpy().ravel(), drawn.to_numpy().ravel())[0, 1] > 0.98
    assert np.log2(1 + 1e4 * np.array([0.25, 0.75])) == pytest.approx([11.288289, 12.872867], abs=1e-6)
    control = trained.get_average_treatment_effects(["control"], n_samples=20)
    np.testing.assert_allclose(control, 0, atol=1e-6)
    with pytest.raises(ValueError, match="'log2'"):
        trained.get_average_treatment_effects("T00", transform="log")


def test_importance_weighted_bound(world, trained):
    """Check 24: it rises with the number of particles, and perturbed cells are likelier under their own label."""
    rows = np.arange(0, world.adata.n_obs, 40)
    bounds = [trained.get_iwelbo(indices=rows, n_particles=k, seed=0).mean() for k in (1, 10, 60)]
    assert bounds[0] < bounds[1] < bounds[2]
    state = torch.get_rng_state()
    first = trained.get_iwelbo(indices=rows[:3], n_particles=5, seed=2)
    np.testing.assert_array_equal(first, trained.get_iwelbo(indices=rows[:3], n_particles=5, seed=2))
    assert torch.equal(state, torch.get_rng_state())
    wrong = world.adata.copy()
    own = wrong.obs["perturbation"].astype(str).to_numpy()
    single = np.char.find(own.astype(str), "+") < 0
    wrong = wrong[single].copy()
    right = trained.get_iwelbo(indices=np.flatnonzero(single)[::20], n_particles=20, seed=0).mean()
    wrong.obs["perturbation"] = np.roll(own[single], 400)
    assert trained.get_iwelbo(wrong, indices=np.arange(0, wrong.n_obs, 20), n_particles=20, seed=0).mean() < right - 1
    with pytest.raises(ValueError, match="n_particles"):
        trained.get_iwelbo(n_particles=0)


def test_sparse_rotation_finds_simple_structure():
    rng = np.random.default_rng(0)
    simple = rng.normal(size=(30, 4)) * (rng.random((30, 4)) < 0.4)
    loadings = rng.normal(size=(4, 50))
    turn = rng.normal(size=(4, 4))
    scores, turned = sparse_rotation(simple @ turn, np.linalg.inv(turn) @ loadings)
    np.testing.assert_allclose(scores @ turned, simple @ loadings, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), 1, atol=1e-8)
    match = np.abs(np.corrcoef(scores.T, simple.T)[:4, 4:]).max(0)
    assert (match > 0.98).all()


# ---------------------------------------------------------------------- odd screens and options


def test_single_cells_constant_genes_and_one_perturbation():
    simulation = simulate_mechanisms(n_tokens=3, n_latent=2, n_genes=12, n_cells_per_token=20, n_control=40, seed=0)
    adata = simulation.adata
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    keep = np.ones(len(labels), dtype=bool)
    keep[np.flatnonzero(labels == "T01")[1:]] = False  # one cell is left
    adata = adata[keep].copy()
    x = adata.X.toarray()
    x[:, 3] = 0.0
    adata.X = csr_matrix(x)
    for preset in ("recommended", "paper"):
        model = fit(adata.copy(), preset=preset, n_guide_hidden=8, n_guide_layers=1, train={"train_size": 1.0})
        assert np.isfinite(model.predict_counterfactual(["T01", "T00+T02"]).X).all()
    only = adata[np.isin(adata.obs["perturbation"].astype(str), ["control", "T00"])].copy()
    assert np.isfinite(fit(only).predict_counterfactual(["T00"]).X).all()


def test_no_perturbed_training_cell_is_refused(world):
    adata = world.adata.copy()
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "control", "train", "test")
    with pytest.raises(ValueError, match="perturbed"):
        fit(adata, train={"split_key": "split"})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preset": "published"}, "'paper'"),
        ({"mechanism": "masked"}, "'sparse'"),
        ({"guide": "network"}, "'correlated'"),
        ({"mask_prior": 1.0}, "probability"),
        ({"embedding_prior_scale": 0.0}, "positive"),
        ({"n_particles": 0}, "n_particles"),
        ({"linear_decoder": False, "start_at_effects": True}, "linear_decoder=True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused(world, options, match):
    adata = world.adata[::10].copy()
    SAMSVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match=match):
        SAMSVAE(adata, **options)


def test_calibration_moves_drawn_cells_towards_the_observed(world):
    adata = world.adata[~world.adata.obs["perturbation"].str.contains("+", regex=False)].copy()
    plain = fit(adata, 5, calibrate=False, remainder=False)
    sized = fit(adata.copy(), 5, remainder=False)
    assert (plain.module.mechanisms.size == 1).all()
    x = np.asarray(np.log1p(adata.X.toarray() / adata.X.sum(1) * 1e4))
    control = (adata.obs["perturbation"] == "control").to_numpy()

    def error(model):
        total = 0.0
        for token in ("T00", "T05", "T10"):
            kwargs = {"indices": np.flatnonzero(control), "sample": True, "output": "log1p", "seed": 0}
            drawn = model.predict_counterfactual([token], **kwargs).X.mean(0)
            total += ((drawn - x[(adata.obs["perturbation"] == token).to_numpy()].mean(0)) ** 2).sum()
        return total

    assert error(sized) <= 1.02 * error(plain)


def test_published_schedule(world):
    adata = world.adata.copy()
    model = fit(adata, 2, preset="paper", n_guide_hidden=8, n_guide_layers=1, n_particles=2)
    assert model._plan_defaults["n_epochs_kl_warmup"] is None
    assert not model.module.options.analytic_kl
    assert model._default_max_epochs(None) > 1_000
    # the statistics of the encoder: log(1 + counts) of the training cells, unbiased
    rows = np.sort(model.train_indices)
    logged = np.log1p(adata.X[rows].toarray())
    np.testing.assert_allclose(model.module.input_mean, logged.mean(0), rtol=1e-4)
    np.testing.assert_allclose(model.module.input_scale, logged.std(0, ddof=1), rtol=1e-4)
    counts = model.module.cells_per_token.sum() + model.module.validation_cells_per_token.sum()
    single_or_pair = adata.obs["perturbation"].astype(str).str.count(r"\+").to_numpy() + 1
    single_or_pair[adata.obs["perturbation"] == "control"] = 0
    assert int(counts) == int(single_or_pair.sum())


def test_batches_are_of_the_decoder(world):
    """What a batch does to its genes is learned as such, and can be exchanged."""
    adata = world.adata.copy()
    rng = np.random.default_rng(0)
    second = rng.random(adata.n_obs) < 0.5
    x = adata.X.toarray()
    x[np.ix_(second, np.arange(10))] *= 3.0
    adata.X = csr_matrix(x)
    adata.obs["batch"] = np.where(second, "b", "a")
    model = fit(adata, 30, setup={"batch_key": "batch"})
    rows = np.flatnonzero((adata.obs["perturbation"] == "control").to_numpy() & ~second)
    means = {}
    for batch in ("a", "b"):
        answer = model.predict_counterfactual("T01", indices=rows, covariates={"batch": batch}, key_added=None)
        means[batch] = answer.X.mean(0)
    ratio = means["b"] / means["a"]
    assert np.median(ratio[:10]) > 1.8 * np.median(ratio[10:])
