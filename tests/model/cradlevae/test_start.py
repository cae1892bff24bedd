"""Effects and artifacts from population means: who is compared with whom."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from scvi_causal import CRADLEVAE
from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import simulate_mechanisms
from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.cradlevae._artifact_start import artifact_effects
from scvi_causal.model.samsvae._start import compared_cells

from .conftest import make_module


def screen(counts: dict[tuple[str, str], np.ndarray], n_cells: dict[tuple[str, str], int]) -> CRADLEVAE:
    """A model of cells that are all alike within perturbation and quality."""
    x = np.concatenate([np.tile(counts[key], (n, 1)) for key, n in n_cells.items()]).astype(np.float32)
    adata = AnnData(csr_matrix(x))
    adata.obs["perturbation"] = np.repeat([key[0] for key in n_cells], list(n_cells.values()))
    adata.obs["quality"] = np.repeat([key[1] for key in n_cells], list(n_cells.values()))
    CRADLEVAE.setup_anndata(adata)
    return CRADLEVAE(adata, n_latent=4, n_hidden=8)


# genes: baseline, raised by A, raised by the artifact, one that takes up the rest of 1,000 counts
MEANS = {
    ("control", "pass"): np.array([100, 100, 100, 700]),
    ("control", "fail"): np.array([100, 100, 300, 500]),
    ("A", "pass"): np.array([100, 200, 100, 600]),
    ("A", "fail"): np.array([100, 200, 300, 400]),
}


def test_effects_within_quality_are_not_those_of_the_artifact():
    """A fails nine times in ten and control once: held against all controls, the artifact would be an effect of A."""
    n = {("control", "pass"): 90, ("control", "fail"): 10, ("A", "pass"): 10, ("A", "fail"): 90}
    model = screen(MEANS, n)
    rows = np.arange(200)
    kept, within = compared_cells(model.adata_manager, rows)
    np.testing.assert_array_equal(kept, rows)
    options = {"log_normalize": True, "of_logs": True}
    naive = condition_effects(model.adata_manager, rows, 4, **options).effect[0]
    clean = condition_effects(model.adata_manager, rows, 4, **options, within=within).effect[0]
    np.testing.assert_allclose(clean[:3], [0.0, np.log1p(2000) - np.log1p(1000), 0.0], atol=1e-5)
    assert naive[2] > 0.5


def test_failed_cells_without_failed_controls_are_not_compared():
    n = {("control", "pass"): 20, ("A", "pass"): 10, ("A", "fail"): 30}
    model = screen(MEANS, n)
    kept, within = compared_cells(model.adata_manager, np.arange(60))
    np.testing.assert_array_equal(kept, np.arange(30))
    assert (within == 0).all()


def test_artifact_is_the_difference_within_conditions():
    n = {("control", "pass"): 90, ("control", "fail"): 10, ("A", "pass"): 10, ("A", "fail"): 90}
    model = screen(MEANS, n)
    effect = artifact_effects(model.module, model.adata_manager, np.arange(200))[0]
    # log shares, up to what moves all genes alike; the last gene falls from 700 to 500 and from 600 to 400 counts
    assert effect[2] - effect[0] == pytest.approx(np.log(3), abs=1e-3)
    assert effect[1] - effect[0] == pytest.approx(0, abs=1e-3)
    assert -np.log(6 / 4) < effect[3] - effect[0] < -np.log(7 / 5)
    assert artifact_effects(model.module, model.adata_manager, np.arange(90)).tolist() == [[0.0] * 4]
    only = screen({k: MEANS[k] for k in n}, {("control", "pass"): 20, ("A", "fail"): 30})
    assert not artifact_effects(only.module, only.adata_manager, np.arange(50)).any()


@pytest.mark.parametrize("as_covariate", [True, False])
def test_artifacts_start_at_it(as_covariate):
    simulation = simulate_mechanisms(4, 3, 30, 40, 100, failed=0.4, artifact_sd=0.5, seed=0)
    adata = simulation.adata
    adata.obs["quality"] = np.where(adata.obs["failed"], "fail", "pass")
    CRADLEVAE.setup_anndata(adata)
    model = CRADLEVAE(adata, n_latent=12, n_hidden=8, quality_covariate=as_covariate)
    model._before_training(np.arange(adata.n_obs))
    decoder, module = model.module.decoder, model.module
    with torch.no_grad():
        if as_covariate:
            found = decoder.covariates.weight[:, module.first_quality_column + 1]
        else:
            found = decoder.loadings(module.artifacts.location)[0]
            assert decoder.covariates is None
    assert np.corrcoef(found.detach().numpy(), simulation.artifact)[0, 1] > 0.95


def test_quality_is_the_last_covariate(batch):
    module = make_module("recommended", n_kinds=2)
    batch[CAUSAL_KEYS.QUALITY] = torch.tensor([0, 1, 2, 1])[:, None]
    covariates = module.covariates(batch)
    assert covariates.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    other = module.at_quality(covariates, torch.tensor([2, 2, 0, 1]))
    assert other.argmax(1).tolist() == [2, 2, 0, 1]
    paper = make_module("paper", n_kinds=2)
    assert paper.covariates(batch).shape == (4, 0)
    assert paper.at_quality(paper.covariates(batch), torch.tensor([2, 2, 0, 1])).shape == (4, 0)


def test_average_effects_are_taken_without_the_artifact():
    """Failed controls are among the basal states, but decoded as if they had passed."""
    simulation = simulate_mechanisms(3, 2, 20, 30, 60, failed=0.5, seed=0)
    adata = simulation.adata
    adata.obs["quality"] = np.where(adata.obs["failed"], "fail", "pass")
    CRADLEVAE.setup_anndata(adata)
    model = CRADLEVAE(adata, n_latent=6, n_hidden=8)
    model.train(max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    before = model.get_average_treatment_effects("T01", n_samples=20, seed=0)
    artifact = model.get_artifact_effects(n_samples=20, seed=0)
    with torch.no_grad():
        model.module.decoder.covariates.weight[:, model.module.first_quality_column + 1] += torch.linspace(-1, 1, 20)
    np.testing.assert_array_equal(before, model.get_average_treatment_effects("T01", n_samples=20, seed=0))
    assert np.abs(artifact - model.get_artifact_effects(n_samples=20, seed=0)).to_numpy().max() > 0.1
