"""CRADLEVAE on data: what it takes off, what it leaves, and what it makes of odd quality labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi

from scvi_causal import CRADLEVAE, metrics
from scvi_causal.data import simulate_mechanisms
from scvi_causal.model.cradlevae._references import ReferencePools, set_references

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def make_world(seed=0, **options):
    sizes = {"n_tokens": 6, "n_latent": 4, "n_genes": 40, "n_cells_per_token": 60, "n_control": 200, "failed": 0.3}
    simulation = simulate_mechanisms(**{**sizes, "artifact_sd": 0.5, "failed_spread": 1.0, **options}, seed=seed)
    simulation.adata.obs["quality"] = np.where(simulation.adata.obs["failed"], "fail", "pass")
    return simulation


def fit(adata, max_epochs=2, setup=None, train=None, **options):
    scvi.settings.seed = 0
    CRADLEVAE.setup_anndata(adata, **(setup or {}))
    model = CRADLEVAE(adata, **{"n_latent": 8, "n_hidden": 16, **options})
    model.train(max_epochs=max_epochs, **QUIET, **(train or {}))
    return model


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def trained(world):
    """A model that two thirds of the cells were shown to."""
    adata = world.adata.copy()
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 3 == 0, "test", "train")
    return fit(adata, 120, train={"split_key": "split"}, n_latent=12, n_hidden=32)


def log_normalize(x):
    return np.log1p(1e4 * x / x.sum(1, keepdims=True))


# ---------------------------------------------------------------------- what it is for


def test_held_out_failed_cells_become_passing_ones(world, trained):
    adata = trained.adata
    held = (adata.obs["split"] == "test").to_numpy()
    failed = adata.obs["failed"].to_numpy()
    rows = np.flatnonzero(held & failed)
    answer = trained.predict_counterfactual(
        quality="pass", indices=rows, sample=True, output="log1p", key_added=None, seed=0
    )
    assert (answer.obs["quality"] == "pass").all()
    assert answer.obs["source_cell"].tolist() == adata.obs_names[rows].tolist()
    x, labels = log_normalize(adata.X.toarray()), adata.obs["perturbation"].astype(str).to_numpy()
    np.testing.assert_array_equal(answer.obs["perturbation"].astype(str), labels[rows])
    before, after = [], []
    for label in np.unique(labels):
        here, passing = labels[rows] == label, x[(labels == label) & ~failed]
        if here.sum() >= 5:
            before.append(metrics.energy_distance(x[rows][here], passing))
            after.append(metrics.energy_distance(np.asarray(answer.X)[here], passing))
    assert len(before) >= 4
    assert np.mean(after) < 0.15 * np.mean(before)


def test_artifact_is_that_of_the_world(world, trained):
    effect = trained.get_artifact_effects(transform="mean", n_samples=50, seed=0)
    assert effect.index.tolist() == ["fail"]
    share = np.exp(world.log_shares)
    changed = share * np.exp(world.artifact)
    true = 1e4 * (changed / changed.sum() - share)
    assert np.corrcoef(effect.iloc[0], true)[0, 1] > 0.95
    per = trained.get_artifact_effects(["T00", "control"], n_samples=20, seed=0)
    assert per.index.tolist() == [("T00", "fail"), ("control", "fail")]
    alone = trained.get_artifact_effects(n_samples=20, seed=0)
    np.testing.assert_allclose(per.loc[("control", "fail")], alone.loc["fail"], atol=1e-5)


def test_effects_are_free_of_the_artifact(world, trained):
    """Cells of some tokens fail far more often: means of all cells mistake the artifact for an effect."""
    adata, tokens = trained.adata, world.masks.index.tolist()
    rng = np.random.default_rng(0)

    def mean(shift, n=3000):
        rate = np.exp(world.log_shares + (rng.normal(size=(n, world.shifts.shape[1])) + shift) @ world.loadings)
        expected = rate / rate.sum(1, keepdims=True) * rng.lognormal(np.log(2000.0), 0.3, (n, 1))
        return log_normalize(rng.poisson(expected * rng.gamma(10.0, 0.1, expected.shape))).mean(0)

    truth = np.array([mean(shift) for shift in world.shifts.to_numpy()]) - mean(0.0)
    x, labels = log_normalize(adata.X.toarray()), adata.obs["perturbation"].astype(str).to_numpy()
    train = (adata.obs["split"] == "train").to_numpy()
    control = train & (labels == "control")
    sources = np.flatnonzero(control & ~adata.obs["failed"].to_numpy())
    kwargs = {"indices": sources, "sample": True, "output": "log1p", "seed": 0}
    found = trained.predict_counterfactual(tokens, quality="pass", **kwargs).X.reshape(len(tokens), len(sources), -1)
    found = found.mean(1) - x[sources].mean(0)
    simple = np.array([x[train & (labels == t)].mean(0) for t in tokens]) - x[control].mean(0)
    assert np.square(found - truth).sum() < 0.9 * np.square(simple - truth).sum()


def test_passing_cells_come_back_as_they_are(trained):
    adata = trained.adata
    rows = np.flatnonzero((adata.obs["quality"] == "pass").to_numpy())[:40]
    for sample in (False, True):
        kwargs = {"indices": rows, "output": "counts", "key_added": None, "sample": sample}
        answer = trained.predict_counterfactual(quality="pass", **kwargs)
        np.testing.assert_allclose(answer.X, adata.X[rows].toarray(), atol=1e-4)
        other = trained.predict_counterfactual(quality="fail", **kwargs)
        assert np.abs(other.X - answer.X).max() > 1


def test_quality_is_a_covariate_that_can_be_set(trained):
    rows = np.arange(30)
    kwargs = {"indices": rows, "key_added": None, "seed": 3}
    one = trained.predict_counterfactual("T01", quality="pass", **kwargs)
    two = trained.predict_counterfactual("T01", covariates={"quality": "pass"}, **kwargs)
    np.testing.assert_array_equal(one.X, two.X)
    assert one.uns["scvi_causal"]["counterfactual"]["covariates"] == "quality=pass"
    own = trained.predict_counterfactual("T01", **kwargs)
    assert own.obs["quality"].tolist() == trained.adata.obs["quality"].iloc[rows].tolist()
    failed = (own.obs["quality"] == "fail").to_numpy()
    np.testing.assert_allclose(own.X[~failed], one.X[~failed], rtol=1e-5)
    assert np.abs(own.X[failed] - one.X[failed]).max() > 1
    np.testing.assert_array_equal(trained.predict("T01", quality="pass", **kwargs).X, one.X)
    with pytest.raises(ValueError, match="pass one of them"):
        trained.predict_counterfactual("T01", quality="pass", covariates={"quality": "fail"})
    with pytest.raises(ValueError, match=r"'passed'.*Did you mean 'pass'"):
        trained.predict_counterfactual("T01", quality="passed")
    with pytest.raises(ValueError, match="delta"):
        trained.predict_counterfactual(quality="pass", output="delta")


def test_generated_cells(world, trained):
    cells = trained.sample_cells(["T02", "control"], 150, seed=1)
    assert cells.shape == (300, 40)
    assert cells.obs["perturbation"].value_counts().to_dict() == {"T02": 150, "control": 150}
    assert (cells.obs["quality"] == "pass").all()
    np.testing.assert_array_equal(cells.X.toarray(), trained.sample_cells(["T02", "control"], 150, seed=1).X.toarray())
    failed = trained.sample_cells(["T02", "control"], 150, quality="fail", seed=1, library=5000.0)
    assert (failed.obs["library"] == 5000.0).all()
    assert failed.X.sum(1).mean() == pytest.approx(5000, rel=0.05)
    change = log_normalize(failed.X.toarray()).mean(0) - log_normalize(cells.X.toarray()).mean(0)
    assert np.corrcoef(change, world.artifact)[0, 1] > 0.9
    adata = trained.adata
    like = adata[(adata.obs["perturbation"] == "T02") & (adata.obs["quality"] == "pass")].X.toarray()
    generated = cells[cells.obs["perturbation"] == "T02"].X.toarray()
    assert np.corrcoef(log_normalize(like).mean(0), log_normalize(generated).mean(0))[0, 1] > 0.95
    for bad, match in (
        ({"n_cells": 0}, "n_cells"),
        ({"library": 0.0}, "library"),
        ({"perturbations": "T99"}, "T99"),
        ({"quality": "doublet"}, "'doublet'"),
    ):
        with pytest.raises(ValueError, match=match):
            trained.sample_cells(**bad)


def test_bound_does_not_know_of_weights(trained):
    """Spec of the bound: cells count by their likelihood, whatever they weighed in training; a label that is right is likelier."""
    rows = np.flatnonzero(trained.adata.obs["failed"].to_numpy())[:30]
    right = trained.get_iwelbo(indices=rows, n_particles=20, seed=0)
    wrong = trained.adata[rows].copy()
    wrong.obs["quality"] = "pass"
    assert trained.get_iwelbo(wrong, n_particles=20, seed=0).mean() < right.mean() - 1


# ---------------------------------------------------------------------- references


def test_references_come_from_the_other_class_with_the_same_perturbation():
    """Spec 9.1 #1: rows are those of the data, training cells only."""
    simulation = make_world(n_cells_per_token=12, n_control=30)
    adata = simulation.adata
    # the profile of a cell tells who it is: gene 0 counts the rows
    x = adata.X.toarray()
    adata.X = x
    CRADLEVAE.setup_anndata(adata)
    model = CRADLEVAE(adata, n_latent=4, n_hidden=8)
    manager, rows = model.adata_manager, np.arange(0, adata.n_obs, 2)
    labels, failed = adata.obs["perturbation"].astype(str).to_numpy(), adata.obs["failed"].to_numpy()
    for published in (False, True):
        pools = ReferencePools(manager, rows, published)
        for cell in range(adata.n_obs):
            wanted = failed if published else failed != failed[cell]
            expected = rows[(labels[rows] == labels[cell]) & wanted[rows]]
            pool = pools.pool[cell]
            if not len(expected):
                assert pool == -1
                continue
            found = pools._rows[pools._starts[pool] : pools._starts[pool] + pools._sizes[pool]]
            assert sorted(found) == sorted(expected)
        np.testing.assert_array_equal(pools.other_quality, np.where(failed, 0, 1))


