"""The data module that serves all models: split, batches, partners, on one process or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
from scvi import settings

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import condition_codes
from scvi_causal.dataloaders._dataset import CausalDataLoader, SparseRows
from scvi_causal.dataloaders._indices import SplitIndices, split_from_indices, split_from_key, split_stratified
from scvi_causal.dataloaders._pairing import ControlPairing, get_control_mask, get_strata
from scvi_causal.dataloaders._sampler import EpochBatchSampler, GroupedBatchSampler, draw_seed, process_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi.data import AnnDataManager


class CausalDataSplitter(pl.LightningDataModule):
    """Splits the cells and makes batches of them.

    Takes the arguments of :class:`scvi.dataloaders.DataSplitter`, and those of a causal model besides.

    Parameters
    ----------
    adata_manager
        Manager of a registered AnnData.
    train_size, validation_size
        Shares of the cells. By default 90 % train and the rest validates, in every condition alike; cells that are in
        neither test. Not used with `split_key` or `external_indexing`.
    batch_size
        Largest number of cells of a batch (of one process).
    shuffle_set_split
        Whether the default split is drawn, or taken in the order of the cells.
    load_sparse_tensor
        Send a CSR `X` sparse to the device and densify it there. Pays on a GPU, changes nothing in the batch.
    distributed_sampler
        Give each process its own share of the cells.
    split_key
        Column of `adata.obs` that holds `"train"`, `"valid"` (`"validation"`, `"val"`) or `"test"` for every cell.
    external_indexing
        Up to three arrays of rows: training, validation and test cells. Cells in none of them are not used.
    grouped
        Make batches of blocks that each hold one condition (tokens and dosages) in one stratum (batch and categorical
        covariates); `tensors["group"]` numbers the blocks.
    cells_per_group
        Cells of a block; a batch has `batch_size // cells_per_group` blocks.
    pair_controls
        Add the tensors of a training control of the same stratum for each cell, under `"control_" + key`. Drawn anew
        every epoch for training, fixed for validation and test.
    seed
        Seed of the split, the batches and the partners; by default `scvi.settings.seed`, otherwise drawn.
    drop_last
        Leave out of each epoch the cells that do not fill a batch (never of grouped batches, whose blocks are topped
        up).
    num_workers, pin_memory
        Passed to the loader. Memory is pinned by default where the batches go to a CUDA device.
    **data_loader_kwargs
        Passed to :class:`~scvi_causal.dataloaders.CausalDataLoader`.

    Raises
    ------
    ValueError
        If the split is no split, has no training cell, or no training control.

    Notes
    -----
    Partners and groups are chosen with the cells by the sampler and read with them by the dataset, so workers, pinned
    memory and distributed training serve them like any other tensor.

    Examples
    --------
    >>> from scvi_causal import PerturbedMean
    >>> from scvi_causal.data import simulate_screen
    >>> adata = simulate_screen(n_genes=10, n_perturbations=3, seed=0).adata
    >>> PerturbedMean.setup_anndata(adata)
    >>> splitter = CausalDataSplitter(PerturbedMean(adata).adata_manager, batch_size=64, pair_controls=True, seed=0)
    >>> batch = next(iter(splitter.train_dataloader()))
    >>> batch["X"].shape == batch["control_X"].shape
    True
    >>> set(adata.obs["perturbation"].iloc[batch["control_ind_x"].ravel().numpy()])
    {'control'}
    """

    data_loader_cls = CausalDataLoader

    def __init__(
        self,
        adata_manager: AnnDataManager,
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int | None = 512,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        distributed_sampler: bool = False,
        *,
        split_key: str | None = None,
        external_indexing: Sequence[np.ndarray] | None = None,
        grouped: bool = False,
        cells_per_group: int = 32,
        pair_controls: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        **data_loader_kwargs,
    ):
        super().__init__()
        self.adata_manager = adata_manager
        self.batch_size = batch_size or settings.batch_size
        self.distributed_sampler = distributed_sampler
        self.load_sparse_tensor = load_sparse_tensor
        self.grouped, self.cells_per_group = grouped, cells_per_group
        self.drop_last, self.pin_memory = drop_last, pin_memory
        self.data_loader_kwargs = data_loader_kwargs
        if num_workers is not None:
            self.data_loader_kwargs["num_workers"] = num_workers
        self.seed = draw_seed(seed, shared=distributed_sampler)
        self.n_obs = adata_manager.adata.n_obs
        if grouped and self.batch_size < cells_per_group:
            raise ValueError(
                f"batch_size={self.batch_size} does not hold one block of cells_per_group={cells_per_group} cells; use a "
                "larger `batch_size` or a smaller `cells_per_group`."
            )

        conditions, is_control = self._conditions(required=grouped or pair_controls)
        split = self._split(conditions, train_size, validation_size, shuffle_set_split, split_key, external_indexing)
        self.train_idx, self.val_idx, self.test_idx = split
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        if is_control is not None and not is_control[self.train_idx].any():
            origin = f"adata.obs[{split_key!r}]" if split_key is not None else "the split"
            raise ValueError(
                f"None of the {self.n_train} training cells is a control: {origin} puts all {int(is_control.sum())} controls "
                "into validation or test. Effects are measured against training controls; mark some of them as 'train'."
            )

        self._group_codes = None
        if grouped:
            strata = get_strata(adata_manager)
            self._group_codes = conditions * (strata.max() + 1) + strata
        self.pairing = None
        if pair_controls:
            self.pairing = ControlPairing.from_manager(adata_manager, pool=self.train_idx)
            self.pairing.warn_unmatched(np.concatenate(split))

    def _conditions(self, required: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the code of each cell's condition and which are controls (None where nothing is registered)."""
        if CAUSAL_KEYS.PERTURBATION in self.adata_manager.data_registry:
            dosage = self.adata_manager.get_from_registry(CAUSAL_KEYS.PERTURBATION)
            return condition_codes(dosage)[0], get_control_mask(self.adata_manager)
        if required:
            raise ValueError("Grouped batches and paired controls need perturbations, and none are registered.")
        return np.zeros(self.n_obs, dtype=np.int64), None

    def _split(self, conditions, train_size, validation_size, shuffle, split_key, external_indexing) -> SplitIndices:
        if split_key is not None and external_indexing is not None:
            raise ValueError("Pass `split_key` or `external_indexing`, not both.")
        if split_key is not None:
            return split_from_key(self.adata_manager.adata.obs, split_key)
        if external_indexing is not None:
            return split_from_indices(external_indexing, self.n_obs)
        return split_stratified(conditions, train_size, validation_size, shuffle, np.random.default_rng([self.seed, 0]))

    def setup(self, stage: str | None = None) -> None:
        """Check that what is monitored will be there; the split itself is made on construction."""
        trainer = self.trainer
        if stage != "fit" or trainer is None or self.n_val > 0:
            return
        monitored = {getattr(callback, "monitor", None) for callback in trainer.callbacks}
        if names := sorted(name for name in monitored if name and "validation" in name):
            raise ValueError(
                f"{', '.join(names)} cannot be monitored (early stopping, best checkpoint) without validation cells; leave "
                "some in the split, e.g. `validation_size=0.1`, or monitor a training metric."
            )

    def _loader(self, cells: np.ndarray, training: bool) -> CausalDataLoader | list:
        # An empty list is how Lightning is told that there is nothing to loop over.
        if len(cells) == 0:
            return []
        rank, n_processes = process_rank() if self.distributed_sampler else (0, 1)
        shared = {
            "pairing": self.pairing,
            "shuffle": training,
            "seed": self.seed,
            "rank": rank,
            "num_replicas": n_processes,
        }
        if self.grouped:
            n_groups = self.batch_size // self.cells_per_group
            codes = self._group_codes[cells]
            sampler = GroupedBatchSampler(cells, codes, n_groups, self.cells_per_group, **shared)
        else:
            sampler = EpochBatchSampler(cells, self.batch_size, drop_last=training and self.drop_last, **shared)
        pin_memory = self._on_cuda() if self.pin_memory is None else self.pin_memory
        return self.data_loader_cls(
            self.adata_manager,
            sampler=sampler,
            load_sparse_tensor=self.load_sparse_tensor,
            pin_memory=pin_memory,
            **self.data_loader_kwargs,
        )

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def train_dataloader(self) -> CausalDataLoader:
        """Batches of the training cells, drawn anew each epoch."""
        return self._loader(self.train_idx, training=True)

    def val_dataloader(self) -> CausalDataLoader | list:
        """Batches of the validation cells, the same each epoch."""
        return self._loader(self.val_idx, training=False)

    def test_dataloader(self) -> CausalDataLoader | list:
        """Batches of the test cells, the same each time."""
        return self._loader(self.test_idx, training=False)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Densify on the device what was sent sparse."""
        return {key: value.to_dense() if isinstance(value, SparseRows) else value for key, value in batch.items()}
