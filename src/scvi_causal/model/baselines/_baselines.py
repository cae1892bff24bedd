"""The baselines that every claim has to be held against, as models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from scvi_causal.model.base._model import HOW_FEATURES

from ._model import BaselineModel
from ._rules import (
    AdditiveModule,
    BilinearEffectModule,
    ControlMeanModule,
    LinearEffectModule,
    NearestPerturbationModule,
    PerturbedMeanModule,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from torch import Tensor


class ControlMean(BaselineModel):
    """No perturbation does anything: the prediction is the control cell it starts from.

    The negative control of a benchmark. A measure on which it does well does not measure effects.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of data.

    Examples
    --------
    >>> import scvi_causal
    >>> from scvi_causal.model import ControlMean
    >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
    >>> ControlMean.setup_anndata(adata)
    >>> model = ControlMean(adata)
    >>> model.train()
    >>> model.predict_counterfactual(output="delta")
    >>> float(abs(adata.layers["counterfactual"]).max())
    0.0
    """

    _module_cls = ControlMeanModule


class PerturbedMean(BaselineModel):
    """Every perturbation has the same effect: the mean over the training perturbations, each counted once.

    It knows nothing about the target, and is hard to beat on unseen perturbations, because much of an effect is what all
    perturbations have in common (Viñas Torné et al. 2025; Ahlmann-Eltze et al. 2025).

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of data.

    Examples
    --------
    >>> import scvi_causal
    >>> from scvi_causal.model import PerturbedMean
    >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
    >>> PerturbedMean.setup_anndata(adata)
    >>> model = PerturbedMean(adata)
    >>> model.train()
    >>> model.predict_counterfactual(sample=True, output="counts")
    >>> int(adata.layers["counterfactual"].min())
    0
    """

    _module_cls = PerturbedMeanModule


class Additive(BaselineModel):
    """Effects add up: a combination has the sum of the effects of its tokens.

    A condition that was trained on has its own effect, within its covariates if it was trained on there; in a covariate
    combination where it was not, it has the mean of its effects in the others (the context shift). An unseen token has the mean
    effect of the single perturbations. At another dosage than those seen, the effect of a token is interpolated, with none at
    dosage 0, and never extrapolated.

    A combination of fewer than 10 training cells is summed as well, and a token that hardly any cell has alone gets the effect that
    least squares over all conditions give it: in a screen of high multiplicity most cells are conditions of their own.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of data.

    Examples
    --------
    >>> import scvi_causal
    >>> from scvi_causal.model import Additive
    >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
    >>> Additive.setup_anndata(adata)
    >>> model = Additive(adata)
    >>> model.train()
    >>> a, b = model.seen_tokens_[:2]
    >>> model.can_predict(f"{a}+{b}")["predictable"].item()
    True
    """

    _module_cls = AdditiveModule


class LinearEffect(BaselineModel):
    """Effects are a linear function of what describes a perturbation.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    form
        ``"ridge"``: ridge regression with an intercept from the registered features to the effects; a combination has the sum of
        the features of its tokens, times their dosages. ``"bilinear"``: the model of Ahlmann-Eltze et al. (Nature Methods 2025),
        which needs no features: genes are described by their principal components in the training data, a perturbation by
        the components of the gene it is named after. A token that names no measured gene has the mean effect.
    alpha
        Penalty. ``None`` is 0.1 for the bilinear form (as published), and the best of leave-one-out over the training conditions
        for ridge.
    n_factors
        Number of principal components of the bilinear form.
    registry
        Registry of a saved model, instead of data.

    Raises
    ------
    ValueError
        If ``form="ridge"`` and no features were registered.

    Examples
    --------
    >>> import scvi_causal
    >>> from scvi_causal.model import LinearEffect
    >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
    >>> LinearEffect.setup_anndata(adata)
    >>> model = LinearEffect(adata, form="bilinear")
    >>> model.train()
    >>> model.predict_counterfactual()
    """

    _module_cls = LinearEffectModule

    def __init__(
        self,
        adata: AnnData | None = None,
        form: Literal["ridge", "bilinear"] = "ridge",
        alpha: float | None = None,
        n_factors: int = 10,
        registry: dict | None = None,
    ):
        super().__init__(adata, registry)
        if form not in ("ridge", "bilinear"):
            raise ValueError(f"form={form!r} is neither 'ridge' nor 'bilinear'.")
        if alpha is not None and not alpha > 0:
            raise ValueError(f"alpha={alpha!r}: a penalty is a positive number, or None to have one chosen.")
        if n_factors < 1:
            raise ValueError(f"n_factors={n_factors!r}: at least one factor is needed.")
        if form == "ridge" and not self._has_features():
            raise ValueError(
                "LinearEffect(form='ridge') needs features of the perturbations, and this AnnData was set up without. "
                f"{HOW_FEATURES.format(name='LinearEffect')} Or use form='bilinear', which needs none."
            )
        self.form = form
        if form == "bilinear":
            self._module_cls = BilinearEffectModule
            self._build({"alpha": 0.1 if alpha is None else alpha, "n_factors": n_factors})
        else:
            self._build({"alpha": alpha})
        self.init_params_ = self._get_init_params(locals())

    def _unseen_kinds(self) -> tuple[str, ...]:
        return ("features", "combinations") if self.form == "ridge" else ("any", "combinations")

    def _get_token_inputs(self, tokens: list[str], features: pd.DataFrame | None) -> dict[str, Tensor]:
        return super()._get_token_inputs(tokens, features) | {"gene": torch.from_numpy(self._genes_of(tokens))}


class NearestPerturbation(BaselineModel):
    """A perturbation does what the most similar training perturbations do.

    The mean effect of the nearest neighbours in the registered features (Csendes et al. 2025); for combinations, the sum over
    tokens. A seen perturbation is its own nearest neighbour, and has ``n_neighbors - 1`` more.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`, with features.
    n_neighbors
        Number of neighbours.
    metric
        ``"euclidean"`` or ``"cosine"``.
    registry
        Registry of a saved model, instead of data.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scvi_causal
    >>> from scvi_causal.model import NearestPerturbation
    >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
    >>> tokens = sorted(set(adata.obs["perturbation"]) - {"control"})
    >>> adata.uns["features"] = pd.DataFrame(np.eye(len(tokens)), index=tokens).rename(columns=str)
    >>> NearestPerturbation.setup_anndata(adata, perturbation_features_key="features")
    >>> model = NearestPerturbation(adata, n_neighbors=1)
    >>> model.train()
    >>> model.predict_counterfactual()
    """

    requires_features = True
    unseen = ("features", "combinations")
    _module_cls = NearestPerturbationModule

    def __init__(
        self,
        adata: AnnData | None = None,
        n_neighbors: int = 5,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        registry: dict | None = None,
    ):
        super().__init__(adata, registry)
        if n_neighbors < 1:
            raise ValueError(f"n_neighbors={n_neighbors!r}: at least one neighbour is needed.")
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric={metric!r} is neither 'euclidean' nor 'cosine'.")
        self._build({"n_neighbors": n_neighbors, "metric": metric})
        self.init_params_ = self._get_init_params(locals())
