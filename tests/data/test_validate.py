import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_causal.data import validate_setup
from scvi_causal.data._scan import scan_matrix

N_CELLS, N_GENES = 30, 6


def make(**columns):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (N_CELLS, N_GENES)).astype(np.float32)
    counts[:, 0] += 1
    obs = {
        "perturbation": np.array(["control", "A", "B+A"], dtype=object)[np.arange(N_CELLS) % 3],
        "batch": np.array(["b1", "b2"], dtype=object)[np.arange(N_CELLS) % 2],
        "age": rng.random(N_CELLS),
        "library": np.full(N_CELLS, 100.0),
        "dose": np.ones(N_CELLS),
    } | columns
    adata = ad.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame(obs, index=[f"cell{i}" for i in range(N_CELLS)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]),
    )
    adata.layers["log"] = adata.X.log1p()
    adata.uns["grn"] = pd.DataFrame({"source": ["g0", "g1"], "target": ["g1", "g2"]})
    adata.uns["features"] = pd.DataFrame({"f1": [0.0, 1.0], "f2": [1.0, 0.0]}, index=["A", "B"])
    return adata


def fingerprint(adata):
    """Everything there is in an AnnData, so that a change anywhere shows."""

    def of(value):
        if isinstance(value, pd.DataFrame):
            return value.to_csv(), tuple(map(str, value.dtypes))
        if sp.issparse(value):
            return value.format, value.dtype.str, value.data.tobytes(), value.indices.tobytes(), value.indptr.tobytes()
        return value.tobytes() if isinstance(value, np.ndarray) else repr(value)

    places = ("layers", "obsm", "varm", "obsp", "varp", "uns")
    return (
        of(adata.X),
        of(adata.obs),
        of(adata.var),
        *((place, key, of(value)) for place in places for key, value in getattr(adata, place).items()),
    )


def put(place, key, value):
    def change(adata):
        getattr(adata, place)[key] = value

    return change


def set_cell(column, value, n=1):
    def change(adata):
        values = adata.obs[column].to_numpy(dtype=object, copy=True)
        values[:n] = value
        adata.obs[column] = values if isinstance(value, str) or value is None else pd.Series(values, adata.obs.index)

    return change


def set_number(column, value, n=1):
    def change(adata):
        adata.obs.iloc[:n, adata.obs.columns.get_loc(column)] = value

    return change


def set_x(value, n=1):
    def change(adata):
        adata.X.data[:n] = value

    return change


def empty_cell(adata):
    dense = adata.X.toarray()
    dense[[3, 7]] = 0
    adata.X = sp.csr_matrix(dense)


def repeat_name(axis):
    def change(adata):
        names = getattr(adata, axis).to_numpy(dtype=object, copy=True)
        names[1] = names[0]
        setattr(adata, axis, names)

    return change


def relabel(labels):
    return put("obs", "perturbation", np.resize(np.array(labels, dtype=object), N_CELLS))


def nothing(adata):
    pass


