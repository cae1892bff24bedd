"""The nodes of the network: the tokens, then further genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal.data._messages import did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

ExtraGenes = str | int | list | tuple | None


@dataclass(frozen=True)
class Nodes:
    """Nodes of a network.

    Parameters
    ----------
    names
        (T,) tokens of the vocabulary first, then genes.
    gene
        (T,) index of each among the measured genes, or -1 for a token that is no measured gene.
    n_tokens
        Number of tokens.
    """

    names: np.ndarray
    gene: np.ndarray
    n_tokens: int


@dataclass(frozen=True)
class NodePlan:
    """Nodes as far as they are known before training.

    Parameters
    ----------
    tokens, genes
        Tokens of the vocabulary, and measured genes.
    listed
        Further genes, or ``None`` where the most responsive ones are to be found among the training effects.
    n_extra
        Their number.
    """

    tokens: np.ndarray
    genes: np.ndarray
    listed: np.ndarray | None
    n_extra: int

    @property
    def n_nodes(self) -> int:
        return len(self.tokens) + self.n_extra

    @property
    def n_measured(self) -> int:
        """Number of nodes that are measured genes."""
        return int(np.isin(self.tokens, self.genes).sum()) + self.n_extra

    def nodes(self, score: np.ndarray | None = None) -> Nodes:
        """The nodes, given how much each gene (n_genes,) responds."""
        extra = self.listed
        if extra is None:
            candidates = np.flatnonzero(~np.isin(self.genes, self.tokens))
            order = candidates[np.argsort(-score[candidates], kind="stable")][: self.n_extra]
            extra = self.genes[np.sort(order)]
        names = np.concatenate([self.tokens, extra]).astype(str)
        return Nodes(names, pd.Index(self.genes).get_indexer(names), len(self.tokens))


def plan_nodes(tokens: Sequence[str], genes: Sequence[str], extra_genes: ExtraGenes) -> NodePlan:
    """Which nodes there will be.

    Parameters
    ----------
    tokens, genes
        Tokens of the vocabulary, and measured genes.
    extra_genes
        ``None``, ``"all"``, a list of genes, or the number of genes that respond the most.

    Raises
    ------
    ValueError
        For genes that are not measured or listed twice, a negative number, or another word.
    """
    tokens, genes = np.asarray(tokens, dtype=str), np.asarray(genes, dtype=str)
    others = genes[~np.isin(genes, tokens)]
    if extra_genes is None:
        return NodePlan(tokens, genes, others[:0], 0)
    if isinstance(extra_genes, str):
        if extra_genes != "all":
            raise ValueError(
                f"extra_genes={extra_genes!r} is not understood. Pass None, 'all', a list of genes, or the number of genes that "
                "respond the most."
            )
        return NodePlan(tokens, genes, others, len(others))
    if isinstance(extra_genes, int | np.integer) and not isinstance(extra_genes, bool):
        if extra_genes < 0:
            raise ValueError(f"extra_genes={extra_genes}: pass 0 or more.")
        if extra_genes >= len(others):
            return NodePlan(tokens, genes, others, len(others))
        return NodePlan(tokens, genes, None, int(extra_genes))
    given = pd.Index([str(gene) for gene in extra_genes])
    if doubled := sorted(set(given[given.duplicated()])):
        raise ValueError(f"extra_genes lists {listed(doubled)} more than once.")
    if unknown := [gene for gene in given if gene not in set(genes)]:
        raise ValueError(
            f"extra_genes: {listed(unknown)} are not among the {len(genes):,} measured genes.{did_you_mean(unknown[0], genes)} "
            "A node without a measured gene has to be a token."
        )
    chosen = np.asarray([gene for gene in given if gene not in set(tokens)], dtype=str)
    return NodePlan(tokens, genes, chosen, len(chosen))
