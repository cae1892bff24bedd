import numpy as np
import pytest

from scvi_causal.data.fields import PerturbationField


def test_state_is_made_of_arrays_and_plain_values(adata):
    state = PerturbationField("perturbation", dosage_key="dosage").register_field(adata)
    assert set(state) == {
        "token_names",
        "control_categories",
        "separator",
        "original_key",
        "dosage_key",
        "n_control_cells",
    }
    assert state["token_names"].tolist() == ["BAK1", "KLF1", "drug x/1.5"]
    assert state["control_categories"].tolist() == ["control"]
    assert (state["separator"], state["original_key"], state["dosage_key"]) == ("+", "perturbation", "dosage")
    assert state["n_control_cells"] == 8


def test_unused_categories_are_no_tokens(adata):
    assert "unused" in adata.obs["perturbation"].cat.categories
    state = PerturbationField("perturbation").register_field(adata)
    assert "unused" not in state["token_names"]
    assert "unused" in adata.obs["perturbation"].cat.categories  # the column is the user's


def test_several_controls(adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str)
    adata.obs.iloc[:10, 0] = "non-targeting"
    state = PerturbationField("perturbation", ["control", "non-targeting"]).register_field(adata)
    expected = adata.obs["perturbation"].isin(["control", "non-targeting"]).to_numpy()
    np.testing.assert_array_equal(np.diff(adata.obsm["_scvi_perturbation"].indptr) == 0, expected)
    assert state["n_control_cells"] == expected.sum()


def test_labels_that_are_never_split(adata):
    state = PerturbationField("perturbation", separator=None).register_field(adata)
    assert "KLF1+ctrl" in state["token_names"]
    assert state["separator"] is None
    transferred = PerturbationField("perturbation", separator="+").transfer_field(state, adata)
    assert transferred["token_names"].tolist() == state["token_names"].tolist()  # the source says how labels are read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbation_key": "pert"}, "'pert' is not a column of adata.obs.* Did you mean 'perturbation'"),
        ({"control_category": "ctrl"}, "'control' look like one: pass control_category='control'"),
        ({"control_category": ["NT", "non-targeting"]}, "control label 'NT', 'non-targeting' among"),
        ({"dosage_key": "batch"}, "not a number"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_written(adata, arguments, message):
    field = PerturbationField(**{"perturbation_key": "perturbation"} | arguments)
    for attempt in (field.validate_field, field.register_field):
        with pytest.raises(ValueError, match=message):
            attempt(adata)
    assert "_scvi_perturbation" not in adata.obsm


def test_unknown_arguments_of_a_transfer_are_let_pass(adata):
    field = PerturbationField("perturbation")
    state = field.register_field(adata)
    assert field.transfer_field(state, adata, extend_categories=True, allow_missing_labels=True) is not None
