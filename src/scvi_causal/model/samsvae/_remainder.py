"""What masks and embeddings leave of the effect of a token: a dense random effect on the log shares of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from scvi_causal.model.samsvae._mechanisms import noise_of_token

if TYPE_CHECKING:
    from scvi_causal.model.samsvae._calibrate import TrainingEffects
    from scvi_causal.model.samsvae._model import SAMSVAE

_N_ROUNDS = 3
_PRIOR_VARIANCE = 1.0  # of log shares: for genes that too few counts speak for
_LARGEST_STEP = 1.0  # of a log share in a round
_N_STEPS = 30  # of conjugate gradients: one where tokens do not share conditions
_OTHER_THAN_MECHANISMS = 0x5DEECE66D  # their draws use the seed as it is
MODE = "aim"


class Remainder(nn.Module):
    r"""Shifts of the log shares of genes, :math:`\sum_t d_t r_t`, beside those of the latent state.

    Parameters
    ----------
    n_tokens, n_genes
        Sizes.

    Attributes
    ----------
    mean, scale
        (n_tokens, n_genes) expected remainder of each token, and its standard deviation; 0 until :func:`fit_remainder` fills them,
        and for tokens without training cells.
    """

    def __init__(self, n_tokens: int, n_genes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_tokens, n_genes))
        self.register_buffer("scale", torch.zeros(n_tokens, n_genes))

    def forward(self, dosage: Tensor, seed: int | None = None) -> Tensor:
        """(cells, n_genes) shifts of cells with dosages (cells, n_tokens): expected ones, or a draw that belongs to ``seed``."""
        used = (dosage != 0).any(0).nonzero().squeeze(1)
        value = self.mean[used]
        if seed is not None and len(used):
            noise = [
                noise_of_token(int(token), seed ^ _OTHER_THAN_MECHANISMS, value.shape[1])[1] for token in used.tolist()
            ]
            value = value + self.scale[used] * torch.stack(noise).to(value)
        return dosage[:, used] @ value

    def clear(self) -> None:
        """Back to none."""
        self.mean.zero_()
        self.scale.zero_()


@torch.inference_mode()
def fit_remainder(model: SAMSVAE, observed: TrainingEffects) -> None:
    r"""Fill the remainders of the tokens from what drawn cells lack of the effects of the training conditions.

    With the effect y of a condition (change of the mean log1p expression) less what noise explains, the drawn effect p, and
    the slope s of the latter in log shares, rounds of

    .. math::
        \min_\Delta \sum_{r,g} \frac{(y_{rg} - p_{rg} - s_{rg} \sum_t d_{rt} \Delta_{tg})^2}{v_{rg}} + \sum_{t,g} (r_{tg} + \Delta_{tg})^2

    where v is the sampling variance of y: Gauss-Newton steps to the mode of the remainders under standard normal priors.

    Parameters
    ----------
    model
        Trained, with remainders of zero.
    observed
        Of its training cells.
    """
    module, found = model.module, observed.found
    dosage = csr_matrix(found.dosage)
    noise = np.maximum(found.variance, 1e-3 * found.variance.mean() + 1e-12)
    remainder = np.zeros((dosage.shape[1], found.effect.shape[1]))
    module.eval()
    aim = observed.aim
    for i in range(_N_ROUNDS):
        drawn, slope = observed.draw()
        if i == 0 and MODE == "rest":
            aim = drawn + observed.shrink(found.effect - drawn).effect
        if i == 0 and MODE == "raw":
            aim = found.effect
        change = _solve(dosage, slope, aim - drawn, noise, remainder)
        remainder += np.clip(change, -_LARGEST_STEP, _LARGEST_STEP)
        module.remainder.mean.copy_(torch.from_numpy(remainder))


def _solve(
    dosage: csr_matrix, slope: np.ndarray, missing: np.ndarray, noise: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """(n_tokens, n_genes) minimiser of :func:`fit_remainder`, gene by gene, by conjugate gradients for all genes at once."""
    weight = slope / noise
    curvature = weight * slope

    def apply(x: np.ndarray) -> np.ndarray:
        return dosage.T @ (curvature * (dosage @ x)) + x / _PRIOR_VARIANCE

    diagonal = dosage.power(2).T @ curvature + 1.0 / _PRIOR_VARIANCE
    x = np.zeros_like(before)
    residual = dosage.T @ (weight * missing) - before / _PRIOR_VARIANCE
    direction = scaled = residual / diagonal
    length = (residual * scaled).sum(0)
    for _ in range(_N_STEPS):
        moved = apply(direction)
        step = length / np.maximum((direction * moved).sum(0), 1e-300)
        x = x + step * direction
        residual = residual - step * moved
        scaled = residual / diagonal
        following = (residual * scaled).sum(0)
        if following.max() < 1e-10 * max(float(length.max()), 1e-300) or following.max() < 1e-12:
            break
        direction, length = scaled + following / np.maximum(length, 1e-300) * direction, following
    return x
