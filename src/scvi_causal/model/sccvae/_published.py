"""SCCVAE as published: a Gaussian VAE of control cells around a linear causal model of latent nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn

from scvi_causal._constants import CAUSAL_KEYS, CONTROL_PREFIX, NORMALIZED_TOTAL
from scvi_causal.model.base import CausalModule, CounterfactualOutput
from scvi_causal.nn import DenseSEM, gaussian_mmd, kl_standard_normal

if TYPE_CHECKING:
    from collections.abc import Sequence

_SLOPE = 0.2
_MIN_VARIANCE = 1e-4
_N_KERNELS = 10
_SMALLEST_BANDWIDTH = 1000.0 / 2**5


class PublishedSCCVAEModule(CausalModule):
    r"""Equations of Liu, Zhang and Uhler (PLOS Comput. Biol. 2026), with ``preset="paper"``.

    .. math::
        q(z \mid x) = N(m(x), e^{h(x)} + 10^{-4}), \quad p_g = \mathrm{softmax}(\mathrm{MLP}(e_g)), \quad
        u = (z + c_g p_g)(I - B \circ M)^{-1}, \quad \hat y = \mathrm{decoder}(u)

    The loss of a batch is :math:`\tfrac14 \mathrm{mse}(\hat x, x) + \mathrm{mse}(\hat y, y) + \beta KL + 10\, \mathrm{MMD}^2(\hat y, y)`
    with :math:`\hat x` the reconstruction of the control, means over cells and genes, and the KL averaged over nodes.

    Parameters
    ----------
    n_genes, n_tokens, n_features
        Sizes of the data and of the token features.
    mask
        (n_nodes, n_nodes) 0/1 mask of the causal graph, strictly upper triangular.
    n_hidden
        Width of the two hidden layers of encoder, shift encoder and decoder.
    log_normalize
        Whether the data are counts, to be taken as log1p of counts per 10,000.
    recon_weight, mmd_weight
        Weights of the reconstruction of controls and of the MMD.
    init_sd
        Standard deviation of the initial causal weights.
    """

    def __init__(
        self,
        n_genes: int,
        n_tokens: int,
        n_features: int,
        mask: Tensor,
        *,
        n_hidden: int = 1024,
        log_normalize: bool = True,
        recon_weight: float = 0.25,
        mmd_weight: float = 10.0,
        init_sd: float | None = 0.1,
    ):
        super().__init__()
        self.scale = "log1p" if log_normalize else "continuous"
        self.log_normalize = log_normalize
        self.recon_weight, self.mmd_weight = recon_weight, mmd_weight
        self.sem = DenseSEM(mask, init_sd)
        n_nodes = self.sem.n_nodes
        self.encoder = _mlp([n_genes, n_hidden, n_hidden], activate_last=True, wide=True)
        self.encoder_mean, self.encoder_log_variance = nn.Linear(n_hidden, n_nodes), nn.Linear(n_hidden, n_nodes)
        self.shift_encoder = _mlp([n_features, n_hidden, n_hidden, n_nodes])
        self.decoder = _mlp([n_nodes, n_hidden, n_hidden, n_genes])
        self.strength = nn.Parameter(torch.ones(n_tokens))
        self.register_buffer("token_features", torch.zeros(n_tokens, n_features))
        self.register_buffer("bandwidths", _SMALLEST_BANDWIDTH * 2.0 ** torch.arange(_N_KERNELS))

    # ------------------------------------------------------------------ the model

    def log_expression(self, tensors: dict[str, Tensor], prefix: str = "") -> Tensor:
        """(cells, genes) log1p of counts per 10,000; continuous data as they are."""
        x = tensors[prefix + REGISTRY_KEYS.X_KEY]
        if not self.log_normalize:
            return x
        size = tensors.get(prefix + REGISTRY_KEYS.SIZE_FACTOR_KEY)
        library = x.sum(1, keepdim=True).clamp_min(1.0) if size is None else size.reshape(-1, 1).float()
        return torch.log1p(x * (NORMALIZED_TOTAL / library))

    def encode(self, expression: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, (cells, n_nodes) each, of the exogenous noise."""
        hidden = self.encoder(expression)
        return self.encoder_mean(hidden), self.encoder_log_variance(hidden).exp() + _MIN_VARIANCE

    def direction(self, features: Tensor) -> Tensor:
        """(tokens, n_nodes) distribution of a token's shift over the nodes."""
        return torch.softmax(self.shift_encoder(features), dim=1)

    def shift(self, dosage: Tensor, strength: Tensor, features: Tensor) -> Tensor:
        """(cells, n_nodes) shift of each cell; the shifts of several tokens add up."""
        return (dosage * strength) @ self.direction(features)

    # ------------------------------------------------------------------ scvi-tools' grammar

    def _get_inference_input(self, tensors: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        prefix = CONTROL_PREFIX if CONTROL_PREFIX + REGISTRY_KEYS.X_KEY in tensors else ""
        return {"expression": self.log_expression(tensors, prefix)}

    @auto_move_data
    def inference(self, expression: Tensor, n_samples: int = 1) -> dict[str, Tensor]:
        """Exogenous noise of control cells."""
        mean, variance = self.encode(expression)
        noise = torch.randn(mean.shape, device=mean.device, dtype=mean.dtype)
        return {"qz_mean": mean, "qz_variance": variance, "z": mean + variance.sqrt() * noise, "expression": expression}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"z": inference_outputs["z"], "dosage": tensors[CAUSAL_KEYS.PERTURBATION]}

    @auto_move_data
    def generative(self, z: Tensor, dosage: Tensor) -> dict[str, Tensor]:
        """Reconstruction of the controls and the same cells under the dosages of their partners."""
        # the cells of a block share their perturbation: run the shift encoder once per token that occurs
        used = (dosage != 0).any(0)
        shift = self.shift(dosage[:, used], self.strength[used], self.token_features[used])
        decoded = self.decoder(self.sem(torch.cat([z, z + shift])))
        reconstruction, prediction = decoded.chunk(2)
        return {"reconstruction": reconstruction, "prediction": prediction}

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, Tensor],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Loss of a batch of blocks of cells with one perturbation each."""
        x, y = inference_outputs["expression"], self.log_expression(tensors)
        prediction = generative_outputs["prediction"]
        reconstruction = (generative_outputs["reconstruction"] - x).square().mean(1)
        fit = (prediction - y).square().mean(1)
        kl = kl_standard_normal(inference_outputs["qz_mean"], inference_outputs["qz_variance"]).mean(1)
        n_blocks = int(tensors[CAUSAL_KEYS.GROUP].max()) + 1 if CAUSAL_KEYS.GROUP in tensors else 1
        mmd = gaussian_mmd(
            prediction.view(n_blocks, -1, prediction.shape[1]), y.view(n_blocks, -1, y.shape[1]), self.bandwidths
        ).mean()
        per_cell = self.recon_weight * reconstruction + fit + kl_weight * kl
        return LossOutput(
            loss=per_cell.mean() + self.mmd_weight * mmd,
            reconstruction_loss=reconstruction,
            kl_local=kl,
            extra_metrics={"mmd": mmd.detach(), "fit": fit.detach().mean()},
        )

    # ------------------------------------------------------------------ counterfactuals

    @auto_move_data
    def latent(
        self, tensors: dict[str, Tensor], *, give_mean: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """(cells, n_nodes) exogenous noise of cells."""
        mean, variance = self.encode(self.log_expression(tensors))
        return mean if give_mean else _draw(mean, variance, generator)

    @auto_move_data
    def counterfactual(
        self,
        tensors: dict[str, Tensor],
        dosage: Tensor,
        token_inputs: dict[str, Tensor],
        *,
        sample_latent: bool = False,
        sample_parameters: bool = False,
        generator: torch.Generator | None = None,
    ) -> CounterfactualOutput:
        """Decoder output for the shifted noise of control cells; no observation noise is added, as published.

        The published model has no uncertainty about its parameters, so that ``sample_parameters`` changes nothing.
        """
        mean, variance = self.encode(self.log_expression(tensors))
        z = _draw(mean, variance, generator) if sample_latent else mean
        u = self.sem(z + self.shift(dosage, token_inputs["strength"], token_inputs["features"]))
        return CounterfactualOutput(mean=self.decoder(u), latent=u)


def _draw(mean: Tensor, variance: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + variance.sqrt() * noise


class _WideLinear(nn.Linear):
    """Linear layer of thousands of inputs, which holds its weight as (inputs, outputs).

    The rows of a gradient are then of a round length; on a CPU it is computed twice as fast.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def _mlp(sizes: Sequence[int], activate_last: bool = False, wide: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(_WideLinear(n_in, n_out) if wide and i == 0 else nn.Linear(n_in, n_out))
        if activate_last or i < len(sizes) - 2:
            layers.append(nn.LeakyReLU(_SLOPE))
    return nn.Sequential(*layers)
