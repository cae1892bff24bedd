"""What masks and embeddings leave of the effect of a token: a dense random effect on the log shares of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from scvi_causal.model.base._shrinkage import pooling
from scvi_causal.model.samsvae._mechanisms import noise_of_token

if TYPE_CHECKING:
    from scvi_causal.model.samsvae._calibrate import TrainingEffects
    from scvi_causal.model.samsvae._model import SAMSVAE

_N_ROUNDS = 3
_PRIOR_VARIANCE = 1.0  # of remainders: for genes of which too few counts speak
_LARGEST_STEP = 1.0  # of a log share in a round
_N_STEPS = 30  # of conjugate gradients: one where tokens do not share conditions
_OTHER_THAN_MECHANISMS = 0x5DEECE66D  # their draws use the seed as it is


class Remainder(nn.Module):
    r"""Shifts of the log shares of genes, :math:`\sum_t d_t r_t` with :math:`r_{tg} \sim N(0, \tau^2)`, beside those of the latent state.

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
            scale = self.scale[used]
            # the expected share is that of the expected remainder
            value = value + scale * torch.stack(noise).to(value) - 0.5 * scale.square()
        return dosage[:, used] @ value

    def clear(self) -> None:
        """Back to none."""
        self.mean.zero_()
        self.scale.zero_()


@torch.inference_mode()
def fit_remainder(model: SAMSVAE, observed: TrainingEffects) -> None:
    r"""Fill the remainders of the tokens from what drawn cells lack of the effects of the training conditions.

    With the effect y of a condition (change of the mean log1p expression), the effect p in drawn cells, and the slope s of that in the
    log shares of genes, rounds of

    .. math::
        \min_\Delta \sum_{r,g} \frac{(\tilde y_{rg} - p_{rg} - s_{rg} \sum_t d_{rt} \Delta_{tg})^2}{v_{rg}}
        + \sum_{t,g} \frac{(r_{tg} + \Delta_{tg})^2}{\tau^2}

    where v is the sampling variance of y: Gauss-Newton steps to the mode of the remainders under their prior. In :math:`\tilde y` noise is
    taken off: y shrunken towards the mean response, and y shrunken towards what drawn cells do without remainders, each with half of the
    weight. The one trusts the model in nothing, the other in all that noise allows.

    Parameters
    ----------
    model
        Trained, with remainders of zero.
    observed
        Of its training cells.
    """
    module, found = model.module.eval(), observed.found
    dosage, genes = csr_matrix(found.dosage, dtype=np.float64), found.effect.shape[1]
    noise = np.maximum(found.variance, 1e-3 * found.variance.mean() + 1e-12)
    remainder = np.zeros((dosage.shape[1], genes))
    drawn, slope = observed.draw()
    around = observed.shrink(found.effect - drawn)
    aims = observed.shrunken.effect, drawn + around.effect
    for i in range(_N_ROUNDS):
        if i:
            drawn, slope = observed.draw()
        step = gauss_newton_step(dosage, slope, 0.5 * (aims[0] + aims[1]) - drawn, noise, remainder)
        remainder += np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
        module.remainder.mean.copy_(torch.from_numpy(remainder))
    pool = pooling(dosage, 1.0 / np.maximum(found.noise.own.sum(1), 1e-300))
    variances = [part.variance(found.noise.of(pool)) for part in (observed.shrunken, around)]
    variance = 0.5 * (variances[0] + variances[1]) + 0.25 * (pool @ (aims[0] - aims[1])) ** 2
    module.remainder.scale.copy_(torch.from_numpy(_as_log_shares(variance, dosage, slope)))


def gauss_newton_step(
    dosage: csr_matrix, slope: np.ndarray, missing: np.ndarray, noise: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """(n_tokens, n_genes) minimiser of :func:`fit_remainder`, by conjugate gradients for all genes at once.

    Parameters
    ----------
    dosage
        (n_rows, n_tokens)
    slope, missing, noise
        (n_rows, n_genes)
    before
        (n_tokens, n_genes) remainders so far.
    """
    weight = slope / noise
    curvature = weight * slope
    diagonal = dosage.power(2).T @ curvature + 1.0 / _PRIOR_VARIANCE
    step = np.zeros_like(before)
    residual = dosage.T @ (weight * missing) - before / _PRIOR_VARIANCE
    direction = scaled = residual / diagonal
    length = (residual * scaled).sum(0)
    enough = 1e-12 * length + 1e-300
    for _ in range(_N_STEPS):
        moved = dosage.T @ (curvature * (dosage @ direction)) + direction / _PRIOR_VARIANCE
        far = length / np.maximum((direction * moved).sum(0), 1e-300)
        step = step + far * direction
        residual = residual - far * moved
        scaled = residual / diagonal
        before, length = length, (residual * scaled).sum(0)
        if (length < enough).all():
            break
        direction = scaled + length / np.maximum(before, 1e-300) * direction
    return step


def _as_log_shares(variance: np.ndarray, dosage: csr_matrix, slope: np.ndarray) -> np.ndarray:
    """(n_tokens, n_genes) standard deviations of remainders, within their prior, from variances of the effects of tokens."""
    n_rows = np.asarray(dosage.power(2).sum(0)).reshape(-1, 1)
    of_token = dosage.power(2).T @ slope / np.where(n_rows > 0, n_rows, 1.0)
    variance = variance / np.maximum(of_token**2 + variance / _PRIOR_VARIANCE, 1e-300)
    return np.where(n_rows > 0, np.sqrt(variance), 0.0)
