"""The torch module of GPO-VAE: CRADLE-VAE whose perturbation subspace has one coordinate per node of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from scvi_causal._constants import CAUSAL_KEYS, CONTROL_PREFIX
from scvi_causal.model.cradlevae._module import CRADLEVAEModule
from scvi_causal.model.gpovae._mechanisms import NetworkMechanisms
from scvi_causal.model.gpovae._network import NetworkDecoder
from scvi_causal.model.samsvae._mechanisms import Mechanisms
from scvi_causal.nn import kl_bernoulli
from scvi_causal.nn._grn_alignment import edge_density, effect_alignment, published_alignment

if TYPE_CHECKING:
    from scvi_causal.model.gpovae._options import NetworkOptions
    from scvi_causal.model.samsvae._network import CountDecoder


class GPOVAEModule(CRADLEVAEModule):
    r"""Generative model of a cell with dosages d and quality class q, over T nodes of a network.

    .. math::
        z &\sim N(0, I), \quad s = \textstyle\sum_t d_t \sum_m P_{tm}\, M_m \odot E_m \in \mathbb{R}^T \\
        \rho &= \mathrm{softmax}(f(z + A_q, \text{covariates}) + \Lambda (z + A_q) + R\, s), \quad x_g \sim NB(\ell \rho_g, \theta_g)

    where R is 1 between a node and its gene, and free for genes that are no nodes. As published:
    :math:`\rho = \mathrm{softmax}(f([z;\, s;\, A_q]))`, and P is the identity.

    Parameters
    ----------
    n_nodes, n_measured
        Nodes, the tokens first, and how many of them are measured genes.
    options
        What differs between presets.
    *args, **kwargs
        As for :class:`CRADLEVAEModule`.
    """

    options: NetworkOptions

    def __init__(self, *args, n_nodes: int, n_measured: int, options: NetworkOptions, **kwargs):
        self.n_nodes, self.n_measured = n_nodes, n_measured
        super().__init__(*args, options=options, **kwargs)
        # what the encoder would take for basal state, of the effect of a perturbation
        self.explained = None
        if options.posterior == "product":
            self.explained = nn.Linear(n_nodes, self.n_latent, bias=False)
            nn.init.zeros_(self.explained.weight)
        self.register_buffer("node_gene", torch.full((n_nodes,), -1))
        self.register_buffer("typical_total", torch.ones(()))

    @property
    def n_shift(self) -> int:
        """Width of the shifts of tokens: one for each node."""
        return self.n_nodes

    @property
    def n_condition(self) -> int:
        """Width of nodes and artifact."""
        return self.n_nodes + self.n_latent

    @property
    def concatenates(self) -> bool:
        """Nodes are always inputs of the decoder beside the basal state."""
        return True

    @property
    def follows_effects(self) -> bool:
        """Whether edges follow the effects of the training tokens, rather than the change of each cell."""
        return self.options.alignment == "effects"

    def make_mechanisms(self) -> Mechanisms:
        """Masks and embeddings; as published there is a row for every node, perturbed or not."""
        arguments = self.options.mechanism_arguments()
        if self.follows_effects:
            return NetworkMechanisms(self.n_tokens, self.n_nodes, **arguments)
        return Mechanisms(self.n_nodes, self.n_nodes, **arguments)

    def make_decoder(self, n_hidden: int, n_layers: int, has_size_factor: bool) -> CountDecoder:
        """The decoder; with a linear path, nodes act along that only."""
        options = self.options
        if not options.linear_decoder:
            return super().make_decoder(n_hidden, n_layers, has_size_factor)
        return NetworkDecoder(
            self.n_latent + (self.n_latent if options.artifact == "concat" else 0),
            self.n_nodes,
            self.n_measured,
            self.n_genes,
            n_hidden,
            n_layers + options.extra_decoder_layers,
            self.n_covariates,
            rest=has_size_factor and options.rest_of_library,
        )

    # ------------------------------------------------------------------ the model

    def encode(self, expression: Tensor, condition: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, (..., cells, n_latent), of the basal state given standardised expression and condition (..., cells, n)."""
        if self.explained is None:
            return super().encode(expression, condition, covariates)
        nodes, artifact = condition[..., : self.n_nodes], condition[..., self.n_nodes :]
        mean, variance = self.encoder(torch.cat([expression, covariates], -1))
        # Bayes' rule for what is added to the basal state; what nodes do is not, and its mark on the encoder is learned
        mean = (mean - artifact - self.explained(nodes)) / (1.0 + variance)
        return mean, (variance / (1.0 + variance)).expand_as(mean)

    def combine(self, z: Tensor, condition: Tensor) -> Tensor:
        """(..., cells, n) basal state, artifact and nodes, in the order in which the decoder takes them."""
        nodes, artifact = condition[..., : self.n_nodes], condition[..., self.n_nodes :]
        shape = torch.broadcast_shapes(z.shape[:-1], condition.shape[:-1])
        if self.options.artifact == "add":
            parts = [z + artifact, nodes]
        elif self.options.linear_decoder:
            parts = [z, artifact, nodes]
        else:
            parts = [z, nodes, artifact]
        return torch.cat([part.expand(*shape, -1) for part in parts], -1)

    def extra_terms(self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The artifact loss, and what ties masks to the effects of perturbations."""
        terms, options = super().extra_terms(tensors, inference_outputs), self.options
        dosage = tensors[CAUSAL_KEYS.PERTURBATION]
        if options.alignment == "effects" and options.alignment_weight:
            terms["alignment"] = options.alignment_weight * self._effect_alignment(dosage)
        if options.alignment == "cells":
            logits = self.mechanisms.mask_logits
            change = self.change_of_nodes(tensors)
            value = published_alignment(logits, dosage, change, options.change_threshold, options.n_hops)
            terms["alignment"] = options.alignment_weight * value
            terms["density"] = options.density_weight * edge_density(logits)
        if options.prior_of_unperturbed and len(self.mechanisms.mask_logits) > self.n_tokens:
            terms["unperturbed"] = self._prior_of_unperturbed()
        return terms

    def _effect_alignment(self, dosage: Tensor) -> Tensor:
        """Misfit of the effects of tokens; like their KL divergence, each counts once per epoch."""
        carried = dosage != 0
        used = carried.any(0).nonzero().squeeze(1)
        if not len(used):
            return dosage.new_zeros(())
        mean, variance = self.mechanisms.moments(used)
        misfit = effect_alignment(mean, variance, self.mechanisms.effect[used], self.mechanisms.noise[used])
        share = carried[:, used].to(dosage).mean(0) * self._inverse_counts()[used]
        return share @ misfit

    def _prior_of_unperturbed(self) -> Tensor:
        """KL divergence of the rows of nodes that no cell has perturbed, per cell."""
        mechanisms = self.mechanisms
        perturbed = F.pad(self.cells_per_token > 0, (0, self.n_nodes - self.n_tokens))
        kl = kl_bernoulli(mechanisms.mask_logits[~perturbed], mechanisms.mask_prior).sum()
        return kl / self.cells_per_quality.sum().clamp_min(1.0)

    def change_of_nodes(self, tensors: dict[str, Tensor]) -> Tensor:
        """(cells, n_nodes) absolute difference of log expression between cells and their control cells; 0 where nothing is measured."""
        measured = self.node_gene.clamp_min(0)

        def log_expression(x: Tensor) -> Tensor:
            return torch.log1p(x[:, measured] * (self.typical_total / x.sum(1, keepdim=True).clamp_min(1.0)))

        key = REGISTRY_KEYS.X_KEY
        change = log_expression(tensors[key]) - log_expression(tensors[CONTROL_PREFIX + key])
        return change.abs() * (self.node_gene >= 0)

    # ------------------------------------------------------------------ before training

    def set_nodes(self, gene: Tensor) -> Tensor:
        """Tell which gene (n_nodes,) each node is, -1 for none; returns the genes that are no nodes."""
        self.node_gene.copy_(gene)
        if isinstance(self.decoder, NetworkDecoder):
            return self.decoder.loadings.set_nodes(gene)
        return torch.tensor(sorted(set(range(self.n_genes)) - set(gene.tolist())), dtype=torch.int64)
