"""GIM: the public class."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings

from scvi_causal._compat import parse_device_args
from scvi_causal.dataloaders import CausalDataSplitter
from scvi_causal.model.base import CausalModel
from scvi_causal.model.gim._fit import fit_before_training, infer_seen
from scvi_causal.model.gim._mechanism_report import MechanismMixin
from scvi_causal.model.gim._module import GIMModule
from scvi_causal.model.gim._nodes import check_latent
from scvi_causal.model.gim._options import (
    Combination,
    DataType,
    InterventionKind,
    Mechanism,
    PriorUse,
    Selection,
    check_options,
    look_at_scale,
)
from scvi_causal.model.gim._plan import STEPS_PER_EPOCH, GIMTrainingPlan, StatisticsSplitter
from scvi_causal.model.gim._trust import set_trust

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from torch import Tensor

logger = logging.getLogger(__name__)

_DEFAULT_STEPS = 1500
_MECHANISM_HIDDEN = 16
_LITTLE = 0.02  # trust in features that is not worth a word


class GIM(MechanismMixin, CausalModel):
    """Generative intervention model :cite:p:`Schneider2025GIM`.

    A causal graph among nodes (genes, or programmes) and its mechanisms are learned together with a map from the *features*
    of a perturbation and its dosage to a distribution over *interventions*: which nodes are hit, and how hard. An effect never
    seen is predicted from features, and read as mechanism: see :meth:`get_intervention_targets` and :meth:`get_grn`.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of ``adata``.
    latent
        What the nodes are. ``"genes"``: measured targets, and the genes whose effects stand out most; all other genes follow them
        by a linear read-out. ``"pca"``, ``"nmf"``: programmes. Any other name: a key of ``adata.obsm`` with a latent
        space that was fitted before (only for linear mechanisms and shifts).
    n_nodes
        Number of nodes; by default 100 genes, or 20 programmes.
    mechanism
        ``"linear"``, fitted to population statistics whatever the number of cells; or ``"mlp"``, where each node also has a
        small network on its parents, trained on batches of cells.
    intervention
        ``"shift"`` moves a target and leaves its mechanism; ``"hard"`` cuts it off its parents.
    grn
        Use of a registered network. ``"penalty"``: its edges cost less. ``"mask"``: only its edges may be, which is what makes
        thousands of nodes possible. ``"none"``: no use. ``"auto"``: ``"penalty"`` where one is registered.
    acyclicity
        Penalty on cycles while the graph is searched: ``"logdet"``, ``"trace-exp"``, ``"polynomial"`` or ``"spectral"``.
    edge_penalties, dag_weights
        Settings of the search, every pair of which is a restart; by default a grid of six up to 60 nodes, and one beyond.
    n_kicks
        How often the best graph is disturbed and improved again; by default 20 up to 60 nodes, and never beyond.
    selection
        Whether restarts are chosen by the BIC, or by the likelihood of validation perturbations (``"held-out"``).
    min_gain
        What an edge has to explain, in nats per cell, beyond its price in the BIC. With many thousands of cells every pair of genes
        is significantly related; an edge is for relations of some size.
    target_price
        Price of a target in nats.
    max_cells
        Perturbations count as if they had at most this many cells; ``None`` for no limit. With more, every small misfit of the
        linear model is taken for a target.
    combination
        ``"superposition"``: a combination does what its tokens do. ``"features"``: the features of its tokens are
        summed and go through the network together.
    n_hidden, dropout_rate
        Of the network from features to interventions.
    data_type
        ``"counts"`` or ``"continuous"``; ``"auto"`` looks at the data. Counts are normalised and log-transformed inside.

    Examples
    --------
    >>> import scvi_causal
    >>> simulation = scvi_causal.data.simulate_drugs(n_nodes=5, n_drugs=8, n_cells=20, n_control=100, seed=0)
    >>> adata = simulation.adata
    >>> scvi_causal.GIM.setup_anndata(adata, dosage_key="dosage", perturbation_features_key="features")
    >>> model = scvi_causal.GIM(adata)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict_counterfactual()
    >>> list(model.get_grn().columns[:3])
    ['source', 'target', 'weight']

    Notes
    -----
    Perturbations without features are told apart by their names; then only tokens that were seen, and genes that are nodes, can be
    predicted, and their combinations.
    """

    unseen: ClassVar[tuple[str, ...]] = ("features", "graph", "combinations")
    can_abduct: ClassVar[bool] = True
    _training_plan_cls = GIMTrainingPlan

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        latent: str = "genes",
        n_nodes: int | None = None,
        mechanism: Mechanism = "linear",
        intervention: InterventionKind = "shift",
        grn: PriorUse = "auto",
        acyclicity: str = "logdet",
        edge_penalties: tuple[float, ...] | None = None,
        dag_weights: tuple[float, ...] | None = None,
        n_kicks: int | None = None,
        selection: Selection = "bic",
        min_gain: float = 0.0,
        target_price: float = 2.0,
        max_cells: int | None = 200,
        combination: Combination = "superposition",
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        data_type: DataType = "auto",
    ):
        super().__init__(adata, registry)
        check_options(
            mechanism=mechanism,
            intervention=intervention,
            grn=grn,
            combination=combination,
            selection=selection,
            data_type=data_type,
            acyclicity=acyclicity,
        )
        if self.adata is not None:
            check_latent(latent, list(self.adata.obsm))
        given = latent not in ("genes", "pca", "nmf")
        if given and (mechanism != "linear" or intervention != "shift"):
            raise ValueError(
                f"latent={latent!r} is a latent space that was given: how cells are encoded is not known here, which "
                f"mechanism={mechanism!r} with intervention={intervention!r} needs. Use mechanism='linear' with "
                "intervention='shift', or latent='genes', 'pca' or 'nmf'."
            )
        self.scale_: str = "log1p" if self.adata is None else self._read_scale(data_type)
        self._latent, self._n_nodes = latent, n_nodes
        self._search = (acyclicity, edge_penalties, dag_weights, n_kicks)
        self._selection, self._min_gain, self._max_cells = selection, min_gain, max_cells
        self._prior_use = self._resolve_prior(grn, latent)
        self.module = GIMModule(
            self.scale_,
            self._n_categories(),
            hard=intervention == "hard",
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            n_mechanism_hidden=_MECHANISM_HIDDEN if mechanism == "mlp" else 0,
            combination=combination,
            target_price=target_price,
        )
        # known after training: sizes of the tensors, names of the nodes, what is known of the edges
        self.sizes_: dict[str, int] = {}
        self.node_names_: np.ndarray = np.array([], dtype=str)
        self.edge_probability_: np.ndarray | None = None
        self.edge_stability_: np.ndarray | None = None
        self.restarts_: pd.DataFrame | None = None
        self._splitter: CausalDataSplitter | None = None
        self._part_tokens: np.ndarray | None = None
        self._override: dict[str, float] = {}
        self._model_summary_string = (
            f"GIM with latent: {latent}, mechanism: {mechanism}, intervention: {intervention}, grn: {self._prior_use}, "
            f"scale: {self.scale_}."
        )
        self.init_params_ = self._get_init_params(locals())

    # ------------------------------------------------------------------ construction

    def _read_scale(self, data_type: str) -> str:
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        return look_at_scale(x, data_type, self._setup_arg("size_factor_key") is not None)

    def _n_categories(self) -> tuple[int, ...]:
        """Number of categories of the batch and of each categorical covariate, from which strata are told."""
        covariates = self._field_state(REGISTRY_KEYS.CAT_COVS_KEY).get("n_cats_per_key", ())
        batches = self._field_state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"]
        return (len(batches), *(int(n) for n in covariates))

    def _needs_counts(self) -> bool:
        return self.scale_ == "log1p"

    def _resolve_prior(self, grn: str, latent: str) -> str:
        registered = not self._prior_grn().empty
        if grn == "mask" and (not registered or latent != "genes"):
            raise ValueError(
                "grn='mask' needs a registered network among genes: put an edge list (source, target, weight) in adata.uns['grn'], run "
                "GIM.setup_anndata(adata) again, and keep latent='genes'."
            )
        return ("penalty" if registered else "none") if grn == "auto" else grn

    # ------------------------------------------------------------------ training

    def train(
        self,
        max_epochs: int | None = None,
        split_key: str | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        **kwargs,
    ) -> None:
        """Search the graph, then train network and causal model together.

        Parameters
        ----------
        max_epochs
            Number of epochs of the joint training. With linear mechanisms an epoch is 50 steps on population statistics, and 30 are
            the default; with networks it is a pass over the training cells. Fewer than the default also shorten the search.
        split_key, accelerator, devices, **kwargs
            See :meth:`scvi_causal.model.base.CausalModel.train`.

        Raises
        ------
        ValueError
            If no training cell is a control, or none is perturbed.
        """
        if self.adata is None:
            raise ValueError("The model has no data to train on: build it with an AnnData.")
        default = self._default_max_epochs(None)
        self._effort = min(1.0, (max_epochs or default) / default)
        *_, self._search_device = parse_device_args(accelerator, devices, return_device="torch")
        if not self.module.n_mechanism_hidden:
            kwargs.setdefault("log_every_n_steps", 1)  # an epoch is one batch
        super().train(max_epochs, split_key, accelerator, devices, **kwargs)

    @property
    def _data_splitter_cls(self):
        return self._make_splitter

    def _make_splitter(self, *args, **kwargs) -> CausalDataSplitter:
        """The splitter, kept at hand because the validation cells are needed before the first epoch too."""
        kind = CausalDataSplitter if self.module.n_mechanism_hidden else StatisticsSplitter
        self._splitter = kind(*args, **kwargs)
        return self._splitter

    def _default_max_epochs(self, datamodule: Any) -> int:
        if not self.module.n_mechanism_hidden:
            return _DEFAULT_STEPS // STEPS_PER_EPOCH
        n_steps = max(1, self.adata.n_obs // self._default_batch_size)
        return int(np.clip(round(_DEFAULT_STEPS / n_steps), 10, 100))

    def _before_training(self, train_idx: np.ndarray | None) -> None:
        if self._splitter is None:
            raise ValueError("GIM is trained on an AnnData: build it with one, and pass no datamodule.")
        self.module.to("cpu")  # small linear algebra in double precision; the search goes where the training will be
        seed = 0 if settings.seed is None else int(settings.seed)
        rows = (np.sort(np.asarray(rows)) for rows in (self._splitter.train_idx, self._splitter.val_idx))
        fit_before_training(self, *rows, self._effort, self._search_device, seed)
        self._splitter = None

    def _after_training(self) -> None:
        seed = 0 if settings.seed is None else int(settings.seed)
        infer_seen(self.module)
        set_trust(self.module, self._part_tokens, self._has_features(), self._effort, seed)
        self._part_tokens = None
        self.module.training_set = self.module.validation_set = None

    # ------------------------------------------------------------------ tokens

    def _vocabulary_inputs(self, node_names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n_tokens, n) features of the tokens of the vocabulary, and the node that each names, or -1."""
        tokens = list(self._vocabulary.tokens)
        features, known = self._token_features(tokens)
        if features is None:
            features = np.eye(len(tokens), dtype=np.float32)
        place = {name: i for i, name in enumerate(node_names)}
        return features, np.array([place.get(token, -1) for token in tokens], dtype=np.int64)

    def _get_token_inputs(self, tokens: list[str], features: pd.DataFrame | None) -> dict[str, Tensor]:
        index = [self._vocabulary.index(token) if token in self._vocabulary else -1 for token in tokens]
        matrix, known = self._token_features(tokens, features)
        if matrix is None:
            matrix = np.zeros((len(tokens), self.sizes_["n_token_features"]), dtype=np.float32)
            seen = np.isin(np.asarray(tokens, dtype=str), self.seen_tokens_)
            matrix[np.flatnonzero(seen), np.asarray(index, dtype=np.int64)[seen]] = 1.0
        elif not known.all():  # nothing is said about these tokens: what the average perturbation does
            matrix[~known] = self.module.feature_center[: matrix.shape[1]].cpu().numpy()
        place = {name: i for i, name in enumerate(self.node_names_)}
        inputs = {
            "index": torch.tensor(index, dtype=torch.int64),
            "features": torch.from_numpy(matrix),
            "node": torch.tensor([place.get(token, -1) for token in tokens], dtype=torch.int64),
        }
        for name, value in self._override.items():
            inputs[name] = torch.full((len(tokens),), float(value))
        return inputs

    def _predictable(self, tokens: list[str], features: pd.DataFrame | None = None) -> list[tuple[bool, str]]:
        """Whether each token can be a target, and what its prediction then rests on."""
        answers = super()._predictable(tokens, features)
        if not self.sizes_:
            return answers
        nodes, seen = self._graph_nodes(), set(self.seen_tokens_.tolist())
        _, described = self._token_features(tokens, features)
        found = []
        for token, known, (ok, reason) in zip(tokens, described, answers, strict=True):
            if ok and token not in seen:
                grounds = ["its features"] if known and float(self.module.trust[0]) > _LITTLE else []
                if token in nodes:
                    grounds.append("what perturbing a node itself does")
                reason = f"not seen in training, predicted from {' and '.join(grounds)}"
                if not grounds:
                    reason = (
                        "not seen in training, gets the average intervention: its features predict no better than that"
                    )
            found.append((ok, reason))
        return found

    def _graph_nodes(self) -> set[str]:
        """Genes that are nodes: what it does to perturb a node itself was learned from those that were."""
        return set(self.node_names_.tolist()) if self.sizes_.get("own_node") else set()
