"""The recommended SCCVAE: a count VAE of control cells, and shifts that reach genes through a network and programmes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from scvi.nn import FCLayers
from torch import Tensor, nn

from scvi_causal._constants import CAUSAL_KEYS, CONTROL_PREFIX, NORMALIZED_TOTAL
from scvi_causal.model.base import CounterfactualOutput
from scvi_causal.model.base._expression import ExpressionModule
from scvi_causal.nn import AbductedCounts, SparseSEM, kl_standard_normal, nb_log_likelihood

if TYPE_CHECKING:
    from collections.abc import Sequence


class SCCVAEModule(ExpressionModule):
    r"""Generative model of a cell under a perturbation.

    .. math::
        z &\sim N(0, I) && \text{state of the cell, abducted from a control} \\
        \eta &= \mathrm{decoder}(z, \text{batch}) && \text{log1p expression without perturbation} \\
        u &= \delta (I - B)^{-1} && \text{log fold changes that the target passes on along the network} \\
        p &= \sum_t c_t (\pi_t + s M_t) && \text{activity of programmes; } s \text{ is the state of the cell} \\
        \eta' &= \log(1 + (e^{\eta} - 1) e^{u}) + p \Lambda \\
        x' &\sim NB\left(\tfrac{L}{10^4} (e^{\eta'} - 1), \theta\right)

    In a linear structural equation model a shift adds :math:`\delta (I - B)^{-1}` to the nodes whatever their noise, so that
    only this difference is modelled and the noise stays with :math:`z`. Node j *is* gene j: what the network carries reaches
    the genes without a decoder that could absorb another network.

    Parameters
    ----------
    n_genes, n_tokens, n_batch
        Sizes of the data.
    n_latent, n_hidden, n_layers, dropout_rate
        Of encoder and decoder.
    n_programmes
        Number of response programmes, the rows of :math:`\Lambda`.
    n_state
        Number of axes of :math:`s`; 0 gives every cell the same response.
    gene_likelihood
        ``"nb"`` for counts or ``"normal"`` for continuous data (and, if ``log_normalize``, for the log of normalised counts).
    log_normalize
        Whether the data are counts, so that the encoder sees log1p of counts per 10,000.
    edge_index, node_of_gene, n_nodes
        The network: (2, n_edges); (n_genes,) node of each gene or -1; number of nodes.
    node_of_token
        (n_tokens,) node that a token shifts, or -1.
    n_features
        Number of features of a token.
    refine_responses
        Whether training changes the responses, which start at their estimates from population means.
    """

    def __init__(
        self,
        n_genes: int,
        n_tokens: int,
        n_batch: int = 1,
        *,
        n_latent: int = 20,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.0,
        n_programmes: int = 64,
        n_state: int = 0,
        gene_likelihood: Literal["nb", "normal"] = "nb",
        log_normalize: bool = True,
        edge_index: Tensor | None = None,
        node_of_gene: Sequence[int] | None = None,
        n_nodes: int = 0,
        node_of_token: Sequence[int] | None = None,
        n_features: int = 0,
        refine_responses: bool = False,
    ):
        super().__init__()
        self.n_genes, self.n_tokens, self.n_latent, self.n_batch = n_genes, n_tokens, n_latent, n_batch
        self.n_programmes, self.n_state = n_programmes, n_state
        self.gene_likelihood, self.log_normalize = gene_likelihood, log_normalize
        self.scale = "counts" if gene_likelihood == "nb" else "log1p" if log_normalize else "continuous"
        layers = {
            "n_cat_list": [n_batch],
            "n_layers": n_layers,
            "n_hidden": n_hidden,
            "dropout_rate": dropout_rate,
            "use_batch_norm": False,
            "use_layer_norm": True,
        }
        self.encoder = FCLayers(n_genes, n_hidden, **layers)
        self.encoder_mean = nn.Linear(n_hidden, n_latent)
        self.encoder_variance = nn.Linear(n_hidden, n_latent)
        self.decoder = FCLayers(n_latent, n_hidden, **layers)
        self.decoder_output = nn.Linear(n_hidden, n_genes)
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes))

        # what a perturbation does: token -> programmes -> genes
        self.programme_shift = nn.Parameter(torch.zeros(n_tokens, n_programmes))
        self.programme_state = nn.Parameter(torch.zeros(n_tokens, n_state, n_programmes))
        self.loadings = nn.Parameter(torch.zeros(n_programmes, n_genes))
        # token -> its own node -> along the network
        self.sem = None if edge_index is None else SparseSEM(edge_index, n_nodes)
        self.target_shift = nn.Parameter(torch.zeros(n_tokens))
        self.register_buffer("node_of_token", _index(node_of_token, n_tokens))
        self.register_buffer("node_of_gene", _index(node_of_gene, n_genes))
        self.register_buffer("strength", torch.ones(n_tokens))

        # where the state of a cell is read, and where unseen tokens come from; filled before and after training
        self.register_buffer("state_center", torch.zeros(n_genes))
        self.register_buffer("state_axes", torch.zeros(n_genes, n_state))
        n_outputs = n_programmes * (1 + n_state)
        self.register_buffer("feature_center", torch.zeros(n_features))
        self.register_buffer("feature_map", torch.zeros(n_features, n_outputs))
        self.register_buffer("unseen_response", torch.zeros(n_outputs))
        self.register_buffer("unseen_target_shift", torch.zeros(()))
        self.register_buffer("unseen_network", torch.zeros(n_genes))
        # standard errors of the responses, on the scale of log1p expression
        self.register_buffer("response_error", torch.zeros(n_tokens, n_genes))
        self.register_buffer("unseen_error", torch.zeros(n_genes))
        if not refine_responses:
            responses = [self.programme_shift, self.programme_state, self.loadings, self.target_shift]
            for parameter in responses + ([] if self.sem is None else [self.sem.weight]):
                parameter.requires_grad_(False)

    # ------------------------------------------------------------------ the cell

    def encode(self, expression: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, (cells, n_latent) each, of the state of cells given their log expression."""
        hidden = self.encoder(expression, batch)
        return self.encoder_mean(hidden), F.softplus(self.encoder_variance(hidden)) + 1e-4

    def decode(self, z: Tensor, batch: Tensor) -> Tensor:
        """(cells, genes) log1p expression (eta) without perturbation."""
        raw = self.decoder_output(self.decoder(z, batch))
        return F.softplus(raw) if self.log_normalize else raw

    @property
    def dispersion(self) -> Tensor:
        """(genes,) inverse dispersion of the counts, or variance of continuous data."""
        return self.log_dispersion.clamp(-8.0, 8.0).exp()

    # ------------------------------------------------------------------ the perturbation

    def cell_state(self, expression: Tensor) -> Tensor:
        """(cells, n_state) place of cells on the axes along which their responses may differ."""
        return (expression - self.state_center) @ self.state_axes

    def network_response(self, shift: Tensor, node: Tensor) -> Tensor:
        """(tokens, genes) log fold changes when each token shifts its own node.

        Parameters
        ----------
        shift
            (tokens,) size of the shift.
        node
            (tokens,) node, or -1 for a token that is none.
        """
        if self.sem is None:
            return shift.new_zeros(len(shift), self.n_genes)
        anchored = node >= 0
        exogenous = shift.new_zeros(len(shift), self.sem.n_nodes)
        exogenous[anchored] = F.one_hot(node[anchored], self.sem.n_nodes).to(shift) * shift[anchored, None]
        return self._nodes_to_genes(self.sem(exogenous))

    def _regulates(self, node: Tensor) -> Tensor:
        """Whether nodes have targets; -1, which is no node, has none."""
        if self.sem is None:
            return torch.zeros_like(node, dtype=torch.bool)
        return torch.isin(node, self.sem.edge_index[0])

    def _nodes_to_genes(self, u: Tensor) -> Tensor:
        padded = torch.cat([u, u.new_zeros(len(u), 1)], 1)
        return padded[:, self.node_of_gene]  # -1 is the column of zeros

    def perturb(self, eta: Tensor, state: Tensor, dosage: Tensor, response: dict[str, Tensor]) -> Tensor:
        """(cells, genes) log1p expression under a perturbation.

        Parameters
        ----------
        eta
            (cells, genes) without.
        state
            (cells, n_state)
        dosage
            (cells, T), with strengths multiplied in.
        response
            Of the T tokens: ``shift`` (T, n_programmes), ``state`` (T, n_state, n_programmes), ``network`` (T, genes).
        """
        activity = dosage @ response["shift"]
        if self.n_state:
            slopes = (dosage @ response["state"].flatten(1)).view(len(dosage), self.n_state, self.n_programmes)
            activity = activity + torch.einsum("cs,csp->cp", state, slopes)
        if self.sem is not None:
            fold = dosage @ response["network"]
            if self.log_normalize:
                # log(1 + (e^eta - 1) e^fold), written so that no fold leaves eta as it is to the last bit
                fold = torch.log1p(-torch.expm1(fold.clamp(-10.0, 10.0)) * torch.expm1(-eta.clamp_min(0.0)))
            eta = eta + fold
        return eta + activity @ self.loadings

    def response_of_seen(self, tokens: Tensor) -> dict[str, Tensor]:
        """Responses of tokens of the vocabulary (T,), as training has them."""
        return {
            "shift": self.programme_shift[tokens],
            "state": self.programme_state[tokens],
            "network": self.network_response(self.target_shift[tokens], self.node_of_token[tokens]),
        }

    def response_of(self, token_inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Responses of any tokens: learned ones where they were seen, from features and network elsewhere.

        Parameters
        ----------
        token_inputs
            ``index`` (T,) column in the vocabulary or -1; ``seen`` (T,) bool; ``node`` (T,) or -1; ``strength`` (T,); and
            ``features`` (T, n_features) with ``has_features`` (T,) where there are features.
        """
        index, seen = token_inputs["index"].clamp_min(0), token_inputs["seen"]
        predicted = self.unseen_response.expand(len(index), -1)
        if "features" in token_inputs:
            deviation = (token_inputs["features"] - self.feature_center) @ self.feature_map
            predicted = predicted + deviation * token_inputs["has_features"].unsqueeze(1)
        shift, state = predicted[:, : self.n_programmes], predicted[:, self.n_programmes :]
        state = state.reshape(len(index), self.n_state, self.n_programmes)
        own = torch.where(seen, self.target_shift[index], self.unseen_target_shift)
        network = self.network_response(own, token_inputs["node"])
        # where the network says nothing of a token, what it carried on average for others stands in
        silent = ~seen & ~self._regulates(token_inputs["node"])
        return {
            "shift": torch.where(seen[:, None], self.programme_shift[index], shift),
            "state": torch.where(seen[:, None, None], self.programme_state[index], state),
            "network": network + silent[:, None] * self.unseen_network,
        }

    def _response_deviation(self, token_inputs: dict[str, Tensor], seed: int) -> Tensor:
        """(T, genes) a draw of how far the responses of tokens may be off: the same for all cells and batches of a draw."""
        index, seen = token_inputs["index"].clamp_min(0), token_inputs["seen"]
        noise = [_noise_of_token(int(key), seed, self.n_genes) for key in token_inputs["key"].tolist()]
        noise = torch.stack(noise) if noise else torch.zeros(0, self.n_genes)
        return noise.to(index.device) * torch.where(seen[:, None], self.response_error[index], self.unseen_error)

    # ------------------------------------------------------------------ scvi-tools' grammar

    def _get_inference_input(self, tensors: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        prefix = CONTROL_PREFIX if CONTROL_PREFIX + REGISTRY_KEYS.X_KEY in tensors else ""
        library = self.library(tensors, prefix)
        return {
            "expression": self.log_expression(tensors[prefix + REGISTRY_KEYS.X_KEY], library),
            "batch": tensors[prefix + REGISTRY_KEYS.BATCH_KEY],
        }

    @auto_move_data
    def inference(self, expression: Tensor, batch: Tensor, n_samples: int = 1) -> dict[str, Tensor]:
        """State of control cells."""
        mean, variance = self.encode(expression, batch)
        noise = torch.randn(mean.shape, device=mean.device, dtype=mean.dtype)
        return {"qz_mean": mean, "qz_variance": variance, "z": mean + variance.sqrt() * noise, "expression": expression}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        prefix = CONTROL_PREFIX if CONTROL_PREFIX + REGISTRY_KEYS.X_KEY in tensors else ""
        return {
            "z": inference_outputs["z"],
            "expression": inference_outputs["expression"],
            "batch": tensors[prefix + REGISTRY_KEYS.BATCH_KEY],
            "dosage": tensors[CAUSAL_KEYS.PERTURBATION],
        }

    @auto_move_data
    def generative(self, z: Tensor, expression: Tensor, batch: Tensor, dosage: Tensor) -> dict[str, Tensor]:
        """Log1p expression of the control cells as they are, and under the dosages of their partners."""
        eta = self.decode(z, batch)
        # of the many tokens of a large screen, a batch has few
        used = (dosage != 0).any(0).nonzero().squeeze(1)
        dosage, response = dosage[:, used] * self.strength[used], self.response_of_seen(used)
        # unpaired cells would pull the state towards the mean of the population: only the response learns from them
        perturbed = self.perturb(eta.detach(), self.cell_state(expression), dosage, response)
        return {"eta": eta, "eta_perturbed": perturbed}

    def log_likelihood(self, x: Tensor, eta: Tensor, library: Tensor) -> Tensor:
        """(cells,) log likelihood of cells given their log1p expression."""
        if self.gene_likelihood == "nb":
            return nb_log_likelihood(x, self.rate(eta) * (library / NORMALIZED_TOTAL), self.dispersion)
        variance = self.dispersion
        residual = self.log_expression(x, library) - eta
        return -0.5 * (residual.square() / variance + variance.log() + math.log(2 * math.pi)).sum(1)

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, Tensor],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Negative evidence lower bound of the control cells plus that of the perturbed populations.

        Parameters
        ----------
        kl_weight
            Weight of the KL divergence of the state.
        """
        x, partner = tensors[REGISTRY_KEYS.X_KEY], tensors[CONTROL_PREFIX + REGISTRY_KEYS.X_KEY]
        reconstruction = -self.log_likelihood(partner, generative_outputs["eta"], self.library(tensors, CONTROL_PREFIX))
        kl = kl_standard_normal(inference_outputs["qz_mean"], inference_outputs["qz_variance"]).sum(1)
        perturbed = (tensors[CAUSAL_KEYS.PERTURBATION] != 0).any(1)
        population = -self.log_likelihood(x, generative_outputs["eta_perturbed"], self.library(tensors)) * perturbed
        loss = (reconstruction + kl_weight * kl + population).mean()
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local=kl,
            extra_metrics={"population_loss": population.sum() / perturbed.sum().clamp_min(1)},
        )

    # ------------------------------------------------------------------ counterfactuals

    @auto_move_data
    def latent(
        self, tensors: dict[str, Tensor], *, give_mean: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """(cells, n_latent) state of cells as the encoder sees them."""
        expression = self.log_expression(tensors[REGISTRY_KEYS.X_KEY], self.library(tensors))
        mean, variance = self.encode(expression, tensors[REGISTRY_KEYS.BATCH_KEY])
        return mean if give_mean else mean + variance.sqrt() * _normal_like(mean, generator)

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
        """Abduct the state and the noise of control cells, shift, predict; see :class:`CausalModule`."""
        x, library = tensors[REGISTRY_KEYS.X_KEY], self.library(tensors)
        batch = tensors[REGISTRY_KEYS.BATCH_KEY]
        expression = self.log_expression(x, library)
        mean, variance = self.encode(expression, batch)
        z = mean + variance.sqrt() * _normal_like(mean, generator) if sample_latent else mean
        eta = self.decode(z, batch)
        target = self.perturb(
            eta, self.cell_state(expression), dosage * token_inputs["strength"], self.response_of(token_inputs)
        )
        if sample_parameters:
            seed = 0 if generator is None else generator.initial_seed()
            target = target + (dosage * token_inputs["strength"]) @ self._response_deviation(token_inputs, seed)
        if self.gene_likelihood == "nb":
            to_counts = library / NORMALIZED_TOTAL
            counts = AbductedCounts(x, self.rate(eta) * to_counts, self.rate(target) * to_counts, self.dispersion)
            return CounterfactualOutput(mean=counts.mean, distribution=counts, latent=z)
        # additive Gaussian noise is abducted as the residual, and carried over
        shifted = expression + (target - eta)
        return CounterfactualOutput(mean=shifted.clamp_min(0.0) if self.log_normalize else shifted, latent=z)


def _noise_of_token(key: int, seed: int, n: int) -> Tensor:
    """(n,) normal noise that belongs to a token and a draw, whatever else is predicted in the same call."""
    return torch.randn(n, generator=torch.Generator().manual_seed((seed ^ (key * 0x9E3779B1)) % 2**63))


def _index(values: Sequence[int] | None, n: int) -> Tensor:
    return torch.full((n,), -1, dtype=torch.int64) if values is None else torch.as_tensor(values, dtype=torch.int64)


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
