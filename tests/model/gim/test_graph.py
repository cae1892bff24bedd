"""The search: P10 of the specification, hill climbing, and recovery of small known graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_causal.model.gim._climb import Climb
from scvi_causal.model.gim._graph import find_graph
from scvi_causal.model.gim._objective import HardObjective, ShiftObjective, Statistics
from scvi_causal.model.gim._scores import NodeScores
from scvi_causal.model.gim._search import SearchOptions, search_graph
from scvi_causal.nn import ACYCLICITY, topological_order

QUICK = SearchOptions(n_steps=600, n_refit_steps=150, edge_penalties=(0.06,), dag_weights=(0.0, 0.1), n_kicks=3)
NAMES = ("control_mean", "n", "mean", "covariance", "set_covariance")


def population(weight, shifts, n=200.0, n_control=2000.0, hard=False) -> Statistics:
    """Exact statistics of a linear model with unit noise, standardised; ``shifts`` is (sets, d)."""
    d, k = len(weight), len(shifts)
    total = np.linalg.inv(np.eye(d) - weight)
    sd = np.sqrt((total**2).sum(0))
    means, covariances = [], []
    for shift in shifts:
        cut = weight * (shift == 0) if hard else weight
        mine = np.linalg.inv(np.eye(d) - cut)
        means.append(shift @ mine / sd)
        covariances.append(mine.T @ mine / np.outer(sd, sd))
    control = total.T @ total / np.outer(sd, sd)
    pooled = (n_control * control + n * sum(covariances)) / (n_control + n * k)
    as_tensor = lambda a: torch.tensor(np.array(a), dtype=torch.float64)
    return Statistics(
        n_control,
        as_tensor(np.zeros(d)),
        torch.full((k,), n, dtype=torch.float64),
        as_tensor(means),
        as_tensor(pooled),
        as_tensor([*covariances, control]) if hard else None,
    )


@pytest.fixture(scope="module")
def five():
    """Five nodes, each of which is a target of two sets."""
    rng = np.random.default_rng(4)
    weight = np.triu(rng.uniform(0.6, 1.2, (5, 5)) * rng.choice([-1, 1], (5, 5)) * (rng.random((5, 5)) < 0.6), 1)
    order = rng.permutation(5)
    weight = weight[np.ix_(order, order)]
    shifts = np.concatenate([3.0 * np.eye(5), -2.0 * np.eye(5)])
    return weight, shifts


def permuted(data: Statistics, order) -> Statistics:
    return replace(
        data,
        control_mean=data.control_mean[order],
        mean=data.mean[:, order],
        covariance=data.covariance[order][:, order],
    )


def test_p10_the_order_of_the_nodes_does_not_matter(five):
    data = population(*five)
    order = torch.tensor([3, 1, 4, 0, 2])
    one = search_graph(ShiftObjective(data), replace(QUICK, n_steps=300))
    other = search_graph(ShiftObjective(permuted(data, order)), replace(QUICK, n_steps=300))
    torch.testing.assert_close(
        one.parameters["weight"][:, order][:, :, order], other.parameters["weight"], rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(one.graphs[:, order][:, :, order], other.graphs)


def test_exact_statistics_give_the_true_graph_and_weights(five):
    weight, shifts = five
    data = population(weight, shifts)
    found = find_graph(data, QUICK, hard=False)
    np.testing.assert_array_equal(found.graph, weight != 0)
    sd = np.sqrt((np.linalg.inv(np.eye(5) - weight) ** 2).sum(0))
    np.testing.assert_allclose(found.weight, weight * sd[:, None] / sd, atol=0.02)
    np.testing.assert_allclose(np.exp(found.log_sd), 1 / sd, atol=0.03)
    hit = shifts != 0
    assert (found.off[hit] < 0.01).all()
    assert (found.off[~hit] > 0.9).all()
    assert (found.probability[found.graph] > 0.99).all()
    assert (found.probability[~found.graph] < 0.1).all()
    assert (found.stability[found.graph] > 0.5).all()


def test_hard_interventions_give_the_true_graph(five):
    weight, shifts = five
    found = find_graph(population(weight, shifts, hard=True), QUICK, hard=True)
    np.testing.assert_array_equal(found.graph, weight != 0)


def test_the_determinant_of_the_cyclic_model_decides_the_direction():
    """F3: the likelihood of the conditionals alone does not tell a graph from its cyclic shadow."""
    weight = np.zeros((3, 3))
    weight[0, 1] = weight[1, 2] = 1.0
    data = population(weight, np.concatenate([3.0 * np.eye(3), -3.0 * np.eye(3)]))
    result = search_graph(ShiftObjective(data), QUICK)
    graph = result.graphs[result.best]
    assert graph[weight != 0].all()
    assert not np.tril(graph).any()  # no edge against the direction of the chain

    class Without(ShiftObjective):
        def set_gradient(self, p, sparsity, cyclic=True):
            super().set_gradient(p, sparsity, cyclic=False)

    without = search_graph(Without(data), replace(QUICK, dag_weights=(0.0,)))
    assert float(without.table["acyclicity"].iloc[0]) > 10 * float(result.table["acyclicity"].iloc[0]) + 1e-3


@pytest.mark.parametrize("name", ACYCLICITY)
def test_every_penalty_leads_to_a_graph(five, name):
    data = population(*five)
    options = replace(QUICK, acyclicity=name, dag_weights=(0.1,), n_steps=200)
    result = search_graph(ShiftObjective(data), options)
    assert topological_order(result.graphs[0]) is not None
    assert np.isfinite(result.table["bic"]).all()


def test_held_out_sets_choose_where_they_are_given(five):
    weight, shifts = five
    result = search_graph(
        ShiftObjective(population(weight, shifts)), QUICK, held_out=ShiftObjective(population(weight, shifts[:3]))
    )
    assert "held_out" in result.table
    assert result.best == result.table["held_out"].argmin()


@pytest.mark.parametrize("hard", [False, True])
def test_climbing_does_not_undo_the_choice_of_held_out_sets(five, hard):
    """The graph is the one under which the held-out sets are likeliest, whatever the training sets prefer."""
    weight, shifts = five
    data, held = population(weight, shifts, hard=hard), population(weight, shifts[:2] * 1.5, hard=hard)
    options = replace(QUICK, n_kicks=4, n_steps=200)
    found = find_graph(data, options, hard=hard, held_out=held)
    table = found.restarts
    assert table["climbed_held_out"].min() == table.loc[table["chosen"], "climbed_held_out"].item()
    trained = find_graph(data, options, hard=hard).restarts
    assert trained["climbed"].min() == trained.loc[trained["chosen"], "climbed"].item()
    assert "climbed_held_out" not in trained


def test_prior_knowledge_masks_and_favours(five):
    weight, shifts = five
    data = population(weight, shifts)
    mask = np.zeros((5, 5), dtype=bool)
    i, j = np.argwhere(weight != 0)[0]
    mask[i, j] = True
    found = find_graph(data, QUICK, hard=False, mask=mask)
    np.testing.assert_array_equal(found.graph, mask)
    forbidden = np.where(weight != 0, np.inf, 1.0)
    result = search_graph(ShiftObjective(data), QUICK, torch.from_numpy(forbidden))
    assert not (result.graphs & (weight != 0)).any()


def test_noise_does_not_vanish_with_a_node_that_follows_another():
    """A node that repeats another one would have no noise at all; the search stays finite."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 200, 2)) + np.arange(6)[:, None, None] % 2
    x = np.concatenate([x, x[:, :, :1]], axis=2)
    covariance = np.mean([np.cov(a, rowvar=False) for a in x], axis=0)
    tensor = lambda a: torch.tensor(np.array(a))
    data = Statistics(
        200.0, tensor(x[0].mean(0)), torch.full((5,), 200.0), tensor([a.mean(0) for a in x[1:]]), tensor(covariance)
    )
    found = find_graph(data, QUICK, hard=False)
    assert np.isfinite(found.weight).all()
    assert (np.exp(found.log_sd) >= QUICK.min_noise - 1e-9).all()


