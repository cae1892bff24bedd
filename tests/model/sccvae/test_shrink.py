"""Shrunken responses: no effect is no effect, a strong one stays, and calibration leaves both as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_causal.data import simulate_screen

from .conftest import TINY, TINY_PAPER, fit, make_counts


def change(model, tokens) -> np.ndarray:
    """(n_tokens, n_genes) change of the mean log1p expression of the training controls."""
    rows = np.flatnonzero((model.adata.obs["perturbation"] == "control").to_numpy())
    options = {"indices": rows, "output": "log1p", "sample": True, "seed": 0}
    before = model.predict_counterfactual(["control"], **options).X.mean(0)
    return np.array([model.predict_counterfactual([token], **options).X.mean(0) - before for token in tokens])


@pytest.fixture(scope="module")
def weak():
    """30 genes, 10 knock-downs with 30 cells: the targets move clearly, what else moves is below the noise."""
    return simulate_screen(
        n_genes=30,
        n_perturbations=10,
        n_cells_per_perturbation=30,
        n_control=300,
        mean_expression=10,
        shift=-0.7,
        seed=0,
    )


@pytest.fixture(scope="module")
def models(weak):
    """Trained on it without and with shrinkage."""
    setup = {"size_factor_key": "library", "grn_key": None}
    return [
        fit(weak.adata.copy(), setup=setup, train={"max_epochs": 5}, shrink_responses=on, **TINY)
        for on in (False, True)
    ]


def test_without_an_effect_next_to_nothing_is_predicted():
    """Over several screens, less than the tenth that a single one is allowed: in one of four, one of 360 entries looks surely like more than noise."""
    labels = np.repeat(["control", *"ABCDEF"], [300, 40, 40, 40, 40, 40, 40])
    energy = {False: 0.0, True: 0.0}
    for seed in range(3):
        adata = make_counts(labels, n_genes=60, seed=seed)
        for on in energy:
            model = fit(adata.copy(), train={"max_epochs": 5}, shrink_responses=on, **TINY)
            energy[on] += (change(model, "ABCDEF") ** 2).mean()
    assert energy[True] < 0.08 * energy[False]


def test_weak_effects_are_closer_to_the_truth(weak, models):
    truth = weak.effects.loc[list(weak.tokens)].to_numpy()
    plain, shrunken = (((change(model, weak.tokens) - truth) ** 2).mean() for model in models)
    assert shrunken < 0.6 * plain


def test_strong_effects_stay():
    simulation = simulate_screen(
        n_genes=24, n_perturbations=4, n_cells_per_perturbation=400, n_control=800, mean_expression=20, seed=0
    )
    setup = {"size_factor_key": "library", "grn_key": None}
    plain, shrunken = (
        change(fit(simulation.adata.copy(), setup=setup, shrink_responses=on, **TINY), simulation.tokens)
        for on in (False, True)
    )
    assert ((shrunken - plain) ** 2).sum() < 0.02 * (plain**2).sum()


def test_errors_of_responses_are_those_after_shrinkage(models):
    plain, shrunken = (model.module.response_error.numpy() for model in models)
    assert (shrunken <= plain * (1 + 1e-6)).all()
    assert (shrunken**2).mean() < 0.7 * (plain**2).mean()


def test_more_training_leaves_what_was_learned_of_features(models, fresh):
    """The feature map knows the noise before shrinkage, which is gone after the first training."""
    model = fresh(models[1])
    before = {name: getattr(model.module, name).clone() for name in ("unseen_response", "unseen_error", "feature_map")}
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(model.module, name).numpy(), value.numpy())


def test_what_the_network_explains_is_left_alone(weak):
    """Responses below the noise fall back on the network, and calibration does not cancel it."""
    setup = {"size_factor_key": "library", "grn_key": "grn"}
    model = fit(weak.adata.copy(), setup=setup, train={"max_epochs": 5}, shrink_responses=True, **TINY)
    tokens = torch.tensor([model._vocabulary.index(token) for token in weak.tokens])
    response = model.module.response_of_seen(tokens)
    network, programmes = response["network"].numpy(), (response["shift"] @ model.module.loadings).numpy()
    assert (network**2).sum() > 0.1
    assert (programmes**2).sum() < 0.3 * (network**2).sum()
    found, truth = change(model, weak.tokens), weak.effects.loc[list(weak.tokens)].to_numpy()
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.8


def test_continuous_data_are_shrunk_too():
    adata = make_counts(np.repeat(["control", *"ABCDEF"], [300, 40, 40, 40, 40, 40, 40]), n_genes=60)
    adata.X = np.log1p(adata.X.toarray()) - 1.0
    plain, shrunken = (
        fit(adata.copy(), data_type="continuous", shrink_responses=on, **TINY).module for on in (False, True)
    )
    response = [(module.programme_shift @ module.loadings).numpy() for module in (plain, shrunken)]
    assert (response[1] ** 2).sum() < 0.1 * (response[0] ** 2).sum()


def test_the_option_is_remembered(models, fresh):
    assert [fresh(model)._shrink_responses for model in models] == [False, True]


def test_the_published_model_does_not_know_it(weak):
    one, other = (
        fit(weak.adata.copy(), setup={"size_factor_key": "library"}, shrink_responses=on, **TINY_PAPER).module
        for on in (False, True)
    )
    for name, value in one.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), other.state_dict()[name].numpy(), err_msg=name)
