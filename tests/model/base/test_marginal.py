"""Average effects where the truth is known: batches that are spread unevenly, states that a model knows, encoders that leak."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scvi import REGISTRY_KEYS

import scvi_causal
from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import simulate_screen
from scvi_causal.effects import estimate_effects
from scvi_causal.model.baselines._rules import AdditiveModule

EFFECT = {"control": 0.0, "A": 0.6, "B": -0.4}
GENES = 60


def continuous_screen(n_cells=900, seed=0, shares=(0.5, 0.2, 0.3)) -> ad.AnnData:
    """Measured states (a covariate from before the perturbation), outcomes that follow them, effects on all genes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(list(EFFECT), n_cells, p=shares)
    state = rng.normal(size=n_cells)
    loading = np.linspace(1.0, 2.0, GENES)
    y = np.outer(state, loading) + rng.normal(0, 0.7, (n_cells, GENES)) + np.array([EFFECT[t] for t in labels])[:, None]
    obs = pd.DataFrame({"perturbation": labels, "state": state}, index=[f"c{i}" for i in range(n_cells)])
    return ad.AnnData(y.astype(np.float32), obs=obs)


class FromStateModule(AdditiveModule):
    """Predicts a cell from its state alone."""

    def counterfactual(self, tensors, dosage, token_inputs, **kwargs):
        state = tensors[REGISTRY_KEYS.CONT_COVS_KEY]
        x = state * torch.linspace(1.0, 2.0, GENES)
        return super().counterfactual({**tensors, REGISTRY_KEYS.X_KEY: x.float()}, dosage, token_inputs, **kwargs)


class FromState(scvi_causal.Additive):
    """Knows the state of a cell from before its perturbation."""

    _module_cls = FromStateModule
    can_abduct = True


class Leaky(scvi_causal.Additive):
    """Takes the cell as it is, its own perturbation included, and adds the effect of the target."""

    can_abduct = True


class RemovingModule(AdditiveModule):
    """Takes the effect of the cell's own perturbation out, as far as the training cells tell it, and adds the target's."""

    def counterfactual(self, tensors, dosage, token_inputs, **kwargs):
        own = tensors[CAUSAL_KEYS.PERTURBATION]
        index = {"index": torch.arange(own.shape[1])}
        effect = super().counterfactual(tensors, own, index, **kwargs).mean - tensors[REGISTRY_KEYS.X_KEY]
        x = tensors[REGISTRY_KEYS.X_KEY] - effect
        return super().counterfactual({**tensors, REGISTRY_KEYS.X_KEY: x}, dosage, token_inputs, **kwargs)


class Removing(scvi_causal.Additive):
    """Infers the state of a cell from its outcome, as autoencoders do, and without any bias."""

    _module_cls = RemovingModule
    can_abduct = True


def fit(model_class, adata, **setup):
    model_class.setup_anndata(adata, **setup)
    model = model_class(adata)
    model.train()
    return model


@pytest.mark.parametrize("cross_fit", [0, 2])
def test_a_model_that_knows_the_state_narrows_the_intervals(cross_fit):
    covered, ratio = [], []
    for seed in range(6):
        model = fit(FromState, continuous_screen(seed=seed), continuous_covariate_keys=["state"])
        table = model.get_marginal_effects(
            method=["group", "robust", "tuned"], cross_fit=cross_fit, predict_from="cells"
        )
        truth = table["perturbation"].map(EFFECT)
        table["covered"] = (table["ci_low"] <= truth) & (table["ci_high"] >= truth)
        covered.append(table.groupby("method")["covered"].mean())
        se = table.groupby("method")["se"].mean()
        ratio.append(se["robust"] / se["group"])
        assert (table["flag"] == "").mean() > 0.95
    covered = pd.concat(covered, axis=1).mean(axis=1)
    # genes share the states of cells, so that six screens are not 720 independent trials
    assert covered["robust"] > 0.9
    assert covered["tuned"] > 0.9
    assert np.mean(ratio) < 0.75


def test_an_encoder_that_lets_the_perturbation_through_is_flagged():
    model = fit(Leaky, continuous_screen())
    table = model.get_marginal_effects("A", contrast=None, method=["robust", "group"], predict_from="cells")
    robust, group = (table[table["method"] == name] for name in ("robust", "group"))
    assert (robust["flag"] == "reconstructed, unbalanced").all()
    assert robust["estimate"].mean() < EFFECT["A"] - 0.3  # the group's own perturbations are in the predictions
    assert group["estimate"].mean() == pytest.approx(EFFECT["A"], abs=0.2)
    assert (group["flag"] == "").all()