def test_profiles_are_drawn_anew_and_those_without_counts_left_out():
    simulation = make_world(n_cells_per_token=30, n_control=60)
    adata = simulation.adata
    x = adata.X.toarray()
    failed = (adata.obs["perturbation"] == "T00") & adata.obs["failed"]
    x[failed.to_numpy(), 1:] = 0
    x[failed.to_numpy(), 0] = np.arange(failed.sum()) == 0  # the median of every gene is 0
    x[:, 5] += x.sum(1) == 0
    x[failed.to_numpy(), 5] = 0
    x[failed.to_numpy(), 0] = 1
    adata.X = x
    CRADLEVAE.setup_anndata(adata)
    model = CRADLEVAE(adata, n_latent=4, n_hidden=8, artifact_loss="published")
    pools = ReferencePools(model.adata_manager, np.arange(adata.n_obs), True)
    set_references(model.module, pools, np.random.default_rng(0))
    first = model.module.reference_expression.clone()
    set_references(model.module, pools, np.random.default_rng(1))
    assert not np.array_equal(first.numpy(), model.module.reference_expression.numpy())
    x[failed.to_numpy(), 0] = np.arange(failed.sum()) == 0
    model.adata_manager.adata.X = x
    set_references(model.module, pools, np.random.default_rng(0))
    nothing = model.module.reference_of_cell.numpy() < 0
    np.testing.assert_array_equal(nothing, (adata.obs["perturbation"] == "T00").to_numpy())
    assert np.isfinite(model.module.reference_expression.numpy()).all()


