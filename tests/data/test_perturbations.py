import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_causal.data import (
    Vocabulary,
    canonical_labels,
    condition_codes,
    control_mask,
    parse_dosages,
    parse_label,
)
from scvi_causal.data._labels import looks_like_control


@pytest.mark.parametrize(
    ("label", "tokens"),
    [
        ("control", ()),
        (" control ", ()),
        ("control+control", ()),
        ("control+ctrl", ()),
        ("A", ("A",)),
        ("B+A", ("A", "B")),
        (" B + A ", ("A", "B")),
        ("A+ctrl", ("A",)),
        ("ctrl+A", ("A",)),
        ("A+control", ("A",)),
        ("C+A+B", ("A", "B", "C")),
        ("HLA.A+chr1/123+C d", ("C d", "HLA.A", "chr1/123")),
        ("ctrl", ("ctrl",)),  # not declared a control: a token, and validate_setup warns
    ],
)
def test_label_has_sorted_tokens_and_no_control(label, tokens):
    assert parse_label(label) == tokens


def test_several_control_labels():
    controls = ["non-targeting", "NT+NT"]
    assert parse_label("NT+NT", control_categories=controls) == ()
    assert parse_label("A+non-targeting", control_categories=controls) == ("A",)
    assert canonical_labels(["NT+NT", "B+A"], control_categories=controls).tolist() == ["non-targeting", "A+B"]


def test_a_label_can_be_left_whole():
    assert parse_label("(+)-JQ1", separator=None) == ("(+)-JQ1",)
    assert parse_label("A_B", separator="_") == ("A", "B")
    assert canonical_labels(["B_A"], separator="_").tolist() == ["A_B"]
    assert canonical_labels(["B+A"], separator=None).tolist() == ["B+A"]


@pytest.mark.parametrize(
    "label", ["", "nan", "NaN", "None", None, np.nan, pd.NA, "A+", "+A", "A++B", "A+nan"], ids=repr
)
def test_missing_labels_and_tokens_raise(label):
    with pytest.raises(ValueError, match="No perturbation is named for 1 cell of 1"):
        parse_label(label)


def test_missing_labels_are_counted_and_named():
    labels = ["control", np.nan, "nan", "A", "A+", np.nan]
    with pytest.raises(ValueError, match=r"for 4 cells of 6: found 'A\+', 'nan', 'NaN'.*remove these cells"):
        Vocabulary.from_labels(labels)


def test_a_control_may_be_called_none():
    assert parse_label("None", control_categories="None") == ()


def test_doubled_token_counts_once_and_warns():
    with pytest.warns(UserWarning, match=r"counts once, in 1 label: 'A\+B\+A'"):
        vocabulary = Vocabulary.from_labels(["control", "A+B+A", "A+B+A"])
    assert vocabulary.tokens == ("A", "B")
    assert vocabulary.encode(["A+B+A"]).toarray().tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("separator", ["", "  ", 3])
def test_separator_has_to_separate(separator):
    with pytest.raises(ValueError, match="cannot separate"):
        parse_label("A", separator=separator)


@pytest.mark.parametrize("control", [[], "", ["control", " "]])
def test_control_has_to_be_named(control):
    with pytest.raises(ValueError, match="names no control label"):
        parse_label("A", control_categories=control)


_VALUES = ["B+A", "control", "A", "B+A"]


@pytest.mark.parametrize(
    "labels",
    [
        _VALUES,
        tuple(_VALUES),
        np.array(_VALUES),
        np.array(_VALUES, dtype=object),
        np.array(_VALUES, dtype=np.dtypes.StringDType()),
        pd.Index(_VALUES),
        pd.Series(_VALUES, index=list("wxyz")),
        pd.Series(_VALUES, dtype="string"),
        pd.Series(_VALUES, dtype=pd.StringDtype("python", na_value=np.nan)),  # the default of pandas 3
        pd.Series(_VALUES, dtype="category"),
        pd.Series(pd.Categorical(_VALUES, categories=["unused", "nan", *sorted(set(_VALUES))])),
        pd.Categorical(_VALUES),
    ],
    ids="list tuple unicode object numpy-string index series string string-nan category unused-categories categorical".split(),
)
def test_every_kind_of_column_reads_the_same(labels):
    vocabulary = Vocabulary.from_labels(labels)
    assert vocabulary.tokens == ("A", "B")
    assert vocabulary.encode(labels).toarray().tolist() == [[1, 1], [0, 0], [1, 0], [1, 1]]
    assert canonical_labels(labels).tolist() == ["A+B", "control", "A", "A+B"]
    assert control_mask(labels).tolist() == [False, True, False, False]


def test_numbers_are_labels_too():
    assert Vocabulary.from_labels(pd.Series([0, 3, 3]), control_categories=0).tokens == ("3",)


