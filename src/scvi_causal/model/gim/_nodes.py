"""What the nodes of the causal graph are, and how a change of the nodes is a change of all genes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, vstack

from scvi_causal.data._messages import did_you_mean, listed
from scvi_causal.model.base._group_moments import iterate_expression

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi.data import AnnDataManager

    from scvi_causal.model.gim._populations import Populations

_MIN_DETECTION = 0.02
_MAX_CELLS = 20_000  # that components are computed from
_DEFAULT_GENES, _DEFAULT_COMPONENTS = 100, 20


@dataclass(frozen=True)
class NodeSpace:
    """Nodes of the graph.

    Parameters
    ----------
    names
        (d,) name of each.
    genes
        (d,) gene that each node is, or -1.
    encoder
        (n_genes, d) matrix from expression to nodes; ``None`` where nodes are genes, or come from ``obsm``.
    loadings
        (d, n_genes) change of the genes per unit of a node, as far as it is known beforehand.
    key
        Key of ``adata.obsm`` with the node values of the cells.
    """

    names: np.ndarray
    genes: np.ndarray
    encoder: np.ndarray | None
    loadings: np.ndarray
    key: str | None = None

    def encode(self, x: csr_matrix) -> np.ndarray:
        """(n, d) node values of sparse expression."""
        if self.encoder is None:
            return np.asarray(x[:, self.genes].todense())
        return np.asarray(x @ self.encoder)


def make_nodes(
    manager: AnnDataManager,
    populations: Populations,
    latent: str,
    n_nodes: int | None,
    genes: np.ndarray,
    tokens: Sequence[str],
    scale: str,
) -> NodeSpace:
    """Nodes as the user asked for them.

    Parameters
    ----------
    manager
        Manager of the training data.
    populations
        What is known of the training cells.
    latent
        ``"genes"``, ``"pca"``, ``"nmf"``, or a key of ``adata.obsm``.
    n_nodes
        Number of nodes; 100 genes or 20 components by default.
    genes
        Names of all genes.
    tokens
        Tokens of the training cells; those that are genes become nodes.
    scale
        Scale of the expression.
    """
    if latent == "genes":
        return gene_nodes(populations, genes, tokens, n_nodes or _DEFAULT_GENES, scale)
    if latent in ("pca", "nmf"):
        x = _sample(manager, populations.grouping.rows, scale)
        d = min(n_nodes or _DEFAULT_COMPONENTS, min(x.shape) - 1)
        return _components(x, latent, d)
    values = np.asarray(manager.adata.obsm[latent])
    d = values.shape[1]
    names = np.array([f"{latent}_{i + 1}" for i in range(d)])
    return NodeSpace(names, np.full(d, -1), None, np.zeros((d, len(genes))), key=latent)


def check_latent(latent: str, keys: Sequence[str]) -> None:
    """Raise ``ValueError`` if ``latent`` is neither a name nor a key of ``obsm``."""
    if latent in ("genes", "pca", "nmf") or latent in keys:
        return
    raise ValueError(
        f"latent={latent!r} is none of 'genes', 'pca', 'nmf', and no key of adata.obsm, which has {listed(keys)}."
        f"{did_you_mean(latent, keys)} A fitted scvi-tools model is given as adata.obsm['X_scVI'] = "
        "scvi_model.get_latent_representation(); latent='X_scVI'."
    )


def gene_nodes(
    populations: Populations, genes: np.ndarray, tokens: Sequence[str], n_nodes: int, scale: str
) -> NodeSpace:
    """Measured targets, then the genes whose effects stand out most clearly from noise."""
    usable = populations.variance > 1e-8
    if scale == "log1p":
        usable &= populations.detection >= _MIN_DETECTION
    # a gene that is silent in controls has no scale of its own, so that the noise of its effect is taken with a floor
    floor = np.median(populations.variance[usable]) * 1e-2 if usable.any() else 1.0
    signal = (populations.n[:, None] * populations.effect**2).sum(0) / np.maximum(populations.variance, floor)
    signal[~usable] = -np.inf
    own = np.isin(genes, list(tokens)) & (populations.variance > 1e-8)
    n_nodes = min(n_nodes, int((usable | own).sum()))
    if n_nodes < 2:
        raise ValueError(
            f"Only {n_nodes} of the {len(genes):,} genes vary among the training controls and are found in at least "
            f"{_MIN_DETECTION:.0%} of the cells: there is nothing to learn a graph from. Check that X (or layer=) holds the "
            "expression, and that the controls are cells."
        )
    own_first = np.flatnonzero(own)[np.argsort(-signal[own], kind="stable")]
    others = np.array([g for g in np.argsort(-signal, kind="stable") if not own[g]], dtype=np.int64)
    chosen = np.sort(np.concatenate([own_first, others])[: max(n_nodes, len(own_first))])
    chosen = chosen[np.isfinite(signal[chosen]) | own[chosen]]
    loadings = np.zeros((len(chosen), len(genes)))
    loadings[np.arange(len(chosen)), chosen] = 1.0
    return NodeSpace(genes[chosen], chosen, None, loadings)


def _sample(manager: AnnDataManager, rows: np.ndarray, scale: str) -> csr_matrix:
    if len(rows) > _MAX_CELLS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MAX_CELLS, replace=False))
    return vstack([x for _, x in iterate_expression(manager, rows, scale)]).tocsr()


def _components(x: csr_matrix, kind: str, d: int) -> NodeSpace:
    from sklearn.decomposition import NMF, PCA
    from sklearn.exceptions import ConvergenceWarning

    nowhere = np.full(d, -1)
    if kind == "pca":
        axes = PCA(d, svd_solver="arpack", random_state=0).fit(x).components_
        return NodeSpace(np.array([f"PC{i + 1}" for i in range(d)]), nowhere, axes.T, axes)
    if x.data.size and x.data.min() < 0:
        raise ValueError(
            "latent='nmf' needs expression that is not negative, and the data have negative values: use 'pca'."
        )
    with warnings.catch_warnings():
        # programmes that are not quite settled serve as well
        warnings.simplefilter("ignore", ConvergenceWarning)
        programmes = NMF(d, init="nndsvda", random_state=0, max_iter=200).fit(x).components_
    programmes = programmes / np.maximum(np.linalg.norm(programmes, axis=1, keepdims=True), 1e-12)
    return NodeSpace(np.array([f"NMF{i + 1}" for i in range(d)]), nowhere, np.linalg.pinv(programmes), programmes)


def log_loadings(populations: Populations, loadings: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Loadings on log(1 + rate) as loadings on log rates, for counts.

    Control cells tell by how much the one moves with the other; genes that are nodes also tell it themselves, as far as they were moved.

    Parameters
    ----------
    populations
        Of the training cells.
    loadings
        (d, n_genes)
    genes
        (d,) gene that each node is, or -1.
    """
    slope = populations.rates.slope.copy()
    own = genes[genes >= 0]
    moved, fold = populations.effect[:, own], populations.log_fold[:, own]
    noise = populations.variance[own] * (1 / populations.n).sum()
    slope[own] = ((moved * fold).sum(0) + noise * slope[own]) / np.maximum((moved**2).sum(0) + noise, 1e-12)
    return loadings * slope