# ---------------------------------------------------------------------- odd labels


def test_all_training_cells_pass(world):
    adata = world.adata[::3].copy()
    adata.obs["quality"] = "pass"
    with pytest.warns(UserWarning, match="All .* training cells pass"):
        model = fit(adata)
    assert np.isfinite(model.predict_counterfactual("T01", quality="pass", key_added=None).X).all()
    with pytest.raises(ValueError, match="'fail' is none of 'pass'"):
        model.predict_counterfactual("T01", quality="fail")
    with pytest.raises(ValueError, match="No training cell failed"):
        model.get_artifact_effects()
    adata = world.adata[::3].copy()
    adata.obs["split"] = np.where(adata.obs["failed"], "test", "train")
    with pytest.warns(UserWarning, match="All .* training cells pass"):
        model = fit(adata, train={"split_key": "split"})
    for ask in (model.predict_counterfactual, model.sample_cells):
        with pytest.raises(ValueError, match=r"'fail' cannot be predicted"):
            ask("T01", quality="fail")


def test_all_cells_fail(world):
    adata = world.adata[::3].copy()
    adata.obs["split"] = np.where(adata.obs["failed"], "train", "test")
    with pytest.raises(ValueError, match="None of the .* training cells passes"):
        fit(adata, train={"split_key": "split"})
    adata.obs["quality"] = "fail"
    with pytest.raises(ValueError, match="less strict"):
        CRADLEVAE.setup_anndata(adata)


