"""Strengths: learned, simulated, calibrated."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from scvi_causal import SCCVAE


def test_strengths_of_the_recommended_model(model, held_out):
    table = model.get_strengths()
    assert table.index.tolist() == model.seen_tokens_.tolist()
    assert (table["strength"] == 1.0).all()
    assert table["seen"].all()
    assert not table["calibrated"].any()
    asked = model.get_strengths([held_out, str(model.seen_tokens_[1])])
    assert asked["seen"].tolist() == [False, True]
    assert asked["strength"].tolist() == [1.0, 1.0]


def test_strengths_of_the_published_model_are_learned(paper):
    table = paper.get_strengths()
    index = [paper._vocabulary.index(token) for token in table.index]
    np.testing.assert_allclose(table["strength"], paper.module.strength.detach().numpy()[index])
    assert table["strength"].nunique() > 1


def test_strengths_need_training(screen):
    adata = screen.copy()
    SCCVAE.setup_anndata(adata, size_factor_key="library")
    with pytest.raises(RuntimeError, match="Train the SCCVAE first"):
        SCCVAE(adata, n_hidden=4).get_strengths()


# ---------------------------------------------------------------------- simulated penetrance


@pytest.mark.parametrize("which", ["model", "paper"])
def test_a_sweep_of_strengths(which, request):
    model = request.getfixturevalue(which)
    token = str(model.seen_tokens_[0])
    curve = model.simulate_penetrance(token, [-1, 0, 0.5, 1, 2], max_cells=30)
    assert curve.n_obs == 150
    assert curve.obs_names.is_unique
    assert curve.obs["strength"].tolist() == list(np.repeat([-1.0, 0, 0.5, 1, 2], 30))
    at = {c: curve.X[(curve.obs["strength"] == c).to_numpy()].astype(float) for c in curve.obs["strength"].unique()}
    same = model.predict_counterfactual(["control"], output="log1p", seed=0)
    np.testing.assert_allclose(at[0], same.X[:30], atol=1e-5)  # the same cells, not perturbed
    move = {c: (at[c] - at[0]).mean(0) for c in at}
    assert move[-1] @ move[1] < 0  # the opposite direction
    assert move[0.5] @ move[1] < move[1] @ move[1] < move[2] @ move[1]
    if which == "model":  # strength 1 is what was learned
        learned = model.predict_counterfactual([token], output="log1p", seed=0)
        np.testing.assert_array_equal(at[1].astype(np.float32), learned.X[:30])


def test_a_sweep_of_chosen_cells_shares_its_random_numbers(model):
    token = str(model.seen_tokens_[0])
    rows = np.flatnonzero(model.adata.obs["perturbation"] == "control")[[3, 9]]
    curve = model.simulate_penetrance(token, [0.3, 1.0], indices=rows, sample=True, output="counts")
    alone = model.simulate_penetrance(token, [1.0], indices=rows, sample=True, output="counts")
    np.testing.assert_array_equal(curve.X[2:], alone.X)
    assert curve.obs["source_cell"].tolist() == [*model.adata.obs_names[rows]] * 2


def test_a_sweep_leaves_the_strength_as_it_was(model):
    token = str(model.seen_tokens_[0])
    before = model.predict_counterfactual([token], indices=[0]).X
    with pytest.raises(ValueError, match="cannot predict"):
        model.simulate_penetrance("nowhere", [3.0])
    model.simulate_penetrance(token, [3.0], indices=[0])
    np.testing.assert_array_equal(model.predict_counterfactual([token], indices=[0]).X, before)


# ---------------------------------------------------------------------- calibration


@pytest.fixture
def pilot(fresh, model, held_out):
    """A copy of the model, and rows of cells of the held-out token."""
    ours = fresh(model)
    return ours, np.flatnonzero(ours.adata.obs["perturbation"] == held_out)


@pytest.mark.parametrize(
    ("label", "rows", "message"),
    [("both", [0], "takes one token.*has 2"), ("control", [0], "has 0"), ("one", None, "needs indices")],
)
def test_calibration_that_is_refused(model, held_out, label, rows, message):
    label = {"both": f"{held_out}+{model.seen_tokens_[0]}", "one": held_out}.get(label, label)
    with pytest.raises(ValueError, match=message):
        model.calibrate_strength(label, indices=rows)
    assert not model.get_strengths([held_out])["calibrated"].any()


def test_calibration_takes_the_least_error_and_says_so(pilot, held_out, caplog):
    model, rows = pilot
    before = model.predict_counterfactual([held_out], indices=[0], output="log1p")
    assert "strength_calibrated_on_observed_cells" not in before.uns["scvi_causal"]["counterfactual"]
    with caplog.at_level(logging.WARNING, logger="scvi_causal"):
        table = model.calibrate_strength(held_out, indices=rows, strengths=[-1.0, 0.0, 0.4, 0.8, 1.2, 1.6, 2.5])
    assert "calibrated" in caplog.text
    assert held_out in caplog.text
    best = table["strength"][table["mse"].idxmin()]
    assert 0.4 <= best <= 1.6  # a knock-down like those that were learned
    assert table["mse"].min() < table.set_index("strength")["mse"][0.0]
    found = model.get_strengths([held_out, str(model.seen_tokens_[0])])
    assert found["strength"].tolist() == pytest.approx([best, 1.0])
    assert found["calibrated"].tolist() == [True, False]
    after = model.predict_counterfactual([held_out], indices=[0], output="log1p")
    info = after.uns["scvi_causal"]["counterfactual"]
    assert info["strength_calibrated_on_observed_cells"].tolist() == [held_out]
    sweep = model.simulate_penetrance(held_out, [best], indices=[0])
    np.testing.assert_array_equal(after.X, sweep.X)
    other = model.predict_counterfactual([str(model.seen_tokens_[0])], indices=[0])
    assert "strength_calibrated_on_observed_cells" not in other.uns["scvi_causal"]["counterfactual"]


def test_calibration_recovers_the_strength_of_predicted_cells(pilot, held_out):
    """Cells that the model itself drew at strength 0.6: the grid has to come back to it."""
    model, _ = pilot
    cells = model.predict_counterfactual([held_out], dosage=0.6, sample=True, output="counts", seed=4)
    cells.obs["library"] = model.adata.obs["library"].loc[cells.obs["source_cell"]].to_numpy()
    table = model.calibrate_strength(held_out, cells, np.arange(cells.n_obs), np.arange(0, 1.21, 0.2))
    assert table["strength"][table["mse"].idxmin()] == pytest.approx(0.6)
    curvature = np.diff(table["mse"], 2)
    assert (curvature > 0).all()


def test_calibration_is_saved(pilot, held_out, fresh):
    model, rows = pilot
    model.calibrate_strength(held_out, indices=rows, strengths=[0.5])
    loaded = fresh(model)
    assert loaded.get_strengths([held_out])["strength"].tolist() == [0.5]
    assert loaded.get_strengths([held_out])["calibrated"].tolist() == [True]


def test_the_published_grid(pilot, held_out):
    model, rows = pilot
    table = model.calibrate_strength(held_out, indices=rows[:5])
    np.testing.assert_allclose(table["strength"], np.arange(-10, 31) / 10)
