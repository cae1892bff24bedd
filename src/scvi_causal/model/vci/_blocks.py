"""Blocks of VCI: layers, the code of a treatment, the code of covariates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
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
    """From dosages of tokens to the vector that encoder and decoder see.

    A treatment is the sum of dosage times code over its tokens. The code of a token is one-hot, or a small network of its
    features, so that unseen tokens have one as well; tokens without features keep a one-hot part.

    Parameters
    ----------
    one_hot
        (n_tokens,) column of each token of the vocabulary in the one-hot part, or -1.
    features
        (n_tokens, n_features) features of the vocabulary, if there are any.
    n_code
        Dimensions of what becomes of the features.
    control_column
        Whether control has a column of its own, as published.
    """

    def __init__(self, one_hot: Tensor, features: Tensor | None = None, n_code: int = 32, control_column: bool = False):
        super().__init__()
        self.n_one_hot = int(one_hot.max()) + 1 if len(one_hot) else 0
        self.control_column = control_column
        self.register_buffer("one_hot", one_hot)
        # columns of tokens that training saw; the weights of the others are where they started
        self.register_buffer("trained", torch.ones(self.n_one_hot, dtype=torch.bool))
        self.register_buffer("features", features)
        self.of_features = None if features is None else mlp([features.shape[1], 64, n_code], "none")
        self.n_code = self.n_one_hot + (0 if features is None else n_code) + control_column

    def vocabulary(self) -> Tensor:
        """(n_tokens, n) codes of the tokens of the vocabulary."""
        return self.tokens(self.one_hot, self.features)

    def tokens(self, one_hot: Tensor, features: Tensor | None = None) -> Tensor:
        """(T, n) codes of tokens.

        Parameters
        ----------
        one_hot
            (T,) column of each token, or -1.
        features
            (T, n_features)
        """
        code = torch.zeros(len(one_hot), self.n_one_hot, device=one_hot.device)
        known = one_hot >= 0
        code[known, one_hot[known]] = self.trained[one_hot[known]].to(code)
        if self.of_features is None:
            return code
        # what is described has no one-hot part, and the other way round
        return torch.cat([code, self.of_features(features) * ~known[:, None]], 1)

    def forward(self, dosage: Tensor, tokens: Tensor) -> Tensor:
        """(cells, n_code) codes of treatments, from (cells, T) dosages and (T, n) codes of tokens."""
        code = dosage @ tokens
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
