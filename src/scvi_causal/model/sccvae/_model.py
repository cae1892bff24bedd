"""SCCVAE: the public class."""

from __future__ import annotations

import logging
import zlib
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import degree_matched_random_grn
from scvi_causal.model.base import CausalModel
from scvi_causal.model.base._data_type import DataType, GeneLikelihood, check_choice, resolve_data_type
from scvi_causal.model.sccvae._calibrate import calibrate_responses
from scvi_causal.model.sccvae._fit import Responses, fit_before_training, fit_feature_map
from scvi_causal.model.sccvae._module import SCCVAEModule
from scvi_causal.model.sccvae._network import Network, build_network
from scvi_causal.model.sccvae._options import (
    DEFAULT_SIZES,
    PAPER_SIZES,
    Graph,
    Preset,
    resolve_graph,
    resolve_likelihood,
    upper_triangular,
)
from scvi_causal.model.sccvae._programmes import ProgrammesMixin
from scvi_causal.model.sccvae._published import PublishedSCCVAEModule
from scvi_causal.model.sccvae._strength import StrengthMixin
from scvi_causal.nn import random_dag_mask

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

logger = logging.getLogger(__name__)

_PUBLISHED_DENSITY = 0.03  # of the random graphs of the paper


class SCCVAE(StrengthMixin, ProgrammesMixin, CausalModel):
    """Single-cell causal variational autoencoder :cite:p:`Liu2026SCCVAE`.

    A VAE abducts the state of a control cell; a perturbation is a *shift* that a linear structural equation model passes on
    along a network of genes, and that response programmes carry to the rest; a count likelihood turns the result into a cell
    that keeps its own noise. A token that was never seen is predicted from its place in the network and from its features.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of ``adata``.
    preset
        ``"recommended"``, or ``"paper"`` for the published equations, sizes, loss and schedule; see the user guide for what
        differs and why.
    graph
        Causal graph. ``"prior"``: the registered network, its weights learned. ``"random"``: a random one in its place (the
        same numbers of regulators and targets), the control experiment. ``"none"``: no network. ``"full"`` (only with
        ``preset="paper"``): all edges among the latent nodes under a fixed order. ``"auto"``: ``"prior"`` where a network is
        registered, else ``"none"``.
    n_latent
        Dimensions of the state of a cell; with ``preset="paper"`` the number of nodes.
    n_hidden, n_layers, dropout_rate
        Of encoder and decoder.
    n_programmes
        Number of response programmes.
    state_dependent
        Whether responses may differ between contexts (combinations of categorical covariates), as a linear function of the
        state of the cell. Without covariates there is nothing to learn this from.
    gene_likelihood
        ``"nb"`` for counts, ``"normal"`` for continuous data or the log of normalised counts; ``"auto"`` looks at the data.
    data_type
        ``"counts"`` or ``"continuous"``; ``"auto"`` looks at the data.
    n_features
        Number of components of the published default features: principal component scores of a gene over control cells.
        Registered features take their place.
    graph_seed
        Seed of ``graph="random"``.
    refine_responses
        Let stochastic gradients change the responses, which are otherwise the estimates from population means. On held-out
        contexts this made predictions worse; it is kept as the alternative to compare with.
    shrink_responses
        Shrink the responses of seen tokens towards the mean over tokens, and that towards zero, as far as sampling noise explains
        them (empirical Bayes; see the user guide). Of ``preset="recommended"``; not the default yet, because the tables of the
        benchmarks were made without.

    Examples
    --------
    >>> import scvi_causal
    >>> adata = scvi_causal.data.simulate_screen(n_genes=20, n_cells_per_perturbation=20, n_control=60, seed=0).adata
    >>> scvi_causal.SCCVAE.setup_anndata(adata)
    >>> model = scvi_causal.SCCVAE(adata)
    >>> model.train(max_epochs=2, progress_bar_refresh_rate=0)
    >>> model.predict_counterfactual()
    >>> adata.layers["counterfactual"].shape == adata.shape
    True

    Notes
    -----
    Only control cells are encoded: a counterfactual of a perturbed cell starts from a matched control, and its provenance
    says so.
    """

    allow_missing_features: ClassVar[bool] = True
    unseen: ClassVar[tuple[str, ...]] = ("features", "graph", "combinations")

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        preset: Preset = "recommended",
        graph: Graph | None = None,
        n_latent: int | None = None,
        n_hidden: int | None = None,
        n_layers: int = 1,
        dropout_rate: float = 0.0,
        n_programmes: int = 64,
        state_dependent: bool = True,
        gene_likelihood: GeneLikelihood = "auto",
        data_type: DataType = "auto",
        n_features: int | None = None,
        graph_seed: int = 0,
        refine_responses: bool = False,
        shrink_responses: bool = False,
    ):
        super().__init__(adata, registry)
        check_choice("preset", preset, get_args(Preset))
        check_choice("gene_likelihood", gene_likelihood, get_args(GeneLikelihood))
        check_choice("data_type", data_type, get_args(DataType))
        check_choice("graph", graph or "auto", get_args(Graph))
        sizes = PAPER_SIZES if preset == "paper" else DEFAULT_SIZES
        n_latent, n_hidden = n_latent or sizes["n_latent"], n_hidden or sizes["n_hidden"]
        n_features = sizes["n_features"] if n_features is None else n_features
        data_type = resolve_data_type(self, data_type)
        gene_likelihood = resolve_likelihood(gene_likelihood, data_type, preset)
        graph = resolve_graph(graph or sizes["graph"], preset, self.summary_stats.n_grn_edges > 0)
        self._preset, self._log_normalize, self._n_components = preset, data_type == "counts", n_features
        self._shrink_responses = shrink_responses
        self._set_tokens()
        self._network = self._build_network(graph, graph_seed) if preset == "recommended" else None
        if preset == "paper":
            mask = self._published_mask(graph, n_latent, graph_seed)
            self.module = PublishedSCCVAEModule(
                self.summary_stats.n_vars,
                len(self._vocabulary),
                self._n_token_features(),
                mask,
                n_hidden=n_hidden,
                log_normalize=self._log_normalize,
            )
        else:
            network = self._network
            self.module = SCCVAEModule(
                self.summary_stats.n_vars,
                len(self._vocabulary),
                self.summary_stats.n_batch,
                n_latent=n_latent,
                n_hidden=n_hidden,
                n_layers=n_layers,
                dropout_rate=dropout_rate,
                n_programmes=n_programmes,
                n_state=self._n_state() if state_dependent else 0,
                gene_likelihood=gene_likelihood,
                log_normalize=self._log_normalize,
                edge_index=None if network is None else torch.from_numpy(network.edge_index),
                node_of_gene=None if network is None else network.node_of_gene,
                n_nodes=0 if network is None else len(network.names),
                node_of_token=None if network is None else network.node_of_token,
                n_features=self._n_token_features(),
                refine_responses=refine_responses,
            )
        self._set_training_defaults(preset)
        # the published default features, of genes; filled from the training controls
        self.gene_features_: np.ndarray | None = None
        self._responses: Responses | None = None
        self._model_summary_string = (
            f"SCCVAE with preset: {preset}, graph: {graph}, gene_likelihood: {gene_likelihood}, n_latent: {n_latent}, "
            f"n_hidden: {n_hidden}."
        )
        self.init_params_ = self._get_init_params(locals())

    # ------------------------------------------------------------------ construction

    def _needs_counts(self) -> bool:
        return self._log_normalize

    def _build_network(self, graph: str, seed: int) -> Network | None:
        if graph == "none":
            return None
        prior = self._prior_grn()
        if graph == "random":
            prior = degree_matched_random_grn(prior, seed)
        tokens = np.asarray(self._vocabulary.tokens, dtype=str)
        network = build_network(prior, self._var_names(), tokens, self._extra_tokens())
        if network.n_removed:
            logger.info("%d edges of the network close a cycle (or a loop) and are not used.", network.n_removed)
        return network

    def _published_mask(self, graph: str, n_nodes: int, seed: int) -> Tensor:
        """(n_nodes, n_nodes) mask of the published model, whose nodes are latent: a prior only sets which pairs may act."""
        if graph == "none":
            return torch.zeros(n_nodes, n_nodes)
        if graph == "full":
            return torch.ones(n_nodes, n_nodes).triu(1)
        if graph == "random":
            return torch.from_numpy(random_dag_mask(n_nodes, _PUBLISHED_DENSITY, seed))
        network = self._build_network("prior", seed)
        if len(network.names) > n_nodes:
            raise ValueError(
                f"The network has {len(network.names)} nodes, and n_latent={n_nodes} leaves no room for them; pass "
                f"n_latent={len(network.names)} or more, or a smaller network."
            )
        return upper_triangular(network, n_nodes)

    def _n_state(self) -> int:
        """Axes along which responses may differ: one fewer than contexts, ten at the most."""
        mappings = self._field_state(REGISTRY_KEYS.CAT_COVS_KEY).get("mappings", {})
        n_contexts = int(np.prod([len(mappings[name]) for name in mappings])) if mappings else 1
        return min(10, n_contexts - 1)

    def _set_training_defaults(self, preset: str) -> None:
        self._datasplitter_defaults = {"pair_controls": True}
        self._plan_defaults = {"lr": 2e-3, "gradient_clip_val": 100.0}
        if preset == "paper":
            self._default_batch_size = 32
            self._datasplitter_defaults |= {"grouped": True, "cells_per_group": 32}
            self._plan_defaults = {
                "lr": 5e-4,
                "eps": 0.01,
                "weight_decay": 1e-6,
                "n_epochs_kl_warmup": 1.0,
                "gradient_clip_val": 1.0,
                "clip_per_tensor": True,
            }

    def _default_max_epochs(self, datamodule: Any) -> int:
        """100 as published; otherwise about 600 steps: over the last half of them the training loss of Kang falls by about 1 %."""
        if self._preset == "paper":
            return 100
        n_steps = max(1, self.adata.n_obs // self._default_batch_size)
        return int(np.clip(round(600 / n_steps), 8, 200))

    # ------------------------------------------------------------------ tokens and their features

    def _set_tokens(self) -> None:
        """Columns of the one-hot code, for tokens that neither are measured genes nor have features."""
        tokens = np.asarray(self._vocabulary.tokens, dtype=str)
        if self._has_features():
            described = np.asarray(self._field_state(CAUSAL_KEYS.FEATURES)["feature_tokens"]).astype(str)
        else:
            described = self._var_names() if self._n_components else []
        self._one_hot = {token: i for i, token in enumerate(tokens[~np.isin(tokens, described)])}

    def _n_token_features(self) -> int:
        given = (
            len(self._field_state(CAUSAL_KEYS.FEATURES)["feature_names"])
            if self._has_features()
            else self._n_components
        )
        return given + (len(self._one_hot) if self._preset == "paper" else 0)

    def _token_features(
        self, tokens: list[str], features: pd.DataFrame | None = None
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Registered features, or those of the expression of the controls, found by gene symbol."""
        if self._has_features():
            return super()._token_features(tokens, features)
        if features is not None:
            return super()._token_features(tokens, features)  # raises: the model was trained without
        matrix, known = np.zeros((len(tokens), self._n_components), dtype=np.float32), np.zeros(len(tokens), dtype=bool)
        if self.gene_features_ is not None and self._n_components:
            row_of = {gene: i for i, gene in enumerate(self._var_names())}
            for i, token in enumerate(tokens):
                if token in row_of:
                    matrix[i], known[i] = self.gene_features_[row_of[token]], True
        return matrix, known

    def _coded_features(self, tokens: list[str], features: pd.DataFrame | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(n_tokens, n) features as the module takes them, and which tokens have any."""
        matrix, known = self._token_features(tokens, features)
        if self._preset == "recommended":
            # directions of feature vectors carry their meaning, lengths their popularity
            return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12), known
        codes = np.zeros((len(tokens), len(self._one_hot)), dtype=np.float32)
        for i, token in enumerate(tokens):
            if token in self._one_hot:
                codes[i, self._one_hot[token]] = 1.0
        return np.concatenate([matrix, codes], axis=1), known

    def _get_token_inputs(self, tokens: list[str], features: pd.DataFrame | None) -> dict[str, Tensor]:
        index = [self._vocabulary.index(token) if token in self._vocabulary else -1 for token in tokens]
        matrix, known = self._coded_features(tokens, features)
        inputs = {
            "index": torch.tensor(index, dtype=torch.int64),
            "seen": torch.from_numpy(np.isin(np.asarray(tokens, dtype=str), self.seen_tokens_)),
            "features": torch.from_numpy(matrix.astype(np.float32)),
            "has_features": torch.from_numpy(known.astype(np.float32)),
            "strength": torch.from_numpy(self._strength_of(tokens)),
            "key": torch.tensor([zlib.crc32(token.encode()) for token in tokens], dtype=torch.int64),
        }
        if self._network is not None:
            node_of = {name: i for i, name in enumerate(self._network.names)}
            inputs["node"] = torch.tensor([node_of.get(token, -1) for token in tokens], dtype=torch.int64)
        else:
            inputs["node"] = torch.full((len(tokens),), -1, dtype=torch.int64)
        return inputs

    def _predictable(self, tokens: list[str], features: pd.DataFrame | None = None) -> list[tuple[bool, str]]:
        """Whether each token can be a target, and what its prediction then rests on."""
        answers = super()._predictable(tokens, features)
        if self._preset == "paper":
            return answers
        regulators = set() if self._network is None else set(self._network.names[self._network.edge_index[0]].tolist())
        informative = bool(self.module.feature_map.any())
        _, described = self._token_features(tokens, features)
        found = []
        for token, known, (ok, reason) in zip(tokens, described, answers, strict=True):
            if ok and token not in set(self.seen_tokens_.tolist()):
                grounds = ["its place in the graph"] if token in regulators else []
                if informative and known:
                    grounds.append("its features")
                reason = f"not seen in training, predicted from {' and '.join(grounds)}"
                if not grounds:
                    why = "its features predict no better than that" if known else "the graph has no targets of it"
                    reason = f"not seen in training, gets the mean response: {why}"
            found.append((ok, reason))
        return found

    def _graph_nodes(self) -> set[str]:
        return set() if self._network is None else set(self._network.names.tolist())

    # ------------------------------------------------------------------ training

    def _before_training(self, train_idx: np.ndarray) -> None:
        """Estimate what population means determine: features, network, programmes."""
        if not self.is_trained_:
            # small linear algebra in double precision, wherever the model is
            device = self.module.device
            self.module.to("cpu")
            self._responses = fit_before_training(self, np.sort(np.asarray(train_idx)))
            self.module.to(device)

    def _after_training(self) -> None:
        """Calibrate the responses on drawn cells, and learn from the training tokens how they follow from features."""
        if self._preset == "paper":
            self._set_unseen_strength()
            return
        (responses, self._responses), refined = (self._responses, None), self.module.programme_shift.requires_grad
        if responses is not None and self._log_normalize and not refined:
            calibrate_responses(self, responses, np.sort(np.asarray(self.train_indices)))
        if responses is not None or refined:  # else this is more training of a model whose responses stay
            fit_feature_map(self, self.module.response_error**2 if responses is None else responses.noise)

    # ------------------------------------------------------------------ the graph

    def get_grn(self, threshold: float | None = None, level: Literal["gene", "latent"] | None = None) -> pd.DataFrame:
        """Learned network as an edge list.

        Parameters
        ----------
        threshold
            Keep edges with at least this absolute weight.
        level
            ``"gene"``: edges among genes; ``"latent"``: edges among the latent nodes of ``preset="paper"``, named
            ``node_0`` ... in topological order. By default what the model has.

        Returns
        -------
        DataFrame ``source, target, weight, prior`` (``prior``: the weight that was registered), strongest first. Gene edges:
        change of the target's log expression per unit of the source's.

        Raises
        ------
        NotImplementedError
            If the model has no graph on that level.
        """
        self._check_if_trained(warn=False, message="Train the SCCVAE first: model.train().")
        available = "latent" if self._preset == "paper" else "gene" if self._network is not None else None
        if available is None:
            return super().get_grn(threshold)  # raises
        level = level or available
        if level != available:
            raise NotImplementedError(
                f"This SCCVAE has no graph on the level {level!r}, but one on the level {available!r}."
            )
        if level == "gene":
            source, target = self._network.edge_index
            names, prior = self._network.names, self._network.weight
            weight = self.module.sem.weight.detach().cpu().numpy()
        else:
            dense = self.module.sem.adjacency().detach().cpu().numpy()
            source, target = np.nonzero(self.module.sem.mask.cpu().numpy())
            names, weight = np.array([f"node_{i}" for i in range(len(dense))]), dense[source, target]
            prior = np.ones(len(weight))
        table = pd.DataFrame({"source": names[source], "target": names[target], "weight": weight, "prior": prior})
        table = table[table["weight"].abs() >= (threshold or 0.0)]
        return table.sort_values("weight", key=np.abs, ascending=False, kind="stable").reset_index(drop=True)
