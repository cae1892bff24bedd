"""What refinement learns from: standardised expression of cells, what was done to them, and the edges that may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix, vstack

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import condition_codes
from scvi_causal.data._messages import did_you_mean, listed, plural
from scvi_causal.dataloaders import get_strata
from scvi_causal.model.base._group_moments import ExpressionReader, group_moments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi.data import AnnDataManager
    from torch import Tensor

_STEP = 4_096
_LOWEST_SD = 1e-3


@dataclass(frozen=True)
class Nodes:
    """Names of what may regulate and of what is regulated.

    Parameters
    ----------
    genes
        (n_genes,) all genes of the data; the targets of edges.
    regulators
        (n_sources,) genes, then perturbations that are no measured gene.
    gene_of_regulator
        (n_sources,) column of each regulator among the genes, -1 for a perturbation.
    token_of_regulator
        (n_sources,) column of each perturbation among the tokens, -1 for a gene.
    """

    genes: np.ndarray
    regulators: np.ndarray
    gene_of_regulator: np.ndarray
    token_of_regulator: np.ndarray


def make_nodes(genes: np.ndarray, tokens: Sequence[str], prior: pd.DataFrame, regulators: str | Sequence[str]) -> Nodes:
    """Decide which genes and perturbations may regulate.

    Parameters
    ----------
    genes
        Names of the measured genes.
    tokens
        Names of the perturbations.
    prior
        Prior edges; a perturbation that is a source of some is a regulator too.
    regulators
        ``"prior"``: the sources of the prior edges; ``"all"``: every gene; or names of genes and perturbations.

    Raises
    ------
    ValueError
        If names are neither measured genes nor perturbations.
    """
    wanted = set(prior["source"].astype(str))
    if isinstance(regulators, str):
        if regulators not in ("prior", "all"):
            raise ValueError(f"regulators={regulators!r} is neither 'prior' nor 'all': pass one of them, or a list.")
        wanted |= set(genes) if regulators == "all" else set()
    else:
        named = {str(name) for name in regulators}
        unknown = sorted(named - set(genes) - set(tokens))
        if unknown:
            raise ValueError(
                f"regulators names {plural(len(unknown), 'name')} that are neither genes of the data nor perturbations: "
                f"{listed(unknown)}.{did_you_mean(unknown[0], [*genes, *tokens])}"
            )
        wanted |= named
    at = np.flatnonzero(np.isin(genes, list(wanted)))
    unmeasured = [i for i, token in enumerate(tokens) if token in wanted and token not in set(genes)]
    none = [-1]
    return Nodes(
        genes=genes,
        regulators=np.concatenate([genes[at], [tokens[i] for i in unmeasured]]).astype(str),
        gene_of_regulator=np.concatenate([at, none * len(unmeasured)]).astype(np.int64),
        token_of_regulator=np.concatenate([none * len(at), unmeasured]).astype(np.int64),
    )


class RefinementData:
    """Cells as refinement sees them.

    Parameters
    ----------
    manager
        Of the registered AnnData.
    train_idx, val_idx
        Cells that train and that say when to stop.
    nodes
        Regulators and genes.
    scale
        ``"log1p"`` or ``"continuous"``.
    standardize
        Whether expression is centred and scaled: in its stratum (batch and covariates), and under its perturbations where these are
        neither measured genes nor regulators, so that what they move is no regulation. As published it is neither, and
        the covariates are inputs.
    interventions
        Whether a gene that is perturbed in a cell is left out there: it does not follow its regulators.
    device
        Where batches go.
    """

    def __init__(
        self,
        manager: AnnDataManager,
        train_idx: np.ndarray,
        val_idx: np.ndarray,
        nodes: Nodes,
        tokens: Sequence[str],
        scale: str,
        standardize: bool,
        interventions: bool,
        device: torch.device,
    ):
        self.nodes, self.device, self.standardize = nodes, device, standardize
        self.rows = np.sort(np.concatenate([train_idx, val_idx]))
        self.train = np.searchsorted(self.rows, np.sort(train_idx))
        self.val = np.searchsorted(self.rows, np.sort(val_idx))
        read = ExpressionReader(manager, scale)
        pieces = [read(self.rows[i : i + _STEP]).astype(np.float32) for i in range(0, len(self.rows), _STEP)]
        self.x = vstack(pieces, "csr")
        dosage = csr_matrix(manager.get_from_registry(CAUSAL_KEYS.PERTURBATION))[self.rows].copy()
        dosage.data = np.nan_to_num(dosage.data)
        self.dosage = dosage[:, nodes.token_of_regulator[nodes.token_of_regulator >= 0]]
        self.hit = _hits(dosage, tokens, nodes.genes) if interventions else None
        _, self.stratum = np.unique(get_strata(manager)[self.rows], return_inverse=True)
        if standardize:
            self.stratum = _within(self.stratum, dosage, _explained(tokens, nodes))
        self.n_strata = int(self.stratum.max()) + 1
        self._set_moments()

    def _set_moments(self) -> None:
        """Means of strata and standard deviations within them, over the training cells."""
        strata, n_strata = self.stratum[self.train], self.n_strata
        for name, matrix in (("x", self.x), ("dosage", self.dosage)):
            part = matrix[self.train].astype(np.float64)
            moments = group_moments(iter([(slice(0, len(strata)), part)]), strata, n_strata, part.shape[1])
            # strata that only validation has take the mean over all
            mean = np.where(moments.n_cells[:, None] > 0, moments.mean, np.asarray(part.mean(0)))
            share = np.maximum(moments.n_cells - 1, 0)[:, None]
            variance = (np.nan_to_num(moments.variance) * share).sum(0) / max(len(strata) - n_strata, 1)
            setattr(self, f"{name}_mean", mean.astype(np.float32))
            setattr(self, f"{name}_sd", np.sqrt(variance).astype(np.float32))

    @property
    def n_train(self) -> int:
        """Number of training cells."""
        return len(self.train)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Tensors of some cells, given as places among all that are used."""
        genes, observed = self.x[rows].toarray(), np.ones((len(rows), self.x.shape[1]), dtype=np.float32)
        if self.hit is not None:
            observed -= self.hit[rows].toarray()
        if not self.standardize:
            covariates = np.eye(self.n_strata, dtype=np.float32)[self.stratum[rows]]
            arrays = {
                "genes": genes,
                "observed": observed,
                "covariates": covariates[:, : self.n_strata * (self.n_strata > 1)],
            }
            return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        constant = self.x_sd < _LOWEST_SD
        genes = (genes - self.x_mean[self.stratum[rows]]) / np.where(constant, np.inf, self.x_sd)
        observed[:, constant] = 0.0
        doses = self.dosage[rows].toarray() - self.dosage_mean[self.stratum[rows]]
        doses = doses / np.where(self.dosage_sd < _LOWEST_SD, np.inf, self.dosage_sd)
        measured = self.nodes.gene_of_regulator[self.nodes.gene_of_regulator >= 0]
        arrays = {"genes": genes, "observed": observed, "sources": np.concatenate([genes[:, measured], doses], 1)}
        return {name: torch.from_numpy(array.astype(np.float32)).to(self.device) for name, array in arrays.items()}


