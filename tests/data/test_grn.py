import logging

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array, csr_matrix

from scvi_causal.data import grn_from_adjacency, grn_from_edges, restrict_grn, to_edge_index, validate_grn
from scvi_causal.data._grn import grn_fingerprint


def edges(*rows):
    return pd.DataFrame([r if len(r) == 3 else (*r, 1.0) for r in rows], columns=["source", "target", "weight"])


GENES = ["A", "B.1", "C/2", "D d"]


class TestValidate:
    def test_keeps_edges_among_genes(self, caplog):
        given = edges(("A", "B.1", -0.5), ("A", "Z"), ("Y", "B.1"), ("C/2", "D d", 2.0))
        given["reference"] = "a paper"
        with caplog.at_level(logging.INFO, "scvi_causal"):
            kept = validate_grn(given, GENES)
        pd.testing.assert_frame_equal(
            kept, edges(("A", "B.1", -0.5), ("C/2", "D d", 2.0)).astype({"weight": "float32"}), check_dtype=False
        )
        assert kept["weight"].dtype == np.float32
        assert "kept 2 of 4 edges, from 2 regulators; 0 of 4 genes have no edge" in caplog.text
        assert list(given.columns) == ["source", "target", "weight", "reference"]

    def test_weight_is_1_by_default_and_categories_are_read(self):
        given = edges(("A", "B.1"))[["source", "target"]].astype("category")
        assert validate_grn(given)["weight"].tolist() == [1.0]

    def test_tokens_may_be_sources_only(self):
        given = edges(("drug", "A"), ("A", "drug"))
        assert validate_grn(given, GENES, extra_nodes=["drug"])["source"].tolist() == ["drug"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"source": ["A"]}, "pandas DataFrame .* got dict"),
            (pd.DataFrame({"TF": ["A"], "target": ["B"]}), r"lacks the column 'source'.*source='TF'"),
            (pd.DataFrame({"TF": ["A"], "gene": ["B"]}), r"lacks the columns 'source', 'target'.*target='gene'"),
            (edges(("A", "B.1")).iloc[:0], "has no edges"),
            (edges(("A", "B.1"), (np.nan, "A"), ("A", None)), r"2 edges of 3 without a source or a target \(NaN\)"),
            (edges(("A", "B.1", np.nan), ("B.1", "A", np.inf)), r"2 edges of 2 without a finite weight.*A -> B.1"),
            (edges(("A", "B.1", "strong"), ("B.1", "A", 1)), r"1 edge of 2 .*'strong'"),
            (edges(("A", "B.1"), ("A", "B.1", 2.0), ("B.1", "A")), r"repeats 1 edge of 3: 'A -> B.1'"),
            (edges(("a", "b.1")), r"Not one of the 1 edges.*upper and lower case"),
            (edges(("X", "Y")), r"Not one of the 1 edges.*4 genes.*same kind of identifier"),
            (edges(("X", "A")), r"Targets are found but no regulator"),
        ],
    )
    def test_what_is_wrong_is_named(self, given, message):
        with pytest.raises(ValueError, match=message):
            validate_grn(given, GENES)


class TestFromEdges:
    BOOST = pd.DataFrame(
        {"TF": ["A", "A", "B"], "gene": ["B", "B", "A"], "importance": [1.0, -4.0, 2.0]}, index=[7, 7, 9]
    )

    @pytest.mark.parametrize(("duplicates", "weight"), [("first", 1.0), ("mean", -1.5), ("max", -4.0)])
    def test_duplicates(self, duplicates, weight):
        found = grn_from_edges(self.BOOST, "TF", "gene", "importance", duplicates=duplicates)
        assert found["weight"].tolist() == [weight, 2.0]
        assert found["source"].tolist() == ["A", "B"]

    def test_duplicates_are_an_error_unless_asked(self):
        with pytest.raises(ValueError, match="repeats 1 edge"):
            grn_from_edges(self.BOOST, "TF", "gene", "importance")
        with pytest.raises(ValueError, match="duplicates='sum' is not one of"):
            grn_from_edges(self.BOOST, "TF", "gene", "importance", duplicates="sum")

    def test_wrong_column(self):
        with pytest.raises(ValueError, match=r"weight='importanc' is not a column.*Did you mean 'importance'"):
            grn_from_edges(self.BOOST, "TF", "gene", "importanc")

    def test_weight_is_found_by_itself(self):
        assert grn_from_edges(edges(("A", "B", 3.0)))["weight"].tolist() == [3.0]
        without = self.BOOST[["TF", "gene"]]
        assert grn_from_edges(without, "TF", "gene", duplicates="mean")["weight"].tolist() == [1.0, 1.0]


