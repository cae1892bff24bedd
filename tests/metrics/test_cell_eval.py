"""The wrapper of cell-eval2: its own numbers, every count model of ours in one call, and what it refuses."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi

import scvi_causal
from scvi_causal.metrics import cell_eval

pytest.importorskip("cell_eval2", reason="the scorer of others is an extra: pip install 'scvi-causal[cell-eval]'")

# scanpy, on which cell-eval2 normalises, about predicted cells without a count: two epochs make a poor model
pytestmark = pytest.mark.filterwarnings("ignore:Some cells have zero counts:UserWarning")

N_GENES, TARGETS = 50, ["g1", "g2", "g3", "g4", "g5", "g6"]


def draw(seed: int, strength: float = 1.0) -> ad.AnnData:
    """Overdispersed counts of a screen of knock-downs with strong effects; each seed is a replicate of the experiment."""
    level = np.random.default_rng(0).gamma(1.5, 2.0, N_GENES) + 0.5
    rng, cells, labels = np.random.default_rng(seed), [], []
    for target in ["control", *TARGETS]:
        mean, n_cells = level.copy(), 40
        if target == "control":
            n_cells = 90
        else:
            number = int(target[1:])
            mean *= np.exp(strength * np.random.default_rng(number).normal(0, 0.7, N_GENES))
            mean[number] *= 0.3
        cells.append(rng.poisson(mean * rng.gamma(6, 1 / 6, (n_cells, 1))))
        labels += [target] * n_cells
    obs = pd.DataFrame({"perturbation": labels}, index=[f"cell_{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(np.vstack(cells).astype(np.float32)), obs, var)


@pytest.fixture(scope="module")
def observed():
    return draw(1)


@pytest.mark.slow
def test_values_are_those_of_cell_eval2_and_scores_lie_between_its_anchors(observed):
    from dataclasses import replace

    import cell_eval2

    replicate, before = draw(2), observed.copy()
    table = cell_eval(replicate[replicate.obs["perturbation"] != "control"], observed)
    renamed = [x.copy() for x in (replicate, observed)]
    for x in renamed:
        x.obs["target"] = x.obs["perturbation"].astype(str).replace("control", "non-targeting")
    # the controls among predicted cells do not matter, so those of the replicate may stand there
    config = replace(cell_eval2.EvalConfig.from_preset("vcc2026"), num_threads=1)
    expected = cell_eval2.aggregate_metrics(cell_eval2.compute_metrics(*renamed, config=config))
    expected = dict(zip(expected["metric"], expected["mean"], strict=True))
    assert table["value"].to_dict() == pytest.approx(expected)

    assert table.loc["pds_cosine", "baseline"] == pytest.approx(0.5, abs=0.2)
    scored = table["score"].dropna()
    assert len(scored) == 6
    expected = (table["value"] - table["baseline"]) / (table["replicate"] - table["baseline"])
    assert scored.to_dict() == pytest.approx(expected[scored.index].to_dict())
    # a whole replicate is at least as good as half of one
    assert (scored > 0.9).all()
    assert table.attrs["library"].startswith("cell-eval2 0.")
    assert {k: table.attrs[k] for k in ("n_predicted", "n_observed", "n_controls", "n_perturbations", "n_genes")} == {
        "n_predicted": 240,
        "n_observed": 240,
        "n_controls": 90,
        "n_perturbations": 6,
        "n_genes": N_GENES,
    }
    # what was given is as it was
    assert (observed.X != before.X).nnz == 0
    assert observed.obs.equals(before.obs)


TINY = {"n_latent": 4, "n_hidden": 8, "n_programmes": 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "train"),
    [
        ("ControlMean", {}, {}),
        ("PerturbedMean", {}, {}),
        ("Additive", {}, {}),
        ("LinearEffect", {"form": "ridge"}, {}),
        ("LinearEffect", {"form": "bilinear", "n_factors": 2}, {}),
        ("NearestPerturbation", {"n_neighbors": 2}, {}),
        ("SCCVAE", TINY, {"max_epochs": 2}),
        ("SCCVAE", {"preset": "paper", "n_latent": 4, "n_hidden": 8}, {"max_epochs": 2}),
    ],
    ids=["control", "perturbed-mean", "additive", "ridge", "bilinear", "nearest", "sccvae", "sccvae-paper"],
)
def test_every_count_model_is_scored_in_one_call(observed, name, options, train):
    adata = observed.copy()
    features = np.random.default_rng(0).normal(size=(len(TARGETS), 3))
    adata.uns["features"] = pd.DataFrame(features, TARGETS)
    model_class = getattr(scvi_causal, name)
    model_class.setup_anndata(adata, perturbation_features_key="features")
    scvi.settings.seed = 0
    model = model_class(adata, **options)
    model.train(**({"accelerator": "cpu", "enable_progress_bar": False, **train} if train else {}))
    controls = np.flatnonzero(adata.obs["perturbation"] == "control")[:40]
    predicted = model.predict_counterfactual(TARGETS, indices=controls, output="counts", sample=True, seed=0)
    table = cell_eval(predicted, observed, anchors=False)
    assert len(table) == 10
    assert np.isfinite(table["value"]).all()
    assert table[["baseline", "replicate", "score"]].isna().all(axis=None)
    if name == "Additive":  # every target was seen
        assert table.loc["pds_cosine", "value"] > 0.8
    if name == "ControlMean":
        assert table.loc["de_wilcoxon_sig_jaccard", "value"] < 0.1


@pytest.mark.slow
def test_labels_that_are_no_genes_need_no_targets(observed):
    """Drugs and combinations: nothing is left out, unless the gene of a label is named."""
    renamed, replicate = observed.copy(), draw(2)
    for x in (renamed, replicate):
        x.obs["perturbation"] = [label.replace("g", "drug ") for label in x.obs["perturbation"]]
    plain = cell_eval(replicate, renamed, anchors=False)["value"]
    named = cell_eval(replicate, renamed, anchors=False, target_genes={f"drug {i}": f"g{i}" for i in range(1, 7)})[
        "value"
    ]
    genes = cell_eval(draw(2), observed, anchors=False)["value"]
    assert named.to_dict() == pytest.approx(genes.to_dict())
    assert plain["expr_mse_unbiased"] != pytest.approx(genes["expr_mse_unbiased"])


@pytest.mark.slow
def test_an_anchor_that_cannot_be_computed_costs_no_values():
    weak = [draw(seed, strength=0.0) for seed in (1, 2)]
    for x in weak:  # knock-downs out of the panel too: no gene responds
        x.obs["perturbation"] = [label if label == "control" else f"drug {label[1]}" for label in x.obs["perturbation"]]
        x._inplace_subset_var(np.array([g not in TARGETS for g in x.var_names]))
    with pytest.warns(UserWarning, match="cannot compute its replicate"):
        table = cell_eval(*weak)
    assert table["replicate"].isna().all()
    assert table["score"].isna().all()
    assert table["value"].notna().any()


def test_what_does_not_fit_is_refused(observed):
    predicted = observed[observed.obs["perturbation"] != "control"].copy()
    with pytest.raises(ValueError, match=r"predicted.obs has no column 'pertubation'. Did you mean 'perturbation'\?"):
        cell_eval(predicted, observed, perturbation_key="pertubation")
    with pytest.raises(ValueError, match="no cell labelled 'ctrl'"):
        cell_eval(predicted, observed, control_category="ctrl")
    with pytest.raises(ValueError, match=r"49 genes.*50 genes.*same genes in the same order"):
        cell_eval(predicted[:, 1:], observed)
    with pytest.raises(ValueError, match="same order"):
        cell_eval(predicted[:, ::-1], observed)
    fractions = predicted.copy()
    fractions.X = fractions.X * 0.5
    with pytest.raises(ValueError, match=r'predicted: [\d,]+ of [\d,]+ values .*output="counts", sample=True'):
        cell_eval(fractions, observed)
    logs = observed.copy()
    logs.X = np.log1p(logs.X)
    with pytest.raises(ValueError, match="observed: .*layer="):
        cell_eval(predicted, logs)
    unknown = predicted.copy()
    unknown.obs["perturbation"] = unknown.obs["perturbation"].astype(str).replace("g1", "G 1")
    with pytest.raises(
        ValueError, match=r"1 predicted perturbation of 6 has no observed cells .*'G 1'. Did you mean 'g1'"
    ):
        cell_eval(unknown, observed)
    with pytest.raises(ValueError, match="nothing to score: the predicted labels are 'control'"):
        cell_eval(observed[observed.obs["perturbation"] == "control"], observed)
    both = observed.copy()
    both.obs["perturbation"] = both.obs["perturbation"].astype(str).replace("g6", "non-targeting")
    with pytest.raises(ValueError, match="cell-eval2's name for controls"):
        cell_eval(predicted, both)


def test_the_missing_extra_is_named(observed, monkeypatch):
    monkeypatch.setitem(sys.modules, "cell_eval2", None)
    with pytest.raises(ImportError, match=r'pip install "scvi-causal\[cell-eval\]"'):
        cell_eval(observed, observed)
