"""What every model accepts, and what every model refuses with a reason."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_array


def snapshot(adata):
    return (
        sorted(adata.obs.columns),
        sorted(adata.obsm),
        sorted(adata.uns),
        sorted(k for k in adata.layers if k is not None),
        adata.obs["perturbation"].astype(str).tolist(),
    )


# scvi-tools advises CSR; ours is turned into CSR once, when it is read
@pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix is formatted as CSR")
@pytest.mark.parametrize("kind", ["dense", "csc", "backed"])
def test_storage_does_not_matter(case, saved, screen, kind, tmp_path):
    if kind == "dense":
        screen.X = screen.X.toarray()
    elif kind == "csc":
        screen.X = csc_matrix(screen.X)
    else:
        screen.write_h5ad(tmp_path / "screen.h5ad")
        screen = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    model = case.fit(screen)
    answer = model.predict_counterfactual(key_added=None)
    np.testing.assert_allclose(answer.X, saved[1], rtol=1e-4 if case.exact else 0.05, atol=1e-3)


def test_new_sparse_arrays_work_or_are_refused_with_the_way_out(case, screen):
    screen.X = csr_array(screen.X)
    try:
        model = case.fit(screen)
    except ValueError as error:
        assert "csr_matrix" in str(error)  # noqa: PT017
    else:
        assert model.is_trained


def test_layer_is_used(case, saved, screen):
    screen.layers["counts"] = screen.X.copy()
    screen.X = screen.X[::-1]
    model = case.fit(screen, layer="counts")
    model.predict_counterfactual()
    np.testing.assert_allclose(screen.layers["counterfactual"], saved[1], rtol=1e-4, atol=1e-3)


def test_spelling_of_labels_does_not_matter(case, saved, screen):
    labels = screen.obs["perturbation"].astype(str).replace({"G1+G2": "G2+ G1", "G1": "control+G1", "G2": " G2"})
    screen.obs["perturbation"] = pd.Categorical(labels, categories=[*sorted(set(labels)), "never used"])
    model = case.fit(screen)
    assert "never used" not in model.seen_tokens_
    assert set(model.seen_conditions_) == {"control", "G1", "G2", "HLA.A", "TP/53", "drug x", "G1+G2"}
    model.predict_counterfactual()
    np.testing.assert_allclose(screen.layers["counterfactual"], saved[1], rtol=1e-4, atol=1e-3)


def test_several_control_labels(case, screen):
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    half = np.flatnonzero(labels == "control")[::2]
    labels[half] = "NT"
    screen.obs["perturbation"] = labels
    model = case.fit(screen, control_category=["control", "NT"])
    assert "NT" not in model.seen_tokens_
    model.predict_counterfactual("NT", key_added="a")
    model.predict_counterfactual("control", key_added="b")
    np.testing.assert_array_equal(screen.layers["a"], screen.layers["b"])


def _drop_column(adata):
    adata.obs["guide"] = adata.obs.pop("perturbation")
    adata.obs["perturbation_"] = adata.obs["guide"]
    return "perturbation_"


def _rename_control(adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace({"control": "ctrl"})
    return "ctrl"


def _nan_labels(adata):
    labels = adata.obs["perturbation"].astype(object).to_numpy()
    labels[:3] = np.nan
    adata.obs["perturbation"] = labels
    return "3 cells"


def _empty_labels(adata):
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    labels[:2] = ""
    adata.obs["perturbation"] = labels
    return "2 cells"


def _infinite(adata):
    adata.X[3, 2] = np.inf
    return "cell3"


def _twice_a_gene(adata):
    adata.var_names = ["G1", *adata.var_names[:-1]]
    return "G1"


def _no_grn_overlap(adata):
    adata.uns["grn"] = pd.DataFrame({"source": ["X1"], "target": ["X2"], "weight": [1.0]})
    return "X1|grn|edge"


@pytest.mark.parametrize(
    "break_it",
    [_drop_column, _rename_control, _nan_labels, _empty_labels, _infinite, _twice_a_gene, _no_grn_overlap],
    ids=lambda f: f.__name__.strip("_"),
)
def test_bad_input_is_named_and_leaves_the_data_alone(case, screen, break_it):
    expected = break_it(screen)
    if break_it is _drop_column:
        screen.obs["label"] = screen.obs["perturbation_"]
        before = sorted(screen.obs.columns), sorted(screen.obsm), sorted(screen.uns)
        with pytest.raises(ValueError, match=expected):
            case.set_up(screen)
        assert (sorted(screen.obs.columns), sorted(screen.obsm), sorted(screen.uns)) == before
        return
    before = snapshot(screen)
    with pytest.raises(ValueError, match=expected):
        case.set_up(screen)
    assert snapshot(screen) == before


def test_features_that_lack_tokens_are_refused(case, screen):
    if case.model_class.allow_missing_features:
        pytest.skip("the model has another code for tokens without features")
    screen.uns["features"] = screen.uns["features"].drop(index=["G2", "drug x"])
    with pytest.raises(ValueError, match="'G2', 'drug x'"):
        case.set_up(screen)


def test_split_without_training_control_is_refused(case, screen):
    screen.obs.loc[screen.obs["perturbation"] == "control", "split"] = "test"
    with pytest.raises(ValueError, match="control"):
        case.fit(screen)


def test_dosages_follow_their_tokens(case, screen):
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    screen.obs["dose"] = ["1" if "+" not in label else "+".join(str(1 + i) for i in range(2)) for label in labels]
    model = case.fit(screen, dosage_key="dose")
    one = model.predict_counterfactual(["G1+G2"], dosage="1+2", indices=[0, 9])
    other = model.predict_counterfactual(["G2+G1"], dosage="2+1", indices=[0, 9])
    np.testing.assert_array_equal(one.X, other.X)
    assert one.obs["dose"].tolist() == ["1+2", "1+2"]
    assert one.obs["perturbation"].tolist() == ["G1+G2", "G1+G2"]


def test_tokens_without_cells_are_known_when_they_are_announced(case, saved, screen):
    """Where the cells of a target are absent, the model can predict what it could with them there but not trained on."""
    split = screen.obs["split"].to_numpy()
    with_cells = case.fit(screen.copy())
    screen = screen[split != "test"].copy()
    without = case.fit(screen, extra_tokens=["G3", "G1", "HLA.A"])  # the latter two have cells all the same
    unannounced = case.fit(screen.copy())
    targets = ["G3", "G1+HLA.A", "gene.0"]
    expected = with_cells.can_predict(targets)
    found = without.can_predict(targets)
    np.testing.assert_array_equal(found["predictable"], expected["predictable"])
    assert found["reason"].tolist() == expected["reason"].tolist()
    assert "G3" not in without.seen_tokens_
    assert unannounced.can_predict("G1")["predictable"].item()
    if case.exact:
        asked = {"perturbation": [t for t, ok in expected["predictable"].items() if ok], "output": "log1p"}
        rows = np.flatnonzero(screen.obs["perturbation"] == "control")[:20]
        names = screen.obs_names[rows]
        whole = with_cells.predict_counterfactual(indices=with_cells.adata.obs_names.get_indexer(names), **asked)
        np.testing.assert_allclose(without.predict_counterfactual(indices=rows, **asked).X, whole.X, atol=1e-5)


def test_announced_tokens_survive_saving(case, screen, tmp_path):
    model = case.fit(screen, extra_tokens=["never seen"])
    model.save(str(tmp_path / "model"))
    loaded = case.model_class.load(str(tmp_path / "model"), adata=screen, accelerator="cpu")
    assert loaded._extra_tokens() == ("never seen",)
    names = ["never seen", "never heard of"]
    assert "unknown token" in loaded.can_predict(names)["reason"].iloc[1]
    assert "unknown token" not in loaded.can_predict(names)["reason"].iloc[0]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [("G3", r"pass a list, \['G3'\]"), (["G1+G3"], "no single tokens: 'G1\\+G3'"), (["control"], "no control")],
)
def test_announced_tokens_are_single_tokens(case, screen, tokens, message):
    before = snapshot(screen)
    with pytest.raises(ValueError, match=message):
        case.set_up(screen, extra_tokens=tokens)
    assert snapshot(screen) == before
