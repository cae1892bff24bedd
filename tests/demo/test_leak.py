"""What is held out cannot reach a prediction: with other held-out cells, every model predicts the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import scvi_causal
from scvi_causal._demo import DemoOptions, _models, _run


@pytest.mark.parametrize("holdout", ["line=K562", "B"])
@pytest.mark.parametrize("name", ["SCCVAE", "PerturbedMean", "Additive"])
def test_predictions_do_not_depend_on_test_cells(screen, monkeypatch, name, holdout):
    import scvi

    options = DemoOptions(holdout=holdout, covariate_keys=("line",))
    screen.var_names = [*"ABC", *screen.var_names[3:]]  # perturbed genes are measured: SCCVAE has features for them
    predictions = []
    for scrambled in (False, True):
        adata = screen.copy()
        monkeypatch.setattr(_run, "load", lambda options, adata=adata: (adata, options, "screen"))
        ready, _ = _run.prepare(options)
        if scrambled:
            test = np.flatnonzero(ready.plan.split == "test")
            assert test.size > 30
            x = adata.X.toarray()
            x[test] = np.random.default_rng(1).poisson(30.0, (test.size, adata.n_vars))
            adata.X = csr_matrix(x)
        scvi.settings.seed = 0
        run = _models.run_model(
            name,
            getattr(scvi_causal, name),
            adata,
            ready.plan.tasks,
            {"layer": None, "categorical_covariate_keys": ["line"]},
            output="log1p",
            train={"max_epochs": 2, "progress_bar_refresh_rate": 0} if name == "SCCVAE" else {},
            score=lambda task, predicted: {},
        )
        assert not run.left_out
        predictions.append(np.asarray(run.predicted))
    np.testing.assert_array_equal(*predictions)