def test_labels_that_differ_in_spaces_or_order_are_one_condition():
    vocabulary = Vocabulary.from_labels(["A+B", " A + B", "B+A", "control", "control "])
    dosage = vocabulary.encode(["A+B", " A + B", "B+A", "control", "control "])
    assert condition_codes(dosage)[0].tolist() == [1, 1, 1, 0, 0]


class TestDosages:
    def test_they_move_with_their_tokens(self):
        labels = ["A+B", "B+A", "C+A+B"]
        assert parse_dosages(labels, ["1+5", "1+5", "3+1+2"]) == [(1, 5), (5, 1), (1, 2, 3)]
        matrix = Vocabulary(("A", "B", "C")).encode(labels, ["1+5", "1+5", "3+1+2"])
        assert matrix.toarray().tolist() == [[1, 5, 0], [5, 1, 0], [1, 2, 3]]

    @pytest.mark.parametrize(
        "dosages",
        [
            [0.5, 2.0, np.nan, 0.0],
            np.array([0.5, 2.0, 7.0, -1.0]),
            pd.Series([0.5, 2.0, np.nan, np.nan], index=list("wxyz")),
            pd.Series(["0.5", "2", "0", ""], dtype="category"),
            ["0.5+0.5", "2", "whatever", None],
        ],
    )
    def test_one_number_holds_for_all_tokens_and_none_for_control(self, dosages):
        labels = ["A+B", "B", "control", "ctrl+control"]
        found = Vocabulary(("A", "B")).encode(labels, dosages).toarray()
        assert found.tolist() == [[0.5, 0.5], [0, 2], [0, 0], [0, 0]]

    def test_control_inside_a_combination_takes_its_dosage_with_it(self):
        assert parse_dosages(["ctrl+A", "A+ctrl", "B+control+A"], ["9+2", "2+9", "3+0+4"]) == [(2,), (2,), (4, 3)]

    @pytest.mark.parametrize(
        ("dosage", "expected"), [("-1+2", (-1, 2)), ("1+-2", (1, -2)), ("1e+2+3", (100, 3)), ("1E-1+2e+0", (0.1, 2))]
    )
    def test_signs_and_exponents(self, dosage, expected):
        assert parse_dosages(["A+B"], [dosage]) == [expected]

    def test_other_separators(self):
        assert parse_dosages(["B_A"], ["1_2"], separator="_") == [(2, 1)]
        assert parse_dosages(["B+A"], ["1.5"], separator=None) == [(1.5,)]

    @pytest.mark.parametrize(
        ("label", "dosage", "reason"),
        [
            ("A+B", "1+2+3", "3 numbers for 2 tokens"),
            ("A", "1+2", "2 numbers for 1 tokens"),
            ("A", "low", "not a number"),
            ("A", None, "not finite"),
            ("A", np.inf, "not finite"),
            ("A", 0.0, "dosage 0"),
            ("A+B", "0+1", "dosage 0"),
            ("A+A", "1+2", "one token with two different dosages"),
        ],
    )
    def test_what_does_not_fit_is_named(self, label, dosage, reason):
        with pytest.raises(
            ValueError, match=rf"does not fit the perturbation in 2 cells: .*{reason}.*labelled as control"
        ):
            parse_dosages([label, "control", label], [dosage, dosage, dosage])

    def test_wrong_length(self):
        with pytest.raises(ValueError, match="2 dosages for 3 labels"):
            parse_dosages(["A", "B", "C"], [1.0, 2.0])

    def test_a_scalar_holds_for_all_cells(self):
        vocabulary = Vocabulary(("A", "B"))
        labels = ["A+B", "control"]
        assert vocabulary.encode(labels, 0.5).toarray().tolist() == [[0.5, 0.5], [0, 0]]
        assert vocabulary.encode(["B+A"], "3+4").toarray().tolist() == [[4, 3]]
        assert parse_dosages(labels, 2.0) == [(2, 2), ()]
        with pytest.raises(ValueError, match=r"dosage=0 does not fit 'A\+B' \(dosage 0\)"):
            vocabulary.encode(labels, 0)


