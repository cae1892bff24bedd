import logging

import numpy as np
import pytest
from torch.utils.data import DistributedSampler

from scvi_causal.dataloaders import EpochBatchSampler, GroupedBatchSampler

CELLS = np.arange(100, 233)
CODES = np.repeat([7, 3, 9, 1], [64, 50, 18, 1])


def rows(sampler) -> np.ndarray:
    return np.concatenate([batch.cells for batch in sampler])


@pytest.mark.parametrize("n_cells", [1, 31, 32, 33, 64, 65, 133])
def test_every_cell_once_and_no_small_remainder(n_cells):
    sampler = EpochBatchSampler(np.arange(n_cells), 32)
    batches = [batch.cells for batch in sampler]
    assert len(batches) == len(sampler) == -(-n_cells // 32)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= 32
    assert max(sizes) - min(sizes) <= 1
    assert sorted(rows(sampler)) == list(range(n_cells))


def test_unshuffled_keeps_the_order():
    assert rows(EpochBatchSampler(CELLS[::-1], 32, shuffle=False)).tolist() == CELLS[::-1].tolist()


def test_drop_last_gives_full_batches_only():
    sampler = EpochBatchSampler(CELLS, 32, drop_last=True)
    assert [len(batch.cells) for batch in sampler] == [32] * 4
    assert len(np.unique(rows(sampler))) == 128
    with pytest.raises(ValueError, match="133 cells per process, `batch_size=200`"):
        EpochBatchSampler(CELLS, 200, drop_last=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda **kwargs: EpochBatchSampler(CELLS, 32, **kwargs),
        lambda **kwargs: GroupedBatchSampler(CELLS, CODES, 3, 8, **kwargs),
    ],
    ids=["plain", "grouped"],
)
def test_seed_and_epoch_determine_the_batches(make):
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    epoch_0 = rows(first)
    assert epoch_0.tolist() == rows(again).tolist()
    assert epoch_0.tolist() != rows(other).tolist()
    first.set_epoch(1)
    epoch_1 = rows(first)
    assert epoch_1.tolist() != epoch_0.tolist()
    again.set_epoch(1)
    assert epoch_1.tolist() == rows(again).tolist()
    fixed = make(seed=1, shuffle=False)
    before = rows(fixed)
    fixed.set_epoch(5)
    assert before.tolist() == rows(fixed).tolist()


@pytest.mark.parametrize("n_processes", [1, 2, 3])
@pytest.mark.parametrize("cells_per_group", [1, 4, 8, 32])
@pytest.mark.parametrize("n_groups", [1, 3, 100])
def test_blocks_hold_one_condition_and_visit_every_cell(n_processes, cells_per_group, n_groups):
    code_of = dict(zip(CELLS, CODES, strict=True))
    ranks = [
        GroupedBatchSampler(CELLS, CODES, n_groups, cells_per_group, rank=rank, num_replicas=n_processes)
        for rank in range(n_processes)
    ]
    seen = []
    for sampler in ranks:
        batches = list(sampler)
        assert len(batches) == len(sampler) == len(ranks[0])
        for batch in batches:
            n_blocks, rest = divmod(len(batch.cells), cells_per_group)
            assert rest == 0
            assert 1 <= n_blocks <= n_groups
            assert batch.groups.tolist() == np.repeat(np.arange(n_blocks), cells_per_group).tolist()
            for block in range(n_blocks):
                assert len({code_of[cell] for cell in batch.cells[batch.groups == block]}) == 1
        seen.append(set(rows(sampler).tolist()))
    assert set.union(*seen) == set(CELLS.tolist())
    assert sum(len(cells) for cells in seen) == len(CELLS)  # processes share no cell


def test_remainders_are_topped_up_without_repeats_and_tiny_conditions_with_equal_ones():
    sampler = GroupedBatchSampler(CELLS, CODES, 4, 16, seed=3)
    visits = {
        code: np.bincount(np.searchsorted(CELLS, rows(sampler)), minlength=len(CELLS))[CODES == code]
        for code in (7, 3, 9, 1)
    }
    assert (visits[7] == 1).all()  # 64 cells fill four blocks
    assert visits[3].sum() == 64  # 50 cells need 14 more
    assert set(visits[3]) == {1, 2}
    assert set(visits[9]) == {1, 2}
    assert visits[1].tolist() == [16]
    for batch in sampler:
        for block in batch.cells.reshape(-1, 16):
            assert len(set(block)) == (1 if block[0] == CELLS[-1] else 16)
    small = GroupedBatchSampler(np.arange(5), np.zeros(5), 1, 12)
    assert sorted(np.bincount(rows(small))) == [2, 2, 2, 3, 3]


def test_top_ups_change_between_epochs():
    sampler = GroupedBatchSampler(np.arange(20), np.zeros(20), 1, 16)
    twice = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        twice.append(np.bincount(rows(sampler), minlength=20) == 2)
    share = np.mean(twice, axis=0)
    assert (share > 0.2).all()  # 12 of 20 are visited twice
    assert (share < 1).all()


def test_batches_mix_conditions():
    sampler = GroupedBatchSampler(np.arange(400), np.repeat(np.arange(10), 40), 5, 8)
    mixed = [len(set((batch.cells // 40).tolist())) for batch in sampler]
    assert np.mean(mixed) > 3


@pytest.mark.parametrize(("n_cells", "n_processes"), [(133, 2), (133, 3), (8, 3), (2, 3)])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_processes_get_equally_many_disjoint_batches(n_cells, n_processes, batch_size):
    ranks = [
        list(EpochBatchSampler(np.arange(n_cells), batch_size, rank=rank, num_replicas=n_processes))
        for rank in range(n_processes)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(0 < len(batch.cells) <= batch_size for batches in ranks for batch in batches)
    every = np.concatenate([batch.cells for batches in ranks for batch in batches])
    assert set(every.tolist()) == set(range(n_cells))
    if batch_size > 1 and n_cells >= n_processes:
        assert len(every) == n_cells


def test_lightning_leaves_the_samplers_in_place():
    assert isinstance(EpochBatchSampler(CELLS, 4), DistributedSampler)
    assert isinstance(GroupedBatchSampler(CELLS, CODES, 2, 4), DistributedSampler)


def test_many_repeats_are_reported(caplog):
    with caplog.at_level(logging.WARNING, logger="scvi_causal"):
        GroupedBatchSampler(np.arange(50), np.arange(50), 2, 16)
    assert "visit each cell 16.0 times" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="scvi_causal"):
        GroupedBatchSampler(np.arange(50), np.zeros(50), 2, 16)
    assert caplog.text == ""


def test_bad_arguments():
    with pytest.raises(ValueError, match="no cells"):
        EpochBatchSampler(np.array([]), 4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        EpochBatchSampler(CELLS, 0)
    with pytest.raises(ValueError, match="cells_per_group=0"):
        GroupedBatchSampler(CELLS, CODES, 2, 0)
    with pytest.raises(ValueError, match="2 codes for 133 cells"):
        GroupedBatchSampler(CELLS, CODES[:2], 2, 4)


def test_a_process_without_a_block_repeats_one():
    ranks = [GroupedBatchSampler(CELLS[:3], CODES[:3], 2, 4, rank=rank, num_replicas=2) for rank in range(2)]
    assert [len(list(sampler)) for sampler in ranks] == [1, 1]
    assert set(rows(ranks[0])) == set(rows(ranks[1])) == set(CELLS[:3])
