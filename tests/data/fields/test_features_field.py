import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_causal.data.fields import FeaturesField


def test_whole_table_is_kept(adata):
    state = FeaturesField("features", "perturbation").register_field(adata)
    assert state["feature_tokens"].tolist() == ["KLF1", "BAK1", "drug x/1.5", "never seen"]
    assert state["feature_names"].tolist() == ["a b", "c.d"]
    np.testing.assert_array_equal(state["feature_matrix"], np.arange(8).reshape(4, 2))
    assert state["feature_matrix"].dtype == np.float32
    assert FeaturesField("features").get_summary_stats(state) == {"n_perturbation_features": 2}


@pytest.mark.parametrize("convert", [np.asarray, csr_matrix, lambda x: pd.DataFrame(x, columns=["x", "y"])])
def test_gene_embedding_in_varm(adata, convert):
    values = np.arange(10.0).reshape(5, 2)
    table = convert(values)
    if isinstance(table, pd.DataFrame):
        table.index = adata.var_names
    adata.varm["embedding"] = table
    state = FeaturesField("embedding").register_field(adata)
    assert state["feature_tokens"].tolist() == adata.var_names.tolist()
    np.testing.assert_array_equal(state["feature_matrix"], values)
    with pytest.raises(ValueError, match="1 of 3 tokens .* no features under 'embedding': 'drug x/1.5'"):
        FeaturesField("embedding", "perturbation").register_field(adata)
    assert FeaturesField("embedding", "perturbation", allow_missing=True).register_field(adata) is not None


def test_no_key_is_an_empty_field():
    field = FeaturesField(None)
    assert field.is_empty
    assert field.get_data_registry() == {}
    assert field.get_summary_stats({}) == {"n_perturbation_features": 0}
    assert field.view_state_registry({}) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((3, 2)), r"adata.uns\['bad'\] is no pandas DataFrame but ndarray"),
        (pd.DataFrame(index=["A"]), r"has the shape \(1, 0\)"),
        (pd.DataFrame({"x": [1.0], "name": ["A"]}), r"has 1 column without numbers: 'name'"),
        (pd.DataFrame({"x": [1.0, 2.0, 3.0]}, index=["A", "B", "A"]), "more than one row for 1 token: 'A'"),
        (pd.DataFrame({"x": [1.0, np.nan, np.inf]}, index=["A", "B", "C"]), "infinite values for 2 tokens: 'B', 'C'"),
    ],
)
def test_what_is_wrong_is_named(adata, table, message):
    adata.uns["bad"] = table
    with pytest.raises(ValueError, match=message):
        FeaturesField("bad").register_field(adata)


def test_numbers_of_all_kinds_are_read(adata):
    adata.uns["f"] = pd.DataFrame({0: [True, False], 1: pd.array([1, 2], dtype="Int64")}, index=["A", "B"])
    state = FeaturesField("f").register_field(adata)
    assert state["feature_names"].tolist() == ["0", "1"]
    assert state["feature_matrix"].tolist() == [[1.0, 1.0], [0.0, 2.0]]
