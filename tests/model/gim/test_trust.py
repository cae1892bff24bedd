"""How far features are trusted for unseen tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_causal.data import simulate_drugs
from scvi_causal.model.gim._interventions import Interventions
from scvi_causal.model.gim._trust import _average, _certain_share, _weights

from .conftest import fit


def test_weights_are_least_squares_within_bounds():
    rng = np.random.default_rng(0)
    guess, mean = rng.normal(size=(2, 40, 5))
    np.testing.assert_allclose(_weights(guess, mean, 0.6 * guess + 0.3 * mean, np.arange(40)), [0.6, 0.3], atol=1e-6)
    np.testing.assert_allclose(_weights(guess, mean, -guess, np.arange(40)), [0.0, 0.0], atol=0.1)
    observed = 3.0 * guess + 0.5 * mean
    found = _weights(guess, mean, observed, np.arange(40))
    assert found.sum() == pytest.approx(1.0)
    grid, size = np.linspace(0, 1, 1001), (observed**2).sum(1)
    errors = [(((a * guess + (1 - a) * mean - observed) ** 2).sum(1) / size).sum() for a in grid]
    assert found[0] == pytest.approx(grid[int(np.argmin(errors))], abs=1e-3)
    np.testing.assert_allclose(_weights(np.zeros_like(guess), mean, 0.4 * mean, np.arange(40)), [0.0, 0.4], atol=1e-6)


def test_strong_perturbations_do_not_decide_about_all_others():
    """One of ten does what features say, twenty times as strongly; the others do nothing of it."""
    rng = np.random.default_rng(1)
    guess, observed = rng.normal(size=(10, 50)), rng.normal(size=(10, 50))
    observed[0] = 20 * guess[0]
    ten = np.arange(10)
    assert _weights(guess, np.zeros_like(guess), observed, ten)[0] < 0.5
    unit = observed / np.linalg.norm(observed, axis=1, keepdims=True)
    scaled = _weights(guess * np.linalg.norm(observed, axis=1)[:, None], np.zeros_like(guess), observed, ten)
    np.testing.assert_allclose(scaled, _weights(guess, np.zeros_like(guess), unit, ten), atol=1e-5)
    np.testing.assert_array_equal(_weights(guess, guess, np.zeros_like(guess), ten), 0.0)


def test_what_few_tokens_gain_by_chance_is_not_trusted():
    """The factor is 1 - s^2 / g^2 over tokens, whose conditions count as one."""
    rng = np.random.default_rng(2)
    guess = rng.normal(size=(12, 30))
    mean, token, weights = np.zeros_like(guess), np.repeat(np.arange(6), 2), np.array([1.0, 0.0])
    observed = guess + 0.3 * rng.normal(size=guess.shape)
    per_token = lambda x: np.square(x).sum(1).reshape(6, 2).sum(1)
    gain = 1 - per_token(guess - observed) / per_token(observed)
    expected = 1 - gain.var(ddof=1) / 6 / gain.mean() ** 2
    assert _certain_share(weights, guess, mean, observed, token) == pytest.approx(expected)
    assert expected > 0.95
    noise = rng.normal(size=guess.shape)
    fitted = _weights(guess, mean, noise, token)
    assert _certain_share(fitted, guess, mean, noise, token) < 0.6
    assert _certain_share(weights, guess, mean, noise, token) == 0.0


def test_average_is_over_the_conditions_asked_for_and_without_own_nodes():
    seen = Interventions(
        torch.tensor([[1.0, 0.5], [0.5, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 4.0], [-2.0, 9.0], [5.0, 5.0]])
    )
    others = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    found = _average(seen, others, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(found.probability, torch.tensor([0.75, 0.5]))
    torch.testing.assert_close(found.expected, torch.tensor([(2.0 - 1.0) / 2, 2.0]))


@pytest.fixture(scope="module")
def drugs():
    return simulate_drugs(
        n_nodes=5, n_drugs=25, n_new_drugs=2, dosages=(2.0,), new_dosages=(1.0,), n_control=300, seed=7
    )


TRAIN = {"max_epochs": 10}


def test_features_that_mean_something_are_trusted_and_noise_is_not(drugs):
    adata = drugs.adata.copy()
    model = fit(adata, train=TRAIN, n_kicks=0)
    of_features, of_average = model.module.trust.tolist()
    assert of_features > 0.5
    assert of_features + of_average <= 1 + 1e-6
    shuffled = drugs.adata.copy()
    table = shuffled.uns["features"]
    noise = np.random.default_rng(0).normal(size=table.shape).astype(np.float32)
    shuffled.uns["features"] = pd.DataFrame(noise, table.index, table.columns)
    doubtful = fit(shuffled, train=TRAIN, n_kicks=0).module.trust
    assert doubtful[0] < 0.4 * of_features


def test_trust_is_for_unseen_tokens_only(drugs):
    model = fit(drugs.adata.copy(), train=TRAIN, n_kicks=0)

    def ask(label, trust):
        model.module.trust.copy_(torch.tensor(trust))
        return model.get_population(label, dosage=1.0, use_seen=False)[0].to_numpy()

    # a known drug at an unknown dosage
    np.testing.assert_array_equal(ask("drug003", [1.0, 0.0]), ask("drug003", [0.0, 0.0]))
    control = model.get_population("control")[0].to_numpy()
    new = {trust: ask("drug025", list(trust)) - control for trust in ((1.0, 0.0), (0.5, 0.0), (0.0, 1.0), (0.5, 0.5))}
    np.testing.assert_allclose(new[0.5, 0.0], 0.5 * new[1.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(new[0.5, 0.5], 0.5 * (new[1.0, 0.0] + new[0.0, 1.0]), atol=1e-4)
    average = Interventions(model.module.average_probability[None], model.module.average_size[None])
    expected = model.module.mechanisms.spread(average.expected).detach() * model.module.node_scale
    np.testing.assert_allclose(new[0.0, 1.0], expected.numpy(), atol=1e-4)


def test_few_tokens_say_nothing_about_features():
    few = simulate_drugs(n_nodes=4, n_drugs=2, n_new_drugs=1, dosages=(1.0,), new_dosages=(0.5,), n_control=100, seed=0)
    model = fit(few.adata.copy(), train={"max_epochs": 1}, n_kicks=0)
    assert model.module.trust.tolist() == [0.0, 1.0]
    assert "average" in model.can_predict("drug002")["reason"].item()