BAD = {
    "missing key": (
        nothing,
        {"perturbation_key": "perturbations"},
        r"perturbation_key='perturbations' is not a column.*Did you mean 'perturbation'",
    ),
    "missing control": (
        relabel(["non-targeting", "A"]),
        {},
        r"control label 'control' among its 2 labels; 'non-targeting' look.*pass control_category='non-targeting'",
    ),
    "two controls to choose from": (
        relabel(["NT", "A", "DMSO"]),
        {},
        r"pass control_category=\['NT', 'DMSO'\]",
    ),
    "no control in sight": (relabel(["A", "B"]), {}, r"The labels are 'A', 'B'\. Pass the label of the unperturbed"),
    "controls only": (relabel(["control"]), {}, "All 30 cells .* are controls"),
    "NaN label": (set_cell("perturbation", None, 2), {}, "No perturbation is named for 2 cells of 30: found 'NaN'"),
    "empty label": (set_cell("perturbation", "", 3), {}, r"3 cells of 30: found ''"),
    "literal nan": (set_cell("perturbation", "nan"), {}, r"1 cell of 30: found 'nan'"),
    "half a combination": (set_cell("perturbation", "A+"), {}, r"found 'A\+'"),
    "missing dosage key": (nothing, {"dosage_key": "dosis"}, "dosage_key='dosis' is not a column.*Did you mean 'dose'"),
    "dosage that does not fit": (
        put("obs", "dose", np.array(["1+2"] * N_CELLS, dtype=object)),
        {"dosage_key": "dose"},
        r"does not fit the perturbation in 10 cells: 'A' with dosage '1\+2'",
    ),
    "dosage 0": (set_number("dose", 0.0, 2), {"dosage_key": "dose"}, r"in 1 cell: 'A' with dosage 0\.0 \(dosage 0\)"),
    "missing batch": (nothing, {"batch_key": "bach"}, "batch_key='bach' is not a column.*Did you mean 'batch'"),
    "NaN batch": (
        set_cell("batch", None, 4),
        {"batch_key": "batch"},
        r"no value \(NaN\) in 4 cells of 30, first 'cell0'",
    ),
    "missing covariate": (
        nothing,
        {"categorical_covariate_keys": ["batch", "donor"]},
        "categorical_covariate_keys='donor' is not a column",
    ),
    "covariate as string": (nothing, {"categorical_covariate_keys": "batch"}, r"is a string: pass a list, \['batch'\]"),
    "NaN covariate": (
        set_number("age", np.nan, 2),
        {"continuous_covariate_keys": ["age"]},
        "not finite in 2 cells of 30",
    ),
    "text covariate": (nothing, {"continuous_covariate_keys": ["batch"]}, "it has to hold numbers"),
    "size factor 0": (
        set_number("library", 0.0, 3),
        {"size_factor_key": "library"},
        r"adata.obs\['library'\] is not a positive number in 3 cells of 30: found '0.0', first in cell 'cell0'",
    ),
    "missing layer": (nothing, {"layer": "count"}, r"layer='count' is not in adata.layers, which has 'log'"),
    "no X": (lambda a: setattr(a, "X", None), {}, "adata.X is empty; name the layer to use, one of 'log'"),
    "negative counts": (
        set_x(-1.0, 2),
        {"requires_counts": True},
        r"2 negative values, and the model needs raw counts: -1 in cell 'cell0', gene 'g0'.*The layers are 'log'",
    ),
    "fractional counts": (
        set_x(0.25),
        {"requires_counts": True},
        r"1 fractional value, .*0\.25 in cell 'cell0', gene 'g0'",
    ),
    "log data as counts": (
        nothing,
        {"layer": "log", "requires_counts": True},
        r"adata.layers\['log'\] has .* fractional",
    ),
    "infinite value": (set_x(np.inf), {}, r"adata.X has 1 NaN or infinite value: inf in cell 'cell0'"),
    "NaN value": (set_x(np.nan, 5), {"requires_counts": True}, "5 NaN or infinite values"),
    "empty cells": (
        empty_cell,
        {"requires_counts": True},
        r"2 cells of 30 without a single count: 'cell3', 'cell7'\. Remove them",
    ),
    "repeated gene": (repeat_name("var_names"), {}, "1 gene name used more than once: 'g0'.*var_names_make_unique"),
    "repeated cell": (repeat_name("obs_names"), {}, "1 cell name used more than once: 'cell0'.*obs_names_make_unique"),
    "missing graph key": (nothing, {"grn_key": "net"}, "grn_key='net' is in neither adata.uns nor adata.varp"),
    "graph without overlap": (
        put("uns", "grn", pd.DataFrame({"source": ["X"], "target": ["Y"]})),
        {},
        "Not one of the 1 edges",
    ),
    "repeated edge": (
        put("uns", "grn", pd.DataFrame({"source": ["g0", "g0"], "target": ["g1", "g1"]})),
        {},
        "repeats 1 edge of 2",
    ),
    "NaN edge": (
        put("uns", "grn", pd.DataFrame({"source": ["g0", None], "target": ["g1", "g1"]})),
        {},
        "1 edge of 2 without a source",
    ),
    "no graph": (lambda a: a.uns.pop("grn"), {"requires_grn": True}, "needs a prior gene regulatory network"),
    "missing features key": (
        nothing,
        {"perturbation_features_key": "feature"},
        "perturbation_features_key='feature' is in neither.*Did you mean 'features'",
    ),
    "features missing for a token": (
        put("uns", "features", pd.DataFrame({"f": [1.0]}, index=["a"])),
        {"perturbation_features_key": "features"},
        r"2 of 2 tokens .* have no features under 'features': 'A', 'B'\. Look-alikes: 'A': 'a'",
    ),
    "no features": (nothing, {"requires_features": True}, "needs features of the perturbations"),
    "text as numbers": (
        lambda a: setattr(a, "X", np.full((N_CELLS, N_GENES), "1", dtype=object)),
        {},
        r"adata.X holds values of type object, no numbers",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_the_data_stay_as_they_were(name):
    change, arguments, message = BAD[name]
    adata = make()
    change(adata)
    before = fingerprint(adata)
    with pytest.raises(ValueError, match=message):
        validate_setup(adata, **arguments)
    assert fingerprint(adata) == before


def test_good_input_passes_and_stays_as_it_was():
    adata = make()
    before = fingerprint(adata)
    validate_setup(
        adata,
        dosage_key="dose",
        batch_key="batch",
        categorical_covariate_keys=["batch"],
        continuous_covariate_keys=["age"],
        size_factor_key="library",
        perturbation_features_key="features",
        requires_counts=True,
        requires_grn=True,
        requires_features=True,
    )
    assert fingerprint(adata) == before


def test_features_may_be_missing_where_the_model_can_do_without():
    adata = make()
    adata.uns["features"] = adata.uns["features"].loc[["A"]]
    with pytest.raises(ValueError, match="1 of 2 tokens"):
        validate_setup(adata, perturbation_features_key="features")
    validate_setup(adata, perturbation_features_key="features", allow_missing_features=True)


@pytest.mark.parametrize(("n_cells", "n_genes", "what"), [(0, 3, "cells"), (3, 0, "genes")])
def test_nothing_to_set_up(n_cells, n_genes, what):
    with pytest.raises(ValueError, match=f"has no {what}"):
        validate_setup(ad.AnnData(np.zeros((n_cells, n_genes), dtype=np.float32)))


def test_no_anndata():
    with pytest.raises(ValueError, match="Expected an AnnData, got DataFrame"):
        validate_setup(pd.DataFrame())


@pytest.mark.parametrize(
    ("label", "separator", "message"),
    [
        ("ctrl", "+", "names of controls .*'ctrl'.*add them to control_category"),
        ("unassigned", "+", "nothing was assigned to .*'unassigned'.*remove these cells"),
        ("(+)-JQ1", "+", r"Unmatched brackets.*'\(', '\)-JQ1'.*choose another separator"),
    ],
)
def test_odd_tokens_warn_once(label, separator, message):
    adata = make()
    set_cell("perturbation", label)(adata)
    with pytest.warns(UserWarning, match=message) as caught:
        validate_setup(adata, separator=separator)
    assert len(caught) == 1


def test_negative_values_are_fine_where_no_counts_are_needed():
    adata = make()
    set_x(-1.5)(adata)
    empty_cell(adata)
    validate_setup(adata)


KINDS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "dense": lambda x: x.toarray(),
    "fortran": lambda x: np.asfortranarray(x.toarray()),
    "int": lambda x: x.astype(np.int32),
    "float16": lambda x: x.toarray().astype(np.float16),
}


class TestScan:
    """Against the same questions asked of the dense matrix in one go."""

    @staticmethod
    def counts():
        x = np.random.default_rng(1).poisson(0.7, (41, 7)).astype(np.float32)
        x[[0, 20, 40]] = 0
        return sp.csr_matrix(x)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("max_values", [1, 10, 10**6])
    def test_clean_counts(self, kind, max_values):
        scan = scan_matrix(KINDS[kind](self.counts()), counts=True, max_values=max_values)
        assert (scan.n_not_finite, scan.n_negative, scan.n_fractional) == (0, 0, 0)
        expected = np.flatnonzero(self.counts().toarray().sum(axis=1) == 0)
        np.testing.assert_array_equal(scan.empty_cells, expected)
        assert {0, 20, 40} <= set(expected)

    @pytest.mark.parametrize("kind", [k for k in KINDS if k != "int"])
    @pytest.mark.parametrize("max_values", [1, 10, 10**6])
    def test_what_is_wrong_is_counted_and_located(self, kind, max_values):
        dense = self.counts().toarray()
        dense[5, 2], dense[30, 6], dense[6, 0], dense[7, 1] = -2.0, -3.0, 0.5, np.nan
        dense[8, 3], dense[9, 4] = np.inf, -np.inf
        scan = scan_matrix(KINDS[kind](sp.csr_matrix(dense)), counts=True, max_values=max_values)
        assert (scan.n_not_finite, scan.n_negative, scan.n_fractional) == (3, 3, 1)
        assert scan.examples["fractional"] == [(6, 0, 0.5)]
        assert {(r, c) for r, c, _ in scan.examples["negative"]} == {(5, 2), (30, 6), (9, 4)}
        assert {(r, c) for r, c, _ in scan.examples["not_finite"]} == {(7, 1), (8, 3), (9, 4)}

    def test_explicit_zeros_are_no_counts(self):
        stored = sp.csr_matrix((np.array([0.0, 1.0, 0.0]), np.array([0, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
        for x in (stored, stored.tocsc()):
            assert scan_matrix(x, counts=True).empty_cells.tolist() == [1]

    def test_few_values_are_held_at_a_time(self):
        """The largest array that the scan makes from a matrix is bounded by the piece, not by the matrix."""
        import tracemalloc

        x = sp.random(4000, 2000, 0.02, format="csr", dtype=np.float32, random_state=0)
        x.data[:] = 1.0
        for matrix in (x, x.tocsc()):
            tracemalloc.start()
            scan_matrix(matrix, counts=True, max_values=2000)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 4000 * 2000 * 4 / 100


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_matrix_is_read(kind):
    adata = make()
    adata.X = KINDS[kind](adata.X)
    validate_setup(adata, requires_counts=True)


class TestBacked:
    @pytest.fixture
    def backed(self, tmp_path):
        def read(convert):
            adata = make()
            adata.X = convert(adata.X)
            adata.write_h5ad(tmp_path / "x.h5ad")
            return ad.read_h5ad(tmp_path / "x.h5ad", backed="r")

        return read

    @pytest.mark.parametrize("kind", ["csr", "dense", "csr_array"])
    def test_read_from_disk(self, backed, kind):
        adata = backed(KINDS[kind])
        assert adata.isbacked
        validate_setup(adata, requires_counts=True)
        assert scan_matrix(adata.X, counts=True, max_values=7).n_fractional == 0

    @pytest.mark.parametrize("kind", ["csr", "dense"])
    def test_what_is_wrong_is_found_on_disk(self, backed, kind):
        def spoil(x):
            x = x.copy()
            x.data[-1] = 0.5
            return KINDS[kind](x)

        with pytest.raises(ValueError, match="1 fractional value.*cell29"):
            validate_setup(backed(spoil), requires_counts=True)

    def test_columns_on_disk_are_refused_with_the_way_out(self, backed):
        with pytest.raises(ValueError, match=r"by column \(backed CSC\).*adata\.to_memory\(\); adata\.X = scipy"):
            validate_setup(backed(sp.csc_matrix))
