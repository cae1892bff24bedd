"""What artifacts of the latent space leave of the difference between failed and passing cells, on the log shares of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS, settings

from scvi_causal._constants import CAUSAL_KEYS, NORMALIZED_TOTAL
from scvi_causal.data import condition_codes
from scvi_causal.dataloaders import get_strata
from scvi_causal.model.base._request import PredictOptions
from scvi_causal.model.base._scales import to_log1p
from scvi_causal.model.base._sources import SourceReader
from scvi_causal.model.base._walk import evaluate, library_of, step_size

if TYPE_CHECKING:
    from scvi_causal.model.cradlevae._model import CRADLEVAE

_N_ROUNDS = 3
_MOST_CELLS = 4_000  # of a kind
_PRIOR_VARIANCE = 1.0  # of log shares: for genes that too few counts speak for
_LARGEST_STEP = 1.0  # of a log share in a round


@torch.inference_mode()
def fit_artifact_remainder(model: CRADLEVAE, rows: np.ndarray) -> None:
    r"""Fill the remainder of each kind of failure.

    Failed training cells are paired with passing ones of the same condition and stratum. What the latter are drawn as with the artifact
    on should be, on average, what the former are. With the mean log1p expression y of the failed cells, the drawn one p, its slope s in
    log shares (see :func:`~scvi_causal.model.base._drawn_effect.drawn_effect_and_slope`) and the sampling variance v of the difference,
    rounds of

    .. math::
        \min_\Delta \sum_g \frac{(y_g - p_g - s_g \Delta_g)^2}{v_g} + \sum_g (r_g + \Delta_g)^2.

    Parameters
    ----------
    model
        Trained.
    rows
        Training cells.
    """
    module = model.module.eval()
    module.artifact_remainder.zero_()
    quality = np.asarray(model.adata_manager.get_from_registry(CAUSAL_KEYS.QUALITY)).ravel().astype(np.int64)
    rng = np.random.default_rng([settings.seed or 0, 8])
    for code in range(1, module.n_kinds + 1):
        failed, passing = matched_cells(model, rows[quality[rows] == code], rows[quality[rows] == 0], rng)
        if len(failed) < 2:
            continue
        observed = _moments(model, failed)
        remainder = torch.zeros_like(module.artifact_remainder[0], dtype=torch.float64)
        for _ in range(_N_ROUNDS):
            drawn, variance, slope = _drawn_moments(model, passing, model._quality_classes[code], rng)
            noise = (observed[1] + variance) / len(failed)
            noise = noise.clamp_min(1e-3 * float(noise.mean()) + 1e-12)
            top = slope * (observed[0] - drawn) / noise - remainder / _PRIOR_VARIANCE
            change = top / (slope.square() / noise + 1.0 / _PRIOR_VARIANCE)
            remainder += change.clamp(-_LARGEST_STEP, _LARGEST_STEP)
            module.artifact_remainder[code - 1] = remainder.to(module.artifact_remainder)


def matched_cells(
    model: CRADLEVAE, failed: np.ndarray, passing: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of failed cells, and of a passing one of the same condition and stratum for each; those without one are left out."""
    dosage = csr_matrix(model.adata_manager.get_from_registry(CAUSAL_KEYS.PERTURBATION))
    strata = get_strata(model.adata_manager)
    group = condition_codes(dosage)[0] * (strata.max() + 1) + strata
    order = passing[np.argsort(group[passing], kind="stable")]
    keys, starts, sizes = np.unique(group[order], return_index=True, return_counts=True)
    failed = rng.permutation(failed[np.isin(group[failed], keys)])[:_MOST_CELLS]
    place = np.searchsorted(keys, group[failed])
    return failed, order[starts[place] + (rng.random(len(failed)) * sizes[place]).astype(np.int64)]


def _moments(model: CRADLEVAE, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the log1p expression of cells."""
    reader, sums = SourceReader(model, model.adata), _Sums()
    for start in range(0, len(rows), 512):
        tensors = reader.read(rows[start : start + 512])
        sums.add(to_log1p(tensors[REGISTRY_KEYS.X_KEY], "counts", library_of(model, tensors)))
    return sums.mean, sums.variance


def _drawn_moments(
    model: CRADLEVAE, rows: np.ndarray, quality: str, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of cells that are drawn at another quality, and the slope of the mean in log shares."""
    reader = SourceReader(model, model.adata, {model._quality_key: quality})
    sums, slopes, device = _Sums(), _Sums(), model.module.device
    inputs = {key: v.to(device) for key, v in model._get_token_inputs(list(model._vocabulary.tokens), None).items()}
    options = PredictOptions("counts", sample=True, n_samples=1, seed=0)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    step = step_size(1, model.module.n_genes)
    for start in range(0, len(rows), step):
        tensors = reader.read(rows[start : start + step])
        counts = evaluate(model, tensors, tensors[CAUSAL_KEYS.PERTURBATION].float(), inputs, options, generator)
        library = library_of(model, tensors)
        drawn = to_log1p(counts, "counts", library)
        one_less = torch.log1p((counts - 1.0).clamp_min(0.0) * (NORMALIZED_TOTAL / library))
        sums.add(drawn)
        slopes.add(counts * (drawn - one_less))
    return sums.mean, sums.variance, slopes.mean


class _Sums:
    """Moments of rows that come in pieces."""

    def __init__(self):
        self.n, self.total, self.squares = 0, 0.0, 0.0

    def add(self, x: torch.Tensor) -> None:
        x = x.double()
        self.n, self.total, self.squares = self.n + len(x), self.total + x.sum(0), self.squares + x.square().sum(0)

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.n

    @property
    def variance(self) -> torch.Tensor:
        return (self.squares / self.n - self.mean.square()).clamp_min(0.0)
