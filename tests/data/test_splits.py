from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from scvi_causal.data import assign_split, describe_split, simulate_screen


def screen_of(counts: dict[str, int], **columns) -> AnnData:
    labels = np.repeat(list(counts), list(counts.values()))
    obs = pd.DataFrame({"perturbation": labels, **columns}, index=[f"c{i}" for i in range(len(labels))])
    return AnnData(csr_matrix(np.ones((len(labels), 2), np.float32)), obs)


@pytest.fixture
def singles():
    return screen_of({"control": 100, **{f"P{i}": 20 for i in range(10)}})


@pytest.fixture
def combos():
    tokens = list("ABCDEF")
    pairs = [f"{a}+{b}" for i, a in enumerate(tokens) for b in tokens[i + 1 :]]
    return screen_of({"control": 60, **dict.fromkeys(tokens, 15), **dict.fromkeys(pairs, 10)})


@pytest.fixture
def contexts():
    adata = simulate_screen(
        n_genes=5, n_perturbations=4, n_cells_per_perturbation=90, n_control=120, n_cell_types=3
    ).adata
    return adata


def split_of(adata, **kwargs):
    assign_split(adata, **kwargs)
    return adata.obs["split"].to_numpy(str), adata.obs["perturbation"].to_numpy(str)


# ------------------------------------------------------------------------------------------------------------------ cells
def test_by_cell_every_perturbation_gives_its_share(singles):
    split, label = split_of(singles, by="cell", test_size=0.2, valid_size=0.1)
    table = pd.crosstab(label, split)
    assert table.loc["control"].to_dict() == {"test": 20, "train": 70, "valid": 10}
    assert (table.drop(index="control") == [4, 14, 2]).all().all()


def test_by_cell_folds_are_disjoint_and_cover_every_cell(singles):
    tested = np.zeros(singles.n_obs, int)
    for fold in range(5):
        split, _ = split_of(singles, by="cell", fold=fold)
        tested += split == "test"
    assert (tested == 1).all()


def test_strata_keep_their_share():
    adata = screen_of({"control": 80, "A": 80}, batch=np.tile(np.repeat(["x", "y"], [60, 20]), 2))
    assign_split(adata, by="cell", stratify_by="batch", test_size=0.25, valid_size=0.25)
    table = adata.obs.groupby(["perturbation", "batch", "split"], observed=True).size().unstack()
    assert (table.xs("x", level="batch") == [30, 15, 15]).all().all()
    assert (table.xs("y", level="batch") == [10, 5, 5]).all().all()


def test_small_groups_give_their_share_on_average_and_keep_a_training_cell():
    adata = screen_of({"control": 50, **{f"P{i}": 2 for i in range(300)}})
    with pytest.warns(UserWarning, match="too few cells to be tested"):
        split, label = split_of(adata, by="cell", test_size=0.2, valid_size=0.1)
    perturbed = label != "control"
    assert abs((split[perturbed] == "test").mean() - 0.2) < 0.03
    assert set(label[split == "train"]) == set(label)


# ---------------------------------------------------------------------------------------------------------- perturbations
def test_held_out_tokens_are_nowhere_in_training(combos):
    split, label = split_of(combos, by="perturbation", test_size=0.34)
    unseen = set("".join(label[split == "test"]).replace("control", "").replace("+", "")) - set(
        "".join(label[split != "test"]).replace("control", "").replace("+", "")
    )
    assert len(unseen) == 2
    for name in np.unique(label[label != "control"]):
        expected = {"test"} if unseen & set(name.split("+")) else {"train", "valid"}
        assert set(split[label == name]) <= expected


def test_folds_over_perturbations_partition_them_and_the_controls(singles):
    tested = []
    controls = np.zeros(singles.n_obs, int)
    for fold in range(5):
        split, label = split_of(singles, by="perturbation", fold=fold, seed=3)
        tested.append(set(label[split == "test"]) - {"control"})
        controls += (split == "test") & (label == "control")
    assert [len(names) for names in tested] == [2] * 5
    assert len(set.union(*tested)) == 10
    assert (controls[label == "control"] == 1).all()


def test_controls_are_in_all_three_parts(singles):
    split, label = split_of(singles, by="perturbation", test_size=0.3, valid_size=0.1)
    assert pd.Series(split[label == "control"]).value_counts().to_dict() == {"train": 60, "test": 30, "valid": 10}


def test_validation_by_cell_keeps_every_training_perturbation_and_by_same_holds_out(singles):
    split, label = split_of(singles, by="perturbation", valid_size=0.25)
    held_out = set(label[split == "test"]) - {"control"}
    assert len(held_out) == 2
    assert all((split[label == name] == "valid").sum() == 5 for name in set(label) - held_out - {"control"})
    split, label = split_of(singles, by="perturbation", valid_size=0.25, valid_by="same")
    validated = set(label[split == "valid"]) - {"control"}
    assert len(validated) == 2
    assert not validated & (set(label[split == "train"]) | held_out)
    # the choice of the test does not depend on how validation is done
    assert set(label[split == "test"]) - {"control"} == held_out


