"""All three fields together, in the hands of scvi-tools."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_causal.data import validate_query
from scvi_causal.data.fields import check_genes

TOKENS = ["BAK1", "KLF1", "drug x/1.5"]
SETUP = {"dosage_key": "dosage", "perturbation_features_key": "features"}
DOSES = np.array([[0, 0, 0], [0, 1, 0], [0, 2, 0.5], [0, 3, 0], [-1, 4, 0]], dtype=np.float32)


@pytest.fixture
def model(idle_model, adata):
    idle_model.setup_anndata(adata, **SETUP)
    return idle_model(adata)


def same_state(one, other):
    assert set(one) == set(other)
    for key, value in one.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(other[key]), err_msg=key)
        if isinstance(value, np.ndarray):
            assert value.dtype == other[key].dtype


def test_every_batch_carries_the_dosages(model):
    tensors = model.tensors()
    np.testing.assert_array_equal(tensors["perturbation"], np.tile(DOSES, (8, 1)))
    assert tensors["perturbation"].dtype == np.float32
    assert set(tensors) == {"X", "perturbation", "batch"}


def test_summary(model):
    stats = model.summary_stats
    assert (stats.n_tokens, stats.n_grn_edges, stats.n_perturbation_features) == (3, 3, 2)
    assert model.state("perturbation")["token_names"].tolist() == TOKENS
    assert model.state("perturbation")["n_control_cells"] == 8


def test_only_scvi_places_are_written(idle_model, adata):
    before = adata.copy()
    idle_model.setup_anndata(adata, **SETUP)
    pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)
    new = {
        *(set(adata.obs) - set(before.obs)),
        *(set(adata.obsm) - set(before.obsm)),
        *(set(adata.uns) - set(before.uns)),
    }
    assert {"_scvi_perturbation", "_scvi_batch"} <= new
    assert all(name.startswith("_scvi_") for name in new)
    assert adata.obsm["_scvi_perturbation"].nnz == (np.tile(DOSES, (8, 1)) != 0).sum()


def test_set_up_twice_is_set_up_once(idle_model, adata):
    idle_model.setup_anndata(adata, **SETUP)
    first = idle_model(adata)
    idle_model.setup_anndata(adata, **SETUP)
    for key in ("perturbation", "grn", "perturbation_features"):
        same_state(first.state(key), idle_model(adata).state(key))


def test_another_set_up_in_between_does_no_harm(idle_model, adata):
    idle_model.setup_anndata(adata, **SETUP)
    model = idle_model(adata)
    idle_model.setup_anndata(adata)  # without dosages
    np.testing.assert_array_equal(model.tensors()["perturbation"], np.tile(DOSES, (8, 1)))


def test_registry_can_be_shown(model, capsys):
    model.adata_manager.view_registry()
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("drug x/1.5", "control: empty row", "features", "grn"))


def test_model_without_graph_and_features(idle_model, adata, capsys):
    del adata.uns["grn"]
    idle_model.setup_anndata(adata)
    model = idle_model(adata)
    assert model.summary_stats.n_grn_edges == model.summary_stats.n_perturbation_features == 0
    assert model.state("grn")["original_key"] is None
    assert len(model.state("grn")["source_idx"]) == 0
    model.adata_manager.view_registry()
    assert "grn State Registry" not in capsys.readouterr().out


class TestSaved:
    @pytest.fixture
    def folder(self, model, tmp_path):
        model.train()
        model.save(tmp_path / "model")
        return tmp_path / "model"

    def test_without_anndata(self, model, folder, idle_model, bare):
        loaded = idle_model.load(folder, adata=False)
        for key in ("perturbation", "grn", "perturbation_features"):
            same_state(model.state(key), loaded.state(key))
        assert loaded.summary_stats.n_tokens == 3
        assert not loaded.tensors(bare)["perturbation"].any()

    def test_with_anndata_that_has_nothing_but_expression(self, model, folder, idle_model, bare):
        loaded = idle_model.load(folder, adata=bare)
        for key in ("grn", "perturbation_features"):
            same_state(model.state(key), loaded.state(key))
        assert loaded.summary_stats.n_grn_edges == 3
        assert loaded.state("perturbation")["token_names"].tolist() == TOKENS
        assert loaded.state("perturbation")["n_control_cells"] == 9

    def test_with_anndata_read_from_disk(self, model, adata, folder, idle_model, tmp_path):
        expected = model.tensors()
        adata.write_h5ad(tmp_path / "a.h5ad")
        read = ad.read_h5ad(tmp_path / "a.h5ad")
        found = idle_model.load(folder, adata=read).tensors()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)

    def test_with_genes_in_another_order(self, folder, idle_model, adata):
        turned = adata[:, ::-1].copy()
        before = set(turned.obsm), set(turned.obs), set(turned.uns)
        with (
            pytest.warns(UserWarning, match="var_names"),  # scvi-tools only warns, and goes on
            pytest.raises(ValueError, match="genes of the model in another order"),
        ):
            idle_model.load(folder, adata=turned)
        assert (set(turned.obsm), set(turned.obs), set(turned.uns)) == before

    def test_zarr_round_trip(self, model, adata, folder, idle_model, tmp_path):
        expected = model.tensors()["perturbation"]
        adata.write_zarr(tmp_path / "a.zarr")
        read = ad.read_zarr(tmp_path / "a.zarr")
        np.testing.assert_array_equal(idle_model.load(folder, adata=read).tensors()["perturbation"], expected)


class TestQuery:
    def test_without_column_all_cells_are_controls(self, model, bare):
        tensors = model.tensors(bare)
        assert tensors["perturbation"].shape == (9, 3)
        assert not tensors["perturbation"].any()

    def test_with_other_labels_in_another_order(self, model, bare):
        bare.obs["perturbation"] = ["KLF1+drug x/1.5", *["control"] * 8]
        bare.obs["dosage"] = ["7+8", *["0"] * 8]
        assert model.tensors(bare)["perturbation"][0].tolist() == [0, 7, 8]

    def test_unknown_tokens_are_nan_and_no_controls(self, model, bare):
        bare.obs["perturbation"] = ["new", "new+KLF1", *["control"] * 7]
        bare.obs["dosage"] = ["1", "1+1", *["0"] * 7]
        perturbation = model.tensors(bare)["perturbation"]
        assert np.isnan(perturbation[:2, 0]).all()
        assert not perturbation[2:].any()

    def test_labels_without_dosages_are_refused(self, model, bare):
        bare.obs["perturbation"] = "KLF1"
        with pytest.raises(ValueError, match="'dosage' is not a column of adata.obs"):
            model.tensors(bare)
        assert "_scvi_perturbation" not in bare.obsm

    def test_its_own_graph_and_features_are_not_read(self, model, adata):
        query = adata[:10].copy()
        query.uns["grn"] = "no graph at all"
        query.uns["features"] = 3
        before = dict(model.state("grn"))
        model.tensors(query)
        manager = model.get_anndata_manager(query)
        same_state(before, dict(manager.registry["field_registries"]["grn"]["state_registry"]))

    @pytest.mark.parametrize("attached", [True, False])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a: a[:, ::-1], r"another order: 4 of 5 are out of place, the first at position 0 \('BAK1' instead"),
            (lambda a: a[:, :3], "lack 2 genes of the 5 of the model: 'KLF1', 'BAK1'"),
        ],
    )
    def test_other_genes_raise_before_anything_is_written(
        self, model, idle_model, bare, tmp_path, attached, change, message
    ):
        if not attached:
            model.train()
            model.save(tmp_path / "m")
            model = idle_model.load(tmp_path / "m", adata=False)
        query = change(bare).copy()
        with pytest.raises(ValueError, match=message):
            model.tensors(query)
        assert not set(query.obsm) | set(query.obs.columns)

    def test_more_genes_raise(self, model, bare):
        more = ad.concat([bare, ad.AnnData(bare.X[:, :1].copy(), bare.obs, pd.DataFrame(index=["extra"]))], axis=1)
        with pytest.raises(ValueError, match="have 6 genes, the model 5: not in the model are 'extra'"):
            model.tensors(more)

    def test_renamed_genes_raise(self, model, bare):
        bare.var_names = [*bare.var_names[:4], "Bak1"]
        with pytest.raises(
            ValueError, match="lack 1 gene .* 'BAK1'; they have 1 gene that the model does not know: 'Bak1'"
        ):
            model.tensors(bare)

    def test_a_gene_twice_is_not_two_genes(self):
        with pytest.raises(ValueError, match="lack 1 gene of the 2 of the model: 'B'"):
            check_genes(["A", "A"], ["A", "B"])
        with pytest.raises(ValueError, match="have 3 genes, the model 2: not in the model are .*Keep the genes"):
            check_genes(["A", "B", "A"], ["A", "B"])
        check_genes(pd.Index(["A", "B"]), np.array(["A", "B"], dtype=object))


class TestValidateQuery:
    @pytest.fixture
    def model(self, idle_model, adata):
        idle_model.setup_anndata(adata, batch_key="batch", **SETUP)
        return idle_model(adata)

    @pytest.fixture
    def query(self, bare):
        bare.obs["batch"] = ["a", "b", "a"] * 3
        return bare

    def test_a_good_one_passes(self, model, query):
        validate_query(query, model.registry_, requires_counts=False)
        assert not query.obsm

    def test_unknown_batch(self, model, query):
        query.obs["batch"] = ["a", "new", "new"] * 3
        with pytest.raises(
            ValueError, match="1 value that the model does not know, in 6 cells: 'new'. It knows 'a', 'b'"
        ):
            validate_query(query, model.registry_)
        validate_query(query, model.registry_, extend_categories=True)

    def test_missing_batch(self, model, bare):
        with pytest.raises(ValueError, match="batch_key='batch' is not a column"):
            validate_query(bare, model.registry_)

    def test_no_cells(self, model, query):
        with pytest.raises(ValueError, match="The query AnnData has no cells"):
            validate_query(query[:0].copy(), model.registry_)

    def test_genes(self, model, query):
        with pytest.raises(ValueError, match="another order"):
            validate_query(query[:, ::-1].copy(), model.registry_)

    def test_missing_labels(self, model, query):
        query.obs["perturbation"] = [None, *["KLF1"] * 8]
        query.obs["dosage"] = "1"
        with pytest.raises(ValueError, match="No perturbation is named for 1 cell of 9"):
            validate_query(query, model.registry_)

    def test_unknown_tokens_pass(self, model, query):
        query.obs["perturbation"], query.obs["dosage"] = "never heard of", "1"
        validate_query(query, model.registry_)


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csr_array, lambda x: x.toarray(), sp.csc_array])
def test_every_kind_of_matrix_is_served(idle_model, adata, convert):
    expected = adata.X.toarray()
    adata.X = convert(adata.X)
    idle_model.setup_anndata(adata, **SETUP)
    tensors = idle_model(adata).tensors()
    np.testing.assert_array_equal(tensors["X"], expected)
    np.testing.assert_array_equal(tensors["perturbation"], np.tile(DOSES, (8, 1)))


@pytest.mark.parametrize("convert", [sp.csr_matrix, lambda x: x.toarray()])
def test_data_on_disk_are_served(idle_model, adata, tmp_path, convert):
    expected = adata.X.toarray()
    adata.X = convert(adata.X)
    adata.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    idle_model.setup_anndata(backed, **SETUP)
    tensors = idle_model(backed).tensors()
    np.testing.assert_array_equal(tensors["X"], expected)
    np.testing.assert_array_equal(tensors["perturbation"], np.tile(DOSES, (8, 1)))