class TestVocabulary:
    def test_matrix_is_sparse_float32_with_empty_control_rows(self):
        matrix = Vocabulary(("A", "B")).encode(["control", "B", "control"])
        assert isinstance(matrix, csr_matrix)
        assert matrix.dtype == np.float32
        assert matrix.shape == (3, 2)
        assert matrix.indptr.tolist() == [0, 0, 1, 1]

    def test_unknown_tokens_are_named_with_look_alikes(self):
        vocabulary = Vocabulary(("BAK1", "KLF1"))
        with pytest.raises(ValueError, match=r"2 tokens unknown.*'Klf1', 'XYZ'.*'Klf1': 'KLF1'"):
            vocabulary.encode(["Klf1+BAK1", "XYZ"])
        with pytest.raises(ValueError, match="1 token unknown"):
            vocabulary.index("KLF")
        assert vocabulary.index("KLF1") == 1
        assert vocabulary.suggest("klf_1") == ["KLF1"]
        assert "KLF1" in vocabulary
        assert "klf1" not in vocabulary
        assert len(vocabulary) == 2

    @pytest.mark.parametrize("dosages", [None, 2.0, ["1+2", "1", "1", "1"]])
    def test_a_cell_with_an_unknown_token_is_one_nan(self, dosages):
        matrix = Vocabulary(("A", "B")).encode(["A+X", "B", "control", "X"], dosages, unknown="nan")
        assert np.diff(matrix.indptr).tolist() == [1, 1, 0, 1]
        assert np.isnan(matrix.toarray()[[0, 3], 0]).all()
        assert np.isfinite(matrix.toarray()[[1, 2]]).all()
        with pytest.raises(ValueError, match="tokens outside the vocabulary .* in 2 cells"):
            Vocabulary(("A", "B")).decode(matrix)

    def test_decode_undoes_encode(self):
        labels = np.array(["B+A", "control", "C d", "A", "ctrl+B"], dtype=object)
        vocabulary = Vocabulary.from_labels(labels)
        dosage = vocabulary.encode(labels, [0.5, 0, -1, 2, 1])
        assert vocabulary.decode(dosage).tolist() == canonical_labels(labels).tolist()
        with pytest.raises(ValueError, match="3 columns, the vocabulary 1 tokens"):
            Vocabulary(("A",)).decode(dosage)

    def test_decode_writes_the_first_control(self):
        vocabulary = Vocabulary(("A",), control_categories=("NT", "control"))
        assert vocabulary.decode(vocabulary.encode(["control", "NT", "A"])).tolist() == ["NT", "NT", "A"]

    @pytest.mark.parametrize("tokens", [("B", "A"), ("A", "A")])
    def test_tokens_are_sorted_and_distinct(self, tokens):
        with pytest.raises(ValueError, match="distinct and sorted"):
            Vocabulary(tokens)

    def test_vocabularies_are_values(self):
        one, other = Vocabulary.from_labels(["A", "control"]), Vocabulary(("A",))
        assert one == other
        assert hash(one) == hash(other)
        with pytest.raises(AttributeError):
            one.tokens = ("B",)

    def test_many_cells_are_read_by_their_distinct_labels(self, monkeypatch):
        from scvi_causal.data import _labels

        calls = []
        parse = _labels._parse
        monkeypatch.setattr(_labels, "_parse", lambda *args: calls.append(args) or parse(*args))
        labels = np.array(["control", "A", "B+A"])[np.arange(60_000) % 3]
        Vocabulary(("A", "B")).encode(labels)
        assert len(calls) == 3


class TestConditionCodes:
    def test_rows_are_equal_exactly_where_codes_are(self):
        rng = np.random.default_rng(0)
        dense = rng.integers(0, 3, (300, 4)) * (rng.random((300, 4)) < 0.4)
        codes, unique = condition_codes(csr_matrix(dense, dtype=np.float32))
        np.testing.assert_array_equal(unique.toarray()[codes], dense)
        _, expected = np.unique(dense, axis=0, return_inverse=True)
        # a bijection between the two numberings
        assert len(set(zip(codes, expected.ravel(), strict=True))) == len(set(codes)) == unique.shape[0]

    def test_control_is_first_and_dosages_count(self):
        dosage = csr_matrix(np.array([[1, 1], [2, 0], [0, 0], [1, 0], [2, 0]], dtype=np.float32))
        codes, unique = condition_codes(dosage)
        assert codes[2] == 0
        assert codes[1] == codes[4] != codes[3]
        assert codes[0] == codes.max() == 3
        assert unique.shape == (4, 2)

    def test_how_a_row_is_stored_makes_no_difference(self):
        plain = csr_matrix(np.array([[1, 2, 0], [0, 0, 0]], dtype=np.float32))
        odd = csr_matrix(
            (np.array([2, 1, 0, 0], dtype=np.float64), np.array([1, 0, 2, 1]), np.array([0, 3, 4])), shape=(2, 3)
        )
        assert condition_codes(odd)[0].tolist() == condition_codes(plain)[0].tolist() == [1, 0]
        assert odd.nnz == 4  # the caller's matrix is left alone

    def test_unknown_cells_share_a_code(self):
        dosage = Vocabulary(("A",)).encode(["X", "A", "Y", "control"], unknown="nan")
        codes, _ = condition_codes(dosage)
        assert codes[0] == codes[2]
        assert len(set(codes)) == 3

    def test_no_cells(self):
        codes, unique = condition_codes(csr_matrix((0, 3), dtype=np.float32))
        assert codes.shape == (0,)
        assert unique.shape == (0, 3)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("ctrl", 1),
        ("non-targeting", 1),
        ("Non_Targeting_12", 1),
        ("DMSO", 1),
        ("NT", 1),
        ("REST", 0),
        ("WT1", 0),
        ("A", 0),
    ],
)
def test_look_alikes_of_control(label, expected):
    assert looks_like_control(label) is bool(expected)
