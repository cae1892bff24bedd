"""Around the published model: P9 and P16 (its metrics), P17 (its batches) of the checks against the publication."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scvi_causal import SCCVAE
from scvi_causal.dataloaders import CausalDataSplitter
from scvi_causal.metrics import direction_agreement, mmd_squared, mse, pearson_effect, r2_score_genes
from scvi_causal.nn import gaussian_mmd

from .conftest import make_counts

# ---------------------------------------------------------------------- P9: MMD of the evaluation


def evaluation_bandwidths(x, y) -> np.ndarray:
    """Five, around a quarter of the mean squared distance of different cells of the pooled chunk."""
    cells = np.concatenate([x, y])
    squared = ((cells[:, None] - cells[None]) ** 2).sum(-1)
    return squared.sum() / (len(cells) * (len(cells) - 1)) / 4 * 2.0 ** np.arange(5)


def evaluation_mmd(x, y) -> float:
    """As published: five kernels added up (ours are averaged), diagonals included."""
    return 5 * mmd_squared(x, y, bandwidths=evaluation_bandwidths(x, y), unbiased=False)


def test_p09_floor_of_the_evaluation_mmd():
    """Two samples of 32 cells from one law, many genes: all distances are alike, and only the diagonals remain."""
    floor = 2 / 32 * (5 - np.exp(-4 / 2.0 ** np.arange(5)).sum())
    assert floor == pytest.approx(0.1933, abs=5e-5)
    rng = np.random.default_rng(0)
    found = [evaluation_mmd(*rng.normal(size=(2, 32, 2000))) for _ in range(10)]
    assert np.mean(found) == pytest.approx(floor, abs=0.003)
    assert np.std(found) < 0.01


def test_p09_the_unbiased_estimate_has_no_floor():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(10):
        x, y = rng.normal(size=(2, 32, 500))
        found.append(5 * mmd_squared(x, y, bandwidths=evaluation_bandwidths(x, y)))
    assert abs(np.mean(found)) < 0.01


def test_p09_loss_and_metric_are_one_formula():
    x, y = np.random.default_rng(0).normal(size=(2, 32, 50))
    widths = evaluation_bandwidths(x, y)
    by_loss = float(gaussian_mmd(torch.tensor(x), torch.tensor(y), torch.tensor(widths)))
    assert by_loss == pytest.approx(5 * mmd_squared(x, y, bandwidths=widths, unbiased=False), rel=1e-10)


# ---------------------------------------------------------------------- P16: profiles and directions


@pytest.fixture
def populations():
    """Control and perturbed cells in which every gene moves, and controls for the other side of a comparison."""
    rng = np.random.default_rng(0)
    effect = rng.choice([-1.0, 1.0], 40) * rng.uniform(0.5, 1.0, 40)
    control = rng.normal(3, 0.2, (60, 40))
    return control, control[:50] + effect


def test_p16_a_perfect_prediction(populations):
    control, true = populations
    assert mse(true, true) == 0
    assert r2_score_genes(true, true) == 1
    assert pearson_effect(true, true, control) == pytest.approx(1)
    assert direction_agreement(true, true, control) == (1.0, 0.0)


def test_p16_a_reflected_prediction(populations):
    control, true = populations
    reflected = 2 * control.mean(0) - true.mean(0)
    assert direction_agreement(true, reflected, control) == (0.0, 1.0)
    assert pearson_effect(true, reflected, control) == pytest.approx(-1)
    assert mse(true, reflected) == pytest.approx(4 * np.mean((true.mean(0) - control.mean(0)) ** 2))


def test_p16_the_control_has_no_direction(populations):
    """Its mean in single precision differs from that in double by rounding, of which the tables made 49 % correct."""
    control, true = populations
    copies = np.concatenate([control, control]).astype(np.float32).mean(0)
    assert (np.sign(copies - control.mean(0)) != 0).mean() > 0.5
    assert direction_agreement(true, copies, control) == (0.0, 0.0)


def test_p16_no_change_on_both_sides_is_correct_and_genes_can_be_chosen():
    control, true = np.zeros(4), np.array([0.0, 2.0, -1.0, 1.0])
    guess = np.array([0.0, 1.0, 1.0, 0.0])
    assert direction_agreement(true, guess, control) == (0.5, 0.25)
    assert direction_agreement(true, guess, control, genes=np.array([1, 2])) == (0.5, 0.5)
    assert direction_agreement(true, guess, control, tolerance=1.5) == (0.75, 0.0)
    assert direction_agreement(true, guess, control, control + 5) == (0.0, 0.5)
    with pytest.raises(ValueError, match="same genes"):
        direction_agreement(true, guess[:3], control)


# ---------------------------------------------------------------------- P17: batches

SIZES = {"control": 45, "A": 70, "B": 64, "C": 5}


@pytest.fixture(scope="module")
def splitter():
    """As the paper preset has it, on training cells only."""
    adata = make_counts(np.repeat(list(SIZES), list(SIZES.values())))
    SCCVAE.setup_anndata(adata)
    model = SCCVAE(adata, preset="paper", n_latent=4, n_hidden=4)
    return CausalDataSplitter(
        model.adata_manager,
        train_size=1.0,
        batch_size=model._default_batch_size,
        seed=0,
        **model._datasplitter_defaults,
    )


@pytest.fixture(scope="module")
def epochs(splitter):
    """Rows of cells and of partners of every batch of 30 epochs."""
    loader = splitter.train_dataloader()
    found = []
    for epoch in range(30):
        loader.sampler.set_epoch(epoch)
        found.append([(b["ind_x"].ravel().numpy(), b["control_ind_x"].ravel().numpy(), b) for b in loader])
    return found


def test_p17_every_batch_has_32_cells_of_one_perturbation(splitter, epochs):
    labels = splitter.adata_manager.adata.obs["perturbation"].to_numpy()
    for cells, partners, batch in epochs[0]:
        assert cells.shape == partners.shape == (32,)
        assert len(set(labels[cells])) == 1
        assert set(labels[partners]) == {"control"}
        assert (batch["group"] == 0).all()


def test_p17_remainders_are_kept(splitter, epochs):
    """The publication drops what does not fill a batch, and with it every perturbation of fewer than 32 cells.

    Here the last batch of a perturbation is topped up from its other cells, so that every cell is seen in every epoch: as
    many batches as the published number rounded up.
    """
    labels = splitter.adata_manager.adata.obs["perturbation"].to_numpy()
    assert sum(n // 32 for n in SIZES.values()) == 5
    for epoch in epochs:
        assert len(epoch) == sum(-(-n // 32) for n in SIZES.values()) == 8
        seen = np.concatenate([cells for cells, _, _ in epoch])
        assert set(seen) == set(range(len(labels)))
        times = np.bincount(seen)
        for label in SIZES:
            mine = times[labels == label]
            assert mine.max() - mine.min() <= 1


def test_p17_batches_are_formed_anew(epochs):
    first, second = ({frozenset(cells) for cells, _, _ in epoch} for epoch in epochs[:2])
    assert first != second


def test_p17_partners_are_drawn_uniformly(splitter, epochs):
    controls = np.flatnonzero(splitter.adata_manager.adata.obs["perturbation"] == "control")
    partners = np.concatenate([p for epoch in epochs for _, p, _ in epoch])
    drawn = np.bincount(partners, minlength=controls.max() + 1)[controls]
    assert drawn.sum() == len(partners)
    assert stats.chisquare(drawn).pvalue > 1e-3
