"""What a trained SAMS-VAE predicts: conditions without noise, basal states of observed cells, and these under other conditions."""

from __future__ import annotations

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial
from scvi.module.base import auto_move_data
from torch import Tensor

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.model.base import CausalModule, CounterfactualOutput
from scvi_causal.model.samsvae._mechanisms import noise_of_token
from scvi_causal.nn import AbductedCounts


class PredictionModule(CausalModule):
    """The part of :class:`SAMSVAEModule` that answers questions."""

    def shifts(self, tokens: Tensor, seed: int | None = None) -> Tensor:
        """(n, n_latent) what tokens (n,) of the vocabulary do: the expectation, or a draw that belongs to ``seed``.

        Random numbers belong to a token and a seed, whatever else is asked in the same call. A token without training cells does
        what its features say, and nothing without these.
        """
        if seed is None:
            shift = self.mechanisms.expected_shift(tokens)
        else:
            noise = [noise_of_token(int(token), seed, self.n_shift) for token in tokens.tolist()]
            uniform, normal = (torch.stack(part).to(tokens.device) for part in zip(*noise, strict=True))
            shift = self.mechanisms.shift_from_noise(tokens, uniform, normal)
        return torch.where((self.cells_per_token[tokens] > 0)[:, None], shift, self.unseen_shift[tokens])

    def condition_of(self, dosage: Tensor, seed: int | None = None) -> Tensor:
        """(cells, n) condition of cells with dosages (cells, n_tokens), as :meth:`draw_condition` but without noise."""
        if self.mechanisms is None:
            return dosage * (self.cells_per_token > 0)
        used = (dosage != 0).any(0).nonzero().squeeze(1)
        if not len(used):
            return dosage.new_zeros(len(dosage), self.n_shift)
        return dosage[:, used] @ self.shifts(used, seed)

    def remainder_of(self, dosage: Tensor, seed: int | None = None) -> Tensor | None:
        """(cells, n_genes) what dosages (cells, n_tokens) add to log shares beside the condition; ``None`` in a model without that."""
        return None if self.remainder is None else self.remainder(dosage, seed)

    def draw_all(self, n_particles: int) -> Tensor | None:
        """(n_particles, n_tokens, n_latent) draws of the shifts of all tokens; ``None`` for a conditional VAE."""
        if self.mechanisms is None:
            return None
        tokens = torch.arange(self.n_tokens, device=self.cells_per_token.device)
        shift = self.mechanisms.draw(tokens, n_particles).shift
        return torch.where((self.cells_per_token > 0)[:, None], shift, self.unseen_shift)

    def condition_from(self, dosage: Tensor, shifts: Tensor | None, tensors: dict[str, Tensor] | None = None) -> Tensor:
        """Conditions under draws of :meth:`draw_all`: (particles, n) of one dosage each, or (particles, cells, n).

        Parameters
        ----------
        dosage
            (particles, n_tokens) or (particles, cells, n_tokens).
        shifts
            (particles, n_tokens, n_latent)
        tensors
            The cells, for a model in which a condition is more than perturbations.
        """
        if shifts is None:
            return dosage * (self.cells_per_token > 0)
        return torch.einsum("p...t,ptl->p...l", dosage, shifts)

    def own_condition(self, tensors: dict[str, Tensor], seed: int | None = None) -> Tensor:
        """(cells, n) condition that cells have themselves."""
        return self.complete(self.condition_of(tensors[CAUSAL_KEYS.PERTURBATION], seed), tensors, seed, of_source=True)

    def abduct(self, tensors: dict[str, Tensor], condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, (cells, n_latent), of the basal state of cells under their condition."""
        expression = self.expression(tensors[REGISTRY_KEYS.X_KEY], self.library(tensors))
        return self.encode(self.standardize(expression), condition, self.covariates(tensors, of_source=True))

    @auto_move_data
    def latent(
        self, tensors: dict[str, Tensor], *, give_mean: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """(cells, n_latent) basal state of cells, their perturbation taken off."""
        mean, variance = self.abduct(tensors, self.own_condition(tensors))
        return mean if give_mean else mean + variance.sqrt() * _normal_like(mean, generator)

    def shift_from_features(self, features: Tensor) -> Tensor:
        """(n, n_latent) what tokens with features (n, n_features) are expected to do."""
        return self.mean_shift + (features - self.feature_center) @ self.feature_map

    def known_dosage(self, dosage: Tensor, token_inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(cells, n_tokens) dosages over the vocabulary, of dosages (cells, T) of a call, and which of its T tokens features speak for."""
        index = token_inputs["index"]
        by_features = torch.zeros_like(index, dtype=torch.bool)
        if "features" in token_inputs and self.mechanisms is not None:
            by_features = (index < 0) | (self.cells_per_token[index.clamp_min(0)] == 0)
        known = ~by_features
        return dosage.new_zeros(len(dosage), self.n_tokens).index_add(1, index[known], dosage[:, known]), by_features

    def target_condition(self, dosage: Tensor, token_inputs: dict[str, Tensor], seed: int | None) -> Tensor:
        """(cells, n) condition under the tokens of a call, whose dosages are (cells, T)."""
        whole, by_features = self.known_dosage(dosage, token_inputs)
        condition = self.condition_of(whole, seed)
        if by_features.any():
            condition = condition + dosage[:, by_features] @ self.shift_from_features(
                token_inputs["features"][by_features]
            )
        return condition

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
        """Abduct the basal state of cells under their own condition, exchange the condition, predict."""
        seed = (0 if generator is None else generator.initial_seed()) if sample_parameters else None
        own = self.own_condition(tensors, seed)
        target = self.complete(self.target_condition(dosage, token_inputs, seed), tensors, seed)
        mean, variance = self.abduct(tensors, own)
        z = mean + variance.sqrt() * _normal_like(mean, generator) if sample_latent else mean
        covariates, library = self.covariates(tensors), self.library(tensors)
        remainder = self.remainder_of(self.known_dosage(dosage, token_inputs)[0], seed)
        expected = self.decode(z, target, covariates, library, remainder)
        if not self.options.abduct_counts:
            return CounterfactualOutput(expected, NegativeBinomial(mu=expected, theta=self.dispersion), z)
        own_remainder = self.remainder_of(tensors[CAUSAL_KEYS.PERTURBATION], seed)
        source = self.decode(z, own, self.covariates(tensors, of_source=True), library, own_remainder)
        counts = AbductedCounts(tensors[REGISTRY_KEYS.X_KEY], source, expected, self.dispersion)
        return CounterfactualOutput(counts.mean, counts, z)


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