def _explained(tokens: Sequence[str], nodes: Nodes) -> np.ndarray:
    """Columns of the perturbations whose effects are taken out: those that are neither genes nor regulators."""
    known = set(nodes.genes) | set(nodes.regulators)
    return np.array([i for i, token in enumerate(tokens) if token not in known], dtype=np.int64)


def _within(stratum: np.ndarray, dosage: csr_matrix, columns: np.ndarray) -> np.ndarray:
    """Code of stratum and condition, as far as some tokens are concerned."""
    if not len(columns):
        return stratum
    condition = condition_codes(dosage[:, columns].tocsr())[0]
    return np.unique(stratum * (condition.max() + 1) + condition, return_inverse=True)[1]


def _hits(dosage: csr_matrix, tokens: Sequence[str], genes: np.ndarray) -> csr_matrix:
    """(cells, genes) 1 where the gene itself is perturbed in the cell."""
    gene_of_token = pd.Index(genes).get_indexer(list(tokens))
    measured = np.flatnonzero(gene_of_token >= 0)
    ones = np.ones(len(measured), dtype=np.float32)
    to_gene = csr_matrix((ones, (measured, gene_of_token[measured])), shape=(len(tokens), len(genes)))
    hit = ((dosage != 0).astype(np.float32) @ to_gene).tocsr()
    hit.data = np.ones_like(hit.data)
    return hit


def positions_of(prior: pd.DataFrame, nodes: Nodes) -> np.ndarray:
    """Positions ``target * n_sources + source`` of edges; those to or from what is no node are left out."""
    source = pd.Index(nodes.regulators).get_indexer(prior["source"].astype(str))
    target = pd.Index(nodes.genes).get_indexer(prior["target"].astype(str))
    known = (source >= 0) & (target >= 0)
    return np.unique(target[known] * len(nodes.regulators) + source[known])


def self_positions(nodes: Nodes) -> np.ndarray:
    """Positions of the edges from a gene to itself."""
    at = np.flatnonzero(nodes.gene_of_regulator >= 0)
    return nodes.gene_of_regulator[at] * len(nodes.regulators) + at
