"""Acyclicity: the values of the specification (P2), and that nothing but an acyclic graph is called one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scvi_causal.nn import (
    ACYCLICITY,
    greedy_dag,
    log_determinant,
    polynomial,
    spectral_radius,
    topological_order,
    trace_exponential,
)

EXACT = {"trace-exp": trace_exponential, "polynomial": polynomial, "logdet": log_determinant}


def matrix(d, **edges):
    p = torch.zeros(d, d, dtype=torch.float64)
    for name, value in edges.items():
        p[int(name[1]), int(name[2])] = value
    return p


def full(d, value):
    return value * (1 - torch.eye(d, dtype=torch.float64))


TWO_CYCLE = matrix(4, e01=0.5, e10=0.5)
THREE_CYCLE = matrix(3, e01=1.0, e12=1.0, e20=1.0)


@pytest.mark.parametrize("name", EXACT)
def test_p02_zero_exactly_for_a_dag(name):
    generator = torch.Generator().manual_seed(0)
    for d in (2, 5, 12):
        dag = torch.rand(d, d, generator=generator, dtype=torch.float64).triu(1)
        shuffle = torch.randperm(d, generator=generator)
        assert abs(float(EXACT[name](dag[shuffle][:, shuffle]))) < 1e-12
    assert float(EXACT[name](TWO_CYCLE)) > 0.1


def test_p02_values_of_a_two_cycle():
    pair = TWO_CYCLE[:2, :2]
    assert float(trace_exponential(pair)) == pytest.approx(2 * math.cosh(0.5) - 2, abs=1e-12)
    assert float(trace_exponential(TWO_CYCLE)) == pytest.approx(0.255252, abs=1e-6)
    assert float(polynomial(TWO_CYCLE)) == pytest.approx(0.187988, abs=1e-6)
    assert float(log_determinant(TWO_CYCLE)) == pytest.approx(-math.log(0.75), abs=1e-12)
    assert float(log_determinant(TWO_CYCLE, s=2.0)) == pytest.approx(0.064539, abs=1e-6)
    assert float(spectral_radius(TWO_CYCLE)) == pytest.approx(0.5, abs=1e-4)


def test_p02_values_of_a_three_cycle_of_ones():
    series = sum(3 / math.factorial(3 * k) for k in range(1, 8))
    assert float(trace_exponential(THREE_CYCLE)) == pytest.approx(series, abs=1e-12)
    assert series == pytest.approx(0.504175, abs=1e-6)
    assert float(spectral_radius(THREE_CYCLE)) == pytest.approx(1.0, abs=1e-5)
    assert float(log_determinant(THREE_CYCLE)) == math.inf


def test_p02_log_determinant_outside_its_domain_is_no_penalty():
    p = full(4, 0.5)
    assert float(trace_exponential(p)) == pytest.approx(2.301281, abs=1e-6)
    assert float(log_determinant(p)) == pytest.approx(-0.523248, abs=1e-6)
    assert float(log_determinant(p, s=2.0)) == pytest.approx(0.716864, abs=1e-6)
    assert float(spectral_radius(p)) == pytest.approx(1.5, abs=1e-5)


def test_p02_spectral_radius_of_a_dag_is_small_but_not_zero():
    dag = full(4, 0.5).triu(1)
    value = float(spectral_radius(dag))
    assert 0 < value < 0.02


@pytest.mark.parametrize("name", ACYCLICITY)
def test_batches_are_graph_by_graph_and_have_a_gradient(name):
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(3, 5, 5, generator=generator, dtype=torch.float64) * 0.2
    p.requires_grad_()
    values = ACYCLICITY[name](p)
    alone = torch.stack([ACYCLICITY[name](p[i]) for i in range(3)])
    torch.testing.assert_close(values, alone, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(values.sum(), p)
    assert (gradient >= 0).all()
    assert gradient.sum() > 0


def test_topological_order_sees_every_cycle():
    rng = np.random.default_rng(0)
    for _ in range(50):
        edges = rng.random((7, 7)) < 0.2
        np.fill_diagonal(edges, False)
        power = np.linalg.matrix_power(edges.astype(float) + np.eye(7), 8)
        cyclic = bool((((power > 0) & (power.T > 0)) & ~np.eye(7, dtype=bool)).any())
        order = topological_order(edges)
        assert (order is None) == cyclic
        if order is not None:
            place = np.argsort(order)
            assert all(place[i] < place[j] for i, j in np.argwhere(edges))
    assert topological_order(np.eye(2)) is None
    assert topological_order(np.zeros((0, 0))).tolist() == []


def test_greedy_dag_takes_the_strongest_edges_and_no_cycle():
    rng = np.random.default_rng(1)
    score = rng.random((9, 9))
    graph = greedy_dag(score, threshold=0.3)
    assert topological_order(graph) is not None
    assert (score[graph] > 0.3).all()
    left_out = np.argwhere((score > 0.3) & ~graph & ~np.eye(9, dtype=bool))
    assert len(left_out)
    for i, j in left_out:  # each of them would close a cycle with edges that are at least as strong
        stronger = graph & (score >= score[i, j])
        stronger[i, j] = True
        assert topological_order(stronger) is None
    upper = np.triu(score, 1)
    np.testing.assert_array_equal(greedy_dag(upper), upper > 0)
