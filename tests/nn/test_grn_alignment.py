from __future__ import annotations

import pytest
import torch

from scvi_causal.nn._grn_alignment import accumulate_hops, edge_density, effect_alignment, published_alignment

WEIGHT = torch.tensor([[0.0, 1.0], [2.0, 0.0]])


def test_published_losses_of_the_fixture():
    # two nodes, six powers: the numbers of the published formulas
    assert torch.allclose(accumulate_hops(WEIGHT, torch.eye(2), 5), torch.tensor([[1.75, 1.75], [3.5, 1.75]]))
    loss = published_alignment(WEIGHT, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 1.2]]), 0.8, 5)
    assert float(100 * loss) == pytest.approx(170.0, abs=1e-4)
    assert float(5 * edge_density(WEIGHT)) == pytest.approx(3.264819, abs=1e-6)


def test_rows_and_powers_agree_with_the_sum_of_powers():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    dosage = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)  # 3 of 6 nodes
    powers = sum(torch.linalg.matrix_power(weight, k + 1) / 6**k for k in range(4))
    assert torch.allclose(accumulate_hops(weight, dosage, 3), dosage @ powers[:3])


def test_the_optimum_without_hops_is_the_median_above_the_threshold():
    generator = torch.Generator().manual_seed(1)
    change = torch.rand(21, 4, generator=generator)
    weight = torch.zeros(4, 4, requires_grad=True)
    dosage = torch.eye(4)[:1].expand(21, 4)
    optimizer = torch.optim.SGD([weight], lr=0.05)
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = 0.5 / (1 + step / 20)
        optimizer.zero_grad()
        published_alignment(weight, dosage, change, 0.3, 0).backward()
        optimizer.step()
    assert torch.allclose(weight[0], change.median(0).values - 0.3, atol=0.02)
    assert not weight[1:].any()  # nobody perturbed these, and there are no paths


def test_controls_and_unperturbed_nodes():
    weight = WEIGHT.clone().requires_grad_()
    change = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    published_alignment(weight, torch.zeros(3, 2), change, 0.1, 5).backward()
    assert not weight.grad.any()
    for n_hops, moves in ((0, False), (1, True)):
        weight.grad = None
        published_alignment(weight, torch.tensor([[1.0, 0.0]]), change[:1], 0.1, n_hops).backward()
        assert bool(weight.grad[1].any()) is moves


def test_effects_count_by_how_well_they_are_known():
    mean, variance = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5])
    effect, noise = torch.tensor([2.0, -1.0]), torch.tensor([4.0, torch.inf])
    assert float(effect_alignment(mean, variance, effect, noise)) == pytest.approx(0.5)
    # the sign matters, and so does what is believed to vary
    assert float(effect_alignment(mean, variance, -effect, noise)) == pytest.approx(0.5)
    noise = torch.tensor([4.0, 2.0])
    assert float(effect_alignment(mean, variance, effect, noise)) == pytest.approx(0.5 + 0.5 * 4.5 / 2)