def test_named_tokens_are_held_out_with_their_combinations(combos):
    split, label = split_of(combos, by="perturbation", holdout="A")
    assert set(label[split == "test"]) == {"control", "A", "A+B", "A+C", "A+D", "A+E", "A+F"}
    split, label = split_of(combos, by="perturbation", holdout=("A", "B"))
    assert {"A", "B", "A+B", "B+C"} <= set(label[split == "test"])


# ----------------------------------------------------------------------------------------------------------- combinations
def test_held_out_combinations_have_seen_tokens(combos):
    assign_split(combos, by="combination", test_size=0.4)
    table = describe_split(combos)
    held_out = table[~table["seen"]]
    assert len(held_out) == 6
    assert (held_out["n_tokens"] == 2).all()
    assert (held_out["n_tokens_seen"] == 2).all()


def test_a_token_that_occurs_in_one_combination_only_stays_in_training():
    adata = screen_of({"control": 30, "A": 10, "B": 10, "A+B": 10, "A+Z": 10, "B+Y": 10})
    with pytest.warns(UserWarning, match="1 of 2 combinations"):
        split, label = split_of(adata, by="combination", test_size=0.67)
    assert set(label[split == "test"]) == {"control", "A+B"}
    lonely = screen_of({"control": 30, "A": 10, "A+Y": 10, "A+Z": 10})
    with pytest.raises(ValueError, match="occurs nowhere else"):
        assign_split(lonely, by="combination")


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_number_of_seen_tokens(combos, seen):
    assign_split(combos, by="combination", combo_seen=seen, test_size=0.2, seed=1)
    table = describe_split(combos)
    asked = table[(table["n_tokens"] == 2) & ~table["seen"] & (table["n_tokens_seen"] == seen)]
    assert len(asked) >= 3
    assert table.loc[table["seen"], "n_tokens_seen"].equals(table.loc[table["seen"], "n_tokens"])


def test_folds_over_combinations_are_disjoint(combos):
    tested = [set() for _ in range(5)]
    for fold in range(5):
        split, label = split_of(combos, by="combination", fold=fold)
        tested[fold] = set(label[split == "test"]) - {"control"}
    assert sum(map(len, tested)) == len(set.union(*tested)) == 15


def test_named_combinations_whatever_the_order_of_their_tokens(combos):
    split, label = split_of(combos, by="combination", holdout=["B+A", "C+D"])
    assert set(label[split == "test"]) == {"control", "A+B", "C+D"}


# -------------------------------------------------------------------------------------------------------------- covariates
def test_a_held_out_context_keeps_its_controls(contexts):
    split, label = split_of(contexts, by="covariate", covariate_key="cell_type", holdout="type_1")
    inside = (contexts.obs["cell_type"] == "type_1").to_numpy()
    perturbed = label != "control"
    assert ((split == "test") & perturbed == inside & perturbed).all()
    for part in ("train", "valid", "test"):
        share = (split[inside & ~perturbed] == part).mean()
        assert abs(share - {"train": 0.7, "valid": 0.1, "test": 0.2}[part]) < 0.05


def test_a_held_out_pair_and_random_pairs(contexts):
    name = contexts.obs["perturbation"].cat.categories[0]
    split, label = split_of(contexts, by="covariate", covariate_key="cell_type", holdout=(name, "type_0"))
    cell_type = contexts.obs["cell_type"].to_numpy(str)
    chosen = (label == name) & (cell_type == "type_0")
    assert (chosen == ((split == "test") & (label != "control"))).all()

    assign_split(contexts, by="covariate", covariate_key="cell_type", test_size=0.25)
    table = describe_split(contexts, covariate_key="cell_type")
    perturbed = table[table.index.get_level_values("perturbation") != "control"]
    assert (~perturbed["seen"]).sum() == 3
    assert (perturbed["n_tokens_seen"] == 1).all()


def test_folds_over_one_perturbation_hold_out_each_context_in_turn():
    adata = screen_of({"control": 80, "IFNB": 80}, cell_type=np.tile(list("abcd"), 40))
    tested = []
    for fold in range(4):
        split, label = split_of(adata, by="covariate", covariate_key="cell_type", fold=fold, n_folds=4)
        tested += sorted(set(adata.obs["cell_type"][(split == "test") & (label != "control")]))
    assert sorted(tested) == list("abcd")


