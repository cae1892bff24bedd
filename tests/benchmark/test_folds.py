"""No matter the task: what is scored is never trained on, and effects are measured against controls that no model sees."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scvi_causal.benchmark import Task
from scvi_causal.benchmark._folds import MAX_SOURCES, make_folds
from scvi_causal.benchmark._screen import Screen
from scvi_causal.data import assign_split
from scvi_causal.metrics import split_controls

TASKS = {
    "seen": Task("seen"),
    "unseen": Task("unseen", n_folds=3),
    "combination": Task("combination", n_folds=3),
    "combination, 1 seen": Task("combination", n_folds=2, combo_seen=1),
    "context": Task("context", covariate_key="cell_type"),
    "context-perturbation": Task("context-perturbation", covariate_key="cell_type"),
}


def folds_of(screen, context_screen, task, seed=0, **options):
    return make_folds(context_screen if task.covariate_key else screen, task, seed, **options)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("controls", ["independent", "shared"])
def test_nothing_that_is_measured_is_trained_on(screen, context_screen, name, controls):
    task = TASKS[name]
    used = context_screen if task.covariate_key else screen
    for fold in folds_of(screen, context_screen, task, controls=controls):
        train = set(fold.train)
        assert (used.labels[fold.train] != "control").any()
        for population in fold.populations:
            observed, source, reference = (
                set(cells) for cells in (population.observed, population.source, population.reference)
            )
            assert not observed & train
            assert source <= train
            for cells in (source, reference):
                assert set(used.labels[list(cells)]) == {"control"}
                assert set(used.contexts[list(cells)]) == {population.context}
            if controls == "independent":
                assert not reference & train
            else:
                assert source == reference
            everywhere = (used.labels == population.perturbation) & (used.contexts == population.context)
            assert observed <= set(np.flatnonzero(everywhere))
            if name != "seen":
                assert observed == set(np.flatnonzero(everywhere))


@pytest.mark.parametrize("name", TASKS)
def test_folds_depend_on_the_seed_alone(screen, context_screen, name):
    def digests(seed):
        return [fold.digest for fold in folds_of(screen, context_screen, TASKS[name], seed)]

    assert digests(0) == digests(0)
    assert set(digests(0)).isdisjoint(digests(1))
    seeds = [f.model_seed for seed in (0, 1) for f in folds_of(screen, context_screen, TASKS[name], seed)]
    assert len(set(seeds)) == len(seeds)


def test_shared_controls_are_another_fold(screen):
    task = TASKS["unseen"]
    independent, shared = (make_folds(screen, task, controls=kind) for kind in ("independent", "shared"))
    assert {f.digest for f in independent}.isdisjoint({f.digest for f in shared})
    assert len(shared[0].train) == len(independent[0].train) + 150


# ---------------------------------------------------------------------- unseen


def test_unseen_tokens_are_those_of_assign_split(adata, screen):
    folds = make_folds(screen, Task("unseen", n_folds=3), seed=4)
    scored = [p.perturbation for fold in folds for p in fold.populations]
    assert sorted(scored) == ["G00", "G01", "G02", "G03", "G04", "G05"]
    for fold in folds:
        split = adata.copy()
        assign_split(split, by="perturbation", fold=fold.index, n_folds=3, seed=4)
        tested = (split.obs["split"] == "test").to_numpy() & ~screen.is_control
        held_out = ~np.isin(np.arange(screen.adata.n_obs), fold.train) & ~screen.is_control
        np.testing.assert_array_equal(held_out, tested)
        assert {p.kind for p in fold.populations} == {"unseen perturbation"}


def test_halves_are_those_of_split_controls(screen):
    source, reference = split_controls(screen.is_control, seed=3)
    for fold in make_folds(screen, Task("unseen", n_folds=2), seed=3):
        for population in fold.populations:
            np.testing.assert_array_equal(population.source, source)
            np.testing.assert_array_equal(population.reference, reference)


def test_named_tokens_are_one_fold(screen):
    (fold,) = make_folds(screen, Task("unseen", holdout=("G00", "G04")))
    assert [p.perturbation for p in fold.populations] == ["G00", "G04"]
    assert "'G00', 'G04'" in fold.description
    assert not any("G00" in screen.tokens[label] for label in set(screen.labels[fold.train]))


# ---------------------------------------------------------------------- combinations


def test_every_combination_is_held_out_once_and_says_how_many_tokens_are_seen(screen):
    folds = make_folds(screen, Task("combination", n_folds=3))
    found = {p.perturbation: p.kind for fold in folds for p in fold.populations}
    assert found == dict.fromkeys(["G00+G01", "G02+G03", "G00+G03"], "2 of 2 tokens seen")
    for fold in folds:
        singles = {label for label in set(screen.labels[fold.train]) if len(screen.tokens[label]) == 1}
        assert singles == set(screen.targets)


def test_a_token_that_occurs_nowhere_else_is_not_seen(adata):
    keep = ~adata.obs["perturbation"].isin(["G00", "G01"]).to_numpy()
    folds = make_folds(Screen.build(adata[keep]), Task("combination", n_folds=3))
    found = {p.perturbation: p.kind for fold in folds for p in fold.populations}
    assert found["G00+G01"] == "1 of 2 tokens seen"  # G00 is in G00+G03 too
    assert found["G02+G03"] == "2 of 2 tokens seen"


@pytest.mark.parametrize("n_seen", [0, 1])
def test_combinations_of_hidden_tokens(screen, n_seen):
    for fold in make_folds(screen, Task("combination", n_folds=2, combo_seen=n_seen), seed=2):
        assert {p.kind for p in fold.populations} == {f"{n_seen} of 2 tokens seen"}
        trained = {token for label in set(screen.labels[fold.train]) for token in screen.tokens[label]}
        for population in fold.populations:
            assert len(trained & set(screen.tokens[population.perturbation])) == n_seen


# ---------------------------------------------------------------------- contexts


def test_every_context_in_turn(context_screen):
    folds = make_folds(context_screen, TASKS["context"])
    assert [fold.contexts for fold in folds] == [("type_0",), ("type_1",)]
    for fold in folds:
        here = context_screen.contexts == fold.contexts[0]
        trained_here = here[fold.train]
        assert set(context_screen.labels[fold.train[trained_here]]) == {"control"}  # half of them
        elsewhere = context_screen.labels[~here]
        assert (fold.train[~trained_here] == np.flatnonzero(~here)).all()  # controls there are not halved
        assert len(fold.populations) == len(set(elsewhere)) - 1
        assert {p.kind for p in fold.populations} == {"seen in other contexts"}
    (one,) = make_folds(context_screen, Task("context", covariate_key="cell_type", holdout=("type_1",)))
    assert set(one.train) == set(folds[1].train)


def test_every_pair_in_turn_or_in_folds(context_screen):
    folds = make_folds(context_screen, TASKS["context-perturbation"])
    assert [len(fold.populations) for fold in folds] == [1] * 18
    assert len({(p.perturbation, p.context) for fold in folds for p in fold.populations}) == 18
    for fold in folds:
        (population,) = fold.populations
        assert population.title == fold.description
        other = {"type_0": "type_1", "type_1": "type_0"}[population.context]
        pairs = set(zip(context_screen.labels[fold.train], context_screen.contexts[fold.train], strict=True))
        assert (population.perturbation, other) in pairs
        assert (population.perturbation, population.context) not in pairs
    few = make_folds(context_screen, TASKS["context-perturbation"], max_pairs=17)
    assert len(few) == 5
    scored = [(p.perturbation, p.context) for fold in few for p in fold.populations]
    assert len(scored) == len(set(scored)) > 9


def test_a_perturbation_of_one_context_is_no_pair(adata):
    alone = (adata.obs["perturbation"] == "G00") & (adata.obs["cell_type"] == "type_1")
    screen = Screen.build(adata[~alone.to_numpy()], covariate_key="cell_type")
    pairs = {p.title for f in make_folds(screen, TASKS["context-perturbation"]) for p in f.populations}
    assert not any(title.startswith("G00 in") for title in pairs)
    kinds = {p.perturbation: p.kind for p in make_folds(screen, TASKS["context"])[0].populations}
    assert kinds["G00"] == "seen in combinations"
    assert kinds["G01"] == "seen in other contexts"


def test_named_pairs_are_folds_of_their_own(context_screen):
    task = Task("context-perturbation", covariate_key="cell_type", holdout=[("G01", "type_0"), ("G03+G02", "type_1")])
    assert [f.populations[0].title for f in make_folds(context_screen, task)] == ["G01 in type_0", "G02+G03 in type_1"]


# ---------------------------------------------------------------------- seen


def test_half_of_every_condition(context_screen):
    (fold,) = make_folds(context_screen, Task("seen"))
    trained = np.isin(np.arange(context_screen.adata.n_obs), fold.train)
    pairs = list(zip(context_screen.labels, context_screen.contexts, strict=True))
    for pair in set(pairs):
        here = np.array([p == pair for p in pairs])
        assert abs(int((here & trained).sum()) - int((here & ~trained).sum())) <= 1
    assert {p.kind for p in fold.populations} == {"seen perturbation"}
    assert len(fold.populations) == 18


def test_a_single_cell_trains(adata):
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    labels[np.flatnonzero(labels == "G00")[1:]] = "G01"
    changed = adata.copy()
    changed.obs["perturbation"] = labels
    screen = Screen.build(changed)
    (fold,) = make_folds(screen, Task("seen"))
    assert "G00" in set(screen.labels[fold.train])
    assert "G00" not in {p.perturbation for p in fold.populations}
    assert fold.n_left_out == 0  # a single cell is not held out


# ---------------------------------------------------------------------- how much is scored


def test_small_populations_are_held_out_but_not_scored(context_screen):
    (fold,) = make_folds(context_screen, Task("unseen", holdout=("G00",)), min_cells=35)
    sizes = {p.context: len(p.observed) for p in fold.populations}
    assert len(sizes) == fold.n_left_out == 1
    assert min(sizes.values()) >= 35
    assert not (context_screen.labels[fold.train] == "G00").any()


def test_the_largest_populations_come_first_where_not_all_are_wanted(context_screen):
    (everything,) = make_folds(context_screen, Task("seen"))
    (fold,) = make_folds(context_screen, Task("seen"), max_populations=4)
    largest = sorted((len(p.observed) for p in everything.populations), reverse=True)[:4]
    assert sorted((len(p.observed) for p in fold.populations), reverse=True) == largest
    assert fold.n_left_out == 14
    np.testing.assert_array_equal(fold.train, everything.train)


def test_sources_are_limited(adata):
    rows = np.repeat(np.flatnonzero(adata.obs["perturbation"].isin(["control", "G00", "G01"])), 8)
    wide = ad.AnnData(
        adata.X[rows], obs=adata.obs.iloc[rows].reset_index(drop=True).set_index(np.arange(len(rows)).astype(str))
    )
    screen = Screen.build(wide)
    fold = make_folds(screen, Task("unseen", n_folds=2))[0]
    assert len(fold.populations[0].source) == MAX_SOURCES
    assert int(screen.is_control[fold.train].sum()) == 1200


# ---------------------------------------------------------------------- what cannot be asked


@pytest.mark.parametrize(
    ("cells", "task", "message"),
    [
        (None, Task("unseen", n_folds=7), "only 6 tokens. Pass n_folds=6"),
        (["control", "G00"], Task("unseen"), "only 1 token. Ask another question: task='seen'"),
        (["control", "G00+G01", "G02+G03"], Task("unseen"), "every perturbed cell of this screen has several tokens"),
        (["control", "G00", "G01"], Task("combination"), "no label of obs\\['perturbation'\\] has more than one"),
        (None, Task("combination"), "only 3 combinations. Pass n_folds=3"),
        (None, Task("unseen", holdout=("G99",)), "holdout names 'G99'"),
        (None, Task("combination", holdout=("G00+G02",)), "holdout names 'G00\\+G02'"),
        (["control", "G00"], Task("unseen", holdout=("G00",)), "leaves no perturbed cell to learn from"),
    ],
)
def test_questions_that_the_data_cannot_answer(adata, cells, task, message):
    keep = slice(None) if cells is None else adata.obs["perturbation"].isin(cells).to_numpy()
    with pytest.raises(ValueError, match=message):
        make_folds(Screen.build(adata[keep]), task)


def test_contexts_that_the_data_do_not_have(adata):
    one = Screen.build(adata[(adata.obs["cell_type"] == "type_0").to_numpy()], covariate_key="cell_type")
    with pytest.raises(ValueError, match="only 'type_0' has perturbed cells"):
        make_folds(one, TASKS["context"])
    with pytest.raises(ValueError, match="every perturbation has one"):
        make_folds(one, TASKS["context-perturbation"])
    bare = (adata.obs["cell_type"] == "type_1") & (adata.obs["perturbation"] == "control")
    with pytest.raises(ValueError, match="'type_1' have no control cells"):
        make_folds(
            Screen.build(adata[~bare.to_numpy()], covariate_key="cell_type"),
            Task("context", covariate_key="cell_type", holdout=("type_1",)),
        )


def test_too_few_cells_are_counted(adata, screen):
    with pytest.raises(ValueError, match="80 held-out cells and 160 control cells .* 70 cells of G0. with 300 control"):
        make_folds(screen, Task("unseen"), min_cells=80)
    few = np.concatenate(
        [np.flatnonzero(adata.obs["perturbation"] == "control")[:19], np.flatnonzero(~screen.is_control)]
    )
    with pytest.raises(ValueError, match="with 19 control cells"):
        make_folds(Screen.build(adata[few]), Task("unseen"))
    with pytest.raises(ValueError, match="at least 4 cells"):
        make_folds(screen, Task("unseen"), min_cells=3)
    with pytest.raises(ValueError, match="controls='shard' is neither"):
        make_folds(screen, Task("unseen"), controls="shard")
    with pytest.raises(ValueError, match="max_populations=0"):
        make_folds(screen, Task("unseen"), max_populations=0)
