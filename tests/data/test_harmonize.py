from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from scvi_causal.data import harmonize


def adata_of(var=None, **columns) -> AnnData:
    obs = pd.DataFrame(columns)
    obs.index = [f"c{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=["G1", "G2"]) if var is None else var
    return AnnData(csr_matrix(np.ones((len(obs), len(var)), np.float32)), obs, var)


def gears() -> AnnData:
    return adata_of(
        condition=["ctrl", "KLF1+ctrl", "ctrl+KLF1", "KLF1+BAK1"],
        dose_val=["1", "1+1", "1+1", "1+1"],
        cell_type="K562",
        control=[1, 0, 0, 0],
        var=pd.DataFrame({"gene_name": ["KLF1", "BAK1"]}, index=["ENSG1", "ENSG2"]),
    )


def cpa() -> AnnData:
    return adata_of(
        condition=["control", "B+A", "A", "B"],
        dose_val=["1.0", "0.5+2.0", "2.0", "0.5"],
        cov_drug_dose_name=["x"] * 4,
        control=[1, 0, 0, 0],
    )


def scperturb() -> AnnData:
    return adata_of(
        perturbation=["control", "KLF1", "KLF1_BAK1", "chr8_top"],
        nperts=[0, 1, 2, 1],
        ncounts=[5.0, 6.0, 7.0, 8.0],
        perturbation_type="CRISPR",
        celltype="lymphoblasts",
    )


def replogle() -> AnnData:
    return adata_of(
        gene=["non-targeting", "AARS", "HLA-A"],
        gem_group=[1, 2, 2],
        var=pd.DataFrame({"gene_name": ["AARS", "HLA-A"]}, index=["ENSG1", "ENSG2"]),
    )


CASES = {
    "gears": (gears, ["control", "KLF1", "KLF1", "BAK1+KLF1"]),
    "cpa": (cpa, ["control", "A+B", "A", "B"]),
    "scperturb": (scperturb, ["control", "KLF1", "BAK1+KLF1", "chr8_top"]),
    "replogle": (replogle, ["control", "AARS", "HLA-A"]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("auto", [False, True])
def test_each_naming_by_name_and_recognised(name, auto, caplog):
    make, expected = CASES[name]
    adata = make()
    before = adata.obs.copy(), adata.var.copy()
    with caplog.at_level(logging.INFO, logger="scvi_causal.data"):
        result = harmonize(adata, "auto" if auto else name)
    assert result.obs["perturbation"].tolist() == expected
    assert result.obs["perturbation"].dtype == "category"
    assert "naming: obs[" in caplog.text
    assert ("fit the naming of" in caplog.text) == auto
    pd.testing.assert_frame_equal(adata.obs, before[0])
    pd.testing.assert_frame_equal(adata.var, before[1])


def test_x_and_all_tables_are_shared_not_copied():
    adata = gears()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.zeros((4, 2))
    adata.varm["loadings"] = np.zeros((2, 2))
    adata.uns["note"] = "kept"
    adata.raw = adata.copy()
    result = harmonize(adata, "gears")
    assert np.shares_memory(result.X.data, adata.X.data)
    assert np.shares_memory(result.layers["counts"].data, adata.layers["counts"].data)
    assert result.uns["note"] == "kept"
    assert set(result.obsm) == {"X_pca"}
    assert set(result.varm) == {"loadings"}
    assert result.raw.shape == adata.raw.shape


# ---------------------------------------------------------------------------------------------------------------- dosages
def test_dosages_move_with_their_tokens():
    assert harmonize(cpa(), "cpa").obs["dosage"].tolist() == ["0", "2+0.5", "2", "0.5"]


def test_dosages_of_one_are_left_out_and_numbers_stay_numbers():
    assert "dosage" not in harmonize(gears(), "gears").obs
    adata = adata_of(perturbation=["control", "DrugA", "DrugB"], dose_value=[np.nan, 10.0, 0.1], nperts=[0, 1, 1])
    dosage = harmonize(adata, "scperturb").obs["dosage"]
    assert dosage.dtype == float
    assert dosage.tolist() == [0.0, 10.0, 0.1]


def test_mixed_units_and_missing_dosages_are_refused():
    columns = {"perturbation": ["control", "A", "B"], "nperts": [0, 1, 1], "dose_value": [np.nan, 1.0, 2.0]}
    with pytest.raises(ValueError, match="'nM', 'uM'.*one unit"):
        harmonize(adata_of(**columns, dose_unit=["", "uM", "nM"]), "scperturb")
    with pytest.raises(ValueError, match="dosage nan"):
        harmonize(adata_of(**(columns | {"dose_value": [1.0, 1.0, np.nan]})), "scperturb")


# ------------------------------------------------------------------------------------------------- covariates and genes
def test_covariates_come_under_our_names():
    assert harmonize(scperturb(), "scperturb").obs["cell_type"].tolist() == ["lymphoblasts"] * 4
    assert harmonize(replogle(), "replogle").obs["batch"].tolist() == ["1", "2", "2"]
    adata = scperturb()
    adata.obs["cell_type"] = "K562"
    assert harmonize(adata, "scperturb").obs["cell_type"].tolist() == ["K562"] * 4


def test_gene_symbols_become_the_names_where_they_are_unambiguous(caplog):
    result = harmonize(replogle(), "replogle")
    assert result.var_names.tolist() == ["AARS", "HLA-A"]
    assert result.var["gene_id"].tolist() == ["ENSG1", "ENSG2"]
    var = pd.DataFrame({"gene_name": ["AARS", "TBCE", "TBCE", ""]}, index=["E1", "E2", "E3", "E4"])
    with caplog.at_level(logging.WARNING, logger="scvi_causal.data"):
        result = harmonize(adata_of(gene=["non-targeting", "AARS"], var=var), "replogle")
    assert result.var_names.tolist() == ["AARS", "E2", "E3", "E4"]
    assert "3 genes keep their former name" in caplog.text


# ------------------------------------------------------------------------------------------------- nothing is guessed
def test_an_underscore_joins_only_where_the_count_confirms_it():
    with pytest.raises(ValueError, match=r"unclear in 2 cells: 'A_B'.*separator='_'"):
        harmonize(adata_of(perturbation=["control", "A_B", "A_B"]), "scperturb")
    with pytest.raises(ValueError, match=r"'A_B_C \(nperts=2\)'"):
        harmonize(adata_of(perturbation=["control", "A_B_C"], nperts=[0, 2]), "scperturb")
    with pytest.raises(ValueError, match=r"'AB \(nperts=2\)'"):
        harmonize(adata_of(perturbation=["control", "AB"], nperts=[0, 2]), "scperturb")
    adata = adata_of(perturbation=["control", "B_A"])
    assert harmonize(adata, "scperturb", separator="_").obs["perturbation"].tolist() == ["control", "A+B"]
    assert harmonize(adata, "scperturb", separator=None).obs["perturbation"].tolist() == ["control", "B_A"]
    joined = adata_of(perturbation=["control", "A_1+B_2"], nperts=[0, 2])
    assert harmonize(joined, "scperturb").obs["perturbation"].tolist() == ["control", "A_1+B_2"]


def test_auto_refuses_none_and_several():
    with pytest.raises(ValueError, match="no known naming fits the columns 'group'"):
        harmonize(adata_of(group=["a", "b"]))
    with pytest.raises(ValueError, match="expects already"):
        harmonize(adata_of(perturbation=["control", "A"]))
    both = scperturb()
    both.obs["gene"] = ["non-targeting", "KLF1", "x", "y"]
    with pytest.raises(ValueError, match="fit 'scperturb', 'replogle': say which"):
        harmonize(both)


def test_columns_and_control_of_ones_own():
    adata = adata_of(drug=["DMSO", "A", "B"], amount=[0.0, 2.0, 3.0])
    result = harmonize(adata, "cpa", perturbation_key="drug", control_category="DMSO", dosage_key="amount")
    assert result.obs["perturbation"].tolist() == ["control", "A", "B"]
    assert result.obs["dosage"].tolist() == [0.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("adata", "arguments", "message"),
    [
        (gears(), {"source": "gear"}, "Did you mean 'gears'"),
        (replogle(), {"source": "gears"}, "no column 'condition'"),
        (adata_of(gene=["NT", "A"]), {"source": "replogle"}, "look like control: 'NT'"),
        (gears(), {"source": "gears", "control_category": ["ctrl", "mock"]}, "labelled 'mock'"),
        (adata_of(gene=["non-targeting", None]), {"source": "replogle"}, "NaN"),
        (adata_of(gene=["non-targeting", "A+B"]), {"source": "replogle"}, "plus sign.*'A\\+B'"),
        (adata_of(gene=["non-targeting", "control"]), {"source": "replogle"}, "name of a perturbation"),
        (gears(), {"source": "gears", "dosage_key": "dose"}, "no column 'dose'.*dose_val"),
        (
            adata_of(condition=["ctrl", "vehicle", "A"], control=[1, 1, 0]),
            {"source": "cpa"},
            "disagree in 1 cell, labelled 'vehicle'",
        ),
        (
            adata_of(condition=["ctrl", "A+ctrl"], perturbation=["x", "y"]),
            {"source": "gears"},
            "holds 'perturbation' already.*overwrite",
        ),
    ],
)
def test_contradictions_are_refused(adata, arguments, message):
    columns = adata.obs.columns.tolist()
    with pytest.raises(ValueError, match=message):
        harmonize(adata, **arguments)
    assert adata.obs.columns.tolist() == columns


def test_overwrite_and_backed_files(tmp_path):
    adata = adata_of(condition=["ctrl", "A+ctrl"], perturbation=["x", "y"])
    assert harmonize(adata, "gears", overwrite=True).obs["perturbation"].tolist() == ["control", "A"]
    import anndata

    adata.write_h5ad(tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    with pytest.raises(ValueError, match="to_memory"):
        harmonize(backed, "gears", overwrite=True)
    backed.file.close()


def test_the_result_survives_a_file(tmp_path):
    from anndata import read_h5ad

    result = harmonize(cpa(), "cpa")
    result.write_h5ad(tmp_path / "screen.h5ad")
    again = read_h5ad(tmp_path / "screen.h5ad")
    assert again.obs["perturbation"].tolist() == result.obs["perturbation"].tolist()
    assert again.obs["dosage"].tolist() == result.obs["dosage"].tolist()
