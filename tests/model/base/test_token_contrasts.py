"""Cells that carry several tokens, most of them alone in doing so: effects of tokens by regression, against closed forms."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_causal import SCCVAE
from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.base._token_contrasts import FEWEST_CELLS, explained_by_tokens, token_contrasts

TOKENS = np.array(["A", "B", "C", "D", "E", "F"])


def carried(n_cells: int, n_controls: int, seed: int, share: float = 0.4) -> np.ndarray:
    """(cells, tokens) random sets of tokens; the first cells are controls."""
    drawn = np.random.default_rng(seed).random((n_cells, len(TOKENS))) < share
    drawn[:n_controls] = False
    drawn[n_controls:, 0] |= ~drawn[n_controls:].any(1)
    return drawn.astype(float)


def fit(x, dosage, stratum=None, step=1000):
    def pieces():
        return ((slice(i, min(i + step, len(x))), csr_matrix(x[i : i + step])) for i in range(0, len(x), step))

    stratum = np.zeros(len(x), dtype=int) if stratum is None else stratum
    return token_contrasts(pieces, csr_matrix(dosage), stratum, x.shape[1])


def effects_of(x, dosage, log, **obs):
    labels = ["+".join(TOKENS[row > 0]) or "control" for row in dosage]
    table = pd.DataFrame({"perturbation": labels, **obs}, index=[f"c{i}" for i in range(len(x))])
    adata = ad.AnnData(
        csr_matrix(x.astype(np.float32)), table, pd.DataFrame(index=[f"g{i}" for i in range(x.shape[1])])
    )
    keys = {"batch_key": "batch"} if "batch" in obs else {}
    keys |= {"categorical_covariate_keys": ["context"]} if "context" in obs else {}
    SCCVAE.setup_anndata(adata, **keys)
    manager = SCCVAE(adata, data_type="counts" if log else "continuous").adata_manager
    return condition_effects(manager, np.arange(len(x)), x.shape[1], log)


def test_additive_cells_are_taken_apart_exactly():
    dosage = carried(60, 5, seed=0)
    rng = np.random.default_rng(1)
    effect, batch = rng.normal(size=(6, 4)), np.resize([0, 1], 60)
    x = 3.0 + np.array([0.0, 2.0])[batch][:, None] + dosage @ effect
    found = fit(x, dosage, batch, step=7)
    np.testing.assert_allclose(found.after - found.before, effect, atol=1e-3)
    np.testing.assert_array_equal(found.dosage.toarray(), np.eye(6))
    for t in range(6):
        np.testing.assert_allclose(found.after[t], x[dosage[:, t] > 0].mean(0))


def test_one_token_per_cell_gives_means_and_their_noise():
    labels = np.resize([0, 1, 2], 90)
    dosage = np.eye(3)[labels][:, 1:]
    x = np.random.default_rng(0).normal(2.0, 1.0, (90, 3))
    found = fit(x, dosage)
    for t in (0, 1):
        mine, control = x[labels == t + 1], x[labels == 0]
        np.testing.assert_allclose(found.after[t], mine.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.before[t], control.mean(0), rtol=1e-4)
        np.testing.assert_allclose(found.own[t], mine.var(0, ddof=1) / 30, rtol=1e-4)
    np.testing.assert_allclose(found.loading, 1.0, rtol=1e-4)
    np.testing.assert_allclose(found.n_cells, 30, rtol=1e-4)


def test_noise_is_that_of_the_estimates():
    """Chi-square of estimates whose truth is known: variance of perturbed cells and controls together."""
    dosage, effect = carried(300, 40, seed=2), np.random.default_rng(3).normal(size=(6, 1))
    x = dosage @ effect + np.random.default_rng(4).normal(size=(300, 400))
    found = fit(x, dosage)
    variance = found.own + found.loading**2 @ np.full((1, 400), 1.0 / 40)
    z = (found.after - found.before - effect) ** 2 / variance
    assert 0.9 < z.mean() < 1.1


def test_dosages_of_a_token_are_units_of_their_own():
    dosage = np.repeat([[0.0], [1.0], [2.0]], 20, axis=0)
    found = fit(np.repeat([[0.0], [1.0], [5.0]], 20, axis=0), dosage)
    np.testing.assert_array_equal(found.dosage.toarray(), [[1], [2]])
    np.testing.assert_allclose(found.after - found.before, [[1], [5]], rtol=1e-4)


def test_tokens_that_no_cell_tells_apart_share_their_effect():
    dosage = np.repeat([[0.0, 0.0], [1.0, 1.0]], 20, axis=0)
    found = fit(4.0 * dosage[:, :1], dosage)
    np.testing.assert_allclose(found.after - found.before, [[2], [2]], rtol=1e-3)
    assert found.n_cells.max() < 1  # that there are two effects was not seen


def test_only_rare_combinations_and_what_is_beside_them_are_regressed():
    n_tokens = np.array([0, 1, 2, 2])
    codes = np.repeat([0, 1, 2, 3, 0, 1, 2], [5, 5, FEWEST_CELLS, FEWEST_CELLS - 1, 5, 5, FEWEST_CELLS])
    context = np.repeat([0, 0, 0, 0, 1, 1, 1], [5, 5, FEWEST_CELLS, FEWEST_CELLS - 1, 5, 5, FEWEST_CELLS])
    mask = explained_by_tokens(codes, context, n_tokens)
    np.testing.assert_array_equal(mask, (context == 0) & np.isin(codes, [1, 3]))
    no_control = codes != 0
    assert not explained_by_tokens(codes[no_control], context[no_control], n_tokens).any()


def test_cells_that_are_conditions_of_their_own_have_no_rows():
    """Few counts per cell: the log of one cell lies far below the log of a mean, and tokens would inherit that."""
    rng = np.random.default_rng(0)
    dosage, effect = carried(1500, 200, seed=5, share=0.2), np.log(rng.choice([0.7, 1.0, 1.4], size=(6, 20)))
    rate = np.exp(rng.normal(0.0, 0.5, 20) + dosage @ effect)
    x = rng.poisson(np.column_stack([rate, np.full(1500, 500.0)])) + 0.0
    found = effects_of(x, dosage, log=True)
    kept = found.dosage.sum(1) == 1
    assert kept.sum() == 6
    assert found.n_cells[~kept].min(initial=FEWEST_CELLS) >= FEWEST_CELLS
    unit = x * 1e4 / x.sum(1, keepdims=True)
    control = unit[:200].mean(0)[:20]
    truth = np.log1p(control * np.exp(effect)) - np.log1p(control)
    error = found.effect[kept][:, :20] - truth[found.dosage[kept].argmax(1)]
    assert np.sqrt((error**2).mean()) < 0.1
    assert abs(error.mean()) < 0.02
    naive = np.log1p(unit[200:, :20]) - np.log1p(control)
    assert np.linalg.lstsq(dosage[200:], naive, rcond=None)[0].mean() < truth.mean() - 0.2


def test_contexts_and_batches_keep_their_own_controls():
    dosage, context = carried(400, 60, seed=6), np.resize(["x", "y"], 400)
    batch = np.resize(["1", "1", "2", "2", "2", "1"], 400)
    effect = np.stack([np.linspace(-1, 1, 6), np.linspace(2, -2, 6)])[(context == "y").astype(int)]
    level = 1.3 + 4.1 * (context == "y") + 2.7 * (batch == "2") * (context == "x") + (dosage * effect).sum(1)
    x = np.stack([level, np.full(400, 1.5)], 1)
    found = effects_of(x, dosage, log=False, context=context, batch=batch)
    single = found.dosage.sum(1) == 1
    assert single.sum() == 12
    tokens = found.dosage[single].argmax(1)
    expected = np.stack([np.linspace(-1, 1, 6), np.linspace(2, -2, 6)])[found.context[single], tokens]
    np.testing.assert_allclose(found.effect[single], np.column_stack([expected, np.zeros(12)]), atol=2e-3)


@pytest.mark.parametrize("log", [True, False])
def test_a_single_cell_of_a_token_is_no_obstacle(log):
    dosage = carried(80, 10, seed=7)
    dosage[:, 5] = 0.0
    dosage[-1] = [0, 0, 0, 0, 1, 1]
    x = np.random.default_rng(8).poisson(5.0, (80, 3)) + 1.0
    found = effects_of(x if log else x + 0.5, dosage, log)
    assert np.isfinite(found.effect).all()
    assert found.variance.min() > 0
