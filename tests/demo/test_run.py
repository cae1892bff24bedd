"""The whole run on stand-in models: what they are shown, what is written, what the table says."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvi_causal._demo import DemoOptions, run_demo
from scvi_causal._demo._models import CEILING, SPLIT_KEY
from scvi_causal.metrics import METRICS


@pytest.fixture
def options(screen, tmp_path):
    def make(adata=screen, **kwargs):
        adata.write_h5ad(tmp_path / "screen.h5ad")
        return DemoOptions(data=tmp_path / "screen.h5ad", out=tmp_path / "out", n_de=8, **kwargs)

    return make


@pytest.fixture
def _no_umap(monkeypatch):
    # its first call compiles for seconds, and has a test of its own
    from scvi_causal._demo import _figures

    def draw_latent(path, *_):
        path.write_bytes(b"png")
        return "UMAP"

    monkeypatch.setattr(_figures, "draw_latent", draw_latent)


@pytest.mark.usefixtures("_no_umap")
def test_context(options, models, tmp_path):
    lines = []
    table = run_demo(options(holdout="line=K562", seed=5, max_epochs=3), lines.append)
    assert list(table.index) == ["SCCVAE", "ControlMean", "PerturbedMean", "Additive", CEILING]
    assert [*METRICS][:10] + ["seconds"] == list(table.columns)
    assert table.loc["SCCVAE", "mse_ratio"] < 0.4 < 0.9 < table.loc["ControlMean", "mse_ratio"]
    assert table.loc["SCCVAE", "pearson_effect"] == pytest.approx(table.loc["Additive", "pearson_effect"])
    assert table.loc["SCCVAE", "pearson_effect"] > 0.95
    assert abs(table.loc["ControlMean", "pearson_effect"]) < 0.3
    assert table.loc[CEILING, "pearson_effect"] > 0.95

    setup = models["SCCVAE"].setup  # the held-out context is a covariate without being named as one
    assert setup["categorical_covariate_keys"] == ["line"]
    assert setup["control_category"] == ["control"]
    text = "\n".join(lines)
    assert "NearestPerturbation (need several training perturbations and --features-key)" in text
    assert "90 cells, never trained on" in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    expected = {"report.html", "results.h5ad", "table.csv", "table_per_population.csv"}
    assert written == expected | {"umap.png", "effects.png", "genes.png"}


@pytest.mark.usefixtures("_no_umap", "models")
def test_results_can_be_read_and_hold_what_was_promised(options, tmp_path):
    run_demo(options(holdout="B", covariate_keys=("line",)))
    results = ad.read_h5ad(tmp_path / "out" / "results.h5ad")
    assert results.obsm["X_sccvae"].shape == (300, 5)
    assert results.layers["counterfactual"].shape == results.layers["log1p"].shape == results.shape
    held_out = (results.obs["perturbation"] == "B").to_numpy()
    assert set(results.obs[SPLIT_KEY][held_out]) == {"test"}
    per_population = pd.read_csv(tmp_path / "out" / "table_per_population.csv")
    assert set(per_population["context"]) == {"K562", "RPE1"}
    table = pd.read_csv(tmp_path / "out" / "table.csv", index_col="model")
    for name, rows in per_population.groupby("model"):
        assert table.loc[name, "r2_de"] == pytest.approx(rows["r2_de"].mean())


@pytest.mark.usefixtures("_no_umap")
def test_models_that_cannot_are_left_out_with_their_reason(options, models):
    models["PerturbedMean"].refuses = ("B",)

    def fail(*_, **__):
        raise ValueError("no such luck")

    models["SCCVAE"].train = fail
    lines = []
    table = run_demo(options(holdout="B"), lines.append)
    assert list(table.index) == ["ControlMean", "Additive", CEILING]
    text = "\n".join(lines)
    assert "PerturbedMean (B: never heard of it)" in text
    assert "SCCVAE (no such luck)" in text
    assert "Layer and figures are those of Additive" in text
    for model in models.values():
        model.refuses = ("B",)
    with pytest.raises(ValueError, match="No model can answer this question.*never heard of it"):
        run_demo(options(holdout="B"))


@pytest.mark.usefixtures("_no_umap")
def test_one_training_perturbation_and_other_names(options, models, screen):
    screen = screen[screen.obs["perturbation"].isin(["control", "A"])].copy()
    lines = []
    table = run_demo(options(screen, holdout="line=RPE1"), lines.append)
    assert "PerturbedMean" not in table.index
    assert "same as Additive" in "\n".join(lines)


@pytest.mark.usefixtures("_no_umap")
def test_data_without_counts_are_scored_as_they_are(options, models, screen, tmp_path):
    screen.X = np.log2(screen.X.toarray() + 0.5)
    for model in models.values():
        model._x = lambda self: np.asarray(self.adata.X)
        model.predict_counterfactual = _dense_prediction
    table = run_demo(options(screen, holdout="line=K562"))
    assert models["SCCVAE"].output == "normalized"
    assert table.loc["SCCVAE", "mse_ratio"] < 0.4
    assert "log1p" not in ad.read_h5ad(tmp_path / "out" / "results.h5ad").layers


def _dense_prediction(self, perturbation=None, indices=None, output=None, key_added=None, **_):
    type(self).output = output
    cells = slice(None) if indices is None else indices
    x = self._x()[cells] + self.effect
    if key_added is None:
        return ad.AnnData(x)
    self.adata.layers[key_added] = x
    return None


@pytest.mark.usefixtures("models")
def test_wrong_questions_write_nothing(options, tmp_path):
    for kwargs, message in [
        ({"holdout": "D"}, "no perturbation"),
        ({"holdout": "B", "control": ("ctrl",)}, "No cell has the control label ctrl.*control"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_demo(options(**kwargs))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_no_umap", "models")
def test_the_global_seed_is_left_as_it_was(options):
    import scvi

    before = scvi.settings.seed
    scvi.settings.seed = 11
    try:
        run_demo(options(holdout="B", seed=3))
        assert scvi.settings.seed == 11
    finally:
        if before is not None:
            scvi.settings.seed = before


@pytest.mark.usefixtures("_no_umap", "models")
def test_noise_is_named(options, screen):
    rng = np.random.default_rng(1)
    screen.obs["perturbation"] = rng.permutation(screen.obs["perturbation"].to_numpy())  # labels that mean nothing
    lines = []
    table = run_demo(options(screen, holdout="B"), lines.append)
    assert table.loc[CEILING, "pearson_effect"] < 0.5
    assert "noise ceiling of the effects is low" in "\n".join(lines)
