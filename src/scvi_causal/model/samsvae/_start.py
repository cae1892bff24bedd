"""Where masks, embeddings and loadings start: at what the population means of the training conditions say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.dataloaders import get_control_mask, get_strata
from scvi_causal.model.base._condition_effects import condition_effects, denoise
from scvi_causal.model.base._shrinkage import shrink_effects

if TYPE_CHECKING:
    from scvi.data import AnnDataManager

    from scvi_causal.model.samsvae._module import SAMSVAEModule

PSEUDOCOUNT = 0.05  # counts per 10,000: below it a ratio of means is noise
_SMALLEST_VALUE = 0.02  # singular value, of the largest, that still is a factor
_SMALLEST_SHARE = 0.2  # of the largest score of its factor, from which a mask starts on
_EMBEDDING_SCALE = -2.0  # log standard deviation of embeddings that start at an estimate
_N_STEPS = 500
_N_STARTS = 6
_MANY_FACTORS = 30  # for which turning takes long, and one start has to do


def start_at_effects(
    module: SAMSVAEModule, manager: AnnDataManager, rows: np.ndarray, size: float, odds: float
) -> None:
    """Start embeddings and loadings at the effects of the training tokens, and masks where these are large.

    Log ratios of population means are taken apart into what tokens share (the directions that noise does not explain) and what is left
    of the rest after shrinkage. Each part is factorised, and turned so that tokens have few factors. Factors take latent dimensions, up
    to half of them; the others stay for what differs between cells of one condition.

    Parameters
    ----------
    module
        Fresh module with a linear path in its decoder.
    manager, rows
        Data and training cells.
    size
        Root mean square of the embeddings of a dimension whose masks are on.
    odds
        Log odds of the masks that start on.
    """
    shared, total = _token_effects(manager, rows, module)
    most = module.n_latent // 2
    scores, loadings = _factors(shared, most)
    own = _factors(total - scores @ loadings, most - scores.shape[1])
    scores, loadings = np.hstack([scores, own[0]]), np.vstack([loadings, own[1]])
    rank = scores.shape[1]
    if not rank:
        return
    on = np.abs(scores) > _SMALLEST_SHARE * np.abs(scores).max(0)
    scale = np.sqrt((scores**2 * on).sum(0) / on.sum(0)) / size
    mechanisms, options = module.mechanisms, module.options
    seen = module.cells_per_token.cpu() > 0
    with torch.no_grad():
        mechanisms.location[:, :rank] = torch.from_numpy(scores * on / scale).float()
        mechanisms.log_scale[seen] = _EMBEDDING_SCALE
        if mechanisms.masked:
            mechanisms.mask_logits[:, :rank] = torch.from_numpy(np.where(on, odds, options.mask_start)).float()
        weight = module.decoder.loadings.weight
        weight[:, :rank] = 0.0
        weight[: module.n_genes, :rank] = torch.from_numpy(loadings.T * scale).float()


def compared_cells(manager: AnnDataManager, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Cells whose differences from controls are effects of tokens.

    Where quality is registered, failed cells are held against failed controls: otherwise what makes them fail would be an effect. Failed
    cells of strata without failed controls are left out.

    Returns
    -------
    rows
        Some of the given ones.
    within
        Their quality classes; ``None`` where no quality is registered.
    """
    if CAUSAL_KEYS.QUALITY not in manager.data_registry:
        return rows, None
    quality = np.asarray(manager.get_from_registry(CAUSAL_KEYS.QUALITY)).ravel()[rows].astype(np.int64)
    control, stratum = get_control_mask(manager)[rows], get_strata(manager)[rows]
    group = stratum * (quality.max() + 1) + quality
    kept = (quality == 0) | np.isin(group, group[control])
    return rows[kept], quality[kept]


