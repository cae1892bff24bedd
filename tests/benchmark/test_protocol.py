from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_causal import metrics, model
from scvi_causal.benchmark import ModelPredictor, ModelSpec, PredictionError, Predictor, Task
from scvi_causal.benchmark._folds import make_folds
from scvi_causal.benchmark._job import Job, Scoring, run_job
from scvi_causal.benchmark._protocol import check_prediction, to_scored_scale
from scvi_causal.benchmark._screen import Screen

from .predictors import MeanShift, as_prediction

pytestmark = pytest.mark.usefixtures("quick_garbage")

ROWS = np.arange(4)


@pytest.fixture
def counts(adata):
    """Four control cells as a prediction of counts."""
    rows = np.flatnonzero(adata.obs["perturbation"] == "control")[:4]
    obs = pd.DataFrame({"perturbation": ["G01"] * 2 + ["G03+G00"] * 2}, index=list("abcd"))
    return ad.AnnData(csr_matrix(adata.X[rows]), obs=obs, var=adata.var[[]]), rows


def test_both_kinds_follow_the_protocol():
    assert isinstance(MeanShift(), Predictor)
    assert isinstance(ModelPredictor(model.Additive), Predictor)
    assert not isinstance({}, Predictor)


def test_targets_are_found_by_their_canonical_labels(screen, counts):
    found = check_prediction(counts[0], ["G00+G03", "G01", "G05"], screen)
    assert {target: rows.tolist() for target, rows in found.items()} == {"G00+G03": [2, 3], "G01": [0, 1]}


@pytest.mark.parametrize("rows", [ROWS, ROWS[[0, 2]]])
def test_counts_are_normalised_on_the_library_of_their_source(adata, screen, counts, rows):
    predicted, sources = counts
    predicted.obs["source_cell"] = adata.obs_names[sources].to_numpy()
    x = to_scored_scale(predicted, rows, "counts", screen)
    np.testing.assert_allclose(x.toarray(), screen.x[sources[rows]].toarray(), rtol=1e-6)
    del predicted.obs["source_cell"]
    predicted.obs["library"] = adata.obs["library"].to_numpy()[sources]
    np.testing.assert_allclose(to_scored_scale(predicted, rows, "counts", screen).toarray(), x.toarray())


def test_counts_of_a_whole_transcriptome_are_their_own_library(adata, counts):
    predicted, sources = counts
    screen = Screen.build(adata)
    x = to_scored_scale(predicted, ROWS, "counts", screen)
    np.testing.assert_allclose(x.toarray(), screen.x[sources].toarray(), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "scale", "kind"),
    [
        (lambda p: None, "counts", "library"),
        (lambda p: p.obs.insert(0, "source_cell", list("abcd")), "counts", "library"),
        (lambda p: p.obs.insert(0, "library", 0.0), "counts", "library"),
        (lambda p: p.X.data.__imul__(-1), "counts", "scale"),
        (lambda p: None, "log2", "scale"),
        (lambda p: p.X.data.__imul__(100), "log1p", "scale"),
        (lambda p: p.X.data.__setitem__(0, np.inf), "log1p", "NaN"),
    ],
    ids=["no library", "unknown source", "empty library", "negative", "other scale", "counts as logs", "infinite"],
)
def test_what_cannot_be_on_the_scale_is_refused(screen, counts, change, scale, kind):
    change(counts[0])
    with pytest.raises(PredictionError) as error:
        to_scored_scale(counts[0], ROWS, scale, screen)
    assert error.value.kind == kind


def test_numbers_have_to_be_numbers(screen, counts):
    words = ad.AnnData(obs=counts[0].obs, var=counts[0].var, layers={"x": counts[0].X})
    with pytest.raises(PredictionError, match="without predicted cells in X"):
        check_prediction(words, ["G01"], screen)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_doubled_genes_and_missing_labels(screen, counts):
    doubled = ad.concat([counts[0], counts[0][:, :1]], axis=1, merge="same")
    with pytest.raises(PredictionError, match="some are doubled") as error:
        check_prediction(doubled, ["G01"], screen)
    assert error.value.kind == "shape"
    counts[0].obs["perturbation"] = ["G01", None, "G01", "G01"]
    with pytest.raises(PredictionError, match=r"obs\['perturbation'\] of the prediction: No perturbation is named"):
        check_prediction(counts[0], ["G01"], screen)


class Unchanged:
    """The control cells as they came."""

    def __init__(self, scale="log1p"):
        self.scale = scale

    def fit(self, adata):
        pass

    def predict(self, adata, targets):
        return as_prediction(dict.fromkeys(targets, adata.X), adata)


class InCounts(MeanShift):
    """Integer counts on the library of the source cell."""

    scale = "counts"

    def predict(self, adata, targets):
        x = np.expm1(metrics.log1p_normalize(adata.X, adata.obs["library"]).toarray() + self.shift).clip(0)
        counts = np.rint(x * adata.obs["library"].to_numpy()[:, None] / 1e4)
        obs = pd.DataFrame(
            {"perturbation": np.repeat(targets, len(x)), "source_cell": np.tile(adata.obs_names, len(targets))}
        )
        obs.index = obs.index.astype(str)
        return ad.AnnData(csr_matrix(np.tile(counts, (len(targets), 1))), obs=obs, var=adata.var[[]])


def test_a_model_of_counts_is_scored_as_one_of_logs(screen):
    fold = make_folds(screen, Task("unseen", n_folds=3))[0]
    scoring = Scoring(n_bootstrap=0, n_permutations=0)
    rows = [run_job(screen, Job("m", ModelSpec(f), fold, scoring)).rows for f in (MeanShift, InCounts)]
    # the log of a cell that was moved is cut off at 0, and counts are whole
    np.testing.assert_allclose(rows[0]["r2"], rows[1]["r2"], atol=0.03)
    assert (rows[1]["status"] == "ok").all()


def test_data_that_are_no_counts_are_scored_as_they_are(adata):
    changed = adata.copy()
    changed.X = metrics.log1p_normalize(adata.X, adata.obs["library"]).toarray() - 1
    screen = Screen.build(changed)
    fold = make_folds(screen, Task("unseen", n_folds=3))[0]
    result = run_job(screen, Job("m", ModelSpec("ControlMean"), fold))
    assert result.status == "ok"
    np.testing.assert_allclose(result.effects.to_numpy(), 0, atol=1e-5)
    refused = run_job(screen, Job("m", ModelSpec(Unchanged, {"scale": "counts"}), fold))
    assert "the data are no counts" in refused.error
    np.testing.assert_allclose(run_job(screen, Job("m", ModelSpec(Unchanged), fold)).effects.to_numpy(), 0, atol=1e-6)


def test_announced_names_make_absent_tokens_predictable(adata):
    labels = adata.obs["perturbation"].astype(str).replace({"G05": "a drug"})
    changed = adata.copy()
    changed.obs["perturbation"] = labels
    screen = Screen.build(changed)
    fold = make_folds(screen, Task("unseen", holdout=("a drug",)))[0]
    assert run_job(screen, Job("m", ModelSpec("PerturbedMean"), fold)).status == "ok"