@pytest.mark.parametrize("cross_fit", [0, 2])
def test_states_inferred_from_the_outcome_make_intervals_too_narrow_and_are_balanced(cross_fit):
    """Why predictions start from strata by default: the error of the effect that was removed is in no interval."""
    covered, flags = {"cells": [], "strata": []}, {"cells": [], "strata": []}
    for seed in range(3):
        model = fit(Removing, continuous_screen(seed=seed))
        for start, rates in covered.items():
            table = model.get_marginal_effects("A", cross_fit=cross_fit, predict_from=start)
            rates.append(((table["ci_low"] <= EFFECT["A"]) & (table["ci_high"] >= EFFECT["A"])).mean())
            flags[start].append(table["flag"])
    assert np.mean(covered["cells"]) < 0.2
    assert np.mean(covered["strata"]) > 0.8  # three screens whose genes share their states
    cells, strata = (pd.concat(flags[start]) for start in ("cells", "strata"))
    assert cells.str.contains("unbalanced").mean() < 0.05  # the balance test sees nothing
    assert cells.str.contains("reconstructed").all()  # what gives it away is that nothing is left to be explained
    assert (strata == "").mean() > 0.95


def test_predictions_from_cells_are_those_of_the_public_api():
    adata = continuous_screen(300)
    model = fit(FromState, adata, continuous_covariate_keys=["state"])
    table = model.get_marginal_effects("A", method=["mean", "robust"], batch_size=64, predict_from="cells")
    f = {name: np.asarray(model.predict_counterfactual(name, key_added=None).X) for name in ("A", "control")}
    labels = adata.obs["perturbation"].to_numpy()
    by_arrays = estimate_effects(adata.X, labels, f, "A", method=["mean", "robust"], genes=adata.var_names)
    shared = ["estimate", "se", "mean", "balance_z", "n_cells"]
    pd.testing.assert_frame_equal(table[shared], by_arrays[shared], rtol=1e-4)


def uneven_batches(seed: int) -> tuple[ad.AnnData, pd.DataFrame]:
    """Counts of a screen whose perturbed cells are mostly of the first batch; strong batch effects."""
    simulation = simulate_screen(
        n_genes=30, n_perturbations=4, n_cells_per_perturbation=600, n_control=900, n_batches=3, batch_sd=0.4, seed=seed
    )
    adata = simulation.adata
    rng = np.random.default_rng(seed)
    first = (adata.obs["batch"] == "batch_0").to_numpy() | (adata.obs["perturbation"] == "control").to_numpy()
    return adata[first | (rng.random(adata.n_obs) < 0.4)].copy(), simulation.effects


def test_uneven_batches_bias_group_means_and_are_corrected_by_a_model_of_strata():
    rates = []
    for seed in range(3):
        adata, truth = uneven_batches(seed)
        model = fit(scvi_causal.Additive, adata, batch_key="batch", size_factor_key="library")
        table = model.get_marginal_effects(method=["group", "robust"])
        true = np.array([truth.loc[p, g] for p, g in zip(table["perturbation"], table["gene"], strict=True)])
        table["covered"] = (table["ci_low"] <= true) & (table["ci_high"] >= true)
        table["unbalanced"] = table["flag"] == "unbalanced"
        rates.append(table.groupby("method")[["covered", "unbalanced"]].mean())
    rates = sum(rates) / 3
    assert rates.loc["robust", "covered"] > 0.9
    assert rates.loc["group", "covered"] < 0.85
    assert rates.loc["robust", "unbalanced"] > 0.5
    # within batches nothing has to be corrected
    within = model.get_marginal_effects(groupby="batch")
    assert (within["flag"] == "").all()


def test_dosages_are_conditions_of_their_own():
    simulation = simulate_screen(
        n_genes=12, n_perturbations=2, n_cells_per_perturbation=150, dosages=[0.5, 2.0], seed=0
    )
    adata = simulation.adata
    model = fit(scvi_causal.Additive, adata, dosage_key="dosage", size_factor_key="library")
    table = model.get_marginal_effects(method=["group", "robust"])
    assert table.columns.tolist()[:2] == ["perturbation", "dosage"]
    assert sorted(set(zip(table["perturbation"], table["dosage"], strict=True))) == sorted(
        (p, d) for p in model.seen_tokens_ for d in ("0.5", "2")
    )
    first = model.seen_tokens_[0]
    one = model.get_marginal_effects(first, dosage=2.0, method="group")
    cells = (adata.obs["perturbation"] == first) & (adata.obs["dosage"] == 2.0)
    assert (one["n_perturbed"] == cells.sum()).all()
    everything = table[(table["perturbation"] == first) & (table["dosage"] == "2") & (table["method"] == "group")]
    np.testing.assert_allclose(one["estimate"], everything["estimate"])
    # a dosage that no cell received is the model's word
    other = model.get_marginal_effects(first, dosage=1.0)
    assert (other["flag"] == "model only").all()


