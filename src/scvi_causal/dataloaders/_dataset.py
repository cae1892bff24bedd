"""Rows of a registered AnnData as tensors: one slice per batch, densified per batch only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np
import pandas as pd
import torch
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse
from scvi import REGISTRY_KEYS, settings
from torch.utils.data import DataLoader, Dataset, default_convert

from scvi_causal._constants import CAUSAL_KEYS, CONTROL_PREFIX
from scvi_causal.dataloaders._sampler import BatchIndices, EpochBatchSampler, draw_seed, process_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi.data import AnnDataManager
    from torch import Tensor

logger = logging.getLogger(__name__)

_INTEGER_KEYS = (
    REGISTRY_KEYS.BATCH_KEY,
    REGISTRY_KEYS.LABELS_KEY,
    REGISTRY_KEYS.CAT_COVS_KEY,
    REGISTRY_KEYS.INDICES_KEY,
)


class SparseRows(NamedTuple):
    """Rows of a sparse matrix on their way to a device, where they are densified.

    Plain arrays instead of a sparse tensor: they can be pinned, and they are a fraction of the bytes of the dense batch.

    Parameters
    ----------
    values
        Stored values of all rows, one after another; shape `(nnz,)`.
    columns
        Their column indices; shape `(nnz,)`.
    counts
        Number of stored values of each row; shape `(n_rows,)`.
    n_columns
        Number of columns.
    """

    values: Tensor
    columns: Tensor
    counts: Tensor
    n_columns: int

    def to_dense(self) -> Tensor:
        """Return the rows as a dense tensor of shape `(n_rows, n_columns)` on their device."""
        n_rows = self.counts.shape[0]
        rows = torch.repeat_interleave(
            torch.arange(n_rows, device=self.counts.device), self.counts.long(), output_size=self.values.shape[0]
        )
        dense = self.values.new_zeros((n_rows, self.n_columns))
        dense[rows, self.columns.long()] = self.values
        return dense


class _MemoryReader:
    """Rows of an array or CSR matrix in memory."""

    def __init__(self, data, dtype: type):
        self.data, self.dtype = data, dtype

    def sparse(self, rows: np.ndarray):
        return self.data[rows].astype(self.dtype, copy=False)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        taken = self.sparse(rows)
        return taken.toarray() if sparse.issparse(taken) else taken


class _BackedReader(_MemoryReader):
    """Rows of an array on disk, which can only be asked for in increasing order and without repeats."""

    def sparse(self, rows: np.ndarray):
        unique, where = np.unique(rows, return_inverse=True)
        return self.data[unique][where].astype(self.dtype, copy=False)


def _make_reader(key: str, data, dtype: type) -> _MemoryReader:
    if isinstance(data, pd.DataFrame):
        return _MemoryReader(data.to_numpy(), dtype)
    if sparse.issparse(data):
        if data.format != "csr":
            # A row of a CSC matrix costs a pass over all of it; one sparse copy is the cheaper evil.
            logger.info("Converting %r from %s to CSR once, to read it by rows.", key, data.format.upper())
            data = data.tocsr()
        return _MemoryReader(data, dtype)
    if isinstance(data, np.ndarray):
        return _MemoryReader(data, dtype)
    if isinstance(data, h5py.Dataset | CSRDataset | CSCDataset):
        return _BackedReader(data, dtype)
    raise ValueError(
        f"The data registered as {key!r} are a {type(data).__name__}, which cannot be read by rows; expected a numpy "
        "array, a scipy CSR or CSC matrix, a DataFrame or a backed AnnData. Convert them, e.g. `adata.X = "
        "scipy.sparse.csr_matrix(adata.X)`."
    )


class CausalDataset(Dataset):
    """Batches of cells, with the tensors of their partner cells beside them where the batch names partners.

    Parameters
    ----------
    adata_manager
        Manager of a registered AnnData.
    keys
        Registry keys to load; all of them by default. A dict gives the dtype of each.
    load_sparse_tensor
        Hand over a CSR `X` as :class:`SparseRows`, to be densified on the device.

    Notes
    -----
    A batch holds every registered key, shape `(n_cells, ...)`, and `"ind_x"`, the row of each cell in the AnnData,
    shape `(n_cells, 1)`. With partners it also holds each of them, except the dosages, with the prefix `"control_"`;
    with groups it holds `"group"`, shape `(n_cells,)`.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        keys: Sequence[str] | dict[str, type] | None = None,
        load_sparse_tensor: bool = False,
    ):
        registered = adata_manager.data_registry
        keys = list(registered.keys()) if keys is None else keys
        if missing := [key for key in keys if key not in registered]:
            raise KeyError(f"{missing} not found in the data registry, which holds {list(registered.keys())}.")
        if not isinstance(keys, dict):
            keys = {key: np.int64 if key in _INTEGER_KEYS else np.float32 for key in keys}
        self._readers = {
            key: _make_reader(key, adata_manager.get_from_registry(key), dtype)
            for key, dtype in keys.items()
            if key not in (CAUSAL_KEYS.INDICES, REGISTRY_KEYS.MINIFY_TYPE_KEY)
        }
        self._n_obs = adata_manager.adata.n_obs
        expression = self._readers.get(REGISTRY_KEYS.X_KEY)
        # Duplicated entries are summed by scipy and would overwrite each other on the device.
        self._sparse_key = (
            REGISTRY_KEYS.X_KEY
            if load_sparse_tensor
            and expression is not None
            and sparse.issparse(expression.data)
            and expression.data.has_canonical_format
            else None
        )

    def __len__(self) -> int:
        return self._n_obs

    def __getitem__(self, batch: BatchIndices | np.ndarray | Sequence[int] | slice | int) -> dict:
        if isinstance(batch, slice):
            batch = np.arange(self._n_obs)[batch]
        if not isinstance(batch, BatchIndices):
            batch = BatchIndices(np.atleast_1d(np.asarray(batch, dtype=np.int64)))
        tensors = {}
        for key, reader in self._readers.items():
            partners = None if key == CAUSAL_KEYS.PERTURBATION else batch.partners
            read = self._read_sparse if key == self._sparse_key else self._read_dense
            read(tensors, key, reader, batch.cells, partners)
        tensors[CAUSAL_KEYS.INDICES] = batch.cells[:, None]
        if batch.partners is not None:
            tensors[CONTROL_PREFIX + CAUSAL_KEYS.INDICES] = batch.partners[:, None]
        if batch.groups is not None:
            tensors[CAUSAL_KEYS.GROUP] = batch.groups
        return tensors

    @staticmethod
    def _read_dense(tensors: dict, key: str, reader: _MemoryReader, cells: np.ndarray, partners) -> None:
        if partners is None:
            tensors[key] = reader.dense(cells)
            return
        # Cells and partners in one slice: the fixed price of a slice is paid once.
        both = reader.dense(np.concatenate([cells, partners]))
        tensors[key], tensors[CONTROL_PREFIX + key] = both[: len(cells)], both[len(cells) :]

    @staticmethod
    def _read_sparse(tensors: dict, key: str, reader: _MemoryReader, cells: np.ndarray, partners) -> None:
        for name, rows in ((key, cells), (CONTROL_PREFIX + key, partners)):
            if rows is not None:
                taken = reader.sparse(rows)
                counts = np.diff(taken.indptr).astype(np.int64)
                tensors[name] = SparseRows(taken.data, taken.indices, counts, taken.shape[1])