# ---------------------------------------------------------------------- hill climbing


def make_scores(data, **kwargs) -> NodeScores:
    return NodeScores(data, **{"hard": False, "target_price": 3.0, "edge_price": 4.0, "min_noise": 0.02, **kwargs})


def test_climbing_never_gets_worse_and_stops_at_a_top(five):
    data = population(*five)
    scores = make_scores(data)
    rng = np.random.default_rng(0)
    for _ in range(3):
        start = np.triu(rng.random((5, 5)) < 0.5, 1)
        before = Climb(scores, start).score
        climb = Climb(scores, start).run()
        assert topological_order(climb.graph) is not None
        assert climb.score <= before
        for i, j in np.argwhere(~np.eye(5, dtype=bool)):  # no single change of an edge is better
            other = climb.graph.copy()
            other[i, j] = not other[i, j]
            if topological_order(other) is not None:
                assert Climb(scores, other).score > climb.score - 1e-5


def test_gains_are_kept_up_to_date(five):
    """After any number of steps the tables are those of a fresh start from the same graph."""
    scores = make_scores(population(*five))
    climb = Climb(scores, np.zeros((5, 5), dtype=bool)).run(max_steps=6)
    fresh = Climb(scores, climb.graph)
    np.testing.assert_allclose(climb.cost, fresh.cost, atol=1e-4)
    np.testing.assert_array_equal(climb.reaches, fresh.reaches)
    np.testing.assert_array_equal(np.isfinite(climb.adding), np.isfinite(fresh.adding))
    assert np.isinf(climb.adding[-1])
    for found, expected in ((climb.adding, fresh.adding), (climb.removing, fresh.removing)):
        finite = np.isfinite(expected)
        np.testing.assert_allclose(found[finite], expected[finite], atol=1e-4)


