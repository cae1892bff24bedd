"""What GIM has learned, as tables: the graph, the targets of perturbations, the populations they lead to."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch

from scvi_causal.data import canonical_labels
from scvi_causal.model.base._targets import dosage_per_target, dosage_text, encode_targets
from scvi_causal.model.gim._interventions import find_seen
from scvi_causal.nn import hard_mean, shift_moments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData


Varied = Literal["strength", "penetrance", "dosage"]


class MechanismMixin:
    """``get_grn``, ``get_intervention_targets``, ``get_population`` and ``simulate_penetrance``."""

    # ------------------------------------------------------------------ the graph

    @torch.inference_mode()
    def get_grn(self, threshold: float | None = None, *, candidates: bool = False) -> pd.DataFrame:
        """Learned graph as an edge list.

        Parameters
        ----------
        threshold
            Keep edges with at least this absolute weight.
        candidates
            Also list pairs of nodes that are no edge of the graph but could be one, with weight 0.

        Returns
        -------
        DataFrame, most probable edges first: ``source``, ``target``, ``weight`` (change of the target per unit of the source, in
        standard deviations of the controls; for nonlinear mechanisms of their linear part), ``probability`` (of this edge
        against the opposite one and none, the rest of the graph given), ``stability`` (share of the restarts in which it was
        found), ``prior`` (weight that was registered, 0 without).

        Examples
        --------
        >>> import scvi_causal
        >>> simulation = scvi_causal.data.simulate_drugs(n_nodes=5, n_drugs=8, n_cells=20, n_control=100, seed=0)
        >>> adata = simulation.adata
        >>> scvi_causal.GIM.setup_anndata(adata, dosage_key="dosage", perturbation_features_key="features")
        >>> model = scvi_causal.GIM(adata)
        >>> model.train(max_epochs=1, enable_progress_bar=False)
        >>> model.get_grn(threshold=0.2).columns.tolist()
        ['source', 'target', 'weight', 'probability', 'stability', 'prior']
        """
        self._check_if_trained(warn=False, message="Train the GIM first: model.train().")
        mechanisms, names = self.module.mechanisms, self.node_names_
        weight = mechanisms.dense().cpu().numpy()
        edges = np.zeros(weight.shape, dtype=bool)
        target, column = np.nonzero(mechanisms.has_parent.cpu().numpy())
        edges[mechanisms.parents.cpu().numpy()[target, column], target] = True
        listed = edges | (self.edge_probability_ > 1e-6) if candidates else edges
        source, target = np.nonzero(listed)
        table = pd.DataFrame({"source": names[source], "target": names[target], "weight": weight[source, target]})
        table["probability"] = self.edge_probability_[source, target]
        table["stability"] = self.edge_stability_[source, target]
        prior = self._prior_grn().set_index(["source", "target"])["weight"]
        pairs = pd.MultiIndex.from_frame(table[["source", "target"]])
        table["prior"] = prior[~prior.index.duplicated()].reindex(pairs).fillna(0.0).to_numpy()
        table = table[table["weight"].abs() >= (threshold or 0.0)]
        strength = table["weight"].abs().to_numpy()
        order = np.lexsort((-strength, -table["probability"].to_numpy()))
        return table.iloc[order].reset_index(drop=True)

    # ------------------------------------------------------------------ the targets

    @torch.inference_mode()
    def get_intervention_targets(
        self,
        perturbations: str | Sequence[str] | None = None,
        *,
        dosage: float | str | Sequence | None = None,
        features: pd.DataFrame | None = None,
        min_probability: float = 0.0,
    ) -> pd.DataFrame:
        """Mechanism of perturbations: which nodes they hit, and how hard.

        Parameters
        ----------
        perturbations
            Labels, seen or not; by default those that ``features`` describes, and without ``features`` all conditions of the
            training cells, each at its own dosages.
        dosage
            A dosage for all labels or one per label; 1 by default.
        features
            Features of tokens that have none yet: DataFrame (index: tokens) with the columns of the registered features.
        min_probability
            Leave out nodes that are less likely to be targets.

        Returns
        -------
        DataFrame, one row per perturbation and node, the likeliest targets of each first:

        - ``perturbation``, ``dosage`` (only where dosages were varied), ``node``
        - ``probability``: to be a target, from the features alone
        - ``responsibility``: to be a target, when the cells of the perturbation have been looked at; NaN for unseen ones
        - ``size``: shift of a target (or its value, for hard interventions), in standard deviations of the controls; of a seen
          perturbation as inferred from its cells
        - ``effect``: expected total change of the node, what reaches it along the graph included
        - ``observed``: mean change of the node in the training cells; NaN for unseen ones. Rank nodes by its size to see what plain
          differential expression says

        Examples
        --------
        >>> import scvi_causal
        >>> simulation = scvi_causal.data.simulate_drugs(n_nodes=5, n_drugs=8, n_cells=20, n_control=100, seed=0)
        >>> adata = simulation.adata
        >>> scvi_causal.GIM.setup_anndata(adata, dosage_key="dosage", perturbation_features_key="features")
        >>> model = scvi_causal.GIM(adata)
        >>> model.train(max_epochs=1, enable_progress_bar=False)
        >>> table = model.get_intervention_targets(["drug000", "drug012"], dosage=[2.0, 1.0])
        >>> len(table)
        10
        """
        self._check_if_trained(warn=False, message="Train the GIM first: model.train().")
        module = self.module
        if perturbations is None and features is not None:
            perturbations = [str(token) for token in features.index]
        if perturbations is None:
            labels, doses = self._training_conditions()
        else:
            labels = [perturbations] if isinstance(perturbations, str) else [str(p) for p in perturbations]
            doses = dosage_per_target(dosage, labels)
        prior, targets = self._interventions_of(labels, doses, features, use_seen=False)
        posterior, _ = self._interventions_of(labels, doses, features)
        seen = find_seen(module, *self._lookup_key(targets))
        effect = self.module.total_effect(posterior)
        tables = []
        for i, name in enumerate(targets.labels):
            table = pd.DataFrame({"perturbation": name, "node": self.node_names_})
            if module.sizes["with_dosage"]:
                table.insert(1, "dosage", dosage_text(targets.dosage[i], self._vocabulary.separator)[0])
            unknown = torch.full((len(self.node_names_),), torch.nan)
            columns = {
                "probability": prior.probability[i],
                "responsibility": posterior.probability[i] if i in seen else unknown,
                "size": posterior.size[i],
                "effect": effect[i],
                "observed": module.observed[seen[i][0]] if i in seen else unknown,
            }
            for column, values in columns.items():
                table[column] = values.cpu().numpy().astype(np.float32)
            best = table["responsibility"].fillna(table["probability"]).to_numpy()
            order = np.lexsort((-np.abs(table["size"].to_numpy()), -best))
            tables.append(table.iloc[order][best[order] >= min_probability])
        return pd.concat(tables, ignore_index=True)

    def _training_conditions(self) -> tuple[list[str], np.ndarray]:
        """Label and dosages of each training condition, in the order in which they are kept."""
        module, tokens = self.module, np.asarray(self._vocabulary.tokens, dtype=object)
        join = self._vocabulary.separator or "+"
        indptr = module.condition_indptr.cpu().numpy()
        columns, doses = module.condition_tokens.cpu().numpy(), module.condition_dosage.cpu().numpy()
        labels, amounts = [], np.empty(len(indptr) - 1, dtype=object)
        for k, (a, b) in enumerate(zip(indptr[:-1], indptr[1:], strict=True)):
            labels.append(join.join(tokens[columns[a:b]]))
            amounts[k] = join.join(f"{float(dose):.9g}" for dose in doses[a:b])
        return labels, amounts

    def _interventions_of(self, labels, doses, features, use_seen: bool = True):
        """Interventions of labels, and the targets that they were read as."""
        vocabulary = self._vocabulary
        self._refuse_unpredictable(np.asarray(labels, dtype=object), features)
        targets, _ = encode_targets(labels, doses, [], None, vocabulary.separator, vocabulary.control_categories)
        device = self.module.device
        inputs = {
            name: value.to(device) for name, value in self._get_token_inputs(list(targets.tokens), features).items()
        }
        dosage = torch.from_numpy(targets.dosage.toarray()).to(device)
        return self.module.interventions(dosage, inputs, use_seen), targets

    def _lookup_key(self, targets) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._get_token_inputs(list(targets.tokens), None)
        return torch.from_numpy(targets.dosage.toarray()), inputs["index"]

    # ------------------------------------------------------------------ populations

    @torch.inference_mode()
    def get_population(
        self,
        perturbations: str | Sequence[str],
        *,
        dosage: float | str | Sequence | None = None,
        features: pd.DataFrame | None = None,
        use_seen: bool = True,
    ) -> tuple[pd.DataFrame, np.ndarray | None]:
        r"""Mean and covariance of the nodes in the population under a perturbation, in closed form.

        .. math::
            \mu = (b + \pi \circ s) A^{-1}, \qquad
            \Sigma = A^{-\top} \mathrm{diag}(\sigma^2 + \pi(1 - \pi) s^2) A^{-1}

        Parameters
        ----------
        perturbations
            Labels; ``"control"`` gives the observational population.
        dosage, features
            As in :meth:`get_intervention_targets`.
        use_seen
            Whether perturbations of the training cells get what was inferred from these.

        Returns
        -------
        mean
            (n, nodes) on the scale of the data (of the first stratum where there are batches or covariates).
        covariance
            (n, nodes, nodes); ``None`` for hard interventions, whose covariance has no closed form where targets are uncertain.

        Raises
        ------
        NotImplementedError
            For nonlinear mechanisms, whose moments have no closed form: predict cells instead.
        """
        self._check_if_trained(warn=False, message="Train the GIM first: model.train().")
        module = self.module
        if module.n_mechanism_hidden:
            raise NotImplementedError(
                "The moments of nonlinear mechanisms have no closed form. Draw cells with predict_counterfactual([...], sample=True)."
            )
        labels = [perturbations] if isinstance(perturbations, str) else [str(p) for p in perturbations]
        found, _ = self._interventions_of(labels, dosage_per_target(dosage, labels), features, use_seen)
        mechanisms, scale = module.mechanisms, module.node_scale.double()
        weight, intercept = mechanisms.dense().double(), mechanisms.intercept.double()
        probability, size = found.probability.double(), found.size.double()
        covariance = None
        if module.hard:
            mean = hard_mean(weight, intercept, probability, size)
        else:
            mean, covariance = shift_moments(weight, intercept, mechanisms.log_sd.double().exp(), probability, size)
            covariance = (covariance * scale[:, None] * scale).cpu().numpy()
        mean = mean * scale + module.node_center[0]
        names = canonical_labels(labels, self._vocabulary.separator, self._vocabulary.control_categories)
        return pd.DataFrame(mean.cpu().numpy(), index=pd.Index(names.astype(str)), columns=self.node_names_), covariance

    def _perturbation_vectors(
        self, labels: np.ndarray, features: pd.DataFrame | None
    ) -> tuple[np.ndarray, Sequence[str]]:
        """Expected interventions: probability times size, node by node."""
        with torch.inference_mode():
            found, _ = self._interventions_of(labels.tolist(), None, features)
            if self.module.hard:  # the size is a value, whose distance from where the node would be is what matters
                return (found.probability * self.module.total_effect(found)).cpu().numpy(), self.node_names_
            return found.expected.cpu().numpy(), self.node_names_

    # ------------------------------------------------------------------ other strengths

    def simulate_penetrance(
        self,
        perturbation: str,
        strengths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        *,
        vary: Varied = "strength",
        indices: Sequence[int] | None = None,
        max_cells: int = 200,
        output: str = "normalized",
        sample: bool = False,
        seed: int | None = 0,
    ) -> AnnData:
        """Predict the same cells under a perturbation of varied strength.

        Parameters
        ----------
        perturbation
            Label of a target.
        strengths
            Values of what is varied.
        vary
            ``"strength"`` multiplies the size of the intervention, ``"penetrance"`` the probability that a target is hit;
            ``"dosage"`` asks for these dosages, as far as they were learned a dose curve.
        indices
            Source cells; by default training controls, at most ``max_cells``.
        max_cells
            See ``indices``.
        output, sample, seed
            As in :meth:`predict_counterfactual`. All share their random numbers. Curves on ``"log1p"`` need ``sample=True``.

        Returns
        -------
        AnnData of cells x strengths, strength by strength, with ``obs["strength"]`` (or what else was varied).

        Examples
        --------
        >>> import scvi_causal
        >>> simulation = scvi_causal.data.simulate_drugs(n_nodes=5, n_drugs=8, n_cells=20, n_control=100, seed=0)
        >>> adata = simulation.adata
        >>> scvi_causal.GIM.setup_anndata(adata, dosage_key="dosage", perturbation_features_key="features")
        >>> model = scvi_causal.GIM(adata)
        >>> model.train(max_epochs=1, enable_progress_bar=False)
        >>> curve = model.simulate_penetrance("drug003", [0.5, 1.0, 2.0], vary="dosage", max_cells=10)
        >>> curve.obs["dosage"].value_counts().tolist()
        [10, 10, 10]
        """
        import anndata

        if vary not in get_args(Varied):
            raise ValueError(f"vary={vary!r} is not one of {', '.join(map(repr, get_args(Varied)))}.")
        values = pd.unique(pd.to_numeric(pd.Series(list(strengths), dtype=object), errors="coerce").astype(float))
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(f"strengths has to be a list of finite numbers, got {list(strengths)!r}.")
        parts = []
        for value in values:
            with self._overridden({} if vary == "dosage" else {vary: value}):
                part = self.predict_counterfactual(
                    [perturbation],
                    indices=indices,
                    dosage=value if vary == "dosage" else None,
                    output=output,
                    sample=sample,
                    seed=seed,
                )
            part = part[:max_cells].copy() if indices is None else part
            part.obs[vary] = float(value)
            part.obs_names = [f"{name}|{value:g}" for name in part.obs_names]
            parts.append(part)
        return anndata.concat(parts, merge="same", uns_merge="first")

    @contextmanager
    def _overridden(self, values: dict[str, Any]) -> Iterator[None]:
        self._override = values
        try:
            yield
        finally:
            self._override = {}