def test_controls_that_all_fail(world):
    adata = world.adata[::3].copy()
    adata.obs.loc[adata.obs["perturbation"] == "control", "quality"] = "fail"
    model = fit(adata)
    assert np.isfinite(model.predict_counterfactual("T01", quality="pass", key_added=None).X).all()


def test_one_cell_one_kind_and_batches_without_failures(world):
    """A perturbation with one cell, one with failed cells only, and batches in which nothing failed."""
    adata = world.adata[::2].copy()
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    keep = np.ones(len(labels), dtype=bool)
    keep[np.flatnonzero(labels == "T01")[1:]] = False
    keep &= (labels != "T02") | adata.obs["failed"].to_numpy()
    adata = adata[keep].copy()
    for options in ({}, {"preset": "paper", "n_guide_hidden": 8, "n_guide_layers": 1, "n_particles": 2}):
        model = fit(adata.copy(), **options, train={"batch_size": 16, "train_size": 1.0})
        assert np.isfinite(model.predict_counterfactual(["T01", "T00+T02"], quality="pass").X).all()
        assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()


def test_several_kinds_of_failure(world):
    adata = world.adata.copy()
    failed = adata.obs["failed"].to_numpy()
    kind = np.where(np.arange(adata.n_obs) % 2 == 0, "doublet", "stressed")
    x = adata.X.toarray()
    twice = failed & (kind == "doublet")
    x[np.ix_(twice, np.arange(8))] *= 4
    adata.X = x
    adata.obs["quality"] = np.where(failed, kind, "fine")
    model = fit(adata, 40, setup={"quality_pass_category": "fine"})
    effects = model.get_artifact_effects(n_samples=40, seed=0)
    assert effects.index.tolist() == ["doublet", "stressed"]
    difference = effects.loc["doublet"] - effects.loc["stressed"]
    assert difference.iloc[:8].min() > difference.iloc[8:].max()
    with pytest.raises(ValueError, match="'fail' is none of 'fine', 'doublet', 'stressed'"):
        model.predict_counterfactual("T01", quality="fail")


def test_bool_columns_need_to_be_told_what_is_good(world):
    adata = world.adata[::3].copy()
    with pytest.raises(ValueError, match="quality_pass_category=True"):
        CRADLEVAE.setup_anndata(adata, quality_key="failed")
    model = fit(adata, setup={"quality_key": "failed", "quality_pass_category": False})
    assert model._quality_classes == ["False", "True"]
    answer = model.predict_counterfactual(quality=False, key_added=None)
    assert answer.obs["failed"].astype(str).eq("False").all()


