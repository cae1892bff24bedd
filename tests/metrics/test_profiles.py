"""Means, effects, dispersion and control halves against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_causal.metrics import (
    cell_moments,
    cosine_effect,
    direction_agreement,
    gene_variance,
    log1p_normalize,
    mae,
    mean_profile,
    mse,
    mse_ratio,
    pearson_centred,
    pearson_effect,
    r2_score_genes,
    split_controls,
    top_de_genes,
    variance_ratio,
)


@pytest.fixture
def cells():
    return np.random.default_rng(0).poisson(1.0, (30, 7)).astype(np.float32)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_moments_are_those_of_numpy(cells, form):
    cells = cells + np.array([0, 0, 0, 0, 0, 0, 3000], np.float32)  # large mean, small variance
    np.testing.assert_allclose(mean_profile(form(cells)), cells.astype(float).mean(0))
    np.testing.assert_allclose(gene_variance(form(cells)), cells.astype(float).var(0, ddof=1))
    assert np.isnan(gene_variance(form(cells[:1]))).all()


def test_mean_profile_refuses_what_has_no_mean(cells):
    with pytest.raises(ValueError, match="no cells"):
        mean_profile(cells[:0])
    cells[3, 2] = np.nan
    with pytest.raises(ValueError, match="forecast: 1 of 7 genes .* gene index 2"):
        mean_profile(cells, "forecast")


def test_r2(cells):
    from sklearn.metrics import r2_score

    truth, guess = cells[0].astype(float), cells[1].astype(float)
    assert r2_score_genes(truth, guess) == pytest.approx(r2_score(truth, guess))
    genes = np.array([0, 3, 5])
    assert r2_score_genes(truth, guess, genes) == pytest.approx(r2_score(truth[genes], guess[genes]))
    assert r2_score_genes(cells, cells) == 1.0
    assert r2_score_genes(truth, np.full(7, truth.mean())) == pytest.approx(0.0)
    assert np.isnan(r2_score_genes(np.ones(7), guess))


def test_mse_and_its_ratio_to_control(cells):
    truth = cells.mean(0)
    assert mse(truth, truth + 2) == pytest.approx(4)
    assert mse(truth, truth + np.arange(7), genes=np.array([0, 2])) == pytest.approx(2)
    assert mse_ratio(truth, truth + 1, truth + 2) == pytest.approx(0.25)
    assert mse_ratio(truth, truth + 2, truth + 2) == pytest.approx(1)
    assert np.isnan(mse_ratio(truth, truth + 1, truth))


def test_mae(cells):
    from sklearn.metrics import mean_absolute_error

    truth, guess = cells[:15], cells[15:]
    assert mae(truth, guess) == pytest.approx(mean_absolute_error(truth.mean(0), guess.mean(0)))
    assert mae(truth, truth.mean(0) - 2, genes=[1, 4]) == pytest.approx(2)
    assert mae(truth, truth) == 0


def test_pearson_of_effects_uses_each_side_own_controls():
    rng = np.random.default_rng(0)
    source, reference, truth, guess = rng.normal(size=(4, 50))
    got = pearson_effect(truth, guess, source, reference)
    assert got == pytest.approx(np.corrcoef(guess - source, truth - reference)[0, 1])
    genes = np.arange(10)
    got = pearson_effect(truth, guess, source, reference, genes)
    assert got == pytest.approx(np.corrcoef((guess - source)[genes], (truth - reference)[genes])[0, 1])


def test_shared_controls_inflate_the_pearson_of_a_prediction_without_information():
    rng = np.random.default_rng(1)
    control_a, control_b, truth, guess = (rng.normal(size=(20, 300)) for _ in range(4))
    assert pearson_effect(truth, guess, control_a) > 0.4  # 1 / 2 in expectation: the noise of the control mean
    assert abs(pearson_effect(truth, guess, control_a, control_b)) < 0.2


def test_pearson_of_constant_effects():
    control, truth = np.arange(5.0), np.array([0.0, 3, 1, 4, 8])
    assert pearson_effect(truth, control, control) == 0.0
    assert pearson_effect(truth, control + 1e-9 * truth, control) == 0.0  # rounding is no prediction
    assert np.isnan(pearson_effect(control, truth, control))
    assert np.isnan(pearson_effect(truth[:1], truth[:1], control[:1]))


def test_cosine_of_effects():
    from sklearn.metrics.pairwise import cosine_similarity

    rng = np.random.default_rng(0)
    source, reference, truth, guess = rng.normal(size=(4, 50))
    got = cosine_effect(truth, guess, source, reference)
    assert got == pytest.approx(cosine_similarity([guess - source], [truth - reference])[0, 0])
    assert cosine_effect(truth, guess, source) == pytest.approx(
        cosine_similarity([guess - source], [truth - source])[0, 0]
    )
    # a shift that all genes share is an effect here, and none to the correlation
    assert cosine_effect(source + 1, source + 2, source) == pytest.approx(1)
    assert np.isnan(pearson_effect(source + 1, source + 2, source))
    assert cosine_effect(truth, source, source, reference) == 0.0
    assert cosine_effect(truth, source + 1e-8, source, reference) == 0.0  # rounding is no prediction
    assert np.isnan(cosine_effect(reference, guess, source, reference))
    assert cosine_effect(truth[:1], truth[:1] + 1, truth[:1] - 1) == 1.0  # one gene: the sign


def test_centred_pearson():
    rng = np.random.default_rng(0)
    average, truth, guess = rng.normal(size=(3, 50))
    got = pearson_centred(truth, guess, average)
    assert got == pytest.approx(np.corrcoef(guess - average, truth - average)[0, 1])
    genes = np.arange(50) < 9
    expected = np.corrcoef((guess - average)[genes], (truth - average)[genes])[0, 1]
    assert pearson_centred(truth, guess, average, genes=genes) == pytest.approx(expected)
    assert pearson_centred(truth, average, average) == 0.0  # the average itself knows nothing
    assert np.isnan(pearson_centred(average, guess, average))


def test_centring_takes_out_what_all_perturbations_share():
    rng = np.random.default_rng(1)
    control, shared = rng.normal(size=(2, 200))
    own = rng.normal(0, 0.3, size=(20, 200))
    profiles = control + shared + own
    average = profiles[1:].mean(0)
    # the average scores high on the common effect, and nothing on what is special
    assert pearson_effect(profiles[0], average, control) > 0.9
    assert pearson_centred(profiles[0], average + 0.01 * rng.normal(size=200), average) == pytest.approx(0, abs=0.2)
    # "no effect" scores on a perturbation that has none: the trap the docstring names
    assert pearson_centred(control + own[0], control, average) > 0.9


PLAIN = {
    "mae": lambda o, p, c, g: mae(o, p, g),
    "mse": lambda o, p, c, g: mse(o, p, g),
    "r2": lambda o, p, c, g: r2_score_genes(o, p, g),
    "pearson": lambda o, p, c, g: pearson_effect(o, p, c, None, g),
    "cosine": lambda o, p, c, g: cosine_effect(o, p, c, None, g),
    "centred": lambda o, p, c, g: pearson_centred(o, p, c, g),
    "direction": lambda o, p, c, g: direction_agreement(o, p, c, None, g)[0],
}


@pytest.mark.parametrize("metric", PLAIN.values(), ids=PLAIN)
def test_what_every_metric_on_profiles_accepts(metric, cells):
    observed, predicted, control = cells[:10], cells[10:20], cells[20:]
    mask = np.array([1, 0, 1, 1, 0, 1, 0], bool)
    value = metric(observed, predicted, control, None)
    for form in (sp.csr_matrix, mean_profile, cell_moments):
        assert metric(form(observed), form(predicted), form(control), None) == pytest.approx(value)
    got = metric(observed, predicted, control, np.flatnonzero(mask))
    assert got == pytest.approx(metric(observed[:, mask], predicted[:, mask], control[:, mask], None))
    assert got == metric(observed, predicted, control, mask)
    assert np.isfinite(metric(observed[:1], predicted[:1], control, None))
    assert np.isnan(metric(observed, predicted, control, np.zeros(7, bool)))  # all genes left out, without a warning
    with pytest.raises(ValueError, match="observed: 6, predicted: 7"):
        metric(observed[:, 1:], predicted, control, None)


def test_top_genes():
    effect = np.array([1.0, -3, 0, 3, 2])
    np.testing.assert_array_equal(top_de_genes(effect + 5, np.full(5, 5.0), 3), [1, 3, 4])
    assert len(top_de_genes(effect, np.zeros(5), 99)) == 5
    with pytest.raises(ValueError, match="observed: 5, control_reference: 4"):
        top_de_genes(effect, np.zeros(4))


def test_variance_ratio(cells):
    np.testing.assert_allclose(variance_ratio(cells, cells * 3), np.full(7, 9.0))
    np.testing.assert_allclose(variance_ratio(sp.csr_matrix(cells), np.tile(cells.mean(0), (5, 1))), 0, atol=1e-12)
    flat = cells.copy()
    flat[:, 2] = 1
    assert np.flatnonzero(np.isnan(variance_ratio(flat, cells))).tolist() == [2]
    assert np.isnan(variance_ratio(cells, cells[:1])).all()


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_log1p_normalize(cells, form):
    library = cells.sum(1) + 50
    library[4] = 0
    cells[4] = 0  # a cell without counts stays zero, whatever its library
    original = cells.copy()
    got = log1p_normalize(form(cells), library)
    assert got.dtype == np.float32
    assert sp.issparse(got) == (form is not np.asarray)
    got = got.toarray() if sp.issparse(got) else got
    keep = np.arange(30) != 4
    np.testing.assert_allclose(got[keep], np.log1p(cells[keep] / library[keep, None] * 1e4), rtol=1e-6)
    assert (got[4] == 0).all()
    assert (cells == original).all()
    np.testing.assert_allclose(np.expm1(log1p_normalize(cells[keep]).astype(float)).sum(1), 1e4, rtol=1e-4)
    with pytest.raises(ValueError, match="for 1 cells"):
        log1p_normalize(form(cells), np.where(np.arange(30) == 7, 0, library))
    with pytest.raises(ValueError, match="29 entries for 30 cells"):
        log1p_normalize(form(cells), library[:29])


def test_split_controls_halves_each_stratum():
    rng = np.random.default_rng(0)
    is_control = rng.random(200) < 0.5
    strata = rng.choice(["b", "t", "nk"], 200)
    first, second = split_controls(is_control, strata, seed=3)
    assert sorted([*first, *second]) == np.flatnonzero(is_control).tolist()
    for stratum in np.unique(strata):
        assert abs((strata[first] == stratum).sum() - (strata[second] == stratum).sum()) <= 1
    np.testing.assert_array_equal(first, split_controls(is_control, strata, seed=3)[0])
    assert not np.array_equal(first, split_controls(is_control, strata, seed=4)[0])
    assert [len(p) for p in split_controls(np.ones(10, bool), n_parts=3)] == [4, 3, 3]


def test_split_controls_refuses_what_it_cannot_halve():
    with pytest.raises(ValueError, match="not a single control"):
        split_controls(np.zeros(4, bool))
    with pytest.raises(ValueError, match=r"1 strata .* nk \(1\)"):
        split_controls(np.ones(5, bool), np.array(["t", "t", "t", "t", "nk"]))
    with pytest.raises(ValueError, match="boolean"):
        split_controls(np.array([0, 1]))
    with pytest.raises(ValueError, match="3 entries for 2 cells"):
        split_controls(np.ones(2, bool), np.zeros(3))
