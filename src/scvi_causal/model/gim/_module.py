"""Torch side of GIM: interventions from features, and what they do to cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput

from scvi_causal._constants import CAUSAL_KEYS, NORMALIZED_TOTAL
from scvi_causal.model.base import CausalModule, CounterfactualOutput
from scvi_causal.model.gim._conditions import own_nodes, part_features
from scvi_causal.model.gim._interventions import Interventions, condition_key, distinct_rows, find_seen
from scvi_causal.model.gim._mechanisms import Mechanisms
from scvi_causal.model.gim._network import InterventionNetwork, combine
from scvi_causal.model.gim._rates import change_rate, moved_counts

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.gim._training_set import TrainingSet


class GIMModule(CausalModule):
    """Module of :class:`~scvi_causal.GIM`.

    Built empty; :meth:`build` makes room for a graph, once it is known, or once a saved model says how large it is.

    Parameters
    ----------
    scale
        ``"log1p"`` for counts, ``"continuous"`` for data that are none.
    n_categories
        Number of categories of the batch and of each categorical covariate.
    hard
        Whether interventions cut a target off its parents.
    n_hidden, dropout_rate
        Of the network from features to interventions.
    n_mechanism_hidden
        Hidden units of nonlinear mechanisms; 0 for linear ones.
    combination
        ``"superposition"`` or ``"features"``, see :class:`~scvi_causal.GIM`.
    target_price
        Nats for a target.
    """

    def __init__(
        self,
        scale: str = "log1p",
        n_categories: tuple[int, ...] = (1,),
        hard: bool = False,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        n_mechanism_hidden: int = 0,
        combination: str = "superposition",
        target_price: float = 2.0,
    ):
        super().__init__()
        self._set_scale(scale)
        self.n_categories = tuple(n_categories)
        self.hard, self.n_mechanism_hidden = hard, n_mechanism_hidden
        self.n_hidden, self.dropout_rate = n_hidden, dropout_rate
        self.combination, self.target_price = combination, target_price
        self.register_buffer("device_anchor", torch.zeros(0), persistent=False)
        # statistics of the cells while they train; taken away afterwards
        self.training_set: TrainingSet | None = None
        self.validation_set: TrainingSet | None = None
        self._lookup: dict | None = None

    def _set_scale(self, scale: str) -> None:
        """Nodes of counts live on log1p of counts per 10,000; cells are predicted as counts."""
        self.of_counts = scale == "log1p"
        self.scale = "counts" if self.of_counts else "continuous"

    @property
    def device(self) -> torch.device:
        """Device of the module, also while there are no parameters."""
        return self.device_anchor.device

    def build(self, sizes: dict[str, int]) -> None:
        """Make room for everything that is learned.

        Parameters
        ----------
        sizes
            ``n_genes``, ``n_nodes``, ``n_parents``, ``n_features`` (of a part), ``n_tokens``, ``n_token_features``,
            ``n_strata``, ``n_conditions``, ``n_entries`` (dosages of all conditions that are not zero), ``encoded`` (whether
            nodes are combinations of genes), ``from_obsm``, ``with_dosage``, ``own_node``.
        """
        g, d, k = sizes["n_genes"], sizes["n_nodes"], sizes["n_conditions"]
        floats = {
            "control_rate": (sizes["n_strata"] + 1 if self.of_counts else 0, g),
            "dispersion": (g if self.of_counts else 0,),
            "node_center": (sizes["n_strata"] + 1, d),
            "node_scale": (d,),
            "encoder": (g if sizes["encoded"] else 0, d),
            "readout": (d, g),
            "feature_center": (sizes["n_features"],),
            "feature_scale": (sizes["n_features"],),
            "token_features": (sizes["n_tokens"], sizes["n_token_features"]),
            "condition_dosage": (sizes["n_entries"],),
            "responsibility": (k, d),
            "posterior_size": (k, d),
            "observed": (k, d),
            "average_probability": (d,),
            "average_size": (d,),
            "average_own": (2,),
            "trust": (2,),
        }
        integers = {
            "strata": (sizes["n_strata"],),
            "node_gene": (d,),
            "token_node": (sizes["n_tokens"],),
            "token_seen": (sizes["n_tokens"],),
            "condition_indptr": (k + 1,),
            "condition_tokens": (sizes["n_entries"],),
        }
        device = self.device
        for names, dtype in ((floats, torch.float32), (integers, torch.int64)):
            for name, shape in names.items():
                self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))
        self.trust[1] = 1.0  # nothing but the average is trusted until tokens were left out
        self.sizes = dict(sizes)
        self.mechanisms = Mechanisms(d, sizes["n_parents"], self.n_mechanism_hidden).to(device)
        self.network = InterventionNetwork(
            sizes["n_features"], d, self.n_hidden, self.dropout_rate, bool(sizes["own_node"])
        ).to(device)
        self._lookup = None

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Make room for the saved tensors, whose sizes only the saved model knows."""
        self._set_scale(model.scale_)
        if model.sizes_:
            self.build(model.sizes_)

    # ------------------------------------------------------------------ interventions

    def interventions_of_parts(self, features: Tensor, dosage: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        """(n_parts, d) log odds and sizes; ``features`` (n_parts, n_token_features) of the tokens, ``node`` they name or -1."""
        x = part_features(features, dosage, bool(self.sizes["with_dosage"]))
        x = (x - self.feature_center) / self.feature_scale
        logit, size = self.network(x, own_nodes(node, self.sizes["n_nodes"]))
        # where dosages were never varied, half of it is half of the intervention
        return logit, size if self.sizes["with_dosage"] else size * dosage[:, None]

    def combined(
        self,
        features: Tensor,
        dosage: Tensor,
        node: Tensor,
        members: Tensor,
        unseen: Tensor | None = None,
        inferred: dict[int, tuple[int, float]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(n, d) log odds and sizes of combinations with ``members`` (n, n_parts).

        Parts that are ``unseen`` (n_parts,) get what features say of them as far as features are to be trusted; parts that are
        training conditions by themselves what was ``inferred`` from their cells, given as by :func:`find_seen`.
        """
        if self.combination == "superposition":
            logit, size = self.interventions_of_parts(features, dosage, node)
            if unseen is not None and unseen.any():
                own = own_nodes(node, self.sizes["n_nodes"])
                logit, size = self._with_trust(logit, size, own, unseen, dosage)
            for part, (condition, factor) in (inferred or {}).items():
                logit[part] = torch.logit(self.responsibility[condition].clamp(1e-6, 1 - 1e-6))
                size[part] = self.posterior_size[condition] * factor
            return combine(logit, size, members)
        own = (members @ own_nodes(node, self.sizes["n_nodes"])).clamp_max(1.0)
        x = part_features(features, dosage, bool(self.sizes["with_dosage"]))
        logit, size = self.network((members @ x - self.feature_center) / self.feature_scale, own)
        if unseen is not None and unseen.any():
            affected = (members @ unseen.float()) > 0
            logit, size = self._with_trust(logit, size, own, affected, torch.ones_like(members[:, 0]))
        return logit, size

    def _with_trust(
        self, logit: Tensor, size: Tensor, own: Tensor, unseen: Tensor, dosage: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A mixture of what features say and of the average perturbation; what a node does to itself is known of others."""
        if self.sizes["with_dosage"]:
            dosage = torch.ones_like(dosage)
        of_features, of_average = self.trust
        guess = torch.sigmoid(logit)
        average = self.average_probability, self.average_size * dosage[:, None]
        chance = of_features * guess + of_average * average[0]
        expected = of_features * guess * size + of_average * average[0] * average[1]
        if self.sizes["own_node"]:
            chance = torch.where(own > 0, self.average_own[0], chance)
            expected = torch.where(own > 0, self.average_own.prod() * dosage[:, None], expected)
        chance = chance.clamp(1e-6, 1 - 1e-6)
        row = unseen[:, None]
        return torch.where(row, torch.logit(chance), logit), torch.where(row, expected / chance, size)

    def interventions(self, dosage: Tensor, inputs: dict[str, Tensor], use_seen: bool = True) -> Interventions:
        """Interventions of targets.

        Parameters
        ----------
        dosage
            (n, T) dosages of T tokens; a row of zeros is control.
        inputs
            What is known of the tokens: ``index`` in the vocabulary or -1, ``features``, ``node`` they name or -1,
            ``strength`` and ``penetrance`` that sizes and probabilities are multiplied by.
        use_seen
            Whether a condition of the training cells gets what was inferred from its own cells, instead of what its features say.
        """
        d = self.sizes["n_nodes"]
        probability, size = dosage.new_zeros(len(dosage), d), dosage.new_zeros(len(dosage), d)
        row, token = torch.nonzero(dosage, as_tuple=True)
        if not len(row):
            return Interventions(probability, size)
        members = dosage.new_zeros(len(dosage), len(row))
        members[row, torch.arange(len(row), device=row.device)] = 1.0
        index = inputs["index"][token]
        unseen = (index < 0) | (self.token_seen[index.clamp_min(0)] == 0)
        node, inferred = inputs["node"][token], None
        if use_seen and self.combination == "superposition":
            alone = torch.zeros(len(row), dosage.shape[1], dtype=dosage.dtype, device=dosage.device)
            alone[torch.arange(len(row), device=row.device), token] = dosage[row, token]
            inferred = find_seen(self, alone, inputs["index"])
        logit, sizes = self.combined(inputs["features"][token], dosage[row, token], node, members, unseen, inferred)
        perturbed = members.any(1)[:, None]
        probability, size = torch.where(perturbed, torch.sigmoid(logit), 0.0), torch.where(perturbed, sizes, 0.0)
        if use_seen:
            for i, (condition, factor) in find_seen(self, dosage, inputs["index"]).items():
                probability[i] = self.responsibility[condition]
                size[i] = self.posterior_size[condition] * factor
        n_tokens = members.sum(1).clamp_min(1)[:, None]
        for name, value in (("strength", size), ("penetrance", probability)):
            if name in inputs:
                value *= (members @ inputs[name][token][:, None]) / n_tokens
        return Interventions(probability.clamp(0, 1), size)

    def seen_lookup(self) -> dict[tuple, int]:
        """Number of each training condition by its tokens and dosages."""
        if self._lookup is None:
            indptr = self.condition_indptr.cpu().numpy()
            tokens, doses = self.condition_tokens.cpu().numpy(), self.condition_dosage.cpu().numpy()
            pieces = zip(indptr[:-1], indptr[1:], strict=True)
            self._lookup = {condition_key(tokens[a:b], doses[a:b]): k for k, (a, b) in enumerate(pieces)}
        return self._lookup

    def load_state_dict(self, *args, **kwargs):
        """Load, and forget what was looked up before."""
        self._lookup = None
        return super().load_state_dict(*args, **kwargs)

    def total_effect(self, interventions: Interventions) -> Tensor:
        """(n, d) expected total change of the nodes of an average control cell."""
        if not self.hard and not self.n_mechanism_hidden:
            return self.mechanisms.spread(interventions.expected)
        nothing = torch.zeros_like(interventions.size)
        before = self.mechanisms.run(nothing, nothing, nothing, self.hard)
        return self.mechanisms.run(nothing, interventions.probability, interventions.size, self.hard) - before

    # ------------------------------------------------------------------ cells

    def expression(self, tensors: dict[str, Tensor]) -> Tensor:
        """(n, n_genes) expression of cells on the scale of the nodes."""
        x = tensors[REGISTRY_KEYS.X_KEY]
        if not self.of_counts:
            return x
        return torch.log1p(x * (NORMALIZED_TOTAL / self.library(tensors)))

    def library(self, tensors: dict[str, Tensor]) -> Tensor:
        """(n, 1) library of cells."""
        if REGISTRY_KEYS.SIZE_FACTOR_KEY in tensors:
            return tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY].reshape(-1, 1)
        return tensors[REGISTRY_KEYS.X_KEY].sum(1, keepdim=True).clamp_min(1e-12)

    def strata_of(self, tensors: dict[str, Tensor]) -> Tensor:
        """(n,) row of the controls that stand for the stratum of each cell; the last for one never trained on."""
        code = torch.zeros(len(tensors[REGISTRY_KEYS.X_KEY]), dtype=torch.int64, device=self.device)
        keys = (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.CAT_COVS_KEY)
        columns = torch.cat([tensors[key].long() for key in keys if key in tensors], dim=1)
        for column, n in zip(columns.T, self.n_categories, strict=True):
            if n > 1:
                code = code * n + column
        place = torch.searchsorted(self.strata, code).clamp_max(len(self.strata) - 1)
        return torch.where(self.strata[place] == code, place, len(self.strata))

    def nodes(self, x: Tensor, strata: Tensor) -> Tensor:
        """(n, d) node values of cells, standardised by the controls of their strata."""
        values = x @ self.encoder if self.sizes["encoded"] else x[:, self.node_gene]
        return (values - self.node_center[strata]) / self.node_scale

    def own_interventions(self, tensors: dict[str, Tensor]) -> tuple[Interventions, Tensor]:
        """What cells have received themselves: interventions of the distinct conditions, and which is whose."""
        dosage, which = distinct_rows(tensors[CAUSAL_KEYS.PERTURBATION])
        index = torch.arange(self.sizes["n_tokens"], device=self.device)
        known = {"index": index, "features": self.token_features, "node": self.token_node}
        return self.interventions(dosage, known), which

    def counterfactual(
        self,
        tensors: dict[str, Tensor],
        dosage: Tensor,
        token_inputs: dict[str, Tensor],
        *,
        sample_latent: bool = False,
        sample_parameters: bool = False,
        generator: torch.Generator | None = None,
    ) -> CounterfactualOutput:
        """Take away what a cell received, and let it receive the target. See :meth:`CausalModule.counterfactual`.

        Without sampling the expected intervention acts. ``sample_latent`` draws the targets of the intervention cell by cell;
        ``sample_parameters`` once for all cells, because they are unknown rather than varied.
        """
        distinct, which = distinct_rows(dosage)
        target = self.interventions(distinct, token_inputs)
        if sample_parameters:
            target = target.draw_by_row(distinct, 0 if generator is None else generator.initial_seed())
        target = target.take(which)
        if sample_latent and not sample_parameters:
            target = target.draw(generator)
        own, own_which = self.own_interventions(tensors)
        x, strata = self.expression(tensors), self.strata_of(tensors)
        before = self.total_effect(own)[own_which]
        if self.hard or self.n_mechanism_hidden:
            change = self._change_of_cells(x, strata, own.take(own_which), target)
        else:
            change = self.mechanisms.spread(target.expected) - before
        if not self.of_counts:
            return CounterfactualOutput(x + change @ self.readout)
        rate = change_rate(self.control_rate[strata], before @ self.readout)
        moved = moved_counts(
            tensors[REGISTRY_KEYS.X_KEY], self.library(tensors), rate, change @ self.readout, self.dispersion
        )
        return CounterfactualOutput(moved.mean, moved)

    def noise(self, z: Tensor, own: Interventions) -> Tensor:
        """Abduction: (n, d) noise of the mechanisms of cells, given what they received."""
        mechanisms = self.mechanisms
        residual = z - mechanisms.expected(z)
        if not self.hard:
            return residual - own.expected
        ratio = torch.exp(mechanisms.log_sd - mechanisms.log_target_sd)
        return (1 - own.probability) * residual + own.probability * ratio * (z - own.size)

    def _change_of_cells(self, x: Tensor, strata: Tensor, own: Interventions, target: Interventions) -> Tensor:
        """(n, d) change of the nodes of each cell, where it depends on the cell."""
        noise = self.noise(self.nodes(x, strata), own)
        after, before = (self.mechanisms.run(noise, i.probability, i.size, self.hard) for i in (target, own))
        return after - before

    def latent(
        self, tensors: dict[str, Tensor], *, give_mean: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """(n, d) noise of the mechanisms, in its standard deviations: the state of a cell with its perturbation taken away."""
        if self.sizes["from_obsm"]:
            raise NotImplementedError(
                "The nodes are a latent space that was given: it is the latent representation itself."
            )
        own, which = self.own_interventions(tensors)
        noise = self.noise(self.nodes(self.expression(tensors), self.strata_of(tensors)), own.take(which))
        return noise / self.mechanisms.log_sd.exp()

    # ------------------------------------------------------------------ training

    def _get_inference_input(self, tensors, **kwargs) -> dict:
        return {}

    def _get_generative_input(self, tensors, inference_outputs, **kwargs) -> dict:
        return {}

    def inference(self, **kwargs) -> dict:
        """Nothing is latent."""
        return {}

    def generative(self, **kwargs) -> dict:
        """Nothing is drawn in training."""
        return {}

    def loss(self, tensors: dict[str, Tensor], inference_outputs: dict, generative_outputs: dict) -> LossOutput:
        """Negative marginal log likelihood per cell; of statistics, or for nonlinear mechanisms of a batch of cells."""
        data = self.training_set if self.training else self.validation_set
        value, extra = data.loss(self, tensors)
        return LossOutput(loss=value, n_obs_minibatch=1, extra_metrics=extra)

    def sample(self, *args, **kwargs):
        """Not there: use ``predict_counterfactual(..., sample=True)``."""
        raise NotImplementedError("Use predict_counterfactual(..., sample=True).")
