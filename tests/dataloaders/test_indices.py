import numpy as np
import pandas as pd
import pytest

from scvi_causal.dataloaders._indices import split_from_indices, split_from_key, split_stratified

CODES = np.repeat(np.arange(6), [200, 100, 30, 7, 1, 1])


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_condition_gets_its_share(shuffle):
    split = split_stratified(CODES, 0.7, 0.2, shuffle, rng())
    assert sorted(np.concatenate(split)) == list(range(len(CODES)))
    assert [len(part) for part in split[1:]] == [67, 33]  # 20 % and 10 % of 339
    for code, n_cells in enumerate(np.bincount(CODES)):
        for part, share in zip(split, (0.7, 0.2, 0.1), strict=True):
            assert abs((CODES[part] == code).sum() - share * n_cells) <= 2
        assert (CODES[split.train] == code).any()


def test_conditions_of_one_cell_train():
    split = split_stratified(np.arange(50), 0.5, 0.5, True, rng())
    assert len(split.train) == 50


def test_default_is_ninety_to_ten_and_the_generator_decides():
    first, again = (split_stratified(CODES, None, None, True, rng()) for _ in range(2))
    other = split_stratified(CODES, None, None, True, np.random.default_rng(1))
    assert [len(part) for part in first] == [306, 33, 0]
    assert first.valid.tolist() == again.valid.tolist() != other.valid.tolist()


def test_sizes_alone():
    assert [len(part) for part in split_stratified(CODES, 1.0, None, True, rng())] == [339, 0, 0]
    assert len(split_stratified(CODES, None, 0.25, True, rng()).valid) == 84
    assert len(split_stratified(CODES, 0.5, None, True, rng()).valid) == 169
    assert len(split_stratified(CODES, 0.9, 0.1, True, rng()).test) == 0  # 1 - 0.9 - 0.1 is not quite 0


@pytest.mark.parametrize("sizes", [(0, None), (1.1, None), (0.9, 0.2), (0.5, 1.0), (0.5, -0.1)])
def test_shares_that_are_none(sizes):
    with pytest.raises(ValueError, match=f"got train_size={sizes[0]}"):
        split_stratified(CODES, *sizes, True, rng())


def test_split_key_reads_all_spellings():
    values = ["train", "valid", "validation", "val", "test", "Train"]
    for column in (values, pd.Categorical(values, categories=[*values, "unused"])):
        split = split_from_key(pd.DataFrame({"split": column}), "split")
        assert [part.tolist() for part in split] == [[0, 5], [1, 2, 3], [4]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train", "trian", "trian", "test"], r"'trian' \(2 cells\); expected 'train'.*Did you mean 'train'"),
        (["train", None, np.nan, "test"], r"'None' \(1 cell\), 'nan' \(1 cell\)"),
        (["train", "ood", "test", "test"], r"'ood' \(1 cell\).*assign_split"),
        ([0, 1, 0, 1], r"'0' \(2 cells\), '1' \(2 cells\)"),
        (["test", "test", "valid", "test"], "none of the 4 cells as 'train'"),
    ],
)
def test_split_key_with_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        split_from_key(pd.DataFrame({"split": pd.Series(values, dtype=object)}), "split")


def test_split_key_that_is_missing():
    with pytest.raises(ValueError, match=r"'spilt' is not a column.*Did you mean 'split'"):
        split_from_key(pd.DataFrame({"split": ["train"]}), "spilt")


def test_external_indexing_takes_rows_and_masks_and_may_leave_cells_out():
    mask = np.array([False, True, False, False, False, True])
    split = split_from_indices([np.array([4, 0]), mask], 6)
    assert [part.tolist() for part in split] == [[4, 0], [1, 5], []]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([np.array([0, 1]), np.array([1, 2])], "1 cell more than once.*'1'"),
        ([np.array([0, 0])], "1 cell more than once"),
        ([np.array([0, 6]), np.array([-1])], r"1 row outside of 0 .. 5: '6'"),
        ([None, np.array([1])], "no training cell"),
        ([np.ones(5, dtype=bool)], "5 values for 6 cells"),
        (np.arange(6), "list of up to three"),
    ],
)
def test_external_indexing_that_is_wrong(indices, message):
    with pytest.raises(ValueError, match=message):
        split_from_indices(indices, 6)
