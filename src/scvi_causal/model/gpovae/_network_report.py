"""What is read from a trained GPO-VAE: the network, and the masks in terms of its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch

from scvi_causal.model.samsvae._options import check_choice

if TYPE_CHECKING:
    from collections.abc import Sequence

Effects = Literal["direct", "total"]
_NAMED = ["source", "target", "weight", "sign", "probability", "prior"]


class NetworkReportMixin:
    """``get_grn`` and ``get_perturbation_masks``."""

    @torch.inference_mode()
    def get_grn(
        self,
        threshold: float | None = None,
        *,
        min_probability: float = 0.5,
        effects: Effects = "direct",
    ) -> pd.DataFrame:
        """Learned network as an edge list.

        Parameters
        ----------
        threshold
            Keep edges with at least this absolute weight.
        min_probability
            Keep edges that are at least this probable; 0 ranks all pairs.
        effects
            ``"direct"``: what goes through other perturbed genes is taken off. ``"total"``: every effect in the training cells is an edge,
            which is what held-out cells of the perturbations can confirm.

        Returns
        -------
        DataFrame, strongest first: ``source`` (a token of the training cells), ``target`` (a node that is a measured gene), ``weight``
        (expected change of the target's log expression when the source is perturbed; with ``alignment="cells"`` the probability, for nothing else is known of the change), ``sign`` (1 where source and target rise and
        fall together, -1 where they do not, 0 where the source's own change is not seen), ``probability``, ``prior`` (weight that was
        registered, 0 without). Nobody perturbed the other nodes: no edge leaves them.

        Examples
        --------
        >>> import scvi_causal
        >>> screen = scvi_causal.data.simulate_screen(n_genes=20, n_cells_per_perturbation=30, n_control=100, seed=0)
        >>> scvi_causal.GPOVAE.setup_anndata(screen.adata, size_factor_key="library")
        >>> model = scvi_causal.GPOVAE(screen.adata)
        >>> model.train(max_epochs=1, enable_progress_bar=False)
        >>> edges = model.get_grn(threshold=0.2)
        >>> bool((edges["source"] != edges["target"]).all())
        True
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        if not 0.0 <= min_probability <= 1.0:
            raise ValueError(f"min_probability={min_probability} is a probability: pass a number from 0 to 1.")
        check_choice("effects", effects, get_args(Effects))
        module, names = self.module, self.node_names_
        rows = torch.tensor([self._vocabulary.index(str(token)) for token in self.seen_tokens_], dtype=torch.int64)
        rows = rows.to(module.device)
        probability = module.mechanisms.probability(rows).double().cpu().numpy()
        if module.follows_effects:
            weight = module.mechanisms.direct()
            if effects == "total":
                weight, found = module.mechanisms.observed()
                probability = found[rows].double().cpu().numpy()
            weight = weight[rows].double().cpu().numpy()
            own = module.mechanisms.effect.diagonal()[rows].double().cpu().numpy()
        else:
            weight, own = probability, np.zeros(len(rows))
        is_edge = (probability >= min_probability) & (np.abs(weight) >= (threshold or 0.0))
        is_edge &= (module.node_gene >= 0).cpu().numpy()
        is_edge &= rows.cpu().numpy()[:, None] != np.arange(len(names))
        source, target = np.nonzero(is_edge)
        table = pd.DataFrame({"source": self.seen_tokens_[source], "target": names[target]})
        table["weight"], table["probability"] = weight[source, target], probability[source, target]
        table["sign"] = np.sign(table["weight"] * own[source]).astype(int)
        prior = self._prior_grn().set_index(["source", "target"])["weight"]
        pairs = pd.MultiIndex.from_frame(table[["source", "target"]])
        table["prior"] = prior[~prior.index.duplicated()].reindex(pairs).fillna(0.0).to_numpy()
        order = np.lexsort((-table["probability"].to_numpy(), -np.abs(table["weight"].to_numpy())))
        return table[_NAMED].iloc[order].reset_index(drop=True)

    def get_perturbation_masks(self, tokens: Sequence[str] | None = None) -> pd.DataFrame:
        """Probability that each token acts on each node.

        Parameters
        ----------
        tokens
            Tokens of the training cells; all of them by default.

        Returns
        -------
        DataFrame (tokens x nodes); the nodes are the tokens, then the further genes. A token acts on its own node for certain (except
        with ``alignment="cells"``).

        Raises
        ------
        ValueError
            For a token that was not in the training cells.
        """
        masks = super().get_perturbation_masks(tokens)
        return masks.set_axis(self.node_names_, axis=1)
