"""Counterfactual predictions: the question, the walk over the cells, and the answer in an AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal._docs import docs
from scvi_causal.data import canonical_labels
from scvi_causal.data._messages import listed, plural, suggest

from ._answer import as_anndata, check_key, describe, write_layers
from ._request import PredictOptions, resolve_seed, work_out
from ._scales import check_output
from ._walk import walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor

    from ._scales import Output
    from ._sources import Sources


class CounterfactualMixin:
    """``predict_counterfactual`` and what belongs to it."""

    # ------------------------------------------------------------------ public

    @docs.dedent
    @torch.inference_mode()
    def predict_counterfactual(
        self,
        perturbation: str | Sequence[str] | None = None,
        adata: AnnData | None = None,
        *,
        indices: Sequence[int] | None = None,
        dosage: float | str | Sequence | None = None,
        covariates: dict[str, Any] | None = None,
        features: pd.DataFrame | None = None,
        sample: bool = False,
        n_samples: int = 1,
        output: Output = "normalized",
        key_added: str | None = "counterfactual",
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> AnnData | None:
        """Predict the expression of cells under a perturbation that they did not receive.

        Parameters
        ----------
        %(param_perturbation)s
        %(param_query_adata)s
        %(param_indices)s
        %(param_dosage)s
        %(param_covariates)s
        %(param_features)s
        sample
            ``False`` gives expected expression, ``True`` draws cells from the predictive distribution (whole numbers for
            ``"counts"``). What is compared with observed cells (means of log1p, variances, distances) needs draws: the log
            of a mean is not the mean of logs.
        n_samples
            Number of draws. More than one adds standard deviation and 5%% and 95%% quantiles over the draws; the prediction
            itself is then their mean, or with ``sample=True`` the first draw, so that it stays a population of cells.
        output
            ``"normalized"``: per 10,000 counts of the library of the source cell (the size factor where one is registered);
            ``"counts"``: on that library; ``"log1p"``: log(1 + normalized); ``"delta"``: log1p under the target minus log1p
            of the same cell under its own condition, with the same random numbers. For ``perturbation=None`` the own
            condition is that of the source, a control. A model on continuous data answers ``"normalized"`` and
            ``"delta"`` on the scale of the data, and refuses the others.
        key_added
            Name of the layer. ``None`` returns a new AnnData instead, as a list of targets always does.
        %(param_batch_size)s
        %(param_seed)s

        Returns
        -------
        ``None``, with the prediction in ``adata.layers[key_added]`` (float32; NaN for cells outside ``indices``), the spread
        over draws in ``adata.layers[key_added + "_std" | "_q05" | "_q95"]``, and how it was made in
        ``adata.uns["scvi_causal"][key_added]``. Or a new AnnData with the prediction in ``X``: ``obs`` has the target in the
        perturbation column, ``source_cell``, ``source_perturbation`` and ``is_unseen``; ``var`` is that of the input.

        Raises
        ------
        ValueError
            If a target cannot be predicted (see :meth:`can_predict`), the genes of ``adata`` are not those of the model, or
            there is nothing to start from.
        RuntimeError
            If the model is not trained.

        Examples
        --------
        >>> import scvi_causal
        >>> from scvi_causal.model import PerturbedMean
        >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
        >>> PerturbedMean.setup_anndata(adata)
        >>> model = PerturbedMean(adata)
        >>> model.train()
        >>> model.predict_counterfactual()
        >>> adata.layers["counterfactual"].shape == adata.shape
        True
        >>> target = model.seen_tokens_[0]
        >>> model.predict_counterfactual([target, "control"], indices=[0, 1]).shape
        (4, 20)
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        check_output(output, self.module.scale, type(self).__name__)
        check_key(key_added)
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples}: pass at least 1.")
        options = PredictOptions(output, sample, n_samples, resolve_seed(seed))
        request = work_out(self, perturbation, self._check_query(adata), indices, dosage, features, options)
        arrays = walk(self, request, options, covariates, features, batch_size)
        info = describe(self, request, options, covariates)
        if key_added is None or request.mode == "several targets":
            return as_anndata(self, request, arrays, info, key_added or "counterfactual", covariates)
        write_layers(request, arrays, info, key_added)
        return None

    def predict(self, perturbation: str | Sequence[str] | None = None, adata: AnnData | None = None, **kwargs):
        """Another name of :meth:`predict_counterfactual`, for those who look for ``predict``."""
        return self.predict_counterfactual(perturbation, adata, **kwargs)

    @docs.dedent
    def can_predict(self, perturbations: str | Sequence[str], features: pd.DataFrame | None = None) -> pd.DataFrame:
        """Say which targets the model can predict, and why.

        Parameters
        ----------
        perturbations
            Labels; one token or a combination each.
        %(param_features)s

        Returns
        -------
        DataFrame, one row per label as given: ``seen`` (every token was in the training cells), ``combination_seen`` (so was
        this very combination), ``predictable``, ``reason``.

        Examples
        --------
        >>> import scvi_causal
        >>> from scvi_causal.model import Additive
        >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
        >>> Additive.setup_anndata(adata)
        >>> model = Additive(adata)
        >>> model.train()
        >>> model.can_predict(["control", "no such gene"])["predictable"].tolist()
        [True, False]
        """
        labels = [perturbations] if isinstance(perturbations, str) else [str(p) for p in perturbations]
        parsed = [self._vocabulary.parse(label) for label in labels]
        tokens = sorted({token for tokens in parsed for token in tokens})
        answers = dict(zip(tokens, self._predictable(tokens, features), strict=True)) if tokens else {}
        seen, conditions = set(self.seen_tokens_.tolist()), set(self.seen_conditions_.tolist())
        names = canonical_labels(labels, self._vocabulary.separator, self._vocabulary.control_categories)
        rows = []
        for name, tokens in zip(names, parsed, strict=True):
            known = name in conditions or not tokens
            ok, reason = self._judge(tokens, known, answers)
            rows.append((all(token in seen for token in tokens), known, ok, reason))
        index = pd.Index(labels, name="perturbation", dtype=object)
        return pd.DataFrame(rows, index=index, columns=["seen", "combination_seen", "predictable", "reason"])

    # ------------------------------------------------------------------ hooks for models

    def _get_token_inputs(self, tokens: list[str], features: pd.DataFrame | None) -> dict[str, Tensor]:
        """What the module needs to know about target tokens; the first dimension of every tensor is that of the tokens.

        Returns
        -------
        ``"index"``: column in the vocabulary, -1 for a token outside; where features are registered also ``"features"``
        (n_tokens, n_features) and ``"has_features"`` (n_tokens,).
        """
        index = [self._vocabulary.index(token) if token in self._vocabulary else -1 for token in tokens]
        inputs = {"index": torch.tensor(index, dtype=torch.int64)}
        matrix, known = self._token_features(tokens, features)
        if matrix is not None:
            inputs |= {"features": torch.from_numpy(matrix), "has_features": torch.from_numpy(known)}
        return inputs

    def _predictable(self, tokens: list[str], features: pd.DataFrame | None = None) -> list[tuple[bool, str]]:
        """Whether each token can be a target, and why; models with other ways to predict override this."""
        seen = set(self.seen_tokens_.tolist())
        _, described = self._token_features(tokens, features)
        nodes = self._graph_nodes() if "graph" in self._unseen_kinds() else set()
        return [
            self._predictable_token(token, token in seen, bool(has), token in nodes)
            for token, has in zip(tokens, described, strict=True)
        ]

    def _provenance_extras(self, tokens: Sequence[str]) -> dict[str, Any]:
        """What a reader of a prediction of these tokens has to know beyond the common provenance."""
        return {}

    # ------------------------------------------------------------------ what can be predicted

    def _unseen_kinds(self) -> tuple[str, ...]:
        return (self.unseen,) if isinstance(self.unseen, str) else tuple(self.unseen)

    def _graph_nodes(self) -> set[str]:
        return set(self._var_names().tolist()) | {
            str(node) for node in self._field_state(CAUSAL_KEYS.GRN)["extra_nodes"]
        }

    def _predictable_token(self, token: str, seen: bool, described: bool, in_graph: bool) -> tuple[bool, str]:
        kinds = self._unseen_kinds()
        if seen:
            return True, "seen in training"
        if "features" in kinds and described:
            return True, "not seen in training, predicted from its features"
        if "graph" in kinds and in_graph:
            return True, "not seen in training, predicted from its place in the graph"
        announced = token in self._vocabulary or token in self._extra_tokens()
        known = announced or token in set(self._var_names().tolist())
        if "any" in kinds and (known or described):
            return True, "not seen in training, predicted without knowing anything about it"
        why = "not seen in training" if announced else "unknown token"
        near = suggest(token, [*self._vocabulary.tokens, *self._vocabulary.control_categories])
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near and not announced else ""
        return False, why + hint + self._way_out(kinds)

    def _way_out(self, kinds: tuple[str, ...]) -> str:
        if "features" in kinds:
            return "; give it features (features=, or a row in the registered table)"
        if "graph" in kinds:
            return "; it would have to be a node of the graph"
        return "" if "any" in kinds else f"; {type(self).__name__} predicts only tokens it was trained on"

    def _judge(self, tokens: tuple[str, ...], known: bool, answers: dict[str, tuple[bool, str]]) -> tuple[bool, str]:
        if not tokens:
            return True, "control"
        bad = [token for token in tokens if not answers[token][0]]
        if bad and len(tokens) == 1:
            return False, answers[bad[0]][1]
        if bad:
            return False, "; ".join(f"{token}: {answers[token][1]}" for token in bad)
        if len(tokens) > 1 and not known and "combinations" not in self._unseen_kinds():
            return (
                False,
                f"combination not seen in training; {type(self).__name__} predicts only combinations it was trained on",
            )
        if len(tokens) == 1:
            return True, answers[tokens[0]][1]
        return True, "seen in training" if known else "combination of predictable tokens"

    def _refuse_unpredictable(self, labels: np.ndarray, features: pd.DataFrame | None) -> None:
        """Raise one ``ValueError`` for all targets that cannot be predicted."""
        names = list(pd.unique(labels))
        table = self.can_predict(names, features)
        bad = table[~table["predictable"]]
        if len(bad):
            reasons = "; ".join(f"{name!r} ({reason})" for name, reason in bad["reason"].head(5).items())
            raise ValueError(
                f"{type(self).__name__} cannot predict {len(bad)} of {plural(len(names), 'target')}: {reasons}"
                f"{' and more' if len(bad) > 5 else ''}. It was trained on {plural(len(self.seen_tokens_), 'token')}: "
                f"{listed(self.seen_tokens_)}. model.can_predict(labels) tells which targets are possible."
            )

    def _check_query(self, adata: AnnData | None) -> AnnData:
        """The AnnData to predict on, registered with the model; raises ``ValueError`` if there is none or it is empty."""
        if adata is None and self.adata is None:
            raise ValueError("The model was loaded without data: pass the cells to predict on as adata=.")
        if adata is not None and adata.n_obs == 0:
            raise ValueError("The query has no cells: there is nothing to predict.")
        return self._validate_anndata(adata)

    def _own_conditions(self, adata: AnnData, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels of cells as written, and their dosages; a query without the column consists of controls."""
        key, dosage_key = self._setup_arg("perturbation_key"), self._setup_arg("dosage_key")
        if key not in adata.obs:
            return np.full(len(rows), self._vocabulary.control_categories[0], dtype=object), None
        labels = adata.obs[key].astype(str).to_numpy(dtype=object)[rows]
        return labels, None if dosage_key is None else adata.obs[dosage_key].to_numpy(dtype=object)[rows]

    def _source_labels(self, sources: Sources) -> np.ndarray:
        """Canonical labels of source cells."""
        labels, _ = self._own_conditions(sources.adata, sources.rows)
        names = canonical_labels(labels, self._vocabulary.separator, self._vocabulary.control_categories)
        return names.astype(str)
