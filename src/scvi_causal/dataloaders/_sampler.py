"""Which cells make up each batch: drawn anew every epoch, seeded, and shared out between processes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scvi import settings
from torch.utils.data import DistributedSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi_causal.dataloaders._pairing import ControlPairing

logger = logging.getLogger(__name__)

_MANY_REPEATS = 2.0


class BatchIndices(NamedTuple):
    """Rows of the cells of one batch, of their partners, and the block that each cell belongs to."""

    cells: np.ndarray
    partners: np.ndarray | None = None
    groups: np.ndarray | None = None


def process_rank() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; `(0, 1)` outside distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def draw_seed(seed: int | None = None, shared: bool = False) -> int:
    """Return `seed`, else `scvi.settings.seed`, else a fresh number (0 where processes have to agree on it)."""
    seed = settings.seed if seed is None else seed
    if seed is not None:
        return int(seed)
    return 0 if shared else int(torch.randint(2**31 - 1, ()))


class _BatchSampler(DistributedSampler):
    """What both samplers share. A `DistributedSampler`, so that Lightning under DDP leaves it in its place."""

    def __init__(
        self,
        cells: np.ndarray,
        pairing: ControlPairing | None,
        shuffle: bool,
        seed: int,
        rank: int,
        num_replicas: int,
    ):
        self.cells = np.asarray(cells, dtype=np.int64)
        if len(self.cells) == 0:
            raise ValueError("There are no cells to make batches of.")
        super().__init__(self.cells, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.pairing = pairing

    def _rng(self, *stream: int) -> np.random.Generator:
        epoch = self.epoch if self.shuffle else 0
        return np.random.default_rng([self.seed, epoch, int(self.shuffle), *stream])

    def _batches(self) -> Iterator[BatchIndices]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[BatchIndices]:
        partners = self._rng(2, self.rank)
        for batch in self._batches():
            if self.pairing is not None:
                batch = batch._replace(partners=self.pairing.draw(batch.cells, partners))
            yield batch


class EpochBatchSampler(_BatchSampler):
    """Batches that visit every cell once.

    The cells are dealt evenly: no batch holds more than `batch_size` cells and all differ by at most one, so that no
    epoch ends in a batch of one or two cells. Processes get disjoint shares and equally many batches.

    Parameters
    ----------
    cells
        Rows of the cells; shape `(n_cells,)`.
    batch_size
        Largest number of cells of a batch (of one process).
    pairing
        Draws a partner of each cell where given.
    shuffle
        Draw order and partners anew after each :meth:`set_epoch`; otherwise both are the same in every epoch.
    drop_last
        Only batches of exactly `batch_size` cells, the rest is left out of this epoch.
    seed
        With the epoch, and for the partners the rank, it determines all that is drawn.
    rank, num_replicas
        Number of this process and number of processes.

    Examples
    --------
    >>> import numpy as np
    >>> [batch.cells.tolist() for batch in EpochBatchSampler(np.arange(5), 4, shuffle=False)]
    [[0, 1, 2], [3, 4]]
    """

    def __init__(
        self,
        cells: np.ndarray,
        batch_size: int,
        *,
        pairing: ControlPairing | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
    ):
        super().__init__(cells, pairing, shuffle, seed, rank, num_replicas)
        if batch_size < 1:
            raise ValueError(f"`batch_size` has to be at least 1, got {batch_size}.")
        self.batch_size, self.drop_incomplete = batch_size, drop_last
        smallest, largest = len(self.cells) // num_replicas, -(-len(self.cells) // num_replicas)
        self._n_batches = smallest // batch_size if drop_last else -(-largest // batch_size)
        if self._n_batches == 0:
            raise ValueError(
                f"`drop_last=True` leaves no batch: {smallest} cells per process, `batch_size={batch_size}`. Use a "
                "smaller `batch_size` or `drop_last=False`."
            )

    def __len__(self) -> int:
        return self._n_batches

    def _batches(self) -> Iterator[BatchIndices]:
        cells = self._rng(0).permutation(self.cells) if self.shuffle else self.cells
        if len(cells) // self.num_replicas < self._n_batches:
            # Fewer cells than processes, or batches of one: an empty batch would leave the other processes waiting.
            cells = np.resize(cells, self._n_batches * self.num_replicas)
        share = cells[self.rank :: self.num_replicas]
        if self.drop_incomplete:
            share = share[: self._n_batches * self.batch_size]
        for batch in np.array_split(share, self._n_batches):
            yield BatchIndices(batch)


class GroupedBatchSampler(_BatchSampler):
    """Batches made of blocks, each of `cells_per_group` cells of one condition in one stratum.

    Every cell is visited at least once an epoch. The last block of a condition is topped up from its other cells, a
    condition with fewer than `cells_per_group` cells repeats them equally often. Blocks are dealt evenly, so the
    batches of an epoch differ by at most one block; processes get disjoint cells and equally many batches.

    Parameters
    ----------
    cells
        Rows of the cells; shape `(n_cells,)`.
    codes
        Code of condition and stratum of each of them; shape `(n_cells,)`.
    n_groups
        Largest number of blocks of a batch (of one process).
    cells_per_group
        Number of cells of each block.
    pairing, shuffle, seed, rank, num_replicas
        See :class:`EpochBatchSampler`.

    Examples
    --------
    >>> import numpy as np
    >>> sampler = GroupedBatchSampler(np.arange(5), np.array([0, 0, 0, 1, 1]), n_groups=3, cells_per_group=2)
    >>> batch = next(iter(sampler))
    >>> batch.groups.tolist(), sorted(set(batch.cells.tolist()))
    ([0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4])
    """

    def __init__(
        self,
        cells: np.ndarray,
        codes: np.ndarray,
        n_groups: int,
        cells_per_group: int = 32,
        *,
        pairing: ControlPairing | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
    ):
        super().__init__(cells, pairing, shuffle, seed, rank, num_replicas)
        if n_groups < 1 or cells_per_group < 1:
            raise ValueError(
                "`n_groups` and `cells_per_group` have to be at least 1, got "
                f"n_groups={n_groups}, cells_per_group={cells_per_group}."
            )
        self.n_groups, self.cells_per_group = n_groups, cells_per_group
        _, self._codes, sizes = np.unique(np.asarray(codes), return_inverse=True, return_counts=True)
        if len(self._codes) != len(self.cells):
            raise ValueError(f"Expected one code per cell, got {len(self._codes)} codes for {len(self.cells)} cells.")
        self._starts = np.cumsum(sizes) - sizes
        # A condition is dealt to as many processes as it fills blocks: a smaller one is not torn apart.
        self._n_owners = np.minimum(-(-sizes // cells_per_group), num_replicas)
        self._first_owner = (np.cumsum(self._n_owners) - self._n_owners) % num_replicas
        self._sizes = sizes
        n_blocks = [int(self._share(other)[1].sum()) for other in range(num_replicas)]
        self._n_batches = max(1, -(-max(n_blocks) // n_groups))
        # Fewer blocks than processes: those without one repeat another's, as an empty epoch would leave the rest waiting.
        self._owner = rank if n_blocks[rank] > 0 else int(np.argmax(n_blocks))
        repeats = sum(n_blocks) * cells_per_group / len(self.cells)
        if rank == 0 and repeats > _MANY_REPEATS:
            logger.warning(
                "Grouped batches visit each cell %.1f times an epoch on average, because many of the %d conditions (in "
                "their strata) have fewer than cells_per_group=%d cells; consider a smaller `cells_per_group`.",
                repeats,
                len(sizes),
                cells_per_group,
            )

    def _share(self, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, per condition, number of cells, number of blocks and position of the process among the owners."""
        position = (rank - self._first_owner) % self.num_replicas
        n_cells = -(-(self._sizes - position) // self._n_owners)
        n_cells = np.where(position < self._n_owners, np.maximum(n_cells, 0), 0)
        return n_cells, -(-n_cells // self.cells_per_group), position

    def __len__(self) -> int:
        return self._n_batches

    def _blocks(self) -> np.ndarray:
        """Return the rows of the cells of all blocks of this process; shape `(n_blocks, cells_per_group)`."""
        # Conditions one after the other, random within: the same on every process, which then takes every k-th cell.
        order = self.cells[np.lexsort((self._rng(0).random(len(self.cells)), self._codes))]
        n_cells, n_blocks, position = self._share(self._owner)
        length = n_blocks * self.cells_per_group
        condition = np.repeat(np.arange(len(length)), length)
        place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        # Counting on from the first cell again tops up the last block; in random order that is a random draw.
        place %= n_cells[condition]
        row = self._starts[condition] + position[condition] + place * self._n_owners[condition]
        return order[row].reshape(-1, self.cells_per_group)

    def _batches(self) -> Iterator[BatchIndices]:
        blocks = self._blocks()
        order = self._rng(1, self.rank).permutation(len(blocks))
        if len(order) < self._n_batches:
            order = np.resize(order, self._n_batches)
        for chosen in np.array_split(order, self._n_batches):
            groups = np.repeat(np.arange(len(chosen), dtype=np.int64), self.cells_per_group)
            yield BatchIndices(blocks[chosen].ravel(), groups=groups)
