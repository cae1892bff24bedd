from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_causal.model.base._request import check_rows, resolve_seed
from scvi_causal.model.base._targets import (
    dosage_per_row,
    dosage_per_target,
    dosage_text,
    encode_targets,
    label_per_row,
    read_mode,
)


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (None, "own label"),
        ("A", "one target"),
        (["A"], "several targets"),
        (("A", "B"), "several targets"),
        (np.array(["A"]), "target per cell"),
        (pd.Series(["A"]), "target per cell"),
        (pd.Categorical(["A"]), "target per cell"),
        (pd.Index(["A"]), "target per cell"),
    ],
    ids=["none", "string", "list", "tuple", "array", "series", "categorical", "index"],
)
def test_the_type_tells_the_question(given, mode):
    assert read_mode(given) == mode


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="dict"):
        read_mode({"A": 1})


def test_targets_and_reference_share_their_tokens():
    targets, reference = encode_targets(["B+A", "control"], ["2+0.5", 0], ["C", "C"], None, "+", ("control",))
    assert targets.tokens == reference.tokens == ("A", "B", "C")
    np.testing.assert_allclose(targets.dosage.toarray(), [[0.5, 2, 0], [0, 0, 0]])
    np.testing.assert_allclose(reference.dosage.toarray(), [[0, 0, 1], [0, 0, 1]])
    assert targets.labels.tolist() == ["A+B", "control"]
    assert dosage_text(targets.dosage, "+").tolist() == ["0.5+2", "0"]


def test_labels_and_dosages_per_row():
    assert label_per_row("A", 2).tolist() == ["A", "A"]
    assert label_per_row(np.array(["A", "B"]), 2).tolist() == ["A", "B"]
    with pytest.raises(ValueError, match="list"):
        label_per_row(np.array(["A", "B"]), 3)
    assert dosage_per_row(0.5, 2) == 0.5
    assert dosage_per_row("1+2", 2) == "1+2"
    with pytest.raises(ValueError, match="dosage"):
        dosage_per_row([1, 2], 3)
    assert dosage_per_target([None, "1+2"], ["A", "A+B"]).tolist() == [1.0, "1+2"]
    assert dosage_per_target(None, ["A"]) is None
    with pytest.raises(ValueError, match="2 values for the 1 targets"):
        dosage_per_target([1, 2], ["A"])


def test_rows_from_positions_and_masks():
    assert check_rows([2, 0], 3).tolist() == [2, 0]
    assert check_rows(np.array([True, False, True]), 3).tolist() == [0, 2]
    for bad in ([], [3], [-1], [True, False], ["a"], [np.nan]):
        with pytest.raises(ValueError, match="indices"):
            check_rows(bad, 3)


def test_seed_of_the_call_then_of_scvi_then_zero():
    import scvi

    scvi.settings._seed = None
    assert resolve_seed(None) == 0
    scvi.settings._seed = 4
    assert resolve_seed(None) == 4
    assert resolve_seed(9) == 9
