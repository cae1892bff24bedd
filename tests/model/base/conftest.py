"""A small model that can do what the baselines cannot: it abducts, has latents and a predictive distribution."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial
from scvi.module.base import LossOutput

from scvi_causal.model.base import CausalModel, CausalModule, CounterfactualOutput


class ToyModule(CausalModule):
    """Each token multiplies the expression of a cell by ``exp(W)``; a cell under its own label is itself.

    ``log mean = log x + (target dosage - own dosage) W``; the latent is a log factor per cell with a fixed width.
    """

    scale = "counts"
    width = 0.1

    def __init__(self, n_genes: int, n_tokens: int):
        super().__init__()
        self.log_fold = torch.nn.Parameter(torch.zeros(n_tokens, n_genes))
        self.log_theta = torch.nn.Parameter(torch.zeros(n_genes))

    def counterfactual(
        self, tensors, dosage, token_inputs, *, sample_latent=False, sample_parameters=False, generator=None
    ):
        x, own = tensors[REGISTRY_KEYS.X_KEY], tensors["perturbation"]
        target = dosage @ self.log_fold[token_inputs["index"]] if dosage.shape[1] else 0.0
        log_rate = torch.log(x + 0.1) + target - own @ self.log_fold
        latent = torch.zeros(len(x), 1, device=x.device)
        if sample_latent:
            latent = torch.randn(len(x), 1, generator=generator, device=x.device) * self.width
        mean = torch.exp(log_rate + latent)
        return CounterfactualOutput(mean, NegativeBinomial(mu=mean, theta=self.log_theta.exp().expand_as(mean)), latent)

    def latent(self, tensors, *, give_mean=True, generator=None):
        return torch.log1p(tensors[REGISTRY_KEYS.X_KEY].sum(1, keepdim=True))

    def _get_inference_input(self, tensors, **kwargs):
        return {"x": tensors[REGISTRY_KEYS.X_KEY]}

    def inference(self, x):
        return {"library": x.sum(1, keepdim=True)}

    def _get_generative_input(self, tensors, inference_outputs, **kwargs):
        return {"dosage": tensors["perturbation"], "control": tensors["control_X"], **inference_outputs}

    def generative(self, dosage, control, library):
        mean = (control + 0.1) * torch.exp(dosage @ self.log_fold)
        return {"px": NegativeBinomial(mu=mean, theta=self.log_theta.exp().expand_as(mean))}

    def loss(self, tensors, inference_outputs, generative_outputs):
        nll = -generative_outputs["px"].log_prob(tensors[REGISTRY_KEYS.X_KEY]).sum(1)
        return LossOutput(loss=nll.mean(), reconstruction_loss=nll)

    def sample(self, *args, **kwargs):
        raise NotImplementedError


class Toy(CausalModel):
    """The smallest model that can abduct."""

    can_abduct = True
    unseen = "combinations"
    _datasplitter_defaults = {"pair_controls": True}
    _plan_defaults = {"lr": 0.05}

    def __init__(self, adata=None, registry=None):
        super().__init__(adata, registry)
        self.module = ToyModule(self.summary_stats.n_vars, self.summary_stats.n_tokens)
        self.init_params_ = self._get_init_params(locals())


def make_cells(n=120, n_genes=6, seed=0) -> ad.AnnData:
    """Counts with two genes that respond to A (up) and B (down)."""
    rng = np.random.default_rng(seed)
    labels = np.resize(["control", "control", "A", "B"], n)
    rate = np.full((n, n_genes), 8.0)
    rate[labels == "A", 0] *= 3
    rate[labels == "B", 1] /= 3
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(n)])
    genes = [f"g{i}" for i in range(n_genes)]
    return ad.AnnData(csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))


@pytest.fixture
def cells():
    return make_cells()


@pytest.fixture
def toy(cells):
    """Trained for a few epochs."""
    Toy.setup_anndata(cells)
    scvi.settings.seed = 0
    model = Toy(cells)
    model.train(max_epochs=40, batch_size=32, accelerator="cpu", enable_progress_bar=False)
    return model
