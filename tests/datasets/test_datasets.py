from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import anndata
import numpy as np
import pytest

from scvi_causal.data import simulate_screen
from scvi_causal.datasets import kang18, list_screens, load_screen


def shared_folder() -> Path | None:
    given = os.environ.get("SCVI_CAUSAL_DATA")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    return folder if folder.is_dir() else None


# -------------------------------------------------------------------------------------------------------- the embedded one
def test_kang18_is_a_small_file_with_its_source_named():
    folder = files("scvi_causal.datasets") / "files"
    assert len((folder / "kang18_pbmc_ifnb.h5ad").read_bytes()) <= 2_000_000
    assert "GSE96583" in (folder / "README.md").read_text()


def test_kang18_holds_counts_of_every_cell_type_in_both_conditions():
    adata = kang18()
    assert adata.shape == (14_039, 1_000)
    assert (adata.X.format, adata.X.dtype, adata.X.indices.dtype) == ("csr", np.float32, np.int32)
    assert adata.X.has_sorted_indices
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    table = adata.obs.groupby(["cell_type", "perturbation"], observed=True).size().unstack()
    assert table.shape == (8, 2)
    assert table["control"].sum() == 6_573
    assert table.to_numpy().min() == 61
    assert (adata.obs["library_size_full"].to_numpy() >= np.ravel(adata.X.sum(1))).all()


def test_kang18_is_the_response_to_interferon():
    adata = kang18()
    stimulated = (adata.obs["perturbation"] == "IFNB").to_numpy()
    change = {
        gene: np.log1p(adata[stimulated, gene].X.mean()) - np.log1p(adata[~stimulated, gene].X.mean())
        for gene in ("ISG15", "IFIT3", "CD79A", "PPBP")
    }
    assert change["ISG15"] > 3.0
    assert change["IFIT3"] > 1.5
    assert abs(change["CD79A"]) < 0.1
    assert abs(change["PPBP"]) < 0.1


def test_subset_keeps_shares_minimum_and_seed():
    adata, subset = kang18(), kang18(n_cells=1_000, seed=1)
    assert subset.n_obs == 1_000
    strata = ["cell_type", "perturbation"]
    sizes = subset.obs.groupby(strata, observed=True).size()
    assert sizes.min() >= 10
    share = adata.obs.groupby(strata, observed=True).size() / adata.n_obs
    assert np.abs(sizes / 1_000 - share).max() < 0.04
    assert subset.obs_names.equals(kang18(n_cells=1_000, seed=1).obs_names)
    assert not subset.obs_names.equals(kang18(n_cells=1_000, seed=2).obs_names)
    assert (subset.X != adata[subset.obs_names].X).nnz == 0
    assert kang18(n_cells=160).n_obs == 160
    assert kang18(n_cells=14_039).n_obs == 14_039


@pytest.mark.parametrize("n_cells", [0, 159, 14_040])
def test_subset_of_an_impossible_size_is_refused(n_cells):
    with pytest.raises(ValueError, match="must lie between 160"):
        kang18(n_cells=n_cells)


@pytest.mark.real_data
def test_kang18_is_the_file_of_the_shared_folder():
    folder = shared_folder()
    if folder is None or not (folder / "kang18_pbmc_ifnb.h5ad").exists():
        pytest.skip("kang18_pbmc_ifnb.h5ad is absent: set SCVI_CAUSAL_DATA")
    original, embedded = anndata.read_h5ad(folder / "kang18_pbmc_ifnb.h5ad"), kang18()
    assert (original.X != embedded.X).nnz == 0
    assert original.obs_names.equals(embedded.obs_names)
    assert original.var_names.equals(embedded.var_names)
    for column in embedded.obs:
        assert (original.obs[column].to_numpy() == embedded.obs[column].to_numpy()).all()


# ---------------------------------------------------------------------------------------------------------- those on disk
@pytest.fixture
def folder(tmp_path, monkeypatch):
    screen = simulate_screen(n_genes=5, n_perturbations=2, n_cells_per_perturbation=5, n_control=5).adata
    for name in ("alpha21_a", "alpha21_b", "beta19"):
        screen.write_h5ad(tmp_path / f"{name}.h5ad")
    monkeypatch.setenv("SCVI_CAUSAL_DATA", str(tmp_path))
    return tmp_path


def test_load_screen_reads_by_name_file_or_unique_beginning(folder, monkeypatch):
    assert list_screens() == ["alpha21_a", "alpha21_b", "beta19"]
    for name in ("beta19", "beta19.h5ad", "beta"):
        assert load_screen(name).n_vars == 5
    monkeypatch.delenv("SCVI_CAUSAL_DATA")
    assert load_screen("alpha21_a", folder).n_vars == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [("alpha21", "several screens.*alpha21_a.*alpha21_b"), ("bata19", "Did you mean 'beta19'"), ("", "no screen")],
)
def test_load_screen_says_what_there_is(folder, name, message):
    with pytest.raises(ValueError, match=message):
        load_screen(name)


def test_load_screen_says_how_to_name_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SCVI_CAUSAL_DATA", raising=False)
    with pytest.raises(ValueError, match="Set the environment variable SCVI_CAUSAL_DATA"):
        load_screen("beta19")
    monkeypatch.setenv("SCVI_CAUSAL_DATA", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="variable SCVI_CAUSAL_DATA names .*absent.* no folder"):
        load_screen("beta19")
    monkeypatch.setenv("SCVI_CAUSAL_DATA", "")
    with pytest.raises(ValueError, match="where are the screens"):
        list_screens()