# ------------------------------------------------------------------------------------------------------------ all together
MODES = [
    {"by": "cell"},
    {"by": "perturbation"},
    {"by": "combination"},
    {"by": "combination", "combo_seen": 1},
    {"by": "covariate", "covariate_key": "batch"},
]


@pytest.mark.parametrize("arguments", MODES)
@pytest.mark.parametrize("valid_by", ["cell", "same"])
def test_every_mode_is_seeded_and_leaves_something_to_train_on(combos, arguments, valid_by):
    combos.obs["batch"] = np.tile(["x", "y"], combos.n_obs)[: combos.n_obs]
    first, label = split_of(combos, **arguments, valid_by=valid_by, seed=1)
    again, _ = split_of(combos, **arguments, valid_by=valid_by, seed=1)
    other, _ = split_of(combos, **arguments, valid_by=valid_by, seed=2)
    assert (first == again).all()
    assert (first != other).any()
    assert combos.obs["split"].cat.categories.tolist() == ["train", "valid", "test"]
    for part in ("train", "valid", "test"):
        assert set(label[first == part]) >= {"control"}
        assert len(set(label[first == part])) > 1


def test_labels_are_read_as_the_fields_read_them():
    adata = screen_of({"ctrl": 30, "NT": 30, "B+A": 10, "A+B": 10, "A+ctrl": 10, "A": 10, "B": 10})
    assign_split(adata, by="combination", control_category=["ctrl", "NT"], holdout="A+B", key_added="fold")
    table = describe_split(adata, "fold", control_category=["ctrl", "NT"])
    assert table.index.tolist() == ["A", "A+B", "B", "ctrl"]
    assert table.loc["A+B", "test"] == 20


def test_few_controls_are_still_in_every_part():
    for seed in range(10):
        split, label = split_of(screen_of({"control": 3, "A": 5, "B": 5}), by="perturbation", seed=seed)
        assert set(split[label == "control"]) == {"train", "valid", "test"}


def test_many_perturbations_are_fast():
    adata = screen_of({"control": 5000, **{f"P{i}": 20 for i in range(5000)}})
    assign_split(adata, by="perturbation")  # loops over perturbations times cells would take minutes
    assert set(adata.obs["split"]) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "cells"}, "is not one of 'cell'"),
        ({"perturbation_key": "perturbations"}, "Did you mean 'perturbation'"),
        ({"control_category": "ctrl"}, "look like control: 'control'"),
        ({"test_size": 0.0}, "test above 0"),
        ({"test_size": 0.9, "valid_size": 0.1}, "sum"),
        ({"fold": 5}, "between 0 and n_folds - 1 = 4"),
        ({"fold": 0, "n_folds": 11}, "only 10 tokens, and at least 11"),
        ({"fold": 0, "holdout": "P1"}, "exclude each other"),
        ({"by": "cell", "holdout": "P1"}, "takes no holdout"),
        ({"holdout": ["P1", "P99"]}, "'P99'.*not among"),
        ({"holdout": "control"}, "'control'.*not among"),
        ({"holdout": [f"P{i}" for i in range(10)]}, "no perturbed cell for training"),
        ({"by": "combination"}, "only 0 combinations"),
        ({"by": "covariate"}, "covariate_key belongs to"),
        ({"by": "covariate", "covariate_key": "cell_type"}, "no column 'cell_type'"),
        ({"covariate_key": "one"}, "covariate_key belongs to"),
        ({"by": "covariate", "covariate_key": "one"}, "two values"),
        ({"by": "covariate", "covariate_key": "one", "holdout": "y"}, "'y'.*not among"),
        ({"by": "covariate", "covariate_key": "own", "holdout": "P1"}, "have no control cells"),
        ({"combo_seen": 1}, "combo_seen=1"),
        ({"valid_by": "cells"}, "'cell', 'same'"),
        ({"stratify_by": "gaps"}, "20 cells of 300 have no value"),
    ],
)
def test_what_cannot_be_split_is_refused_and_nothing_is_written(singles, arguments, message):
    singles.obs["one"] = "x"
    singles.obs["own"] = singles.obs["perturbation"].to_numpy()
    singles.obs["gaps"] = singles.obs["own"].where(singles.obs["own"] != "P3")
    with pytest.raises(ValueError, match=message):
        assign_split(singles, **arguments)
    assert "split" not in singles.obs


def test_too_few_controls_are_named():
    with pytest.raises(ValueError, match="2 control cells cannot be split.*valid_size=0"):
        assign_split(screen_of({"control": 2, "A": 9, "B": 9}))
    assign_split(screen_of({"control": 2, "A": 9, "B": 9}), valid_size=0)


def test_describe_split_refuses_other_values(singles):
    singles.obs["split"] = "training"
    with pytest.raises(ValueError, match="'training' beside 'train'"):
        describe_split(singles)
