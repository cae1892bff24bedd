from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scvi_causal.model.base._answer import check_key
from scvi_causal.model.base._provenance import package_version, provenance, record, storable


def test_everything_becomes_storable():
    assert storable(None) == "none"
    assert storable(np.float32(0.5)) == 0.5
    assert storable(np.bool_(True)) is True
    assert storable({"a/b": None}) == {"a|b": "none"}
    assert storable(["x", "y"]).dtype == object
    assert storable(np.array([1, 2])).tolist() == [1, 2]


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_round_trip(tmp_path, form):
    adata = ad.AnnData(np.ones((2, 2), dtype=np.float32))
    given = provenance(
        text="α", nothing=None, flag=True, number=3, share=0.1, names=["a", "b"], none=[], nested={"k": 1}
    )
    record(adata.uns, "one", given)
    record(adata.uns, "two", provenance(flag=False))
    getattr(adata, f"write_{form}")(tmp_path / f"x.{form}")
    back = getattr(ad, f"read_{form}")(tmp_path / f"x.{form}").uns["scvi_causal"]
    assert set(back) == {"one", "two"}
    for key, value in given.items():
        if key != "nested":
            np.testing.assert_array_equal(np.asarray(back["one"][key]), np.asarray(value))
    assert back["one"]["nested"]["k"] == 1


def test_versions_are_there():
    assert provenance()["scvi_version"] == package_version("scvi-tools")
    assert package_version("no such package at all") == "unknown"


def test_names_that_h5ad_would_split_are_refused():
    check_key(None)
    check_key("counterfactual")
    for bad in ("a/b", "", 3):
        with pytest.raises(ValueError, match="key_added"):
            check_key(bad)