class CausalDataLoader(DataLoader):
    """Loader with the signature of :class:`scvi.dataloaders.AnnDataLoader` that keeps the order of the cells.

    Also on backed data, where scvi-tools' own loader sorts the cells of each batch.

    Parameters
    ----------
    adata_manager
        Manager of a registered AnnData.
    indices
        Rows (or a boolean mask) of the cells to load; all by default.
    batch_size
        At most this many cells a batch. The cells are dealt evenly, so that no batch is left with one or two.
    shuffle
        Whether to shuffle the cells (anew after each `sampler.set_epoch`).
    sampler
        Yields :class:`BatchIndices` or arrays of rows, one batch each; replaces `indices`, `batch_size`, `shuffle`.
    drop_last
        Only batches of exactly `batch_size` cells.
    data_and_attributes
        Registry keys to load, as a list or as a dict with dtypes.
    iter_ndarray
        Give numpy arrays instead of tensors.
    distributed_sampler
        Give each process its own share of the cells.
    load_sparse_tensor
        See :class:`CausalDataset`.
    seed
        Seed of the shuffling; by default `scvi.settings.seed`, otherwise drawn.
    **kwargs
        Passed to :class:`torch.utils.data.DataLoader`.

    Examples
    --------
    >>> from scvi_causal import PerturbedMean
    >>> from scvi_causal.data import simulate_screen
    >>> adata = simulate_screen(n_genes=10, n_perturbations=3, seed=0).adata
    >>> PerturbedMean.setup_anndata(adata)
    >>> loader = CausalDataLoader(PerturbedMean(adata).adata_manager, indices=[3, 1, 2], batch_size=2)
    >>> [batch["ind_x"].ravel().tolist() for batch in loader]
    [[3, 1], [2]]
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        indices: Sequence[int] | Sequence[bool] | None = None,
        batch_size: int = 128,
        shuffle: bool = False,
        sampler=None,
        drop_last: bool = False,
        data_and_attributes: list[str] | dict[str, type] | None = None,
        iter_ndarray: bool = False,
        distributed_sampler: bool = False,
        load_sparse_tensor: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        kwargs.setdefault("num_workers", settings.dl_num_workers)
        kwargs.setdefault("persistent_workers", settings.dl_persistent_workers and kwargs["num_workers"] > 0)
        dataset = CausalDataset(adata_manager, data_and_attributes, load_sparse_tensor=load_sparse_tensor)
        if sampler is None:
            indices = np.arange(len(dataset)) if indices is None else np.asarray(indices)
            indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
            rank, n_processes = process_rank() if distributed_sampler else (0, 1)
            seed = draw_seed(seed, shared=distributed_sampler) if shuffle else 0
            sampler = EpochBatchSampler(
                indices,
                batch_size,
                shuffle=shuffle,
                drop_last=drop_last,
                seed=seed,
                rank=rank,
                num_replicas=n_processes,
            )
        self.indices = getattr(sampler, "cells", indices)
        collate = _identity if iter_ndarray else default_convert
        super().__init__(dataset, sampler=sampler, batch_size=None, collate_fn=collate, **kwargs)


def _identity(batch):
    return batch
