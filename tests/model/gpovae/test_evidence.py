from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from scvi_causal.model.gpovae._evidence import (
    EdgePrior,
    direct_effects,
    learn_prior,
    log_odds,
    mediated_shares,
    own_effects,
)
from scvi_causal.model.gpovae._nodes import plan_nodes


def test_log_odds_are_those_of_two_normals():
    effect, variance = np.array([0.3, -2.0]), np.array([0.2, 0.5])
    slab, null = norm.pdf(effect, scale=np.sqrt(variance + 1.5**2)), norm.pdf(effect, scale=np.sqrt(variance))
    assert np.allclose(expit(log_odds(effect, variance, 0.2, 1.5)), 0.2 * slab / (0.2 * slab + 0.8 * null))
    # an effect that nobody measured leaves the prior
    assert expit(log_odds(np.array([0.0]), np.array([np.inf]), 0.2, 1.5))[0] == pytest.approx(0.2)


def test_prior_is_learned_and_a_given_network_is_worth_what_it_says():
    rng = np.random.default_rng(0)
    known = rng.random((40, 50)) < 0.3
    edge = rng.random((40, 50)) < np.where(known, 0.4, 0.05)
    variance = rng.uniform(0.005, 0.02, (40, 50))
    effect = np.where(edge, rng.normal(0, 0.8, (40, 50)), 0) + np.sqrt(variance) * rng.normal(size=(40, 50))
    everywhere = np.ones((40, 50), dtype=bool)
    prior = learn_prior(effect, variance, everywhere, known)
    assert prior.scale == pytest.approx(0.8, rel=0.1)
    assert prior.probability[known][0] == pytest.approx(0.4, abs=0.06)
    assert prior.probability[~known][0] == pytest.approx(0.05, abs=0.02)
    useless = learn_prior(effect, variance, everywhere, rng.permutation(known.ravel()).reshape(40, 50))
    assert np.ptp(useless.probability) < 0.05
    assert learn_prior(effect, variance, everywhere, probability=0.3).probability[0, 0] == 0.3


def test_nothing_but_noise_has_few_edges():
    rng = np.random.default_rng(1)
    effect, variance = 0.1 * rng.normal(size=(20, 100)), np.full((20, 100), 0.01)
    prior = learn_prior(effect, variance, np.ones((20, 100), dtype=bool))
    found = direct_effects(effect, variance, prior, np.eye(20), np.ones((20, 100), dtype=bool))
    assert (found.logits > 0).mean() < 0.02


def totals(direct: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(n, T) effects of perturbing each of the first n nodes of a linear system."""
    return own[:, None] * np.linalg.inv(np.eye(len(direct)) - direct)[: len(own)]


def test_chains_are_taken_apart_whatever_the_feedback():
    direct = np.zeros((5, 5))
    direct[0, 1], direct[1, 2], direct[2, 3], direct[3, 1], direct[0, 4] = 0.8, -0.7, 0.9, 0.4, 0.5  # 1 -> 2 -> 3 -> 1
    own = np.array([-2.0, -2.0, -2.0, -2.0])
    effect = totals(direct, own)
    variance = np.full(effect.shape, 1e-4)
    prior = EdgePrior(np.full(effect.shape, 0.2), 1.0)
    node = np.arange(4)
    candidates = ~np.eye(4, 5, dtype=bool)
    found = direct_effects(effect, variance, prior, mediated_shares(effect, variance, prior, node), candidates)
    edges = (found.logits > 0) & candidates
    assert (edges == (direct[:4] != 0)).all()
    # in units of the perturbation of the source, feedback included
    assert np.allclose(np.where(edges, found.mean, 0.0), direct[:4] * effect.diagonal()[:, None], rtol=0.05)
    every_effect = direct_effects(effect, variance, prior, np.eye(4), candidates)
    assert ((every_effect.logits > 0) & candidates).sum() > edges.sum()


def test_what_is_not_seen_mediates_nothing():
    effect, variance = np.array([[-2.0, -1.0], [0.0, -0.1]]), np.full((2, 2), 0.01)
    prior = EdgePrior(np.full((2, 2), 0.2), 1.0)
    assert own_effects(effect, variance, np.array([0, 1])).tolist() == [
        -2.0,
        0.0,
    ]  # the knock-out of 1 leaves its transcript
    assert (mediated_shares(effect, variance, prior, np.array([0, 1])) == np.eye(2)).all()
    assert (mediated_shares(effect, variance, prior, np.array([-1, -1])) == np.eye(2)).all()


def test_tokens_without_cells_stay_at_the_prior():
    effect, variance = np.array([[-2.0, 1.0], [0.0, 0.0]]), np.array([[0.01, 0.01], [np.inf, np.inf]])
    prior = EdgePrior(np.full((2, 2), 0.2), 1.0)
    shares = mediated_shares(effect, variance, prior, np.array([0, -1]))
    found = direct_effects(effect, variance, prior, shares, np.array([[False, True], [False, False]]))
    assert np.allclose(expit(found.logits[1]), 0.2)
    assert found.mean[1].tolist() == [0.0, 0.0]


def test_nodes():
    tokens, genes = ["B", "X"], ["A", "B", "C", "D"]
    plan = plan_nodes(tokens, genes, "all")
    nodes = plan.nodes()
    assert nodes.names.tolist() == ["B", "X", "A", "C", "D"]
    assert nodes.gene.tolist() == [1, -1, 0, 2, 3]
    assert (plan.n_nodes, plan.n_measured) == (5, 4)
    assert plan_nodes(tokens, genes, None).nodes().names.tolist() == tokens
    assert plan_nodes(tokens, genes, ["D", "B"]).nodes().names.tolist() == ["B", "X", "D"]
    most = plan_nodes(tokens, genes, 1)
    assert (most.n_nodes, most.n_measured) == (3, 2)
    assert most.nodes(np.array([0.0, 9.0, 2.0, 5.0])).names.tolist() == ["B", "X", "D"]
    assert plan_nodes(tokens, genes, 9).n_nodes == 5


@pytest.mark.parametrize(
    ("extra", "message"),
    [("al", "'all'"), (["a"], "mean 'A'|not among"), (["A", "A"], "more than once"), (-1, "0 or more")],
)
def test_bad_nodes(extra, message):
    with pytest.raises(ValueError, match=message):
        plan_nodes(["B"], ["A", "B"], extra)
