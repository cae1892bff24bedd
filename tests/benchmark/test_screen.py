from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from scvi_causal import metrics
from scvi_causal.benchmark._screen import Screen


def test_labels_contexts_and_expression(adata, context_screen):
    screen = context_screen
    assert screen.contexts.tolist() == adata.obs["cell_type"].astype(str).tolist()
    assert screen.setup["categorical_covariate_keys"] == ["cell_type"]
    assert screen.targets == ("G00", "G01", "G02", "G03", "G04", "G05")
    assert screen.tokens["G00+G03"] == ("G00", "G03")
    assert (screen.is_control == (adata.obs["perturbation"] == "control")).all()
    expected = np.log1p(adata.X.toarray() / adata.obs["library"].to_numpy()[:, None] * 1e4)
    np.testing.assert_allclose(screen.x.toarray(), expected, rtol=1e-5)
    assert screen.is_counts


def test_labels_are_canonical_and_contexts_joined(adata):
    changed = adata[:, :10].copy()
    labels = changed.obs["perturbation"].astype(str).replace({"G00+G01": "G01+ G00", "control": "ctrl"})
    labels.iloc[int(np.flatnonzero(labels == "ctrl")[0])] = "NT"
    changed.obs["perturbation"] = labels.to_numpy()
    changed.obs["batch"] = np.where(np.arange(changed.n_obs) % 2, "b1", "b2")
    screen = Screen.build(
        changed, control_category=["ctrl", "NT"], categorical_covariate_keys=["batch"], covariate_key="cell_type"
    )
    assert set(screen.labels[labels == "G01+ G00"]) == {"G00+G01"}
    assert set(screen.labels[np.isin(labels, ["ctrl", "NT"])]) == {"ctrl"} == {screen.control}
    assert set(screen.contexts) == {f"{b}, {t}" for b in ("b1", "b2") for t in ("type_0", "type_1")}
    np.testing.assert_allclose(screen.library, np.asarray(changed.X.sum(1)).ravel())
    assert changed.obs["perturbation"].iloc[0] == labels.iloc[0]  # nothing was written


def test_data_that_are_no_counts_keep_their_scale(adata):
    changed = adata.copy()
    changed.X = changed.X.toarray() - 0.5
    screen = Screen.build(changed)
    assert not screen.is_counts
    assert screen.library is None
    assert screen.x is changed.X


def test_layer_and_file(adata, tmp_path):
    changed = adata.copy()
    changed.layers["counts"] = changed.X
    changed.X = metrics.log1p_normalize(changed.X)
    changed.write_h5ad(tmp_path / "screen.h5ad")
    screens = [
        Screen.build(given, layer="counts", size_factor_key="library")
        for given in (changed, tmp_path / "screen.h5ad", str(tmp_path / "screen.h5ad"))
    ]
    assert len({screen.fingerprint for screen in screens}) == 1
    assert screens[0].is_counts
    with pytest.raises(ValueError, match=r"There is no file .*scren.h5ad. Did you mean 'screen.h5ad'"):
        Screen.build(tmp_path / "scren.h5ad")


def test_fingerprint_is_that_of_the_data(adata):
    def fingerprint(change=None, **setup):
        changed = adata.copy()
        if change is not None:
            change(changed)
        return Screen.build(changed, **{"size_factor_key": "library", **setup}).fingerprint

    def count(a):
        a.X[0, 0] += 1

    def label(a):
        a.obs["perturbation"] = a.obs["perturbation"].astype(str).replace({"G00": "G05"})

    def library(a):
        a.obs["library"] += 1

    def edge(a):
        a.uns["grn"] = a.uns["grn"].iloc[1:]

    def gene(a):
        a.var_names = [f"{g}x" for g in a.var_names]

    def metadata(a):
        a.obs["dose"] = 1.0

    def matrix(a):
        a.varm["features"] = np.ones((30, 1))

    def registration(a):
        a.obs["_scvi_batch"] = 0

    changes = (count, label, library, edge, gene, metadata, matrix)
    prints = [fingerprint()] + [fingerprint(change) for change in changes]
    prints += [fingerprint(covariate_key="cell_type"), fingerprint(perturbation_separator=None)]
    assert len(set(prints)) == len(prints)
    assert fingerprint() == fingerprint(registration) == prints[0]


def test_restricted_to_some_cells(context_screen):
    cells = np.flatnonzero(np.isin(context_screen.labels, ["control", "G01"]))
    part = context_screen.restrict(cells)
    assert part.targets == ("G01",)
    assert part.adata.obs_names.tolist() == context_screen.adata.obs_names[cells].tolist()
    np.testing.assert_array_equal(part.x.toarray(), context_screen.x[cells].toarray())
    assert part.fingerprint != context_screen.fingerprint


def test_what_jobs_share_is_not_pickled(screen):
    screen.cache["something"] = "large"
    copy = pickle.loads(pickle.dumps(screen))
    screen.cache.clear()
    assert copy.cache == {}
    assert copy.fingerprint == screen.fingerprint


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"perturbation_key": "perturbatio"}, "no column 'perturbatio'. Did you mean 'perturbation'"),
        ({"control_category": "ctrl"}, r"no control|has the control label 'ctrl'. These look like it: 'control'"),
        ({"covariate_key": "line"}, "no column 'line'"),
        ({"size_factor_key": "libary"}, "Did you mean 'library'"),
        ({"layer": "counts"}, "layer='counts' is not in adata.layers"),
    ],
)
def test_what_is_not_there_is_named(adata, setup, message):
    with pytest.raises(ValueError, match=message):
        Screen.build(adata, **setup)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_values_that_are_missing_are_named(adata):
    changed = adata.copy()
    changed.obs["line"] = pd.Series(["a"] * (adata.n_obs - 3) + [None] * 3, index=adata.obs_names)
    with pytest.raises(ValueError, match="3 cells of 930 have no value in obs\\['line'\\]"):
        Screen.build(changed, covariate_key="line")
    changed.X.data[0] = np.nan
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        Screen.build(changed)
    doubled = adata.copy()
    doubled.obs_names = ["same"] * 2 + list(adata.obs_names[2:])
    with pytest.raises(ValueError, match="1 cell name used more than once: 'same'"):
        Screen.build(doubled)
    with pytest.raises(ValueError, match="All 300 cells .* are control cells"):
        Screen.build(adata[adata.obs["perturbation"] == "control"])
