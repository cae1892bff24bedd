"""Counts of cells whose latent state is moved by sparse additive shifts: the world in which SAMS-VAE is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix

_SPREAD = 0.5  # of the sizes of shifts


@dataclass(frozen=True, eq=False)
class MechanismSimulation:
    """A simulated screen and the mechanisms behind it; made by :func:`simulate_mechanisms`."""

    adata: AnnData
    """Counts (CSR, float32); ``obs``: perturbation, failed (whether the cell has the artifact)."""
    masks: pd.DataFrame
    """(tokens x latent dimensions) bool: on which dimensions a token acts."""
    shifts: pd.DataFrame
    """(tokens x latent dimensions) by how much; 0 where the mask is off."""
    loadings: np.ndarray
    """(latent dimensions, genes) change of log expression per unit of a dimension."""
    artifact: np.ndarray
    """(genes,) change of log expression in a cell with the artifact."""
    log_shares: np.ndarray
    """(genes,) log share of each gene in the library of a control cell in the middle of its state."""

    def score_masks(self, found: np.ndarray | pd.DataFrame) -> dict[str, float]:
        """Precision, recall and F1 of masks, after their columns are matched to the true ones.

        Parameters
        ----------
        found
            (tokens x any number of dimensions) bool, in the order of the tokens; matched so that the most entries agree.
        """
        truth, given = self.masks.to_numpy(), np.asarray(found, dtype=bool)
        if given.ndim != 2 or len(given) != len(truth):
            raise ValueError(
                f"found has the shape {given.shape}, and there are {len(truth)} tokens: pass one row for each."
            )
        rows, columns = linear_sum_assignment(-(truth.T.astype(int) @ given.astype(int)))
        hits = int((truth[:, rows] & given[:, columns]).sum())
        precision, recall = hits / max(int(given.sum()), 1), hits / max(int(truth.sum()), 1)
        return {"precision": precision, "recall": recall, "f1": 2 * hits / max(int(given.sum() + truth.sum()), 1)}


def simulate_mechanisms(
    n_tokens: int = 30,
    n_latent: int = 8,
    n_genes: int = 100,
    n_cells_per_token: int = 60,
    n_control: int = 400,
    *,
    n_combinations: int = 0,
    mask_probability: float = 0.15,
    shift: float = 3.0,
    state_sd: float = 0.15,
    library_size: float = 2_000.0,
    library_sd: float = 0.3,
    dispersion: float = 10.0,
    failed: float = 0.0,
    failed_spread: float = 0.0,
    artifact_sd: float = 0.6,
    seed: int = 0,
) -> MechanismSimulation:
    r"""Simulate a screen whose perturbations act by planted sparse mechanisms.

    .. math::
        z \sim N(0, I), \quad u = z + \sum_t d_t\, M_t \odot E_t, \quad
        x \sim NB\left(\ell\, \mathrm{softmax}(b + u \Lambda + q a), \theta\right)

    with masks :math:`M_{tl} \sim \mathrm{Bernoulli}`, at least one per token, shifts :math:`E_{tl} = \pm N(\text{shift}, 0.5^2)`, and loadings
    :math:`\Lambda` on a third of the genes each.

    Parameters
    ----------
    n_tokens, n_latent, n_genes
        Sizes.
    n_cells_per_token, n_control
        Cells of each perturbation, and controls.
    n_combinations
        Number of random pairs of tokens, with as many cells as a token.
    mask_probability
        Share of the dimensions on which a token acts.
    shift
        Mean size of a shift, in standard deviations of the state of cells.
    state_sd
        Standard deviation that a dimension gives the log expression of its genes.
    library_size, library_sd
        Median of the library, and standard deviation of its log.
    dispersion
        Inverse dispersion of the counts.
    failed, failed_spread
        Share of the cells with the artifact; and the standard deviation over tokens of its log odds, where perturbations make cells fail
        more or less often than controls do.
    artifact_sd
        Standard deviation over genes of what the artifact does to log expression.
    seed
        Seed of all that is random.

    Returns
    -------
    A :class:`MechanismSimulation`.

    Examples
    --------
    >>> from scvi_causal.data import simulate_mechanisms
    >>> simulation = simulate_mechanisms(n_tokens=5, n_cells_per_token=10, n_control=20, seed=0)
    >>> simulation.adata.shape, simulation.score_masks(simulation.masks)["f1"]
    ((70, 100), 1.0)
    """
    rng = np.random.default_rng([seed, 47])
    masks = rng.random((n_tokens, n_latent)) < mask_probability
    masks[np.arange(n_tokens), rng.integers(n_latent, size=n_tokens)] = True
    sign = rng.choice([-1.0, 1.0], size=masks.shape)
    shifts = np.where(masks, sign * rng.normal(shift, _SPREAD, masks.shape), 0.0)
    loadings = (
        state_sd * rng.normal(size=(n_latent, n_genes)) * (rng.random((n_latent, n_genes)) < 1 / 3) * np.sqrt(3.0)
    )
    log_shares = rng.normal(0.0, 1.0, n_genes)
    artifact = artifact_sd * rng.normal(size=n_genes)
    tokens = [f"T{i:02d}" for i in range(n_tokens)]
    pairs = [sorted(rng.choice(n_tokens, 2, replace=False)) for _ in range(n_combinations)]
    conditions = [[], *([i] for i in range(n_tokens)), *pairs]
    n_cells = np.array([n_control] + [n_cells_per_token] * (len(conditions) - 1))
    dosage = np.zeros((len(conditions), n_tokens))
    for row, members in enumerate(conditions):
        dosage[row, members] = 1.0
    condition = np.repeat(np.arange(len(conditions)), n_cells)
    state = rng.normal(size=(len(condition), n_latent)) + dosage[condition] @ shifts
    odds = dosage @ (failed_spread * np.random.default_rng([seed, 48]).normal(size=n_tokens))
    share_failed = failed * np.exp(odds) / (1.0 - failed + failed * np.exp(odds))
    is_failed = rng.random(len(condition)) < share_failed[condition]
    log_rate = log_shares + state @ loadings + np.outer(is_failed, artifact)
    share = np.exp(log_rate - log_rate.max(1, keepdims=True))
    library = rng.lognormal(np.log(library_size), library_sd, len(condition))
    mean = share / share.sum(1, keepdims=True) * library[:, None]
    counts = rng.poisson(mean * rng.gamma(dispersion, 1.0 / dispersion, mean.shape))
    labels = np.array(["+".join(tokens[i] for i in members) or "control" for members in conditions], dtype=object)
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical(labels[condition]), "failed": is_failed},
        index=[f"cell_{i}" for i in range(len(condition))],
    )
    genes = [f"gene_{i}" for i in range(n_genes)]
    names = [f"latent_{i}" for i in range(n_latent)]
    return MechanismSimulation(
        AnnData(csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=genes)),
        pd.DataFrame(masks, tokens, names),
        pd.DataFrame(shifts, tokens, names),
        loadings,
        artifact,
        log_shares - np.log(np.exp(log_shares).sum()),
    )
