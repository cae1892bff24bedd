"""Foreign models in a few lines, importable, so that other processes can have them too."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import torch

from scvi_causal import metrics


def log1p(adata) -> np.ndarray:
    return metrics.log1p_normalize(adata.X, adata.obs["library"]).toarray()


def as_prediction(cells: dict[str, np.ndarray], adata) -> ad.AnnData:
    """Cells by target, as a predictor returns them."""
    obs = pd.DataFrame({"perturbation": np.repeat(list(cells), [len(x) for x in cells.values()])})
    obs.index = obs.index.astype(str)
    return ad.AnnData(np.concatenate(list(cells.values())).astype(np.float32), obs=obs, var=adata.var[[]])


class MeanShift:
    """A foreign model in a few lines: control cells, moved by the mean effect of all training perturbations."""

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def fit(self, adata):
        x = metrics.log1p_normalize(adata.X, adata.obs["library"])
        is_control = (adata.obs["perturbation"] == "control").to_numpy()
        self.shift = metrics.mean_profile(x[~is_control]) - metrics.mean_profile(x[is_control])

    def predict(self, adata, targets):
        x = log1p(adata) + self.factor * self.shift
        return as_prediction(dict.fromkeys(targets, x), adata)


class Memoriser:
    """Looks up whatever it was given: cells of the target in the same context, in any context, or any perturbed cells."""

    def fit(self, adata):
        self.x, self.labels = log1p(adata), adata.obs["perturbation"].to_numpy(str)
        self.types = adata.obs["cell_type"].to_numpy(str)

    def predict(self, adata, targets):
        here = np.isin(self.types, adata.obs["cell_type"].unique())
        cells = {}
        for target in targets:
            masks = [(self.labels == target) & here, self.labels == target, (self.labels != "control") & here]
            masks.append(self.labels != "control")
            cells[target] = self.x[next(mask for mask in masks if mask.any())]
        return as_prediction(cells, adata)


class Recorder(MeanShift):
    """Keeps what it was shown, of the last object that was made."""

    last: Recorder

    def __init__(self, seed: int = -1):
        super().__init__()
        self.seed, self.asked = seed, []
        type(self).last = self

    def fit(self, adata):
        self.trained_on = adata.copy()
        super().fit(adata)
        adata.X.data[:] = 0  # it is a copy
        adata.obs["perturbation"] = "gone"

    def predict(self, adata, targets):
        self.asked.append((adata.copy(), list(targets)))
        answer = super().predict(adata, targets)
        adata.X.data[:] = 0
        return answer


class Noisy(MeanShift):
    """Draws from every global generator, and leaves them and the filters changed."""

    def predict(self, adata, targets):
        noise = np.random.normal(size=adata.shape) + torch.randn(adata.shape).numpy()  # noqa: NPY002
        warnings.warn("noise is noise", UserWarning, stacklevel=2)
        warnings.simplefilter("ignore")
        return as_prediction(dict.fromkeys(targets, log1p(adata) + 0.1 * noise), adata)


class Misbehaving(MeanShift):
    """Does what it is told to, which is never right."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def fit(self, adata):
        if self.how == "fit raises":
            raise RuntimeError("no\nluck")
        if self.how == "fit exits":
            raise SystemExit(3)
        if self.how == "interrupted":
            raise KeyboardInterrupt
        super().fit(adata)

    def can_predict(self, targets):
        if self.how == "can_predict is odd":
            return [True] * len(targets)
        refused = targets[:1] if self.how == "refuses one" else targets if self.how == "refuses" else []
        ok = [target not in refused for target in targets]
        return pd.DataFrame({"predictable": ok, "reason": "never heard of it"}, index=targets)

    def predict(self, adata, targets):
        good = super().predict(adata, targets)
        if self.how == "predict raises":
            raise ValueError("cannot do that")
        if self.how == "raises in one context" and "type_0" in set(adata.obs["cell_type"]):
            raise ValueError("not here")
        if self.how == "NaN":
            good.X[0, 0] = np.nan
        return {
            "nothing": None,
            "array": good.X,
            "too few genes": good[:, :-1].copy(),
            "other genes": ad.AnnData(good.X, obs=good.obs, var=pd.DataFrame(index=good.var_names.str.lower())),
            "gene order": good[:, ::-1].copy(),
            "no labels": ad.AnnData(good.X, var=good.var),
            "no cells": good[:0].copy(),
            "missing target": good[(good.obs["perturbation"] != targets[-1]).to_numpy()].copy(),
            "counts": ad.AnnData(np.expm1(good.X) + 1000, obs=good.obs, var=good.var),
        }.get(self.how, good)
