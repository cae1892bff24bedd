"""The likelihood in sufficient statistics: P5, and gradients written out against automatic ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from scvi_causal.model.gim._objective import HardObjective, ShiftObjective, Statistics, softmin
from scvi_causal.model.gim._scores import NodeScores


def make_cells(d=4, sizes=(30, 20, 25, 15), seed=0):
    """Cells of the controls (first) and of three sets."""
    rng = np.random.default_rng(seed)
    mix = np.eye(d) + 0.5 * np.triu(rng.normal(size=(d, d)), 1)
    return [rng.normal(size=(n, d)) @ mix + rng.normal(size=d) * (k > 0) for k, n in enumerate(sizes)]


def statistics(cells, per_set=False) -> Statistics:
    n = np.array([len(x) for x in cells[1:]], dtype=float)
    covariances = [np.cov(x, rowvar=False, bias=True) for x in cells]
    weights = np.array([len(x) for x in cells]) / sum(len(x) for x in cells)
    pooled = np.einsum("k,kij->ij", weights, np.array(covariances))
    return Statistics(
        n_control=float(len(cells[0])),
        control_mean=torch.from_numpy(cells[0].mean(0)),
        n=torch.from_numpy(n),
        mean=torch.from_numpy(np.array([x.mean(0) for x in cells[1:]])),
        covariance=torch.from_numpy(pooled),
        set_covariance=torch.from_numpy(np.array(covariances[1:] + covariances[:1])) if per_set else None,
    )


def parameters(d=4, acyclic=False, seed=1, **more):
    rng = np.random.default_rng(seed)
    weight = 0.3 * rng.normal(size=(1, d, d))
    weight = np.triu(weight, 1) if acyclic else weight * (1 - np.eye(d))
    p = {"weight": weight, "intercept": 0.3 * rng.normal(size=(1, d)), "log_sd": 0.2 * rng.normal(size=(1, d)), **more}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in p.items()}


def log_density(x, p, shift):
    """Of the possibly cyclic linear model, cell by cell, in its joint form."""
    weight, b, sd = (p[name][0].numpy() for name in ("weight", "intercept", "log_sd"))
    inverse = np.linalg.inv(np.eye(len(b)) - weight)
    covariance = inverse.T @ np.diag(np.exp(2 * sd)) @ inverse
    return multivariate_normal(mean=(b + shift) @ inverse, cov=covariance).logpdf(x).sum()


@pytest.mark.parametrize("acyclic", [True, False], ids=["acyclic", "cyclic"])
def test_p05_statistics_give_the_likelihood_of_the_cells(acyclic):
    cells, p, price = make_cells(), parameters(acyclic=acyclic), 2.5
    data = statistics(cells)
    weight, b, sd = (p[name][0].numpy() for name in ("weight", "intercept", "log_sd"))
    # the sizes that fit best, and the targets with the larger of both terms summed out node by node
    total = log_density(cells[0], p, 0.0)
    for x in cells[1:]:
        residual = x @ (np.eye(4) - weight) - b
        best = residual.mean(0)
        off = norm(0, np.exp(sd)).logpdf(residual).sum(0)
        on = norm(best, np.exp(sd)).logpdf(residual).sum(0)
        determinant = np.linalg.slogdet(np.eye(4) - weight)[1]
        # what two forms of the same density have in common
        assert log_density(x, p, 0.0) == pytest.approx(off.sum() + len(x) * determinant, abs=1e-9)
        assert log_density(x, p, best) == pytest.approx(on.sum() + len(x) * determinant, abs=1e-9)
        total += np.logaddexp(on - price, off).sum() + len(x) * determinant
    n = sum(map(len, cells))
    assert float(ShiftObjective(data).value(p, price)[0]) == pytest.approx(-total / n, abs=1e-12)


def test_p05_hard_interventions_cell_by_cell():
    cells, price = make_cells(), 1.5
    p = parameters(acyclic=True, log_target_sd=[[0.1, -0.2, 0.0, 0.3]])
    weight, b, sd, target_sd = (p[name][0].numpy() for name in ("weight", "intercept", "log_sd", "log_target_sd"))
    total = norm(0, np.exp(sd)).logpdf(cells[0] - cells[0] @ weight - b).sum()
    for x in cells[1:]:
        off = norm(0, np.exp(sd)).logpdf(x - x @ weight - b).sum(0)
        on = norm(x.mean(0), np.exp(target_sd)).logpdf(x).sum(0)
        total += np.logaddexp(off, on - price).sum()
    data = statistics(cells, per_set=True)
    value = float(HardObjective(data).value(p, price)[0])
    assert value == pytest.approx(-total / sum(map(len, cells)), abs=1e-12)


@pytest.mark.parametrize("cyclic", [True, False])
def test_written_gradient_is_the_automatic_one(cyclic):
    objective = ShiftObjective(statistics(make_cells()))
    p = {name: torch.cat([value, 0.5 * value]) for name, value in parameters().items()}
    objective.set_gradient(p, 2.0, cyclic)
    free = {name: value.clone().requires_grad_() for name, value in p.items()}
    expected = torch.autograd.grad(objective.value(free, 2.0, cyclic).sum(), list(free.values()))
    for (name, value), gradient in zip(p.items(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=0, atol=1e-10, msg=name)


def test_cyclic_term_of_hard_interventions_sees_the_graph_that_is_left():
    """Where a set surely has a target, the cycle through it is cut, and so is its determinant."""
    pair = {"weight": [[[0, 0.5], [0.5, 0]]], "intercept": [[0.0, 0.0]], "log_sd": [[0.0, 0.0]]}
    p = {name: torch.tensor(value, dtype=torch.float64) for name, value in pair.items()}
    p["log_target_sd"] = torch.zeros(1, 2, dtype=torch.float64)
    cells = [np.random.default_rng(0).normal(size=(2_000, 2)), np.array([[100.0, 0.0], [100.001, 0.0]] * 500)]
    objective = HardObjective(statistics(cells, per_set=True))
    gain = objective.value(p, 0.0, cyclic=False) - objective.value(p, 0.0, cyclic=True)
    share = 2_000 / 3_000  # of the cells whose graph still has the cycle
    assert float(gain) == pytest.approx(share * math.log(0.75), abs=1e-6)


def test_softmin():
    u = torch.tensor([0.0, 3.0, 1e4])
    torch.testing.assert_close(softmin(u, 3.0), -torch.log(torch.exp(-u) + math.exp(-3)))


def test_capped_sets_count_no_more_than_that():
    data = statistics(make_cells()).capped(20)
    assert data.n.tolist() == [20, 20, 15]
    assert data.n_total == 85
    assert statistics(make_cells()).capped(None).n.tolist() == [20, 25, 15]


# ---------------------------------------------------------------------- node by node


def scores(data, hard=False, **kwargs) -> NodeScores:
    return NodeScores(data, **{"hard": hard, "target_price": 3.0, "edge_price": 0.0, "min_noise": 1e-3, **kwargs})


@pytest.mark.parametrize("hard", [False, True], ids=["shift", "hard"])
def test_scores_of_nodes_add_up_to_the_objective(hard):
    cells = make_cells(sizes=(300, 200, 250, 150))
    data = statistics(cells, per_set=hard)
    graph = np.triu(np.ones((4, 4), dtype=bool), 1)
    parents = [tuple(np.flatnonzero(graph[:, j])) for j in range(4)]
    fit = scores(data, hard).fit(range(4), parents, torch.ones(4, 3))
    weight = torch.zeros(1, 4, 4, dtype=torch.float64)
    for j, chosen in enumerate(parents):
        weight[0, list(chosen), j] = -fit.weights[j, 1 : 1 + len(chosen)]
    p = {"weight": weight, "intercept": -fit.weights[:, -1][None], "log_sd": 0.5 * fit.variance.log()[None]}
    if hard:
        on = (1 - fit.off) * data.n
        own = data.set_covariance[:-1].diagonal(dim1=-2, dim2=-1).T
        p["log_target_sd"] = 0.5 * ((on * own).sum(1) / on.sum(1)).log()[None]
    objective = (HardObjective if hard else ShiftObjective)(data)
    assert float(fit.score.sum()) == pytest.approx(float(objective.value(p, 3.0, cyclic=False)[0]), abs=1e-4)


def test_fit_of_a_node_is_where_the_gradient_vanishes():
    data = statistics(make_cells(sizes=(300, 200, 250, 150)))
    fit = scores(data).fit([3], [(0, 2)], torch.ones(1, 3))
    weight = torch.zeros(1, 4, 4, dtype=torch.float64)
    weight[0, [0, 2], 3] = -fit.weights[0, 1:3]
    p = {
        "weight": weight,
        "intercept": torch.zeros(1, 4, dtype=torch.float64),
        "log_sd": torch.zeros(1, 4, dtype=torch.float64),
    }
    p["intercept"][0, 3], p["log_sd"][0, 3] = -fit.weights[0, -1], 0.5 * fit.variance.log()[0]
    ShiftObjective(data).set_gradient(p, 3.0, cyclic=False)
    assert p["weight"].grad[0, [0, 2], 3].abs().max() < 1e-3
    assert abs(float(p["intercept"].grad[0, 3])) < 1e-3
    assert abs(float(p["log_sd"].grad[0, 3])) < 1e-2


def test_a_target_is_left_out_of_the_fit():
    """One set is far off at the node; its parents' weights are those of the other sets."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 500))
    cells = [
        np.stack([a + k, 0.7 * (a + k) + rng.normal(size=500) * 0.5 + (9.0 if k == 3 else 0)], 1)
        for k, a in enumerate(x)
    ]
    fit = scores(statistics(cells)).fit([1], [(0,)], torch.ones(1, 3))
    assert -float(fit.weights[0, 1]) == pytest.approx(0.7, abs=0.05)
    assert fit.off[0].round().tolist() == [1, 1, 0]


def test_blocks_of_queries_do_not_change_the_answer(monkeypatch):
    from scvi_causal.model.gim import _scores

    data = statistics(make_cells())
    queries = [(j, tuple(i for i in range(4) if i != j)[:k]) for j in range(4) for k in range(4)]
    nodes, parents = [j for j, _ in queries], [p for _, p in queries]
    whole = scores(data).fit(nodes, parents, torch.ones(len(nodes), 3))
    monkeypatch.setattr(_scores, "_LARGEST", 40)
    pieces = scores(data).fit(nodes, parents, torch.ones(len(nodes), 3))
    torch.testing.assert_close(whole.score, pieces.score, rtol=1e-10, atol=1e-12)