class TestFromAdjacency:
    MATRIX = np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])

    @pytest.mark.parametrize("convert", [np.asarray, csr_matrix, csr_array])
    def test_orientation(self, convert):
        by_row = grn_from_adjacency(convert(self.MATRIX), list("ABC"))
        assert by_row.values.tolist() == [["A", "B", 2.0], ["C", "A", -1.0]]
        by_column = grn_from_adjacency(convert(self.MATRIX), list("ABC"), regulators="columns")
        assert by_column.values.tolist() == [["B", "A", 2.0], ["A", "C", -1.0]]

    def test_rectangular_frame(self):
        frame = pd.DataFrame([[1.0, 0.0], [0.0, 3.0]], index=["TF1", "TF2"], columns=["g", "h"])
        assert grn_from_adjacency(frame).values.tolist() == [["TF1", "g", 1.0], ["TF2", "h", 3.0]]
        turned = grn_from_adjacency(frame.T, regulators="columns")
        assert turned.values.tolist() == [["TF1", "g", 1.0], ["TF2", "h", 3.0]]

    @pytest.mark.parametrize(
        ("matrix", "genes", "message"),
        [
            (MATRIX, None, "needs genes="),
            (MATRIX, ["A", "B"], r"shape \(3, 3\) does not fit 2 genes"),
            (MATRIX, ["A", "A", "B"], "repeats 1 gene name: 'A'"),
            (MATRIX * np.nan, ["A", "B", "C"], "without a finite weight"),
            (MATRIX * 0, ["A", "B", "C"], "has no edges"),
        ],
    )
    def test_what_is_wrong_is_named(self, matrix, genes, message):
        with pytest.raises(ValueError, match=message):
            grn_from_adjacency(matrix, genes)

    def test_unknown_orientation(self):
        with pytest.raises(ValueError, match="regulators='source' is not one of"):
            grn_from_adjacency(self.MATRIX, list("ABC"), regulators="source")


def test_restrict():
    given = edges(("A", "A"), ("A", "B.1"), ("drug", "A"), ("A", "drug"))
    assert restrict_grn(given, GENES).index.tolist() == [0, 1]
    assert restrict_grn(given, GENES, ["drug"])["source"].tolist() == ["A", "A", "drug"]
    assert restrict_grn(given, GENES, drop_self_loops=True)["target"].tolist() == ["B.1"]
    assert len(restrict_grn(given, ["Z"])) == 0


class TestEdgeIndex:
    def test_sources_above_targets(self):
        index, weight = to_edge_index(edges(("D d", "A", 0.5), ("A", "C/2", -1.0)), GENES)
        assert index.tolist() == [[3, 0], [0, 2]]
        assert index.dtype == torch.int64
        assert weight.tolist() == [0.5, -1.0]
        assert weight.dtype == torch.float32

    def test_extra_nodes_follow_the_genes(self):
        index, _ = to_edge_index(edges(("x", "A"), ("y", "A")), GENES, extra_nodes=["y", "x"])
        assert index.tolist() == [[5, 4], [0, 0]]

    def test_names_outside(self):
        with pytest.raises(ValueError, match=r"2 edges with names outside the genes: 'X', 'drug'.*restrict_grn"):
            to_edge_index(edges(("X", "A"), ("A", "drug"), ("A", "B.1")), GENES, extra_nodes=["drug"])


def test_fingerprint_knows_edges_not_their_order():
    given = edges(("A", "B", 1.0), ("B", "C", 2.0))
    same, turned, weighted = given.iloc[::-1], edges(("B", "A", 1.0), ("B", "C", 2.0)), given.assign(weight=1.0)
    assert grn_fingerprint(given) == grn_fingerprint(same)
    assert len({grn_fingerprint(g) for g in (given, turned, weighted)}) == 3
