import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scvi_causal.data.fields import GRNField


def named_edges(state):
    """Edges of a state registry by name again."""
    nodes = [*state["var_names"], *state["extra_nodes"]]
    index = zip(state["source_idx"], state["target_idx"], state["weight"], strict=True)
    return {(nodes[s], nodes[t], float(w)) for s, t, w in index}


def test_edges_become_indices(adata):
    state = GRNField(None, "perturbation").register_field(adata)
    assert named_edges(state) == {
        ("KLF1", "BAK1", 1.0),
        ("drug x/1.5", "g 3", -2.0),
        ("HLA.A", "chr1/123", 0.5),
    }
    assert state["extra_nodes"].tolist() == ["drug x/1.5"]
    assert state["source_idx"].max() == adata.n_vars  # the first place after the genes
    assert state["target_idx"].max() < adata.n_vars
    assert (state["n_edges_given"], state["original_key"]) == (4, "grn")
    assert state["source_idx"].dtype == state["target_idx"].dtype == np.int64
    assert state["weight"].dtype == np.float32


def test_without_labels_only_genes_are_sources(adata):
    state = GRNField("grn").register_field(adata)
    assert len(state["extra_nodes"]) == 0
    assert len(state["source_idx"]) == 2


def test_genes_in_another_order_are_the_same_graph(adata):
    state = GRNField(None, "perturbation").register_field(adata)
    turned = GRNField(None, "perturbation").register_field(adata[:, ::-1].copy())
    assert named_edges(state) == named_edges(turned)
    assert state["fingerprint"] == turned["fingerprint"]
    assert state["source_idx"].tolist() != turned["source_idx"].tolist()


def test_matrix_in_varp_has_regulators_as_rows(adata):
    matrix = np.zeros((5, 5))
    matrix[3, 4] = -1.5  # KLF1 -> BAK1
    for value in (matrix, csr_matrix(matrix)):
        adata.varp["GRN"] = value
        assert named_edges(GRNField("GRN").register_field(adata)) == {("KLF1", "BAK1", -1.5)}


def test_graph_is_optional_unless_it_was_asked_for(adata):
    del adata.uns["grn"]
    state = GRNField().register_field(adata)
    assert (len(state["source_idx"]), state["original_key"], state["fingerprint"]) == (0, None, "")
    assert state["var_names"].tolist() == adata.var_names.tolist()
    with pytest.raises(ValueError, match="grn_key='grn' is in neither"):
        GRNField("grn").register_field(adata)


def test_nothing_is_loaded_per_cell(adata):
    assert GRNField().get_data_registry() == {}
    assert not GRNField().is_empty


def test_what_is_kept_is_said_once(adata, caplog):
    with caplog.at_level("INFO", "scvi_causal"):
        field = GRNField(None, "perturbation")
        field.validate_field(adata)
        field.register_field(adata)
    assert [r.message for r in caplog.records] == [
        "GRN: kept 3 of 4 edges, from 3 regulators; 0 of 5 genes have no edge."
    ]


def test_tokens_that_no_cell_carries_may_be_sources(adata):
    adata = adata[adata.obs["perturbation"].astype(str).str.contains("drug") == False].copy()  # noqa: E712
    assert GRNField(None, "perturbation").register_field(adata)["extra_nodes"].tolist() == []
    state = GRNField(None, "perturbation", extra_tokens=["drug x/1.5", "nobody"]).register_field(adata)
    assert ("drug x/1.5", "g 3", -2.0) in named_edges(state)
    assert state["extra_nodes"].tolist() == ["drug x/1.5"]  # nodes are sources of edges; the others are only known
    assert state["extra_tokens"].tolist() == ["drug x/1.5", "nobody"]
