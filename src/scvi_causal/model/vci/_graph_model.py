"""GraphVCI: the public class."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import torch
from scvi import settings

from scvi_causal.data import to_edge_index
from scvi_causal.data._grn import restrict_grn
from scvi_causal.model.base._data_type import DataType, GeneLikelihood, check_choice
from scvi_causal.model.base._model import _NOT_REGISTERED, HOW_GRN
from scvi_causal.model.vci._graph_module import GraphVCIModule
from scvi_causal.model.vci._graph_options import Aggregator, GeneDecoder, Graph, GraphVCIOptions, resolve_graph_options
from scvi_causal.model.vci._model import VCI
from scvi_causal.model.vci._refine import check_refine_kwargs, refine_within

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_causal.model.vci._options import (
        DistributionLoss,
        Divergence,
        Normalization,
        Outcome,
        Preset,
        SecondEncoder,
        Treatments,
    )

logger = logging.getLogger(__name__)

_VALIDATION_SHARE = 0.1


class GraphVCI(VCI):
    r"""Variational causal inference with a gene regulatory network :cite:p:`Wu2023GraphVCI`.

    A graph convolution gives every gene a code from its regulators. The decoder reads the outcome of a gene off its code, so that
    genes with the same regulators share what is learned of them.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`; the network is in ``adata.uns["grn"]``, or where ``grn_key`` says.
    registry
        Registry of a saved model, instead of ``adata``.
    preset
        ``"recommended"``, or ``"paper"``; see :class:`VCI`.
    graph
        ``"prior"``: the registered network (a table of :func:`~scvi_causal.refine_grn` among them). ``"refined"``: the registered
        network, refined on the training cells before the first step. ``"none"``: every gene by itself. ``"auto"``: the registered
        network if there is one.
    gene_decoder
        ``"att"``: key-dependent attention, a gene reads the features that stand out for it, with the exact softmax in factorised
        form. ``"dot"``: key-independent, an inner product.
    aggregator
        How the mean code of all genes joins the encoder: ``"sum"`` or ``"mlp"``.
    n_graph
        Width of the code of a gene.
    n_node_features
        Width of the learned features of a gene that the graph convolution starts from.
    refine_kwargs
        Options of :func:`~scvi_causal.refine_grn` for ``graph="refined"``, e.g. ``{"n_edges": 5000}``.
    gene_likelihood, data_type, n_latent, n_hidden, n_layers, dropout_rate, normalization
        See :class:`VCI`.
    distribution_loss, divergence, relu_heads, counterfactual_treatments, include_control, shrink_effects
        See :class:`VCI`.
    encode_covariates, counterfactual_outcome, second_encoder, n_draws
        See :class:`VCI`.

    Examples
    --------
    >>> import scvi_causal
    >>> adata = scvi_causal.data.simulate_screen(n_genes=20, n_cells_per_perturbation=20, n_control=60, seed=0).adata
    >>> scvi_causal.GraphVCI.setup_anndata(adata)
    >>> model = scvi_causal.GraphVCI(adata)
    >>> model.train(max_epochs=2, progress_bar_refresh_rate=0)
    >>> model.predict_counterfactual()
    >>> list(model.get_grn().columns)
    ['source', 'target', 'weight', 'prior']

    Notes
    -----
    Sources of edges that are no measured genes (drugs) are no nodes; their edges are left out.
    """

    _module_cls = GraphVCIModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        preset: Preset = "recommended",
        graph: Graph = "auto",
        gene_decoder: GeneDecoder | None = None,
        aggregator: Aggregator | None = None,
        n_graph: int | None = None,
        n_node_features: int | None = None,
        refine_kwargs: dict[str, Any] | None = None,
        gene_likelihood: GeneLikelihood = "auto",
        data_type: DataType = "auto",
        n_latent: int | None = None,
        n_hidden: int | None = None,
        n_layers: int | None = None,
        dropout_rate: float | None = None,
        normalization: Normalization | None = None,
        distribution_loss: DistributionLoss | None = None,
        divergence: Divergence | None = None,
        relu_heads: bool | None = None,
        counterfactual_treatments: Treatments | None = None,
        include_control: bool | None = None,
        shrink_effects: bool | None = None,
        encode_covariates: bool | None = None,
        counterfactual_outcome: Outcome | None = None,
        second_encoder: SecondEncoder | None = None,
        n_draws: int | None = None,
    ):
        check_choice("graph", graph, get_args(Graph))
        self._graph, self._refine_kwargs = graph, dict(refine_kwargs or {})
        check_refine_kwargs(**self._refine_kwargs)
        self._given_graph_options = {
            "gene_decoder": gene_decoder,
            "aggregator": aggregator,
            "n_graph": n_graph,
            "n_node_features": n_node_features,
        }
        # known after training with graph="refined"; what ends in "_" is saved with the model
        self.refined_edges_: dict[str, np.ndarray] | None = None
        super().__init__(
            adata,
            registry,
            preset=preset,
            gene_likelihood=gene_likelihood,
            data_type=data_type,
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            normalization=normalization,
            distribution_loss=distribution_loss,
            divergence=divergence,
            relu_heads=relu_heads,
            counterfactual_treatments=counterfactual_treatments,
            include_control=include_control,
            shrink_effects=shrink_effects,
            encode_covariates=encode_covariates,
            counterfactual_outcome=counterfactual_outcome,
            second_encoder=second_encoder,
            n_draws=n_draws,
        )
        self._model_summary_string += f" Graph: {self._graph}, {self._n_edges():,} edges between genes, gene_decoder: {self._options.gene_decoder}."
        # what was found by looking at the data is saved, since a model may be loaded without any
        gene_likelihood, data_type = self.module.gene_likelihood, "counts" if self._log_normalize else "continuous"
        self.init_params_ = self._get_init_params(locals())

    # ------------------------------------------------------------------ the graph

    def _resolve_options(self, preset: str, given: dict[str, Any]) -> GraphVCIOptions:
        return resolve_graph_options(preset, given, self._given_graph_options)

    def _module_arguments(self, gene_likelihood: str) -> dict[str, Any]:
        return {**super()._module_arguments(gene_likelihood), "edge_index": self._edge_index(self._edges())}

    def _edges(self) -> pd.DataFrame:
        """Edges between genes that the model starts with."""
        prior = self._prior_grn()
        name = type(self).__name__
        if self._graph in ("prior", "refined") and prior.empty:
            what = f"a prior network for graph={self._graph!r}"
            raise ValueError(_NOT_REGISTERED.format(name=name, what=what, how=HOW_GRN.format(name=name)))
        if self._graph == "none":
            return prior.iloc[:0]
        if prior.empty:
            logger.warning(
                "No network is registered, so that every gene is coded by itself. %s", HOW_GRN.format(name=name)
            )
        edges = restrict_grn(prior, self._var_names(), drop_self_loops=True)
        if len(edges) < len(prior):
            logger.info("%d of %d edges join two genes; the others are left out.", len(edges), len(prior))
        return edges

    def _edge_index(self, edges: pd.DataFrame) -> torch.Tensor:
        if edges.empty:
            return torch.zeros((2, 0), dtype=torch.int64)
        return to_edge_index(edges, self._var_names())[0]

    def _n_edges(self) -> int:
        return int((self.module.graph.source != self.module.graph.target).sum())

    def _before_training(self, train_idx: np.ndarray | None) -> None:
        super()._before_training(train_idx)
        if self._graph == "refined":
            self._refine(np.arange(self.adata.n_obs) if train_idx is None else np.sort(np.asarray(train_idx)))

    def _refine(self, rows: np.ndarray) -> None:
        """Refine the registered network on the training cells, a tenth of which say when to stop."""
        seed = int(settings.seed or 0)
        held = np.random.default_rng([seed, 2]).permutation(len(rows)) < _VALIDATION_SHARE * len(rows)
        scale = "log1p" if self._log_normalize else "continuous"
        table, _ = refine_within(self, rows[~held], rows[held], scale, seed, self.module.device, **self._refine_kwargs)
        kept = table[table["kept"] & table["source"].isin(self._var_names())]
        self.refined_edges_ = {name: kept[name].to_numpy() for name in ("source", "target", "weight", "prior")}
        self._restore_edges()

    def _restore_edges(self) -> None:
        """Give the module the refined edges, if there are any."""
        if self.refined_edges_ is not None:
            edges = pd.DataFrame(self.refined_edges_)
            self.module.graph.set_edges(self._edge_index(edges))

    def get_grn(self, threshold: float | None = None, self_loops: bool = False) -> pd.DataFrame:
        """Attention that the trained graph convolution pays to the regulators of each gene.

        Parameters
        ----------
        threshold
            Keep edges with at least this weight.
        self_loops
            Whether the attention of a gene to itself is listed; with it, the weights into a gene sum to 1.

        Returns
        -------
        DataFrame ``source, target, weight, prior``, regulator to target, strongest first. The edges are those that the model was
        given (or, with ``graph="refined"``, kept); ``prior`` says which of them the registered network has; where
        that is a table of :func:`~scvi_causal.refine_grn`, its own column ``prior`` says what was known before.

        Raises
        ------
        RuntimeError
            If the model is not trained.

        Examples
        --------
        >>> import scvi_causal
        >>> adata = scvi_causal.data.simulate_screen(
        ...     n_genes=20, n_cells_per_perturbation=20, n_control=60, seed=0
        ... ).adata
        >>> scvi_causal.GraphVCI.setup_anndata(adata)
        >>> model = scvi_causal.GraphVCI(adata)
        >>> model.train(max_epochs=1, progress_bar_refresh_rate=0)
        >>> weights = model.get_grn(self_loops=True).groupby("target")["weight"].sum()
        >>> bool((abs(weights - 1) < 1e-4).all())
        True
        """
        self._check_if_trained(warn=False, message="The weights of edges are learned: run model.train() first.")
        graph, names = self.module.graph, self._var_names().astype(object)
        with torch.no_grad():
            weight = graph.attention().cpu().numpy()
        source, target = graph.source.cpu().numpy(), graph.target.cpu().numpy()
        table = pd.DataFrame({"source": names[source], "target": names[target], "weight": weight})
        prior = self._prior_grn()
        known = set(zip(prior["source"], prior["target"], strict=True))
        table["prior"] = [edge in known for edge in zip(table["source"], table["target"], strict=True)]
        if not self_loops:
            table = table[source != target]
        if threshold is not None:
            table = table[table["weight"] >= threshold]
        return table.sort_values("weight", ascending=False, kind="stable", ignore_index=True)

    # ------------------------------------------------------------------ training

    def _set_training_defaults(self) -> None:
        super()._set_training_defaults()
        if self._preset == "paper":
            self._plan_defaults["distribution_weight"] = 10.0
