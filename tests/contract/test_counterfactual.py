"""The semantics of counterfactual predictions."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scvi_causal.data import control_mask

from .conftest import make_screen

OWN = {"_scvi_batch", "_scvi_perturbation", "_scvi_extra_categorical_covs", "_scvi_quality"}


def controls(adata):
    return control_mask(adata.obs["perturbation"])


def test_own_label_starts_from_a_control_of_the_stratum(model, screen):
    answer = model.predict_counterfactual(key_added=None)
    source = screen.obs.loc[answer.obs["source_cell"]]
    assert (source["perturbation"].astype(str) == "control").all()
    for key in ("cell_type", "batch"):
        assert (source[key].astype(str).to_numpy() == screen.obs[key].astype(str).to_numpy()).all()
    is_control = controls(screen)
    np.testing.assert_array_equal(answer.obs["source_cell"].to_numpy()[is_control], screen.obs_names[is_control])
    training = screen.obs["split"].to_numpy() == "train"
    used = screen.obs_names.get_indexer(answer.obs["source_cell"][~is_control])
    assert training[used].all()
    np.testing.assert_array_equal(answer.obs["perturbation"].astype(str), screen.obs["perturbation"].astype(str))


def test_layer_and_anndata_agree(model, screen):
    for perturbation in (None, "G1", screen.obs["perturbation"].astype(str).to_numpy()[::-1]):
        model.predict_counterfactual(perturbation, n_samples=3)
        answer = model.predict_counterfactual(perturbation, n_samples=3, key_added=None)
        np.testing.assert_array_equal(answer.X, screen.layers["counterfactual"])
        for name in ("_std", "_q05", "_q95"):
            key = "counterfactual" + name
            np.testing.assert_array_equal(answer.layers[key], screen.layers[key])
        assert answer.X.dtype == np.float32
        assert screen.layers["counterfactual"].dtype == np.float32


def test_list_is_every_source_under_every_target(model, screen):
    answer = model.predict_counterfactual(["G1", "G1+G2", "control"], indices=[1, 0])
    assert answer.obs["perturbation"].tolist() == ["G1"] * 2 + ["G1+G2"] * 2 + ["control"] * 2
    assert answer.obs["source_cell"].tolist() == ["cell1", "cell0"] * 3
    assert answer.obs_names.is_unique
    pd.testing.assert_frame_equal(answer.var, screen.var)
    assert answer.obs["cell_type"].tolist() == screen.obs["cell_type"].iloc[[1, 0]].tolist() * 3
    model.predict_counterfactual("G1+G2")
    np.testing.assert_allclose(answer.X[2:4], screen.layers["counterfactual"][[1, 0]], rtol=1e-5, atol=1e-5)
    assert "counterfactual" not in answer.layers


def test_list_starts_from_training_controls(model, screen):
    answer = model.predict_counterfactual(["G1"])
    source = screen.obs.loc[answer.obs["source_cell"]]
    assert (source["perturbation"].astype(str) == "control").all()
    assert (source["split"] == "train").all()
    assert answer.n_obs == ((screen.obs["split"] == "train") & controls(screen)).sum()


def test_one_target_per_cell(model, screen):
    targets = np.where(np.arange(screen.n_obs) % 2 == 0, "G1", "drug x")
    for given in (targets, pd.Series(targets, index=screen.obs_names), pd.Categorical(targets)):
        model.predict_counterfactual(given, key_added="mixed")
    model.predict_counterfactual("G1", key_added="even")
    model.predict_counterfactual("drug x", key_added="odd")
    np.testing.assert_allclose(screen.layers["mixed"][::2], screen.layers["even"][::2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(screen.layers["mixed"][1::2], screen.layers["odd"][1::2], rtol=1e-5, atol=1e-5)


def test_control_to_control_is_the_own_reconstruction(model, screen):
    rows = np.flatnonzero(controls(screen))
    own = model.predict_counterfactual(indices=rows, key_added=None)
    asked = model.predict_counterfactual("control", indices=rows, key_added=None)
    np.testing.assert_array_equal(own.X, asked.X)
    for sample in (False, True):
        delta = model.predict_counterfactual("control", indices=rows, output="delta", sample=sample, key_added=None)
        np.testing.assert_allclose(delta.X, 0, atol=1e-6)


def test_cell_that_is_replaced_is_counted(model, screen):
    model.predict_counterfactual("G2")
    info = screen.uns["scvi_causal"]["counterfactual"]
    expected = 0 if model.can_abduct else int((~controls(screen)).sum())
    assert info["n_sources_replaced"] == expected


def test_outputs_are_the_same_expression_on_other_scales(model, screen):
    rows = np.arange(40)

    def ask(output, **kwargs):
        return model.predict_counterfactual("G1", indices=rows, output=output, key_added=None, **kwargs)

    normalized, counts, log1p = ask("normalized"), ask("counts"), ask("log1p")
    library = np.asarray(screen[normalized.obs["source_cell"].tolist()].X.sum(1)).reshape(-1, 1)
    np.testing.assert_allclose(counts.X, normalized.X * library / 1e4, rtol=1e-4, atol=1e-4)
    if model.module.scale == "counts":
        np.testing.assert_allclose(log1p.X, np.log1p(normalized.X), rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(np.maximum(np.expm1(log1p.X), 0), normalized.X, rtol=1e-4, atol=1e-3)
    own = screen.obs["perturbation"].astype(str).to_numpy()[rows]
    ok = model.can_predict(own)["predictable"].to_numpy()
    delta = model.predict_counterfactual("G1", indices=rows[ok], output="delta", key_added=None)
    base = model.predict_counterfactual(own[ok], indices=rows[ok], output="log1p", key_added=None)
    np.testing.assert_allclose(delta.X, log1p.X[ok] - base.X, rtol=1e-4, atol=1e-5)


def test_size_factor_is_the_library(case, screen):
    model = case.fit(screen, size_factor_key="library")
    rows = np.flatnonzero(controls(screen))
    counts = model.predict_counterfactual("G1", indices=rows, output="counts", key_added=None).X
    normalized = model.predict_counterfactual("G1", indices=rows, key_added=None)
    library = screen.obs["library"].to_numpy()[rows][:, None]
    np.testing.assert_allclose(counts, normalized.X * library / 1e4, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(normalized.obs["library"], screen.obs["library"].to_numpy()[rows])


def test_draws_of_counts_are_whole_and_average_to_the_expectation(model, screen):
    rows = np.flatnonzero(controls(screen))[:10]
    draws = model.predict_counterfactual(
        "G1", indices=np.tile(rows, 100), sample=True, output="counts", key_added=None
    ).X
    assert (draws == np.round(draws)).all()
    assert (draws >= 0).all()
    expected = model.predict_counterfactual(
        "G1", indices=np.tile(rows, 100), output="counts", n_samples=1, key_added=None
    ).X
    by_gene, wanted = draws.mean(0), expected.mean(0)
    error = draws.std(0) / np.sqrt(len(draws)) * 6 + 0.1 * wanted + 0.2
    assert (np.abs(by_gene - wanted) < error).all()


def test_several_draws_give_a_spread(model, screen):
    model.predict_counterfactual("G1+G2", n_samples=8)
    layers = screen.layers
    assert (layers["counterfactual_std"] >= 0).all()
    assert (layers["counterfactual_q05"] <= layers["counterfactual_q95"]).all()
    model.predict_counterfactual("G1")
    assert not [k for k in layers if k is not None and k.startswith("counterfactual_")]


def test_seed_decides_and_nothing_global_is_touched(model, screen):
    torch.manual_seed(7)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    kwargs = {"sample": True, "output": "counts", "key_added": None, "n_samples": 2}
    first = model.predict_counterfactual(seed=1, **kwargs)
    again = model.predict_counterfactual(seed=1, **kwargs)
    other = model.predict_counterfactual(seed=2, **kwargs)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    np.testing.assert_array_equal(first.X, again.X)
    assert (first.X != other.X).any()
    assert not model.module.training


def test_batch_size_does_not_matter(model, screen):
    model.predict_counterfactual("G1", key_added="a", batch_size=7)
    model.predict_counterfactual("G1", key_added="b", batch_size=1_000)
    np.testing.assert_allclose(screen.layers["a"], screen.layers["b"], rtol=1e-4, atol=1e-4)


def test_only_the_documented_places_are_written(model, screen):
    fresh = make_screen()
    model.predict_counterfactual("G1", n_samples=2)
    assert set(screen.obs.columns) - set(fresh.obs.columns) <= OWN
    assert set(screen.obsm) - set(fresh.obsm) <= OWN
    assert {k for k in screen.layers if k is not None} == {"counterfactual" + s for s in ("", "_std", "_q05", "_q95")}
    assert set(screen.uns) - set(fresh.uns) <= {"scvi_causal", "_scvi_uuid", "_scvi_manager_uuid"}
    assert (screen.X != fresh.X).nnz == 0
    pd.testing.assert_frame_equal(screen.obs[fresh.obs.columns], fresh.obs)
    pd.testing.assert_frame_equal(screen.var, fresh.var)


def test_cells_outside_indices_stay_unknown(model, screen):
    model.predict_counterfactual("G1", indices=[3, 5])
    layer = screen.layers["counterfactual"]
    assert np.isfinite(layer[[3, 5]]).all()
    assert np.isnan(np.delete(layer, [3, 5], axis=0)).all()
    mask = np.zeros(screen.n_obs, dtype=bool)
    mask[[3, 5]] = True
    model.predict_counterfactual("G1", indices=mask, key_added="masked")
    np.testing.assert_array_equal(layer, screen.layers["masked"])


@pytest.mark.parametrize("bad", [[], [999], [-1], [0.5]], ids=str)
def test_bad_indices_are_refused(model, bad):
    with pytest.raises(ValueError, match="indices"):
        model.predict_counterfactual("G1", indices=bad)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"output": "raw"}, "'normalized'"),
        ({"n_samples": 0}, "n_samples"),
        ({"key_added": "a/b"}, "key_added"),
        ({"perturbation": 3}, "perturbation"),
        ({"perturbation": []}, "empty"),
        ({"perturbation": np.array(["G1", "G2"])}, "list"),
        ({"perturbation": ["G1"], "dosage": [1.0, 2.0]}, "dosage"),
        ({"perturbation": "G1", "dosage": 0.0}, "dosage"),
        ({"perturbation": "G1", "covariates": {"cell typ": "T cell"}}, "cell_type"),
        ({"perturbation": "G1", "covariates": {"cell_type": "t cell"}}, "'T cell'"),
    ],
    ids=["output", "draws", "key", "type", "none", "length", "dosages", "zero", "column", "value"],
)
def test_bad_arguments_are_refused(model, kwargs, match):
    with pytest.raises(ValueError, match=match):
        model.predict_counterfactual(**kwargs)


def test_unknown_target_names_what_is_near(model):
    with pytest.raises(ValueError, match=r"HLA\.A.*can_predict"):
        model.predict_counterfactual(["G1", "HLA-A"])
    table = model.can_predict(["G1", "hla.a", "G1+G2", "control"])
    assert table["predictable"].tolist() == [True, False, True, True]
    assert table["seen"].tolist() == [True, False, True, True]
    assert "HLA.A" in table.loc["hla.a", "reason"]


def test_what_can_predict_promises_is_kept(model):
    labels = ["G1", "G3", "G1+HLA.A", "G1+G3", "G2+G1", "NEW", "nothing", "nothing+G1"]
    table = model.can_predict(labels)
    assert table["combination_seen"].tolist() == [True, False, False, False, True, False, False, False]
    for label, predictable in table["predictable"].items():
        if predictable:
            answer = model.predict_counterfactual([label], indices=[0, 1])
            assert np.isfinite(answer.X).all()
            assert answer.obs["is_unseen"].all() == (not table.loc[label, "combination_seen"])
        else:
            with pytest.raises(ValueError, match="cannot predict"):
                model.predict_counterfactual([label], indices=[0, 1])


def test_features_of_the_call(model):
    given = pd.DataFrame([[0.1, 0.2, 0.3]], index=["brand new"], columns=["f1", "f2", "f3"])
    described = "features" in model._unseen_kinds() or "any" in model._unseen_kinds()
    assert model.can_predict(["brand new"], features=given)["predictable"].item() == described
    if described:
        answer = model.predict_counterfactual(["brand new", "G1+brand new"], indices=[0], features=given)
        assert np.isfinite(answer.X).all()
        assert answer.obs["is_unseen"].all()
    with pytest.raises(ValueError, match="f2"):
        model.predict_counterfactual(["G1"], indices=[0], features=given[["f1", "f3"]])


def test_combination_order_does_not_matter(model):
    one = model.predict_counterfactual(["G1+drug x"], indices=[0, 1])
    other = model.predict_counterfactual([" drug x + G1"], indices=[0, 1])
    np.testing.assert_array_equal(one.X, other.X)
    assert other.obs["perturbation"].tolist() == ["G1+drug x"] * 2


def test_covariates_are_set(model, screen):
    rows = np.flatnonzero(controls(screen) & (screen.obs["cell_type"] == "B cell").to_numpy())[:5]
    answer = model.predict_counterfactual("G1", indices=rows, covariates={"cell_type": "T cell"}, key_added=None)
    assert (answer.obs["cell_type"] == "T cell").all()
    same = model.predict_counterfactual("G1", indices=rows, covariates={"cell_type": "B cell"}, key_added=None)
    plain = model.predict_counterfactual("G1", indices=rows, key_added=None)
    np.testing.assert_array_equal(same.X, plain.X)


def test_predict_is_the_same(model):
    np.testing.assert_array_equal(
        model.predict(["G1"], indices=[0]).X, model.predict_counterfactual(["G1"], indices=[0]).X
    )


# ---------------------------------------------------------------------- queries


def test_control_only_query(model, screen):
    query = screen[controls(screen)].copy()
    expected = model.predict_counterfactual("G1", indices=np.flatnonzero(controls(screen)), key_added=None)
    del query.obs["perturbation"], query.obs["split"]
    query.uns.clear()
    query.obsm.clear()
    model.predict_counterfactual("G1", adata=query)
    np.testing.assert_allclose(query.layers["counterfactual"], expected.X, rtol=1e-5, atol=1e-5)


def test_query_without_controls_starts_from_the_training_data(model, screen):
    query = make_screen(seed=3)
    query = query[(query.obs["perturbation"] == "G1").to_numpy()].copy()
    query.obs_names = "query" + query.obs_names
    answer = model.predict_counterfactual(adata=query, key_added=None)
    source = screen.obs.loc[answer.obs["source_cell"]]
    assert (source["perturbation"] == "control").all()
    assert (source["cell_type"].to_numpy() == query.obs["cell_type"].to_numpy()).all()
    assert answer.uns["scvi_causal"]["counterfactual"]["sources_from"] == "the training data"


def test_query_without_controls_and_no_training_data(case, saved):
    query = make_screen(seed=3)
    query = query[(query.obs["perturbation"] == "G1").to_numpy()].copy()
    model = case.model_class.load(str(saved[0]), adata=False, accelerator="cpu")
    with pytest.raises(ValueError, match="control"):
        model.predict_counterfactual(adata=query)


def test_query_with_unknown_labels(model):
    query = make_screen(seed=4)[:30].copy()
    labels = query.obs["perturbation"].astype(str).to_numpy()
    labels[1] = "never heard of"
    query.obs["perturbation"] = labels
    with pytest.raises(ValueError, match="never heard of"):
        model.predict_counterfactual(adata=query)
    if model.can_abduct:
        with pytest.raises(ValueError, match="does not know"):
            model.predict_counterfactual("G1", adata=query)
    else:
        model.predict_counterfactual("G1", adata=query)
        assert np.isfinite(query.layers["counterfactual"]).all()


@pytest.mark.parametrize("how", ["reversed", "missing", "renamed"])
def test_query_with_other_genes_is_refused(model, screen, how):
    query = make_screen(seed=3)
    if how == "reversed":
        query = query[:, ::-1].copy()
    elif how == "missing":
        query = query[:, :-1].copy()
    else:
        query.var_names = [*query.var_names[:-1], "another"]
    query.uns.pop("grn")
    columns = sorted(query.obs.columns)
    with pytest.raises(ValueError, match="gene"):
        model.predict_counterfactual("G1", adata=query)
    assert sorted(query.obs.columns) == columns
    assert not len(query.obsm)


def test_empty_query_is_refused(model, screen):
    with pytest.raises(ValueError, match="no cells"):
        model.predict_counterfactual("G1", adata=screen[:0].copy())


def test_view_is_predicted(model, screen):
    view = make_screen()[:120]
    model.predict_counterfactual("G1", adata=view)
    model.predict_counterfactual("G1")
    assert view.layers["counterfactual"].shape == (120, screen.n_vars)
    rows = np.flatnonzero(controls(view))
    np.testing.assert_allclose(
        view.layers["counterfactual"][rows], screen.layers["counterfactual"][rows], rtol=1e-5, atol=1e-5
    )


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_answers_survive_files(model, screen, tmp_path, form):
    model.predict_counterfactual("G1+G2", n_samples=2, covariates={"cell_type": "T cell"})
    model.predict_counterfactual(key_added="own", output="delta", indices=np.flatnonzero(controls(screen)))
    several = model.predict_counterfactual(["G1", "control"], indices=[0, 1], dosage=0.5)
    for adata, name in ((screen, "layers"), (several, "several")):
        path = tmp_path / f"{name}.{form}"
        getattr(adata, f"write_{form}")(path)
        back = getattr(ad, f"read_{form}")(path)
        for key in (k for k in adata.layers if k is not None):
            np.testing.assert_array_equal(back.layers[key], adata.layers[key])
        written, read = adata.uns["scvi_causal"], back.uns["scvi_causal"]
        assert set(read) == set(written)
        for key, info in written.items():
            for entry, value in info.items():
                np.testing.assert_array_equal(np.asarray(read[key][entry]), np.asarray(value))
    pd.testing.assert_frame_equal(back.obs, several.obs, check_dtype=False, check_categorical=False)


def test_provenance_says_how_it_was_made(model, screen, case):
    model.predict_counterfactual("drug x", sample=True, n_samples=3, output="log1p", seed=11, key_added="a")
    model.predict_counterfactual(key_added="b")
    info = screen.uns["scvi_causal"]
    assert set(info) == {"a", "b"}
    wanted = {"model": case.cls, "output": "log1p", "sample": True, "n_samples": 3, "seed": 11, "mode": "one target"}
    assert {k: info["a"][k] for k in wanted} == wanted
    assert info["a"]["target"].tolist() == ["drug x"]
    assert info["b"]["mode"] == "own label"
    assert info["b"]["grn_fingerprint"]
    assert info["b"]["version"]
    assert info["a"]["scale"] in ("counts", "log1p")
