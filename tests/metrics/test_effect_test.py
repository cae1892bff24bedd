"""Is there an effect at all? Against all arrangements of few cells, and its level and power on simulations."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import binom

from scvi_causal.metrics import _effect_test, effect_test


def counts(rng, n, level):
    return np.log1p(rng.poisson(level * rng.gamma(4, 0.25, (n, 1)))).astype(np.float32)


def test_agrees_with_all_arrangements_of_few_cells():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(8, 3)) + np.where(np.arange(8) < 4, 0.6, 0.0)[:, None]
    distance = lambda chosen: ((cells[list(chosen)].mean(0) - np.delete(cells, list(chosen), 0).mean(0)) ** 2).sum()
    every = np.array([distance(chosen) for chosen in combinations(range(8), 4)])
    exact = (every >= distance(range(4)) - 1e-12).mean()
    assert effect_test(cells[:4], cells[4:], n_permutations=20_000) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_level_and_power(form):
    rng = np.random.default_rng(1)
    level = rng.gamma(1.0, 0.5, 60)
    up = np.where(np.arange(60) < 6, 2.0, 1.0)
    run = lambda k, strong: effect_test(
        form(counts(rng, 40, level * (up if strong else 1))), form(counts(rng, 90, level)), n_permutations=99, seed=k
    )
    null = np.array([run(k, False) for k in range(200)])
    for alpha in (0.05, 0.2):
        low, high = binom.ppf([0.001, 0.999], 200, alpha)
        assert low <= (null <= alpha).sum() <= high
    assert 0.4 < null.mean() < 0.6
    # six of 60 genes twice as high
    assert np.mean([run(k, True) <= 0.05 for k in range(40)]) > 0.9


def test_form_block_and_draw_do_not_matter_and_the_seed_does(monkeypatch):
    rng = np.random.default_rng(2)
    level = rng.gamma(1.0, 0.5, 20)
    observed, control = counts(rng, 30, level * 1.2), counts(rng, 50, level)
    p = effect_test(observed, control)
    assert effect_test(sp.csr_matrix(observed), sp.csc_matrix(control)) == p
    assert effect_test(observed, control, seed=1) != p
    assert effect_test(observed, control, max_cells=20) != p
    monkeypatch.setattr(_effect_test, "_BLOCK_VALUES", 1000)
    assert effect_test(observed, control) == p
    # which genes are there matters to neither side alone: the test is symmetric
    assert effect_test(control, observed) == pytest.approx(p, abs=0.06)


def test_degenerate_populations():
    same = np.ones((10, 4))
    assert effect_test(same, same) == 1.0
    assert effect_test(same[:1], same) == 1.0
    cells = np.random.default_rng(1).random((9, 3))
    for observed, control in ((cells, cells), (sp.csr_matrix(cells), cells), (cells, sp.csr_matrix(cells))):
        assert effect_test(observed, control) == 1.0
    # a single cell unlike 39 others cannot be surer than 1 / 40
    rng = np.random.default_rng(0)
    others = rng.normal(size=(39, 4))
    assert effect_test(np.full((1, 4), 50.0), others, n_permutations=2000) == pytest.approx(1 / 40, abs=0.01)
    with pytest.raises(ValueError, match="control: no cells"):
        effect_test(same, same[:0])
    with pytest.raises(ValueError, match="observed: 4, control: 3"):
        effect_test(same, same[:, 1:])
    with pytest.raises(ValueError, match="observed: 1 of 4 genes"):
        effect_test(np.where(np.eye(10, 4) * [[0, 0, 1, 0]], np.nan, same), same)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        effect_test(same, same, n_permutations=0)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize(("n", "m", "n_genes"), [(5, 7, 400), (40, 90, 300), (60, 240, 50)])
def test_single_precision_decides_as_double_does(monkeypatch, form, n, m, n_genes):
    """From products of cells and from sums, with ties, and with a depth that all genes share."""
    rng = np.random.default_rng(n)
    level = rng.gamma(1.0, 0.5, n_genes)
    cells = [(form(counts(rng, n, level)), form(counts(rng, m, level * 1.05))) for _ in range(4)]
    cells.append(tuple(form(np.round(rng.random((k, n_genes)))) for k in (n, m)))  # arrangements that are equal
    cells.append(tuple(form(1e6 + rng.random((k, n_genes))) for k in (n, m)))  # far from zero
    fast = [effect_test(*pair, seed=1) for pair in cells]
    computed = []
    exact = _effect_test._statistic
    monkeypatch.setattr(
        _effect_test, "_statistic", lambda labels, *rest: computed.append(len(labels)) or exact(labels, *rest)
    )
    assert fast == [effect_test(*pair, seed=1) for pair in cells]
    assert sum(computed) < 0.2 * 499 * len(cells)  # most are decided in single precision
    monkeypatch.setattr(_effect_test, "_NEAR", np.inf)  # all in double precision
    assert fast == [effect_test(*pair, seed=1) for pair in cells]
