"""GIM as a model: P9 and P11 of the specification, read-outs, options, and what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from sklearn.metrics import average_precision_score

from scvi_causal import GIM
from scvi_causal.data import simulate_drugs

from .conftest import SETUP, adjacency, fit, structural_distance


@pytest.fixture(scope="module")
def easy():
    """An instance of the generator on which the search has no excuse."""
    simulation = simulate_drugs(n_nodes=10, seed=103)
    return simulation, fit(simulation.adata.copy(), n_kicks=3, edge_penalties=(0.06,), dag_weights=(0.0,))


def distance(simulation, model, part) -> tuple[float, float]:
    """Of predicted and of unchanged means to the true ones."""
    asked = simulation.conditions[simulation.conditions["part"] == part]
    mean, _ = model.get_population(asked["perturbation"].tolist(), dosage=asked["dosage"].tolist(), use_seen=False)
    truth = simulation.means.loc[asked.index].to_numpy()
    return np.linalg.norm(mean.to_numpy() - truth, axis=1).mean(), np.linalg.norm(truth, axis=1).mean()


@pytest.mark.slow
def test_p11_graph_targets_and_new_dosages_are_found(easy):
    simulation, model = easy
    names = simulation.adata.var_names
    assert structural_distance(adjacency(model.get_grn(), names), adjacency(simulation.grn, names)) <= 2
    table = model.get_intervention_targets()
    train = simulation.conditions["part"] == "train"
    truth = simulation.targets[train].set_axis(
        pd.MultiIndex.from_arrays(
            [
                simulation.conditions.loc[train, "perturbation"],
                simulation.conditions.loc[train, "dosage"].map("{:g}".format),
            ]
        )
    )
    found = table.set_index(["perturbation", "dosage"])
    right = [bool(truth.loc[key, node]) for key, node in zip(found.index, found["node"], strict=True)]
    assert average_precision_score(right, found["probability"]) >= 0.85
    for part, most in (("new dosage", 0.25), ("new drug", 0.45)):
        error, unchanged = distance(simulation, model, part)
        assert error < most
        assert error < 0.4 * unchanged


@pytest.mark.slow
def test_weights_are_those_of_the_truth(easy):
    simulation, model = easy
    both = model.get_grn().merge(simulation.grn, on=["source", "target"], suffixes=("", "_true"))
    np.testing.assert_allclose(both["weight"], both["weight_true"], atol=0.1)


# ---------------------------------------------------------------------- populations and cells


def test_p09_the_cell_itself_comes_back(model):
    adata = model.adata
    own = adata.obs["perturbation"].astype(str).to_numpy()
    same = model.predict_counterfactual(own, dosage=adata.obs["dosage"].to_numpy(), key_added=None)
    np.testing.assert_array_equal(same.X, adata.X)
    assert (same.obs["source_cell"] == adata.obs_names).all()


def test_p09_counterfactuals_of_cells_are_translations_by_total_effects(model):
    adata = model.adata
    rows = np.flatnonzero((adata.obs["perturbation"] == "control").to_numpy())[:20]
    moved = model.predict_counterfactual("drug003", indices=rows, dosage=2.0, key_added=None).X - adata.X[rows]
    effect = model.get_intervention_targets("drug003", dosage=2.0).set_index("node")["effect"][adata.var_names]
    scale = model.module.node_scale.numpy()
    np.testing.assert_allclose(moved, np.tile(effect * scale, (20, 1)), atol=1e-5)
    back = model.predict_counterfactual("control", indices=[len(adata) - 1], key_added=None)
    assert back.obs["source_perturbation"].tolist() != ["control"]


def test_predicted_controls_have_the_mean_of_the_population(model):
    adata = model.adata
    rows = np.flatnonzero((adata.obs["perturbation"] == "control").to_numpy())
    cells = model.predict_counterfactual("drug005", indices=rows, dosage=0.5, key_added=None).X
    mean, covariance = model.get_population("drug005", dosage=0.5)
    np.testing.assert_allclose(cells.mean(0), mean.to_numpy()[0], atol=0.15)
    np.testing.assert_allclose(np.cov(cells, rowvar=False), model.get_population("control")[1][0], atol=0.25)
    assert covariance.shape == (1, 6, 6)


def test_draws_vary_by_cell_and_draws_of_parameters_by_population(model):
    rows = np.flatnonzero((model.adata.obs["perturbation"] == "control").to_numpy())[:50]
    kwargs = {"indices": rows, "dosage": 1.0, "output": "delta", "key_added": None}
    fixed = model.predict_counterfactual("drug013", **kwargs).X
    assert fixed.std(0).max() < 1e-5
    drawn = model.predict_counterfactual("drug013", sample=True, **kwargs).X
    assert drawn.std(0).max() > 0.02
    several = model.predict_counterfactual("drug013", n_samples=20, **kwargs)
    assert several.X.std(0).max() < 1e-5  # the same for all cells ...
    assert several.layers["counterfactual_std"].max() > 0.02  # ... and uncertain


def test_seen_conditions_are_told_by_their_cells_and_others_by_features(model):
    table = model.get_intervention_targets(["drug001", "drug001", "drug013"], dosage=[2.0, 1.0, 2.0])
    seen = table.groupby(["perturbation", "dosage"])["responsibility"].apply(lambda s: s.notna().all())
    assert seen.to_dict() == {("drug001", "1"): False, ("drug001", "2"): True, ("drug013", "2"): False}
    assert table.groupby(["perturbation", "dosage"]).size().eq(6).all()
    everything = model.get_intervention_targets()
    assert len(everything) == 24 * 6
    assert everything["observed"].notna().all()


def test_combinations_add_up(model):
    one, other, both = (
        model.get_perturbation_embedding([label], None).X[0] for label in ("drug001", "drug002", "drug001+drug002")
    )
    np.testing.assert_allclose(one + other, both, atol=1e-5)
    # drugs that were given alone at this dosage do together what their own cells say, not what features say
    found = model.get_intervention_targets(["drug001", "drug002", "drug001+drug002"], dosage=[0.5, 2.0, "0.5+2"])
    effect = found.pivot(index="node", columns="perturbation", values="effect")
    np.testing.assert_allclose(effect["drug001"] + effect["drug002"], effect["drug001+drug002"], atol=1e-4)
    assert found.loc[found["perturbation"] != "drug001+drug002", "responsibility"].notna().all()
    assert model.get_perturbation_embedding(["control"]).X.any() == False  # noqa: E712


def test_latent_representation_is_noise_without_the_perturbation(model):
    adata = model.adata
    noise = model.get_latent_representation()
    assert noise.shape == adata.shape
    control = (adata.obs["perturbation"] == "control").to_numpy()
    np.testing.assert_allclose(noise[control].std(0), 1, atol=0.15)
    strong = ((adata.obs["perturbation"] != "control") & (adata.obs["dosage"] == 2.0)).to_numpy()
    shift_before = np.abs(adata.X[strong].mean(0) - adata.X[control].mean(0)).max()
    shift_after = np.abs(noise[strong].mean(0) - noise[control].mean(0)).max()
    assert shift_after < 0.5 * shift_before + 0.1


def test_simulated_strengths(model):
    kwargs = {"max_cells": 30, "seed": 0}
    for vary in ("strength", "penetrance"):
        curve = model.simulate_penetrance("drug003", [0.0, 0.5, 1.0], vary=vary, **kwargs)
        by_value = pd.DataFrame(curve.X).groupby(curve.obs[vary].to_numpy()).mean().to_numpy()
        np.testing.assert_allclose(by_value[1] - by_value[0], 0.5 * (by_value[2] - by_value[0]), atol=1e-4)
        assert np.abs(by_value[2] - by_value[0]).max() > 0.1
    doses = model.simulate_penetrance("drug003", [0.5, 1.0, 2.0], vary="dosage", **kwargs)
    assert sorted(doses.obs["dosage"].unique()) == [0.5, 1.0, 2.0]
    plain = model.predict_counterfactual(["drug003"], dosage=1.0).X[:30]
    np.testing.assert_allclose(doses[doses.obs["dosage"] == 1.0].X, plain)
    with pytest.raises(ValueError, match="'time'"):
        model.simulate_penetrance("drug003", vary="time")
    with pytest.raises(ValueError, match="finite"):
        model.simulate_penetrance("drug003", [np.nan])


def test_candidates_and_probabilities_of_edges(model):
    edges, candidates = model.get_grn(), model.get_grn(candidates=True)
    assert len(candidates) >= len(edges)
    assert edges["probability"].between(0, 1).all()
    assert edges["stability"].between(0, 1).all()
    assert (candidates["weight"] == 0).sum() == len(candidates) - len(edges)
    pairs = candidates.groupby(
        [candidates[["source", "target"]].min(axis=1), candidates[["source", "target"]].max(axis=1)]
    )
    assert (pairs["probability"].sum() <= 1 + 1e-6).all()
    assert (model.get_grn(threshold=0.4)["weight"].abs() >= 0.4).all()


def test_same_seed_same_model(simulation, model):
    again = fit(simulation.adata.copy(), train={"max_epochs": 10})
    pd.testing.assert_frame_equal(model.get_grn(), again.get_grn())
    pd.testing.assert_frame_equal(model.get_intervention_targets(), again.get_intervention_targets())


def test_history_and_restarts_are_kept(model):
    losses = model.history["train_loss"].to_numpy(dtype=float).ravel()
    assert losses[-1] < losses[0]
    assert model.restarts_["chosen"].sum() == 1
    assert {"edge_penalty", "dag_weight", "n_edges", "bic"} <= set(model.restarts_)


# ---------------------------------------------------------------------- counts


@pytest.fixture(scope="module")
def two_depths():
    """Counts of two cell types, one of which has four times the library and another baseline; the drug was given to one."""
    rng = np.random.default_rng(0)
    n, g = 400, 40
    cell_type = np.repeat(["shallow", "deep", "shallow", "deep"], n)
    treated = np.repeat([False, False, True, True], n)
    rate = rng.gamma(2.0, 6.0, size=(2, g))[(cell_type == "deep").astype(int)]
    rate = rate * np.where(treated[:, None] & (np.arange(g) < 12), np.where(np.arange(g) < 6, 4.0, 0.25), 1.0)
    library = np.where(cell_type == "deep", 8_000, 2_000)
    x = rng.poisson(rate * rng.gamma(3.0, 1 / 3, size=rate.shape) * library[:, None] / 1e4).astype(np.float32)
    obs = pd.DataFrame(
        {"perturbation": np.where(treated, "drug", "control"), "cell_type": cell_type, "library": library}
    )
    adata = AnnData(x, obs=obs.set_index(obs.index.astype(str)))
    adata.obs["split"] = np.where(treated & (cell_type == "deep"), "test", "train")
    setup = {"size_factor_key": "library", "categorical_covariate_keys": ["cell_type"]}
    options = {"n_nodes": 12, "edge_penalties": (0.06,), "dag_weights": (0.0,), "n_kicks": 0}
    train = {"max_epochs": 4, "split_key": "split", "train_size": None}
    return fit(adata, setup=setup, train=train, **options)


def test_a_fold_is_carried_over_to_another_depth_and_baseline(two_depths):
    adata = two_depths.adata
    here = (adata.obs["cell_type"] == "deep").to_numpy()
    controls, held = (np.flatnonzero(here & (adata.obs["split"] == s).to_numpy()) for s in ("train", "test"))
    drawn = two_depths.predict_counterfactual(["drug"], indices=controls, output="counts", sample=True, seed=0).X
    np.testing.assert_array_equal(drawn, np.round(drawn))
    log = lambda x: np.log1p(x / 0.8)
    truth, before = log(adata.X[held]).mean(0), log(adata.X[controls]).mean(0)
    shallow = [adata.X[(~here) & (adata.obs["perturbation"] == p).to_numpy()] / 0.2 for p in ("drug", "control")]
    translated = before + np.log1p(shallow[0]).mean(0) - np.log1p(shallow[1]).mean(0)
    error = np.square(log(drawn).mean(0) - truth).sum()
    assert error < 0.35 * np.square(translated - truth).sum()
    assert error < 0.03 * np.square(before - truth).sum()
    np.testing.assert_allclose((drawn == 0).mean(0), (adata.X[held] == 0).mean(0), atol=0.12)
    assert log(drawn).var(0).sum() == pytest.approx(log(adata.X[held]).var(0).sum(), rel=0.12)
    expected = two_depths.predict_counterfactual(["drug"], indices=controls, output="counts").X
    np.testing.assert_allclose(expected.mean(0), drawn.mean(0), rtol=0.1, atol=0.15)


def test_treated_counts_become_controls_again(two_depths):
    adata = two_depths.adata
    rows = (adata.obs["cell_type"] == "shallow").to_numpy()
    treated, controls = (
        np.flatnonzero(rows & (adata.obs["perturbation"] == p).to_numpy()) for p in ("drug", "control")
    )
    back = two_depths.predict_counterfactual(["control"], indices=treated, output="counts", sample=True, seed=0).X
    moved = np.square(adata.X[treated].mean(0) - adata.X[controls].mean(0)).sum()
    assert np.square(back.mean(0) - adata.X[controls].mean(0)).sum() < 0.05 * moved
    same = two_depths.predict_counterfactual(["drug"], indices=treated, output="counts", sample=True, seed=0).X
    np.testing.assert_array_equal(same, adata.X[treated])


# ---------------------------------------------------------------------- options


def test_validation_perturbations_are_scored_and_can_choose(simulation):
    adata = simulation.adata.copy()
    adata.obs["split"] = np.where(adata.obs["perturbation"].isin(["drug004", "drug009"]), "valid", "train")
    train = {"max_epochs": 3, "split_key": "split", "check_val_every_n_epoch": 1, "train_size": None}
    found = fit(adata, train=train, selection="held-out", n_kicks=0)
    assert "held_out" in found.restarts_
    assert found.history["validation_loss"].notna().to_numpy().all()
    assert "drug004" not in found.seen_tokens_
    stopped = fit(
        adata, train=train | {"max_epochs": 4, "early_stopping": True, "early_stopping_patience": 1}, n_kicks=0
    )
    assert stopped.is_trained


def test_held_out_selection_needs_held_out_perturbations(simulation):
    with pytest.raises(ValueError, match="selection='held-out'.*split_key"):
        fit(simulation.adata.copy(), selection="held-out", train={"max_epochs": 1})


def test_targets_of_features_alone(model):
    """A table of features is a question by itself: which nodes would these drugs hit?"""
    features = model.adata.uns["features"].iloc[[0, 13]].set_axis(["drug000", "made up"])
    found = model.get_intervention_targets(features=features)
    assert list(found["perturbation"].unique()) == ["drug000", "made up"]
    expected = model.get_intervention_targets("made up", features=features)
    pd.testing.assert_frame_equal(found[found["perturbation"] == "made up"].reset_index(drop=True), expected)


@pytest.mark.parametrize("combination", ["superposition", "features"])
def test_names_without_features(simulation, combination):
    adata = simulation.adata.copy()
    found = fit(adata, setup={"dosage_key": "dosage"}, train={"max_epochs": 3}, n_kicks=0, combination=combination)
    answer = found.can_predict(["drug001", "drug001+drug002", "drug013"])
    assert answer["predictable"].tolist() == [True, True, False]
    assert "features" in answer["reason"].iloc[2]
    mean, _ = found.get_population(["drug001+drug002"], dosage="1+2")
    assert np.isfinite(mean.to_numpy()).all()


def test_hard_interventions_and_networks(simulation):
    hard = simulate_drugs(
        n_nodes=5,
        n_drugs=8,
        n_new_drugs=1,
        dosages=(2.0,),
        new_dosages=(1.0,),
        intervention="hard",
        n_control=400,
        seed=1,
    )
    found = fit(hard.adata.copy(), train={"max_epochs": 5}, intervention="hard", n_kicks=2)
    error, unchanged = distance(hard, found, "train")
    assert error < 0.7 * unchanged
    assert found.get_population("drug000", dosage=2.0)[1] is None
    assert np.isfinite(found.get_perturbation_embedding().X).all()


@pytest.mark.slow
def test_networks_learn_what_lines_cannot():
    bent = simulate_drugs(n_nodes=5, n_drugs=10, n_new_drugs=1, n_cells=100, n_control=1000, mechanism="tanh", seed=5)
    error = {}
    for mechanism in ("linear", "mlp"):
        found = fit(bent.adata.copy(), mechanism=mechanism, n_kicks=0, train={"max_epochs": 30})
        rows = np.flatnonzero((found.adata.obs["perturbation"] == "control").to_numpy())
        z = (found.adata.X[rows] - found.module.node_center[0].numpy()) / found.module.node_scale.numpy()
        import torch

        with torch.no_grad():
            z = torch.from_numpy(z)
            error[mechanism] = float((z - found.module.mechanisms.expected(z)).square().mean())
    assert error["mlp"] < error["linear"]
    with pytest.raises(NotImplementedError, match="closed form"):
        found.get_population("drug001")


def test_latent_space_that_was_given(simulation):
    adata = simulation.adata.copy()
    rng = np.random.default_rng(0)
    adata.obsm["X_scVI"] = adata.X @ rng.normal(size=(6, 4)).astype(np.float32)
    found = fit(adata, train={"max_epochs": 5}, latent="X_scVI")
    assert found.node_names_.tolist() == [f"X_scVI_{i}" for i in (1, 2, 3, 4)]
    answer = found.predict_counterfactual(["drug003"], dosage=2.0)
    assert np.isfinite(answer.X).all()
    with pytest.raises(NotImplementedError, match="latent"):
        found.get_latent_representation()
    with pytest.raises(ValueError, match="mechanism='mlp'"):
        GIM(adata, latent="X_scVI", mechanism="mlp")
    with pytest.raises(ValueError, match="X_scVI"):
        GIM(adata, latent="X_scvi")


def test_prior_network_as_mask_and_as_penalty(simulation):
    adata = simulation.adata.copy()
    adata.uns["grn"] = simulation.grn
    names = adata.var_names
    masked = fit(adata, grn="mask", train={"max_epochs": 2}, n_kicks=0)
    truth = adjacency(simulation.grn, names)
    assert not (adjacency(masked.get_grn(), names) & ~truth).any()
    assert (masked.get_grn()["prior"] != 0).all()
    favoured = fit(adata.copy(), train={"max_epochs": 2}, n_kicks=0)
    assert "penalty" in favoured._model_summary_string
    bare = simulation.adata.copy()
    GIM.setup_anndata(bare, **SETUP)
    with pytest.raises(ValueError, match="grn='mask'"):
        GIM(bare, grn="mask")


def test_choices_are_named(simulation):
    adata = simulation.adata.copy()
    GIM.setup_anndata(adata, **SETUP)
    for name, value in (("mechanism", "cubic"), ("intervention", "soft"), ("acyclicity", "dag"), ("selection", "luck")):
        with pytest.raises(ValueError, match=value):
            GIM(adata, **{name: value})
    with pytest.raises(ValueError, match="counts"):
        GIM(adata, data_type="counts")


def test_nothing_but_training_cells_is_looked_at(simulation):
    """Test cells may hold anything."""
    adata = simulation.adata.copy()
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "drug007", "test", "train")
    train = {"max_epochs": 2, "split_key": "split", "train_size": None}
    one = fit(adata, train=train, n_kicks=0)
    other = adata.copy()
    other.X[(other.obs["split"] == "test").to_numpy()] += 100.0
    two = fit(other, train=train, n_kicks=0)
    pd.testing.assert_frame_equal(one.get_grn(), two.get_grn())
    pd.testing.assert_frame_equal(one.get_intervention_targets("drug007"), two.get_intervention_targets("drug007"))


def test_no_seed_is_left_behind(simulation):
    fit(simulation.adata.copy(), train={"max_epochs": 1}, n_kicks=0)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    scvi.settings._seed = None
    adata = simulation.adata.copy()
    GIM.setup_anndata(adata, **SETUP)
    GIM(adata)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
