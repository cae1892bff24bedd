"""The inflation experiment: what a prediction without knowledge of the perturbation scores with shared controls.

The average of the training perturbations is predicted for every held-out one. Measured against the control cells that it was
made from, it looks like a model; measured against other control cells, most of that is gone.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scvi_causal.metrics import log1p_normalize, mean_profile, pearson_effect, split_controls

# the anchors keep what has a GO embedding
WITHOUT_EMBEDDING = {"IER5L"}


def folds_of(profiles, rng, after=lambda name: None):
    """Yield ``(name, profile, average of the training perturbations)`` over five folds."""
    names = list(profiles)
    for fold in np.array_split(rng.permutation(len(names)), 5):
        test = [names[i] for i in fold]
        average = np.mean([profiles[p] for p in names if p not in test], axis=0)
        for name in test:
            after(name)
            yield name, profiles[name], average


@pytest.fixture(scope="module", params=["papalexi21_thp1_eccite.h5ad", "norman19_k562.h5ad"])
def screen(request, real_data):
    adata = ad.read_h5ad(real_data(request.param))
    x = log1p_normalize(adata.X, adata.obs["library_size_full"])
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    cells = {p: np.flatnonzero(labels == p) for p in np.unique(labels) if "+" not in p and p not in WITHOUT_EMBEDDING}
    cells = {p: rows for p, rows in cells.items() if rows.size >= 30}
    control = cells.pop("control")
    return request.param[:6], x, control, cells, {p: mean_profile(x[rows]) for p, rows in cells.items()}


@pytest.mark.real_data
def test_anchors(screen):
    """The published figures, draw by draw: half of the controls on each side, four repetitions of five folds."""
    name, x, control, cells, profiles = screen
    shared, independent = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        a, b = (mean_profile(x[half]) for half in np.array_split(rng.permutation(control), 2))
        # the anchor halves each perturbation too, and so moves the generator on
        halve = lambda name, rng=rng: rng.permutation(cells[name])
        for _, truth, average in folds_of(profiles, rng, after=halve):
            shared.append(pearson_effect(truth, average, a))
            independent.append(pearson_effect(truth, average, a, b))
    expected = {"papale": (0.324, 0.223), "norman": (0.411, 0.083)}[name]
    assert (np.mean(shared), np.mean(independent)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.real_data
def test_all_controls_shared_against_independent_halves(screen):
    """What screens are usually scored with, all controls on both sides, against halves that do not know each other.

    Over many splits: that of Norman's 100 controls alone moves the independent figure by 0.1 (standard deviation), so that the
    0.051 of a few splits and the 0.01 of many are the same number.
    """
    name, x, control, _, profiles = screen
    everything = mean_profile(x[control])
    shared, independent = [], []
    for seed in range(60):
        a, b = (mean_profile(x[control[half]]) for half in split_controls(np.ones(control.size, bool), seed=seed))
        for _, truth, average in folds_of(profiles, np.random.default_rng(seed)):
            shared.append(pearson_effect(truth, average, everything))
            independent += [pearson_effect(truth, average, a, b), pearson_effect(truth, average, b, a)]
    inflated, honest = {"papale": (0.305, 0.223), "norman": (0.291, 0.051)}[name]
    assert np.mean(shared) == pytest.approx(inflated, abs=0.03)
    assert np.mean(independent) == pytest.approx(honest, abs=0.05)
    assert np.mean(shared) - np.mean(independent) > 0.07


def test_simulated_screen_without_any_effect():
    """Where no perturbation does anything the whole score is inflation, and its size is known."""
    rng = np.random.default_rng(0)
    n_cells, n_control, n_perturbations, n_genes = 40, 60, 10, 1500
    baseline = rng.gamma(2, 0.5, n_genes)
    profiles = {str(i): rng.normal(baseline, 1, (n_cells, n_genes)).mean(0) for i in range(n_perturbations)}
    control = rng.normal(baseline, 1, (n_control, n_genes))
    a, b = (control[half] for half in split_controls(np.ones(n_control, bool)))
    folds = list(folds_of(profiles, rng))
    shared = np.mean([pearson_effect(truth, average, a) for _, truth, average in folds])
    independent = np.mean([pearson_effect(truth, average, a, b) for _, truth, average in folds])
    # 1 / cells: of the control half, of the average of eight training perturbations, of the observation
    noise_control, noise_average, noise_truth = 2 / n_control, 1 / (8 * n_cells), 1 / n_cells
    expected = noise_control / np.sqrt((noise_control + noise_average) * (noise_control + noise_truth))
    assert expected > 0.7
    assert shared == pytest.approx(expected, abs=0.03)
    assert independent == pytest.approx(0, abs=0.08)


def test_simulated_screen_with_a_common_effect():
    """A real common effect survives independent controls, and is all that does."""
    rng = np.random.default_rng(1)
    common = np.where(np.arange(800) < 40, 1.0, 0.0)
    draw = lambda shift, n: rng.normal(shift, 1, (n, 800))
    profiles = {str(i): draw(common, 50).mean(0) for i in range(10)}
    a, b = draw(0, 50), draw(0, 50)
    folds = list(folds_of(profiles, rng))
    shared, independent = (
        np.mean([pearson_effect(truth, average, a, reference) for _, truth, average in folds])
        for reference in (None, b)
    )
    signal, noise = common.var(), 1 / 50
    expected = signal / np.sqrt((signal + noise * (1 + 1 / 8)) * (signal + 2 * noise))
    assert independent == pytest.approx(expected, abs=0.04)
    assert shared > independent + 0.1
