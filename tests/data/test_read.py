"""A path or a file that is wrong is named with what would be right."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scvi_causal.data._read import read_h5ad


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "screen.h5ad"
    ad.AnnData(np.eye(2, dtype=np.float32)).write_h5ad(path)
    return path


def test_read(file):
    assert read_h5ad(file).shape == read_h5ad(str(file)).shape == (2, 2)


def test_wrong_paths(file, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*sceen.h5ad. Did you mean 'screen.h5ad'\?"):
        read_h5ad(tmp_path / "sceen.h5ad")
    with pytest.raises(ValueError, match=r"The .h5ad files in .*: 'screen.h5ad'"):
        read_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match=r"The .h5ad files in .: "):
        read_h5ad(tmp_path / "no" / "folder" / "x.h5ad")
    with pytest.raises(ValueError, match="is a folder"):
        read_h5ad(tmp_path)


def test_no_h5ad(tmp_path):
    (tmp_path / "text.h5ad").write_text("cells")
    with pytest.raises(ValueError, match="cannot be read as an .h5ad file"):
        read_h5ad(tmp_path / "text.h5ad")
