"""Blocks of VCI: layers, the code of a treatment, the code of covariates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def mlp(
    sizes: Sequence[int], normalization: str = "layer", dropout_rate: float = 0.0, activate_last: bool = False
) -> nn.Sequential:
    """Linear layers with normalisation and ReLU between them.

    Parameters
    ----------
    sizes
        Widths: of the input, of each layer.
    normalization
        ``"layer"``, ``"batch"`` or ``"none"``.
    dropout_rate
        After each ReLU.
    activate_last
        Whether normalisation and ReLU follow the last layer too.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers.append(nn.Linear(n_in, n_out))
        if i == len(sizes) - 2 and not activate_last:
            break
        if normalization != "none":
            layers.append(nn.LayerNorm(n_out) if normalization == "layer" else nn.BatchNorm1d(n_out))
        layers.append(nn.ReLU())
        if dropout_rate:
            layers.append(nn.Dropout(dropout_rate))
    return nn.Sequential(*layers)


class TreatmentCode(nn.Module):
    """From dosages of tokens to the vector that encoder and decoder see: the sum of dosage times code over the tokens.

    The code of a token that training saw is one-hot. That of any other token is a mixture of those: the mean of all, moved by
    its features as far as features told the effects of training tokens apart (:meth:`set_mixture`).

    Parameters
    ----------
    n_tokens
        Size of the vocabulary.
    features
        (n_tokens, n_features) features of its tokens, if there are any.
    control_column
        Whether control has a column of its own, as published.
    """

    def __init__(self, n_tokens: int, features: Tensor | None = None, control_column: bool = False):
        super().__init__()
        self.n_tokens, self.control_column = n_tokens, control_column
        self.n_code = n_tokens + control_column
        n_features = 0 if features is None else features.shape[1]
        self.register_buffer("features", torch.zeros(n_tokens, 0) if features is None else features)
        self.register_buffer("trained", torch.ones(n_tokens, dtype=torch.bool))
        self.register_buffer("mixture", torch.zeros(n_tokens))
        self.register_buffer("feature_center", torch.zeros(n_features))
        self.register_buffer("feature_map", torch.zeros(n_features, n_tokens))

    def of_vocabulary(self, dosage: Tensor) -> Tensor:
        """(cells, n_code) codes of treatments, from (cells, n_tokens) dosages of the tokens of the vocabulary.

        The same as with the codes of all tokens, without the matrix of tokens times tokens that these make.
        """
        code, others = dosage * self.trained, (~self.trained).nonzero().squeeze(1)
        if len(others):
            code = code + dosage[:, others] @ self.tokens(others, self.features[others])
        return self._with_control(code, dosage)

    def tokens(self, index: Tensor, features: Tensor | None = None) -> Tensor:
        """(T, n_tokens) codes of tokens.

        Parameters
        ----------
        index
            (T,) place of each token in the vocabulary, or -1.
        features
            (T, n_features)
        """
        place = index.clamp_min(0)
        seen = (index >= 0) & self.trained[place]
        mixture = self.mixture.expand(len(index), -1)
        if features is not None and features.shape[1]:
            mixture = mixture + (features - self.feature_center) @ self.feature_map
        return torch.where(seen[:, None], F.one_hot(place, self.n_tokens).to(mixture), mixture)

    @torch.no_grad()
    def set_mixture(self, trained: Tensor, center: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Say which tokens were trained, and how the codes of others follow from features.

        Parameters
        ----------
        trained
            (n_tokens,) bool
        center, weights
            (n_features,) and (n_features, n_tokens); without them an untrained token is the mean of the trained ones.
        """
        self.trained.copy_(trained)
        self.mixture.copy_(trained / trained.sum().clamp_min(1))
        self.feature_center.zero_()
        self.feature_map.zero_()
        if center is not None:
            self.feature_center.copy_(center)
            self.feature_map.copy_(weights)

    def forward(self, dosage: Tensor, tokens: Tensor) -> Tensor:
        """(cells, n_code) codes of treatments, from (cells, T) dosages and (T, n_tokens) codes of tokens."""
        return self._with_control(dosage @ tokens, dosage)

    def _with_control(self, code: Tensor, dosage: Tensor) -> Tensor:
        return torch.cat([code, (dosage == 0).all(1, keepdim=True).to(code)], 1) if self.control_column else code


class CovariateCode(nn.Module):
    """One vector for batch, categorical and continuous covariates of a cell.

    Parameters
    ----------
    n_batch
        Number of batches.
    n_categories
        Number of categories of each categorical covariate.
    n_continuous
        Number of continuous covariates.
    n_embedding
        Dimensions of each of them.
    """

    def __init__(self, n_batch: int, n_categories: Sequence[int], n_continuous: int, n_embedding: int):
        super().__init__()
        self.batch = nn.Embedding(n_batch, n_embedding) if n_batch > 1 else None
        self.categories = nn.ModuleList(nn.Embedding(n, n_embedding) for n in n_categories)
        self.continuous = nn.Sequential(nn.Linear(n_continuous, n_embedding), nn.ReLU()) if n_continuous else None
        n_parts = (n_batch > 1) + len(self.categories) + (n_continuous > 0)
        self.n_code = n_parts * n_embedding

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        """(cells, n_code), zero columns without covariates."""
        parts = []
        if self.batch is not None:
            parts.append(self.batch(tensors[REGISTRY_KEYS.BATCH_KEY].reshape(-1).long()))
        if len(self.categories):
            codes = tensors[REGISTRY_KEYS.CAT_COVS_KEY].long()
            parts += [embedding(codes[:, i]) for i, embedding in enumerate(self.categories)]
        if self.continuous is not None:
            parts.append(self.continuous(tensors[REGISTRY_KEYS.CONT_COVS_KEY].float()))
        if not parts:
            x = tensors[REGISTRY_KEYS.X_KEY]
            return torch.zeros(len(x), 0, device=x.device)
        return torch.cat(parts, 1)
