"""Conditions as lists of parts: a part is a token at a dosage, and its features are what the network sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """The distinct parts of some conditions.

    Parameters
    ----------
    token
        (n_parts,) column of the token.
    dosage
        (n_parts,) its dosage.
    members
        (n_conditions, n_parts) float32, 1 where a condition has the part.
    """

    token: np.ndarray
    dosage: np.ndarray
    members: np.ndarray


def split_parts(conditions: csr_matrix) -> Parts:
    """Distinct (token, dosage) pairs of (n_conditions, n_tokens) dosages."""
    pairs = np.stack([conditions.indices.astype(np.float64), conditions.data.astype(np.float64)])
    distinct, which = np.unique(pairs, axis=1, return_inverse=True)
    members = np.zeros((conditions.shape[0], max(distinct.shape[1], 1)), dtype=np.float32)
    row = np.repeat(np.arange(conditions.shape[0]), np.diff(conditions.indptr))
    members[row, which.reshape(-1)] = 1.0
    if not distinct.shape[1]:
        distinct = np.zeros((2, 1))
    return Parts(distinct[0].astype(np.int64), distinct[1].astype(np.float32), members)


def part_features(token_features: Tensor, dosage: Tensor, with_dosage: bool) -> Tensor:
    """(n_parts, n) features of parts: those of the token, then dosage and log of its size where dosages were varied."""
    if not with_dosage:
        return token_features
    size = dosage.abs().clamp_min(1e-6).log()
    return torch.cat([token_features, dosage[:, None], size[:, None]], dim=1)


def varies(conditions: csr_matrix) -> bool:
    """Whether dosages other than 1 occur, so that a model has to know about dosages."""
    return bool((conditions.data != 1).any())


def own_nodes(node: Tensor, n_nodes: int) -> Tensor:
    """(n_parts, n_nodes) 1 where a part is of the node itself; ``node`` is -1 for parts that are no nodes."""
    found = torch.zeros(len(node), n_nodes, device=node.device)
    known = node >= 0
    found[known, node[known]] = 1.0
    return found