@pytest.mark.parametrize(
    ("change", "setup", "match"),
    [
        (lambda obs: obs.pop("quality"), {}, "annotate_quality"),
        (lambda obs: None, {"quality_key": "qualty"}, "Did you mean 'quality'"),
        (lambda obs: None, {"quality_pass_category": "passs"}, "Did you mean 'pass'"),
        (lambda obs: obs.__setitem__("quality", pd.Series([None, *["pass"] * (len(obs) - 1)], obs.index)), {}, "NaN"),
    ],
)
def test_bad_labels_are_refused_and_leave_the_data_alone(world, change, setup, match):
    adata = world.adata[::5].copy()
    change(adata.obs)
    columns, kept = list(adata.obs), list(adata.obsm)
    with pytest.raises(ValueError, match=match):
        CRADLEVAE.setup_anndata(adata, **setup)
    assert (list(adata.obs), list(adata.obsm)) == (columns, kept)


def test_queries_have_to_be_judged(world, trained):
    query = world.adata[:20].copy()
    del query.obs["quality"]
    with pytest.raises(ValueError, match=r"annotate_quality\(query, thresholds="):
        trained.predict_counterfactual("T01", query)
    assert "_scvi_quality" not in query.obs
    query.obs["quality"] = "broken"
    with pytest.raises(ValueError, match="'broken'.*It knows 'pass', 'fail'"):
        trained.predict_counterfactual("T01", query)
    query.obs["quality"] = "fail"
    first = trained.predict_counterfactual("T01", query, quality="pass", key_added=None)
    assert np.isfinite(first.X).all()


def test_save_and_load(world, trained, tmp_path):
    trained.save(str(tmp_path / "m"))
    again = CRADLEVAE.load(str(tmp_path / "m"), adata=trained.adata.copy(), accelerator="cpu")
    kwargs = {"quality": "pass", "indices": np.arange(20), "key_added": None, "seed": 0}
    np.testing.assert_array_equal(again.predict_counterfactual(**kwargs).X, trained.predict_counterfactual(**kwargs).X)
    bare = CRADLEVAE.load(str(tmp_path / "m"), adata=False, accelerator="cpu")
    query = world.adata[:20].copy()
    np.testing.assert_allclose(
        bare.predict_counterfactual("T01", query, quality="pass", key_added=None).X,
        trained.predict_counterfactual("T01", query, quality="pass", key_added=None).X,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"artifact": "append"}, "'concat'"),
        ({"artifact_loss": "on"}, "'intended'"),
        ({"quality_weights": "equal"}, "'balanced'"),
        ({"artifact_loss_weight": -1.0}, "artifact_loss_weight"),
        ({"artifact": "concat", "posterior": "product"}, "Bayes"),
        ({"artifact": "concat", "start_at_effects": True}, "artifact='add'"),
        ({"artifact": "add", "mechanism": "one-hot"}, "one-hot"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused(world, options, match):
    adata = world.adata[::10].copy()
    CRADLEVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match=match):
        CRADLEVAE(adata, **options)


def test_presets_and_ablations(world):
    adata = world.adata[::4].copy()
    for options in (
        {"artifact": "concat"},
        {"mechanism": "one-hot"},
        {"mechanism": "dense"},
        {"artifact_loss": "none"},
    ):
        model = fit(adata.copy(), **options)
        assert np.isfinite(model.predict_counterfactual("T00+T01", quality="pass", key_added=None).X).all()
    model = fit(adata.copy(), preset="paper", n_guide_hidden=8, n_guide_layers=1, n_particles=2)
    options = model.module.options
    assert (options.artifact, options.quality_weights, options.artifact_loss) == ("concat", "published", "published")
    assert len(model.module.decoder.hidden.layers) == 2
    assert model.module.validation_cells_per_quality.sum() > 0
    assert not len(model.module.reference_of_cell)
