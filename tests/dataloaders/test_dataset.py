import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scvi_causal.dataloaders import BatchIndices, CausalDataLoader, CausalDataset, CausalDataSplitter, SparseRows
from scvi_causal.dataloaders._dataset import _make_reader

from .conftest import make_adata, register

ROWS = np.array([5, 2, 2, 9, 0])


def backed(adata, path):
    adata.write_h5ad(path)
    return anndata.read_h5ad(path, backed="r+")


CONTAINERS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "float64": lambda x: x.astype(np.float64),
    "integer": lambda x: x.astype(np.int64),
    "dense": lambda x: x.toarray(),
}


@pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix is formatted as CSR:UserWarning")
@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_in_the_asked_order_from_any_container(adata, dense, container):
    adata.X = CONTAINERS[container](adata.X)
    tensors = CausalDataset(register(adata))[ROWS]
    assert tensors["X"].dtype == np.float32
    assert (tensors["X"] == dense[ROWS]).all()
    assert tensors["ind_x"].ravel().tolist() == ROWS.tolist()
    assert tensors["batch"].dtype == tensors["extra_categorical_covs"].dtype == np.int64
    assert tensors["perturbation"].shape == (5, 3)


@pytest.mark.parametrize("container", [sparse.csr_matrix, lambda x: x.toarray()], ids=["csr", "dense"])
def test_backed_rows_keep_their_order_and_partners(adata, dense, tmp_path, container):
    adata.X = container(adata.X)
    on_disk = backed(adata, tmp_path / "cells.h5ad")
    tensors = CausalDataset(register(on_disk))[BatchIndices(ROWS, partners=ROWS[::-1])]
    assert (tensors["X"] == dense[ROWS]).all()
    assert (tensors["control_X"] == dense[ROWS[::-1]]).all()
    assert (tensors["size_factor"].ravel() == adata.obs["total"].to_numpy(np.float32)[ROWS]).all()


def test_partners_bring_every_tensor_but_the_dosage(manager):
    tensors = CausalDataset(manager)[BatchIndices(ROWS, partners=ROWS + 1, groups=np.zeros(5, dtype=int))]
    paired = {key.removeprefix("control_") for key in tensors if key.startswith("control_")}
    assert paired == {"X", "batch", "extra_categorical_covs", "size_factor", "ind_x"}
    alone = CausalDataset(manager)[ROWS + 1]
    for key in paired:
        assert (tensors[f"control_{key}"] == alone[key]).all()
    assert "group" in tensors
    assert "group" not in alone


def test_sparse_rows_become_the_same_dense_batch(manager, dense):
    batch = BatchIndices(ROWS, partners=ROWS + 1)
    loader = CausalDataLoader(manager, sampler=[batch], load_sparse_tensor=True)
    tensors = next(iter(loader))
    assert isinstance(tensors["X"], SparseRows)
    assert (tensors["X"].to_dense().numpy() == dense[ROWS]).all()
    assert (tensors["control_X"].to_dense().numpy() == dense[ROWS + 1]).all()
    assert isinstance(tensors["perturbation"], torch.Tensor)


def test_matrices_with_repeated_entries_are_not_sent_sparse(adata, dense):
    adata.X = _with_duplicates(adata.X)
    tensors = CausalDataset(register(adata), load_sparse_tensor=True)[ROWS]
    assert np.allclose(tensors["X"], dense[ROWS])


def _with_duplicates(x: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.repeat(x.data / 2, 2), np.repeat(x.indices, 2), x.indptr * 2), shape=x.shape)


def test_nothing_is_densified_or_copied_up_front(adata, manager):
    dataset = CausalDataset(manager)
    assert dataset._readers["X"].data is adata.X


def test_unsupported_data_name_the_way_out():
    with pytest.raises(ValueError, match=r"'X' are a list.*csr_matrix\(adata.X\)"):
        _make_reader("X", [1, 2], np.float32)


def test_keys_can_be_chosen_and_are_checked(manager):
    assert set(CausalDataset(manager, ["X"])[ROWS]) == {"X", "ind_x"}
    assert CausalDataset(manager, {"X": np.float64})[ROWS]["X"].dtype == np.float64
    with pytest.raises(KeyError, match="labels"):
        CausalDataset(manager, ["X", "labels"])


def test_loader_keeps_order_takes_masks_and_gives_tensors(adata, manager, dense):
    order = np.random.default_rng(0).permutation(adata.n_obs)
    loader = CausalDataLoader(manager, indices=order, batch_size=50)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    assert (torch.cat([batch["X"] for batch in batches]).numpy() == dense[order]).all()
    mask = (adata.obs["perturbation"] == "A").to_numpy()
    assert (next(iter(CausalDataLoader(manager, indices=mask)))["ind_x"].ravel().numpy() == np.flatnonzero(mask)).all()
    assert isinstance(next(iter(CausalDataLoader(manager, iter_ndarray=True)))["X"], np.ndarray)


def test_workers_read_the_same_batches(manager):
    alone, helped = (
        [batch["ind_x"] for batch in CausalDataLoader(manager, batch_size=40, shuffle=True, seed=1, num_workers=n)]
        for n in (0, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_unseeded_shuffling_differs(manager):
    orders = [next(iter(CausalDataLoader(manager, shuffle=True)))["ind_x"].ravel().tolist() for _ in range(2)]
    assert orders[0] != orders[1]


def test_memory_is_that_of_a_batch():
    n_cells, n_genes, batch_size = 3000, 2000, 64
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(
        sparse.random_array((n_cells, n_genes), density=0.02, format="csr", dtype=np.float32, rng=rng),
        obs=pd.DataFrame({"perturbation": rng.choice(["control", "A"], n_cells)}, index=np.arange(n_cells).astype(str)),
    )
    adata.X = sparse.csr_matrix(adata.X)
    manager = register(adata, batch_key=None, covariate_keys=(), size_factor_key=None)
    tracemalloc.start()
    for _ in CausalDataSplitter(manager, batch_size=batch_size, pair_controls=True).train_dataloader():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    batch_bytes = 2 * batch_size * n_genes * 4
    assert peak < 4 * batch_bytes < n_cells * n_genes * 4 / 4


def test_pairs_of_a_batch_come_from_one_slice_of_the_data():
    adata = make_adata(n_genes=7)
    reads = []

    class Counting(sparse.csr_matrix):
        def __getitem__(self, key):
            reads.append(len(key))
            return sparse.csr_matrix(super().__getitem__(key))

    manager = register(adata)
    dataset = CausalDataset(manager)
    dataset._readers["X"].data = Counting(adata.X)
    dataset[BatchIndices(ROWS, partners=ROWS)]
    assert reads == [10]
