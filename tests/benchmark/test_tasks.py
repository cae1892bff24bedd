from __future__ import annotations

import pytest

from scvi_causal.benchmark import Task


def test_names_are_completed_by_options_that_are_given():
    task = Task.parse("context", covariate_key="cell_type", holdout=None, n_folds=None)
    assert task == Task("context", covariate_key="cell_type")
    assert task.n_folds == 5
    assert Task.parse(task, holdout=["B"]).holdout == ("B",)
    assert Task.parse(task) is task


def test_units_are_hashable_and_survive_json():
    assert Task("unseen", holdout="A").holdout == ("A",)
    pairs = Task("context-perturbation", covariate_key="line", holdout=[["A", "K562"]])
    assert pairs.holdout == (("A", "K562"),)
    assert hash(pairs)


@pytest.mark.parametrize("kind", ["seen", "unseen", "combination", "context", "context-perturbation"])
def test_every_kind_has_a_title(kind):
    title = Task(kind, covariate_key="line").title
    assert title
    assert ("line" in title) == kind.startswith("context")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "unsen"}, "Did you mean 'unseen'"),
        ({"kind": "context"}, "needs covariate_key"),
        ({"kind": "unseen", "n_folds": 1}, "at least 2"),
        ({"kind": "unseen", "combo_seen": 1}, "belongs to task='combination'"),
        ({"kind": "combination", "combo_seen": -1}, "number of tokens"),
        ({"kind": "combination", "combo_seen": 1, "holdout": "A+B"}, "exclude each other"),
        ({"kind": "seen", "holdout": "A"}, "takes no holdout"),
        ({"kind": "unseen", "holdout": []}, "names nothing"),
        ({"kind": "context-perturbation", "covariate_key": "line", "holdout": [("A", "B", "C")]}, "no pairs"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Task(**arguments)