def fit_readout(
    node_effect: np.ndarray, gene_effect: np.ndarray, n: np.ndarray, loadings: np.ndarray, genes: np.ndarray
):
    """How a change of the nodes is a change of all genes.

    Genes that are nodes change as their node does. The others follow the nodes as they do over the training conditions: a ridge
    regression of effects on effects, on top of the loadings, with the penalty that predicts left-out conditions best.

    Parameters
    ----------
    node_effect
        (K, d) effects on nodes, standardised.
    gene_effect
        (K, n_genes) effects on genes.
    n
        (K,) cells of each condition.
    loadings
        (d, n_genes) known beforehand, per standardised unit of a node.
    genes
        (d,) gene that each node is, or -1.

    Returns
    -------
    (d, n_genes) change of the genes per standardised unit of a node, in the unit of ``gene_effect``.
    """
    outside = np.setdiff1d(np.arange(gene_effect.shape[1]), genes[genes >= 0])
    readout = loadings.copy()
    if not len(outside) or not len(n):
        return readout
    weight = np.sqrt(n / n.sum())[:, None]
    left = gene_effect[:, outside] - node_effect @ loadings[:, outside]
    u, s, vt = np.linalg.svd(weight * node_effect, full_matrices=False)
    projected = u.T @ (weight * left)
    total = max(float((s**2).mean()), 1e-12)
    best, best_error = None, (weight**2 * left**2).sum()  # no readout at all, beyond the loadings
    for penalty in total * np.logspace(-4, 3, 15):
        shrink = s**2 / (s**2 + penalty)
        leverage = np.clip((u**2) @ shrink, 0, 1 - 1e-6)
        residual = (weight * left - u @ (shrink[:, None] * projected)) / (1 - leverage)[:, None]
        error = (residual**2).sum()
        if len(n) == 1:  # nothing can be left out: all that is known is this one condition
            best, best_error = penalty, -np.inf
            break
        if error < best_error:
            best, best_error = penalty, error
    if best is not None:
        readout[:, outside] += vt.T @ ((s / (s**2 + best))[:, None] * projected)
    return readout