def test_scales_and_other_names_of_control():
    adata = simulate_screen(n_genes=12, n_perturbations=2, seed=0, control_category="NT").adata
    model = fit(scvi_causal.Additive, adata, control_category="NT", size_factor_key="library")
    table = model.get_marginal_effects(method="group", output="normalized")
    assert (table["contrast"] == "NT").all()
    x = adata.X.toarray() * 1e4 / adata.obs["library"].to_numpy()[:, None]
    mask = (adata.obs["perturbation"] == model.seen_tokens_[0]).to_numpy()
    control = (adata.obs["perturbation"] == "NT").to_numpy()
    first = table[table["perturbation"] == model.seen_tokens_[0]]
    np.testing.assert_allclose(first["mean"], x[mask].mean(0), rtol=1e-5)
    np.testing.assert_allclose(first["mean_contrast"], x[control].mean(0), rtol=1e-5)


def test_a_batch_without_controls_is_named():
    adata = simulate_screen(n_genes=12, n_perturbations=2, n_batches=2, seed=0).adata
    adata = adata[~((adata.obs["batch"] == "batch_1") & (adata.obs["perturbation"] == "control")).to_numpy()].copy()
    model = fit(scvi_causal.Additive, adata, batch_key="batch")
    with pytest.warns(UserWarning, match="1 stratum without a training control, e.g. batch=batch_1"):
        table = model.get_marginal_effects()
    assert table["estimate"].notna().all()


@pytest.fixture(scope="module")
def papalexi(real_data):
    """Papalexi with a half for each cell, the halves of a guide equal, and six of its perturbations."""
    adata = ad.read_h5ad(real_data("papalexi21_thp1_eccite.h5ad"))
    some = ["control", "STAT1", "IFNGR2", "SMAD4", "BRD4", "CAV1", "ATF2"]
    adata = adata[adata.obs["perturbation"].isin(some).to_numpy()].copy()
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(adata.n_obs)
    ordered = shuffled[np.argsort(adata.obs["guide"].astype(str).to_numpy()[shuffled], kind="stable")]
    half = np.empty(adata.n_obs, dtype=int)
    half[ordered] = np.arange(adata.n_obs) % 2
    adata.obs["half"] = half
    return adata


@pytest.mark.real_data
def test_intervals_from_half_of_papalexi_cover_the_other_half(papalexi):
    """A 95 % interval covers an independent estimate of the same precision in 83.4 %: both are off."""
    tables = []
    for side in (0, 1):
        papalexi.obs["split"] = np.where(papalexi.obs["half"] == side, "train", "test")
        scvi_causal.Additive.setup_anndata(papalexi, batch_key="batch", size_factor_key="library_size_full")
        model = scvi_causal.Additive(papalexi)
        model.train(split_key="split")
        tables.append(model.get_marginal_effects(method=["group", "robust"]))
    for one, other in (tables, tables[::-1]):
        covered = (one["ci_low"] <= other["estimate"]) & (other["estimate"] <= one["ci_high"])
        rates = covered.groupby(one["method"]).mean()
        assert rates.between(0.79, 0.87).all()
    one, other = tables
    z = (one["estimate"] - other["estimate"]) / np.hypot(one["se"], other["se"])
    assert 0.93 < (z.abs() < 1.96).mean() < 0.97


@pytest.mark.real_data
@pytest.mark.parametrize("key", ["guide", "batch"])
@pytest.mark.filterwarnings("ignore:Of 1 population")
def test_clustered_intervals_of_the_difference_of_halves_cover_zero(papalexi, key):
    """Halves of the same guides or replicates do not differ."""
    x = scvi_causal.metrics.log1p_normalize(papalexi.X, papalexi.obs["library_size_full"].to_numpy())
    labels, half = papalexi.obs["perturbation"].to_numpy(), papalexi.obs["half"].astype(str).to_numpy()
    covered = []
    for target in np.unique(labels.astype(str)):
        table = estimate_effects(
            x, half, None, "0", contrast="1", method="group", rows=labels == target,
            cluster=papalexi.obs[key].astype(str).to_numpy(),
        )  # fmt: skip
        table = table[table["se"] > 0]
        covered.append((table["ci_low"] <= 0) & (table["ci_high"] >= 0))
    assert 0.93 < np.concatenate(covered).mean() < 0.995