def test_a_kick_disturbs_a_copy(five):
    scores = make_scores(population(*five))
    climb = Climb(scores, five[0] != 0)
    graph, score = climb.graph.copy(), climb.score
    kicked = climb.kicked(np.random.default_rng(1))
    assert topological_order(kicked.graph) is not None
    np.testing.assert_array_equal(kicked.graph | kicked.graph.T, graph | graph.T)
    np.testing.assert_array_equal(climb.graph, graph)
    assert climb.score == score
    assert kicked.run().score <= score + 1e-6


def test_only_allowed_edges_are_added(five):
    allowed = np.zeros((5, 5), dtype=bool)
    allowed[0, 1:] = True
    climb = Climb(make_scores(population(*five)), np.zeros((5, 5), dtype=bool), allowed).run()
    assert not climb.graph[1:].any()


def test_probability_of_an_edge_falls_with_its_evidence():
    weight = np.zeros((2, 2))
    weight[0, 1] = 0.05
    shifts = np.array([[2.0, 0.0], [0.0, 2.0]])
    found = []
    for n in (50.0, 5_000.0):
        data = population(weight, shifts, n=n, n_control=n)
        graph = np.array([[False, True], [False, False]])
        found.append(Climb(make_scores(data, edge_price=0.5 * np.log(3 * n)), graph).edge_probability())
    assert found[0][0, 1] < 0.5 < found[1][0, 1]
    np.testing.assert_array_equal([np.diag(p) for p in found], np.zeros((2, 2)))
    assert all((p + p.T <= 1 + 1e-9).all() for p in found)


def test_hard_objective_needs_the_covariances_of_the_sets(five):
    weight, shifts = five
    data = population(weight, shifts, hard=True)
    p = HardObjective(data).start(2)
    assert p["log_target_sd"].shape == (2, 5)
    assert torch.isfinite(HardObjective(data).value(p, 3.0)).all()
