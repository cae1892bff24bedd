"""What is held out, predicted from, and measured against."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_causal._demo import _holdout
from scvi_causal._demo._holdout import plan_holdout


@pytest.fixture
def screen():
    """40 controls and 30 cells of each of A, B, A+B in each of two lines."""
    labels = np.tile(np.repeat(["control", "A", "B", "A+B"], [40, 30, 30, 30]), 2)
    obs = pd.DataFrame({"line": np.repeat(["K562", "RPE1"], 130), "day": 1, "guide": labels})
    return labels, obs


def plan(screen, holdout, keys=("line",), **kwargs):
    labels, obs = screen
    return plan_holdout(holdout, labels, "control", obs, keys, perturbation_key="guide", **kwargs)


def test_context(screen):
    labels, obs = screen
    p = plan(screen, "line=K562")
    inside = (obs["line"] == "K562").to_numpy()
    np.testing.assert_array_equal(p.held_out, inside & (labels != "control"))
    assert [(t.perturbation, t.context) for t in p.tasks] == [("A", "K562"), ("A+B", "K562"), ("B", "K562")]
    assert p.tasks[0].title == "A in K562"
    # the controls of the other line are all for training: nothing is measured there
    assert (p.split[~inside] != "test").all()


def test_perturbation_in_every_context(screen):
    labels, _ = screen
    p = plan(screen, "A+B")
    np.testing.assert_array_equal(p.held_out, labels == "A+B")
    assert {t.context for t in p.tasks} == {"K562", "RPE1"}
    (task,) = plan(screen, "A+B", keys=()).tasks
    assert (task.title, task.observed.size, task.source.size, task.reference.size) == ("A+B", 60, 40, 40)
    assert plan(screen, "guide=A+B").description == p.description


@pytest.mark.parametrize("holdout", ["line=RPE1", "A", "A+B"])
def test_nothing_measured_is_trained_on(screen, holdout):
    labels, obs = screen
    p = plan(screen, holdout, seed=3)
    assert set(p.split[p.held_out]) == {"test"}
    for t in p.tasks:
        assert set(p.split[t.observed]) | set(p.split[t.reference]) == {"test"}
        assert "test" not in set(p.split[t.source])
        assert not set(t.source) & set(t.reference)
        assert set(labels[t.source]) | set(labels[t.reference]) == {"control"}
        assert obs["line"].iloc[np.concatenate([t.observed, t.source, t.reference])].nunique() == 1
    rest = p.split != "test"
    assert (p.split[rest] == "valid").mean() == pytest.approx(0.1, abs=0.02)
    for group in set(zip(labels[rest], obs["line"][rest], strict=True)):
        cells = (labels == group[0]) & (obs["line"] == group[1]).to_numpy() & rest
        assert {"train", "valid"} == set(p.split[cells])


def test_seed_decides(screen):
    np.testing.assert_array_equal(plan(screen, "A", seed=1).split, plan(screen, "A", seed=1).split)
    assert (plan(screen, "A", seed=1).split != plan(screen, "A", seed=2).split).any()


def test_a_name_with_an_equals_sign_is_a_perturbation_first():
    labels = np.repeat(["control", "dose=1", "B"], 30)
    p = plan_holdout("dose=1", labels, "control", pd.DataFrame({"x": np.zeros(90)}), ())
    assert p.held_out.sum() == 30


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (None, "is needed.*A, A[+]B, B|is needed"),
        ("a+b", "no perturbation, and not of the form COLUMN=VALUE"),
        ("A+C", r"Similar perturbations: A\+B"),
        ("control", "control cells cannot be held out"),
        ("guide=control", "control cells cannot be held out"),
        ("lines=K562", "no obs column 'lines'. Similar columns: line"),
        ("line=K526", "no cell has line = 'K526'. Similar values: K562"),
        ("line=", "Its values: K562, RPE1"),
        ("day=1", "leaves no perturbed cell to learn from"),
    ],
)
def test_questions_that_do_not_fit_say_what_would(screen, holdout, message):
    with pytest.raises(ValueError, match=message):
        plan(screen, holdout)


def test_too_few_cells_are_counted():
    labels = np.repeat(["control", "A", "B"], [15, 9, 30])
    with pytest.raises(ValueError, match="Found: 9 held-out and 15 control cells"):
        plan_holdout("A", labels, "control", pd.DataFrame(index=range(54)), ())
    with pytest.raises(ValueError, match="there is nothing to hold out"):
        plan_holdout("A", labels[:15], "control", pd.DataFrame(index=range(15)), ())


def test_many_populations_are_cut_to_the_largest(screen, monkeypatch):
    monkeypatch.setattr(_holdout, "MAX_TASKS", 2)
    p = plan(screen, "line=K562")
    assert (len(p.tasks), p.left_out) == (2, 1)


def test_sources_are_capped_but_still_trained_on(screen, monkeypatch):
    monkeypatch.setattr(_holdout, "MAX_SOURCES", 12)
    p = plan(screen, "A", keys=())
    (task,) = p.tasks
    assert (task.source.size, task.reference.size) == (12, 40)
    assert ((p.split != "test") & (screen[0] == "control")).sum() == 40
