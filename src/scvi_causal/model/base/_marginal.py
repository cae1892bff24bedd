"""Average effects with intervals: observed cells, and the model's predictions where they help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_causal._docs import docs
from scvi_causal.data._messages import did_you_mean, listed
from scvi_causal.effects import estimate_effects

from ._conditions import KEY_SEPARATOR, conditions_asked, conditions_of_cells
from ._cross_fit import cross_fit_models
from ._group_moments import ExpressionReader
from ._marginal_predictions import PredictionPlan, predict_from_cells, predict_from_strata
from ._request import check_rows, resolve_seed
from ._scales import check_output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    import pandas as pd
    from anndata import AnnData

    from ._conditions import Conditions
    from ._model import CausalModel


class MarginalMixin:
    """``get_marginal_effects``."""

    @docs.dedent
    def get_marginal_effects(
        self,
        perturbations: str | Sequence[str] | None = None,
        groupby: str | Sequence[str] | None = None,
        contrast: str | None = "control",
        method: str | Sequence[str] = "robust",
        cluster_key: str | None = None,
        cross_fit: int = 0,
        adata: AnnData | None = None,
        *,
        indices: Sequence[int] | None = None,
        dosage: float | str | Sequence | None = None,
        features: pd.DataFrame | None = None,
        output: Literal["log1p", "normalized"] | None = None,
        level: float = 0.95,
        simultaneous: bool = False,
        cluster_variance: Literal["jackknife", "sandwich"] = "jackknife",
        predict_from: Literal["strata", "cells"] = "strata",
        n_samples: int | None = None,
        train_kwargs: dict[str, Any] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Average effect of each perturbation on each gene in each group of cells, with confidence intervals.

        What was observed decides; the model helps. ``"robust"`` is the mean of the perturbed cells, corrected for how much the
        model's predictions for them differ from its predictions for all cells of the group: a wrong model costs precision, not
        validity, as long as its predictions do not depend on what a cell received. The user guide says what that asks of
        the screen and of the model.

        Parameters
        ----------
        perturbations
            Labels; by default all conditions of the training cells but control, each at every dosage observed.
        groupby
            Column(s) of ``adata.obs`` within which perturbations were assigned at random, and for whose values effects are wanted.
            By default the registered categorical covariates; ``[]`` takes all cells as one group.
        contrast
            Label that effects are differences from; ``None`` gives mean expression itself.
        method
            ``"robust"``; ``"group"``, the plain means of observed cells, without the model; ``"tuned"``, the predictions scaled gene
            by gene to help most; ``"mean"``, the model alone, without an interval. Or several of them.
        cluster_key
            Column of ``adata.obs`` with clusters of dependent cells: donors, replicates, guides. By default cells are independent,
            and intervals speak of these donors and guides only.
        cross_fit
            Number of folds: the predictions for a cell then come from a model that was trained without it. 0 uses this model for
            all cells, which understates the uncertainty of models that can memorise cells.
        %(param_query_adata)s
        indices
            Cells to estimate from; by default the training and validation cells, or all cells of a query. What was held out
            (``"test"``) stays unused.
        %(param_dosage)s
        %(param_features)s
        output
            Scale of the means: ``"log1p"`` of counts per 10,000, the default, or ``"normalized"``. Continuous data stay as they are.
        level
            Of the intervals.
        simultaneous
            Also give bands that hold for all genes of a perturbation and group together.
        cluster_variance
            See :func:`~scvi_causal.effects.estimate_effects`.
        predict_from
            ``"strata"``: a cell is predicted by the mean over the training controls of its stratum (batch and categorical
            covariates). Robust effects are then group means corrected for an uneven spread over batches. ``"cells"``: by
            itself, as published, which a model has to be able to (:attr:`can_abduct`). Intervals then hold only if what the model
            infers of a perturbed cell is free of its perturbation, and of the error in taking that out: a state measured
            before the perturbation is, one inferred from the outcome is not, and ``"unbalanced"`` need not show it;
            ``"reconstructed"`` shows the extreme case.
        n_samples
            Draws per source cell whose mean is the prediction, where it has to be drawn because the log of a mean is not the mean
            of logs; by default 1 for means over strata, 10 for cells.
        train_kwargs
            Arguments of :meth:`train` for the models of ``cross_fit``.
        %(param_batch_size)s
        %(param_seed)s

        Returns
        -------
        DataFrame, one row per method, group, perturbation and gene; its columns are those of
        :func:`~scvi_causal.effects.estimate_effects`, with ``dosage`` where dosages are registered. ``flag`` says what to
        distrust: ``"model only"`` for perturbations never observed in a group, ``"unbalanced"`` where predictions differ between
        perturbed cells and the others by more than chance, ``"reconstructed"`` where they are the outcomes themselves.

        Raises
        ------
        ValueError
            If a column, label or method is unknown, a target cannot be predicted, or clusters are too few.
        RuntimeError
            If the model is not trained.

        Examples
        --------
        >>> import scvi_causal
        >>> from scvi_causal.model import Additive
        >>> adata = scvi_causal.data.simulate_screen(n_genes=20, n_batches=3, seed=0).adata
        >>> Additive.setup_anndata(adata, batch_key="batch")
        >>> model = Additive(adata)
        >>> model.train()
        >>> effects = model.get_marginal_effects(model.seen_tokens_[:2], method=["group", "robust"])
        >>> effects.shape[0] == 2 * 2 * 20
        True
        >>> bool((effects["ci_low"] <= effects["estimate"]).all())
        True
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        adata = self._check_query(adata)
        seed, scale = resolve_seed(seed), _check_scale(self, output)
        _check_predict_from(self, predict_from)
        rows = _rows_to_use(self, adata, indices)
        of_cell = conditions_of_cells(self, adata)
        asked = conditions_asked(self, perturbations, dosage, contrast, of_cell[rows])
        predict = None
        if {method} != {"group"} if isinstance(method, str) else set(method) != {"group"}:
            self._refuse_unpredictable(asked.labels, features)
            models, fold = cross_fit_models(self, adata, rows, of_cell, cross_fit, train_kwargs, seed)
            plan = PredictionPlan(asked, features, scale, n_samples, batch_size, seed)
            make = predict_from_cells if predict_from == "cells" else predict_from_strata
            predict = make(models, fold, adata, rows, plan)
        else:
            _refuse_unobserved(self, asked, of_cell[rows])
        table = estimate_effects(
            ExpressionReader(self.get_anndata_manager(adata, required=True), scale),
            of_cell,
            predict,
            asked.targets,
            contrast=asked.contrast,
            method=method,
            group=_group_frame(self, adata, groupby, rows),
            cluster=None if cluster_key is None else _columns(adata, [cluster_key], "cluster_key")[cluster_key],
            cluster_variance=cluster_variance,
            level=level,
            simultaneous=simultaneous,
            genes=self._var_names(),
            rows=rows,
            seed=seed,
        )
        return asked.name(table, with_dosage=self._setup_arg("dosage_key") is not None)


def _check_scale(model: CausalModel, output: str | None) -> str:
    """Scale of the means, as :class:`ExpressionReader` names it."""
    if model.module.scale == "continuous":
        if output == "log1p":
            check_output(output, "continuous", type(model).__name__)
        return "continuous"
    if output not in (None, "log1p", "normalized"):
        raise ValueError(f"output={output!r} is not one of 'log1p', 'normalized': scales on which cells are averaged.")
    return output or "log1p"


def _check_predict_from(model: CausalModel, predict_from: str) -> None:
    if predict_from not in ("strata", "cells"):
        raise ValueError(f"predict_from={predict_from!r} is neither 'strata' nor 'cells'.")
    if predict_from == "cells" and not model.can_abduct:
        raise ValueError(
            f"{type(model).__name__} starts a perturbed cell from some control of its stratum, and so says nothing of the "
            "cell itself: predict_from='strata' averages over these controls instead."
        )


def _rows_to_use(model: CausalModel, adata: AnnData, indices: Sequence[int] | None) -> np.ndarray:
    """Cells to estimate from; of the training data all that were not held out."""
    if indices is not None:
        return check_rows(indices, adata.n_obs)
    if not model._is_training_data(adata):
        return np.arange(adata.n_obs)
    parts = [model.train_indices, model.validation_indices]
    return np.sort(np.concatenate([np.asarray(part, dtype=np.int64) for part in parts if part is not None]))


def _group_frame(
    model: CausalModel, adata: AnnData, groupby: str | Sequence[str] | None, rows: np.ndarray
) -> pd.DataFrame | None:
    if groupby is None:
        groupby = model._setup_arg("categorical_covariate_keys") or []
    names = [groupby] if isinstance(groupby, str) else list(groupby)
    return _columns(adata, names, "groupby") if names else None


def _columns(adata: AnnData, names: list[str], argument: str) -> pd.DataFrame:
    unknown = [name for name in names if name not in adata.obs]
    if unknown:
        raise ValueError(
            f"{argument} names {listed(unknown)}, which adata.obs does not have."
            f"{did_you_mean(str(unknown[0]), adata.obs.columns)} Its columns are {listed(adata.obs.columns, 20)}."
        )
    return adata.obs[names]


def _refuse_unobserved(model: CausalModel, asked: Conditions, present: np.ndarray) -> None:
    """Group means need no prediction, so that a misspelt label would only come back as never observed."""
    known = {key.split(KEY_SEPARATOR)[0] for key in np.unique(present)} | set(model.seen_conditions_.tolist())
    unknown = [label for label in asked.labels if label not in known]
    if unknown:
        raise ValueError(
            f"No cell carries {listed(unknown)}.{did_you_mean(unknown[0], known)} method='group' averages observed cells; "
            f"they carry {listed(sorted(known))}."
        )