def _token_effects(manager: AnnDataManager, rows: np.ndarray, module: SAMSVAEModule) -> tuple[np.ndarray, np.ndarray]:
    """(n_tokens, n_genes) log ratios of means: the part that tokens share, and all that is more than noise."""
    rows, within = compared_cells(manager, rows)
    found = condition_effects(manager, rows, module.n_genes, log_normalize=True, within=within)
    shared = denoise(found.effect, found.variance)
    rest = shrink_effects(found.effect - shared, found.noise, found.dosage, found.context).effect
    weight = np.sqrt(found.n_cells)[:, None]
    effects = []
    for change in (shared, shared + rest):
        ratio = log_ratio(found.control, change, module.decoder.rest)
        effects.append(np.linalg.lstsq(found.dosage * weight, ratio * weight, rcond=1e-6)[0])
    return effects[0], effects[1]


def log_ratio(control: np.ndarray, change: np.ndarray, rest: bool) -> np.ndarray:
    """(n_rows, n_genes) change of log shares, from mean counts per 10,000 and the change of log(1 + these)."""
    after = np.maximum(np.expm1(np.log1p(control) + change), 0.0)
    ratio = np.log((after + PSEUDOCOUNT) / (control + PSEUDOCOUNT))
    # shares add up to 1: what moves all genes alike moves nothing
    return ratio if rest else ratio - ratio.mean(1, keepdims=True)


def _factors(effects: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(n_tokens, k) sparse scores and (k, n_genes) loadings whose product is ``effects``, up to small singular values."""
    left, values, right = np.linalg.svd(effects, full_matrices=False)
    rank = min(int((values > max(_SMALLEST_VALUE * values[0], 1e-6)).sum()), most)
    if rank == 0:
        return np.zeros((len(effects), 0)), np.zeros((0, effects.shape[1]))
    return sparse_rotation(left[:, :rank] * values[:rank], right[:rank])


def sparse_rotation(scores: np.ndarray, loadings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Turn factors so that the scores have a small sum of absolute values; their product stays.

    Loadings keep length 1 and need not become orthogonal. Minimised is :math:`\sum \sqrt{s^2 + \epsilon^2}` with an
    :math:`\epsilon` that falls, from several random starts.

    Parameters
    ----------
    scores
        (n, k)
    loadings
        (k, n_genes)

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> simple = np.kron(np.eye(2), np.arange(1.0, 6.0)[:, None])
    >>> turn = np.array([[0.9, 0.5], [-0.3, 0.8]])
    >>> found, _ = sparse_rotation(simple @ turn, np.linalg.inv(turn) @ rng.normal(size=(2, 30)))
    >>> int((np.abs(found) < 0.02 * np.abs(found).max()).sum()), int((simple == 0).sum())
    (10, 10)
    """
    k = scores.shape[1]
    if k == 1:
        return scores, loadings
    given, gram = torch.from_numpy(scores), torch.from_numpy(loadings @ loadings.T)
    n_starts = _N_STARTS if k <= _MANY_FACTORS else 1
    generator = torch.Generator().manual_seed(0)
    starts = torch.linalg.qr(torch.randn(n_starts, k, k, generator=generator, dtype=given.dtype))[0]
    turn = _turn(given / (float(given.abs().mean()) + 1e-12), gram, starts).numpy()
    return np.linalg.solve(turn.T, scores.T).T, turn @ loadings


def _turn(scores: torch.Tensor, gram: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """(k, k) matrix whose rows make loadings of length 1, the best of all starts (n_starts, k, k)."""
    with torch.enable_grad():
        raw = starts.clone().requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=0.03)
        for step in range(_N_STEPS):
            optimizer.zero_grad()
            length = ((raw @ gram) * raw).sum(-1).clamp_min(1e-12).sqrt()
            turn = raw / length[..., None]
            turned = torch.linalg.solve(turn.mT, scores.T)
            softness = 0.3 * 0.03 ** (step / _N_STEPS)
            (turned.square() + softness**2).sqrt().sum().backward()
            optimizer.step()
    return turn.detach()[turned.detach().abs().sum((1, 2)).argmin()]
