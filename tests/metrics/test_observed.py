"""The population that all models are scored against: every number is that of its public function."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_causal import metrics
from scvi_causal.metrics import METRICS, ObservedPopulation, _observed, cell_moments, fit_pca

OF_MEANS = {name for name, metric in METRICS.items() if metric.needs == "means"}
OF_CELLS = {name for name, metric in METRICS.items() if metric.needs == "cells"}


@pytest.fixture(scope="module")
def screen():
    """Cells of 30 genes with overdispersion, of which ten respond; the prediction knows half of the effect."""
    rng = np.random.default_rng(0)
    level = rng.gamma(2, 1.0, 30)
    effect = np.where(np.arange(30) < 10, rng.normal(0, 0.7, 30), 0.0)

    def draw(n_cells, strength):
        mean = level * np.exp(strength * effect) * rng.gamma(5, 0.2, (n_cells, 1))
        return np.log1p(rng.poisson(mean)).astype(np.float32)

    cells = {"observed": draw(90, 1), "predicted": draw(70, 0.5), "source": draw(120, 0), "reference": draw(110, 0)}
    return cells | {"average": draw(500, 0.3).mean(0)}


@pytest.fixture(scope="module")
def population(screen):
    pca = fit_pca(screen["source"], 5)
    return ObservedPopulation(screen["observed"], screen["source"], screen["reference"], n_de=8, pca=pca)


def by_public_functions(screen, pca) -> dict[str, float]:
    observed, predicted, source, reference = (screen[k] for k in ("observed", "predicted", "source", "reference"))
    arrays, controls = (observed, predicted), (source, reference)
    genes = metrics.top_de_genes(observed, reference, 8)
    calls = metrics.differential_expression(observed, reference)
    predicted_calls = metrics.differential_expression(predicted, source)
    return {
        "n_observed": 90,
        "n_predicted": 70,
        "r2_de": metrics.r2_score_genes(*arrays, genes),
        "pearson_effect": metrics.pearson_effect(*arrays, *controls),
        "mse_ratio": metrics.mse_ratio(*arrays, source),
        "energy": metrics.energy_distance(*arrays),
        "variance_ratio": np.nanmedian(metrics.variance_ratio(*arrays)),
        "r2": metrics.r2_score_genes(*arrays),
        "pearson_effect_de": metrics.pearson_effect(*arrays, *controls, genes),
        "mse": metrics.mse(*arrays),
        "energy_pca": metrics.energy_distance(pca.transform(observed), pca.transform(predicted)),
        "mmd2": metrics.mmd_squared(*arrays),
        "mae": metrics.mae(*arrays),
        "cosine_effect": metrics.cosine_effect(*arrays, *controls),
        "pearson_centred": metrics.pearson_centred(*arrays, screen["average"]),
        "r2_weighted": metrics.r2_weighted(*arrays, metrics.de_weights(observed, reference), *controls),
        "mse_unbiased_ratio": metrics.mse_ratio_unbiased(observed, predicted.mean(0), source.mean(0)),
        "pearson_others": metrics.pearson_effect(*arrays, *controls, np.setdiff1d(np.arange(30), [2, 5])),
        "wasserstein": metrics.wasserstein_genes(*arrays).mean(),
        "de_direction": metrics.de_direction(calls, predicted.mean(0) - source.mean(0)),
        "de_overlap": metrics.de_overlap(calls, predicted_calls),
        "de_auprc": metrics.de_auprc(calls, predicted_calls["statistic"].abs())[0],
        "coverage90": metrics.coverage_of_cells(*arrays, 0.9),
        "pair_correlation": metrics.pair_dispersion(*arrays)[0],
    }


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_every_number_is_that_of_its_public_function(screen, population, form):
    expected = by_public_functions(screen, population.pca)
    cells = {k: form(screen[k]) for k in ("observed", "source", "reference")}
    got = replace(population, **cells).score(form(screen["predicted"]), average=screen["average"], exclude=[2, 5])
    assert list(got) == ["n_observed", "n_predicted", *(n for n in METRICS if METRICS[n].needs != "panel")]
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-7)  # means of float32
    assert all(np.isfinite(value) for value in got.values())


def test_more_cells_than_allowed_are_drawn_as_by_the_public_functions(screen, population):
    got = replace(population, max_cells=40, seed=3).score(screen["predicted"])
    options = {"max_cells": 40, "seed": 3}
    arrays = screen["observed"], screen["predicted"]
    assert got["energy"] == pytest.approx(metrics.energy_distance(*arrays, **options))
    assert got["mmd2"] == pytest.approx(metrics.mmd_squared(*arrays, **options))
    assert got["wasserstein"] == pytest.approx(metrics.wasserstein_genes(*arrays, **options).mean())
    assert got["coverage90"] == pytest.approx(metrics.coverage_of_cells(*arrays, 0.9, **options))
    assert got == replace(population, max_cells=40, seed=3).score(screen["predicted"])


def test_moments_of_controls_can_be_shared_and_means_alone_leave_out_the_calls(screen, population):
    keys = ("source", "reference")
    expected = population.score(screen["predicted"])
    shared = replace(population, **{k: cell_moments(screen[k]) for k in keys})
    assert shared.score(screen["predicted"]) == pytest.approx(expected, nan_ok=True)
    means = replace(population, **{k: screen[k].mean(0) for k in keys}).score(screen["predicted"])
    missing = {"de_direction", "de_overlap", "de_auprc", "r2_weighted"}
    assert {name for name in means if np.isnan(means[name])} == missing | {"pearson_centred", "pearson_others"}
    assert means["pearson_effect"] == pytest.approx(expected["pearson_effect"])


def test_a_profile_gets_the_numbers_of_means_and_no_others(screen, population):
    known = {"average": screen["average"], "exclude": []}
    score = population.score(screen["predicted"].mean(0), **known)
    assert {name for name in METRICS if name in score and np.isnan(score[name])} == OF_CELLS
    cells = population.score(screen["predicted"], **known)
    assert {name: score[name] for name in OF_MEANS} == pytest.approx({n: cells[n] for n in OF_MEANS}, rel=1e-5)
    # nothing excluded is all genes
    assert cells["pearson_others"] == cells["pearson_effect"]
    mask = np.isin(np.arange(30), [2, 5])
    excluded = [population.score(screen["predicted"], exclude=e)["pearson_others"] for e in (mask, [2, 5])]
    assert excluded[0] == excluded[1] != cells["pearson_effect"]


def test_what_is_asked_for_is_computed_once_and_nothing_else(screen, population, monkeypatch):
    calls = []
    monkeypatch.setattr(_observed, "median_bandwidth", lambda x: calls.append(len(x)) or 1.0)
    fresh = replace(population)
    assert list(fresh.score(screen["predicted"], metrics=["mae", "r2"])) == ["n_observed", "n_predicted", "r2", "mae"]
    assert calls == []
    for _ in range(3):
        fresh.score(screen["predicted"])
    assert calls == [90]
    again = pickle.loads(pickle.dumps(population))
    assert again.score(screen["predicted"]) == pytest.approx(
        population.score(screen["predicted"]), nan_ok=True, rel=1e-9
    )


def test_calls_cannot_be_bought_with_more_draws(screen, population):
    # exact controls, so that only the number of predicted cells limits the calls
    exact = replace(cell_moments(screen["source"]), n_cells=10**6)
    few, many = screen["predicted"], np.tile(screen["predicted"], (40, 1))
    n_calls = [metrics.differential_expression(x, exact)["significant"].sum() for x in (few, many)]
    assert n_calls[1] > n_calls[0] + 8
    few, many = (replace(population, source=exact).score(x, metrics=["de_overlap", "de_auprc"]) for x in (few, many))
    assert many["n_predicted"] == 2800
    # counted as the 90 observed cells, against 70
    assert many["de_overlap"] == pytest.approx(few["de_overlap"], abs=0.1)
    assert many["de_auprc"] == pytest.approx(few["de_auprc"], abs=0.05)


def test_degenerate_predictions(screen, population):
    observed, source = screen["observed"], screen["source"]
    constant = population.score(np.tile(source.mean(0), (25, 1)), average=screen["average"], exclude=[])
    assert constant["pearson_effect"] == constant["cosine_effect"] == 0.0
    assert constant["mse_ratio"] == pytest.approx(1, rel=1e-5)
    assert constant["mse_unbiased_ratio"] == pytest.approx(1, rel=1e-5)
    assert constant["variance_ratio"] == pytest.approx(0, abs=1e-9)
    assert constant["pair_correlation"] == 0.0
    assert constant["de_direction"] == 0.5
    assert constant["coverage90"] < 0.2

    single = population.score(screen["predicted"][:1])
    undefined = {"energy", "energy_pca", "mmd2", "variance_ratio", "pair_correlation", "coverage90"}
    undefined |= {"de_overlap", "de_auprc", "pearson_centred", "pearson_others"}
    assert {name for name in single if np.isnan(single[name])} == undefined

    itself = population.score(observed)
    assert itself["mse"] == itself["wasserstein"] == itself["mae"] == 0
    assert itself["r2"] == itself["r2_de"] == itself["variance_ratio"] == 1
    assert itself["pair_correlation"] == pytest.approx(1)
    assert itself["energy"] < 0  # a copy is more alike than a replicate: the mark of leaked cells
    assert itself["mmd2"] < 0
    assert itself["mse_unbiased_ratio"] < 0

    zero = ObservedPopulation(np.zeros((20, 4)), np.zeros((20, 4)), np.zeros((20, 4)))
    score = zero.score(np.zeros((20, 4)), average=np.zeros(4), exclude=[])
    assert score["energy"] == score["mmd2"] == score["mse"] == score["wasserstein"] == 0
    assert score["coverage90"] == pytest.approx(0.9)
    undefined = set(METRICS) - {"energy", "mmd2", "mse", "mae", "wasserstein", "coverage90", "discrimination"}
    assert {name for name in score if np.isnan(score[name])} == undefined


def test_what_does_not_fit_is_refused(screen, population):
    with pytest.raises(ValueError, match="predicted: 29"):
        population.score(screen["predicted"][:, 1:])
    with pytest.raises(ValueError, match="control_reference: 29"):
        replace(population, reference=screen["reference"][:, 1:])
    with pytest.raises(ValueError, match="predicted: no cells"):
        population.score(screen["predicted"][:0])
    broken = screen["predicted"].copy()
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match="predicted: 1 of 30 genes"):
        population.score(broken)
    with pytest.raises(ValueError, match="2 of 3 metrics .*'energi', 'discrimination'.* 'energy'"):
        population.score(screen["predicted"], metrics=["r2", "energi", "discrimination"])
