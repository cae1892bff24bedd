"""Training, saving and loading: the same for every model."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch

from .conftest import HELD_OUT, make_screen


def test_training_leaves_what_scvi_tools_promises(model, screen):
    split = screen.obs["split"].to_numpy()
    assert model.is_trained
    assert not model.module.training
    for indices, name in (
        (model.train_indices, "train"),
        (model.validation_indices, "valid"),
        (model.test_indices, "test"),
    ):
        np.testing.assert_array_equal(np.sort(indices), np.flatnonzero(split == name))
    assert model.split_key_ == "split"
    losses = np.asarray(model.history["train_loss"], dtype=float) if "train_loss" in model.history else None
    if losses is None:
        losses = np.asarray(model.history["train_loss_epoch"], dtype=float)
    assert losses.size
    assert np.isfinite(losses).all()


def test_seen_is_what_training_cells_carry(model):
    assert not set(HELD_OUT) & set(model.seen_conditions_)
    assert set(model.seen_tokens_) == {"G1", "G2", "HLA.A", "TP/53", "drug x"}


def test_same_seed_same_model(case, saved):
    adata = make_screen()
    case.fit(adata).predict_counterfactual()
    np.testing.assert_array_equal(adata.layers["counterfactual"], saved[1])


def test_default_split_keeps_every_condition(case, screen):
    case.set_up(screen)
    scvi.settings.seed = 0
    model = case.model_class(screen, **case.model)
    model.train(
        **{"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **case.train, "split_key": None}
    )
    assert len(model.seen_conditions_) == screen.obs["perturbation"].nunique()
    assert len(model.train_indices) + len(model.validation_indices) == screen.n_obs


def test_untrained_model_does_not_predict(case, screen):
    case.set_up(screen)
    model = case.model_class(screen, **case.model)
    with pytest.raises(RuntimeError, match="train"):
        model.predict_counterfactual("G1")


def test_load_with_data(model, saved, screen):
    model.predict_counterfactual()
    np.testing.assert_allclose(screen.layers["counterfactual"], saved[1], rtol=1e-5, atol=1e-5)


def test_load_without_data_then_query(case, saved, screen):
    folder, expected = saved
    model = case.model_class.load(str(folder), adata=False, accelerator="cpu")
    with pytest.raises(ValueError, match="adata="):
        model.predict_counterfactual("G1")
    assert model.can_predict(["G1"])["predictable"].item()
    del screen.uns["grn"], screen.uns["features"]
    model.predict_counterfactual(adata=screen)
    np.testing.assert_allclose(screen.layers["counterfactual"], expected, rtol=1e-5, atol=1e-5)


def test_load_with_query_data(case, saved, screen):
    query = screen[30:90].copy()
    del query.uns["grn"]
    model = case.model_class.load(str(saved[0]), adata=query, accelerator="cpu")
    model.predict_counterfactual()
    assert np.isfinite(query.layers["counterfactual"]).all()


def test_saved_state_is_tensors_and_plain_arrays(case, saved, model, tmp_path):
    torch.save(model.module.state_dict(), tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(again) == set(model.module.state_dict())


def test_saving_a_loaded_model_again(case, saved, model, screen, tmp_path):
    model.save(str(tmp_path / "again"))
    again = case.model_class.load(str(tmp_path / "again"), adata=make_screen(), accelerator="cpu")
    again.predict_counterfactual(key_added="again")
    np.testing.assert_allclose(again.adata.layers["again"], saved[1], rtol=1e-5, atol=1e-5)


def test_options_survive_saving(case, model):
    stored = dict(model.init_params_["non_kwargs"])
    for passed_on in model.init_params_["kwargs"].values():  # **options of a model that extends another
        stored |= passed_on
    for name, value in case.model.items():
        assert stored[name] == value


def test_two_models_in_one_process_do_not_meet(case, saved):
    small = make_screen(seed=1)[:, :10].copy()
    small.uns.pop("grn")
    small.obs["perturbation"] = small.obs["perturbation"].astype(str).replace({"G2": "other", "G1+G2": "G1+other"})
    small.uns["features"] = small.uns["features"].rename(index={"G2": "other"})
    first, second = make_screen(), small
    one = case.fit(first)
    two = case.fit(second, seed=5)
    one.predict_counterfactual(seed=0)
    two.predict_counterfactual(seed=0)
    assert second.layers["counterfactual"].shape == (small.n_obs, 10)
    np.testing.assert_allclose(first.layers["counterfactual"], saved[1], rtol=1e-5, atol=1e-5)
    assert "other" in two.seen_tokens_
    assert "other" not in one.seen_tokens_


def test_one_adata_under_two_models(case, saved, screen):
    """Setting the same object up again, otherwise, does not change what the first model answers."""
    first = case.fit(screen)
    case.set_up(screen, batch_key=None, categorical_covariate_keys=None)
    first.predict_counterfactual()
    np.testing.assert_allclose(screen.layers["counterfactual"], saved[1], rtol=1e-5, atol=1e-5)
