"""Torch side of the baselines: a table of effects in buffers, and the shift of real cells by a weighted sum of them."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS

from scvi_causal._constants import NORMALIZED_TOTAL
from scvi_causal.model.base import CausalModule, CounterfactualOutput

from ._table import EffectTable, to_buffers

if TYPE_CHECKING:
    from torch import Tensor


class Weights:
    """Weights of the training conditions in the effect of a target.

    Parameters
    ----------
    direct
        (n_conditions,) the effect is their weighted sum ...
    projected
        (n_conditions,) ... plus that of these, projected by the module; ``None`` for none.
    """

    def __init__(self, direct: np.ndarray, projected: np.ndarray | None = None):
        self.direct, self.projected = direct, projected


class Target:
    """A target as :meth:`BaselineModule.weights` sees it.

    Parameters
    ----------
    index
        (n,) column of each token in the vocabulary, -1 for a token outside.
    dosage
        (n,) dosage of each.
    inputs
        The other token inputs of the model, each (n, ...).
    """

    def __init__(self, index: np.ndarray, dosage: np.ndarray, inputs: dict[str, np.ndarray]):
        self.index, self.dosage, self.inputs = index, dosage, inputs


class BaselineModule(CausalModule):
    """Shifts real cells by a weighted sum of the effects of training conditions; a baseline says which weights.

    A source cell ``x`` (log1p scale) under a target with effect ``D`` becomes ``x + D`` where ``D >= 0`` and
    ``x · max(0, 1 + D / c)`` where ``D < 0``, with ``c`` the mean of the controls of its stratum: no cell falls below zero,
    and the mean over the controls moves by exactly ``D`` (as far as there is something to take away). Continuous data are
    shifted by ``D``.

    Parameters
    ----------
    scale
        ``"log1p"`` for counts, ``"continuous"`` for data that are none.
    n_categories
        Number of categories of each categorical covariate, from which strata are told.
    """

    def __init__(self, scale: str = "log1p", n_categories: tuple[int, ...] = ()):
        super().__init__()
        self.scale = scale
        self.n_categories = tuple(n_categories)
        self._columns: tuple[list[int], list[int]] = _stratum_columns(self.n_categories)
        self._arrays: dict[str, Any] | None = None
        self.register_buffer("device_anchor", torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the buffers; there are no parameters."""
        return self.device_anchor.device

    # ------------------------------------------------------------------ what a baseline implements

    @abstractmethod
    def weights(self, target: Target) -> Weights:
        """Weights of the training conditions for a target that is not control."""

    def fit(
        self, table: EffectTable, token_features: np.ndarray | None, gene_of_token: np.ndarray
    ) -> dict[str, Tensor]:
        """Further buffers of a baseline, from the effects, the features of the tokens and the genes they name (or -1)."""
        return {}

    # ------------------------------------------------------------------ buffers

    def fill(
        self, table: EffectTable, token_features: np.ndarray | None, gene_of_token: np.ndarray
    ) -> dict[str, tuple]:
        """Take over the effects; returns the shapes, with which an empty module can be made ready for loading."""
        device = self.device
        buffers = to_buffers(table)
        self._set(buffers, device)
        extra = {name: torch.as_tensor(value) for name, value in self.fit(table, token_features, gene_of_token).items()}
        self._set(extra, device)
        return {name: (tuple(value.shape), str(value.dtype)) for name, value in {**buffers, **extra}.items()}

    def _set(self, buffers: dict[str, Tensor], device: torch.device) -> None:
        for name, value in buffers.items():
            self.register_buffer(name, value.to(device))
        self._arrays = None

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Make room for the saved buffers, whose shapes only the saved model knows."""
        # the data at hand may be a query, or none: what the model was trained on decides
        self.scale = model.scale_
        shapes = model.buffer_shapes_
        empty = {
            name: torch.zeros(shape, dtype=getattr(torch, kind.split(".")[1])) for name, (shape, kind) in shapes.items()
        }
        self._set(empty, self.device)

    def array(self, name: str) -> np.ndarray:
        """A buffer as a float64 or int64 array, copied from the device once."""
        return self._cache()[name]

    def _cache(self) -> dict[str, Any]:
        if self._arrays is None:
            arrays: dict[str, Any] = {}
            for name, value in self.named_buffers():
                if name not in ("effect", "perturbed_variance", "control_variance", "control_mean"):
                    array = value.detach().cpu().numpy()
                    arrays[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
            indptr = arrays["condition_indptr"]
            n_conditions = len(indptr) - 1
            width = int(arrays["condition_tokens"].max()) + 1
            arrays["conditions"] = csr_matrix(
                (arrays["condition_dosage"], arrays["condition_tokens"], indptr), shape=(n_conditions, width)
            )
            arrays["spread"] = {}
            self._arrays = arrays
        return self._arrays

    def _n_conditions(self) -> int:
        return len(self.array("condition_indptr")) - 1

    def load_state_dict(self, *args, **kwargs):
        """Load, and forget what was computed from the buffers before."""
        self._arrays = None
        return super().load_state_dict(*args, **kwargs)

    # ------------------------------------------------------------------ effects

    def _rows_of(self, stratum: int) -> csr_matrix:
        """(n_rows, n_conditions) the rows that stand for each condition in a stratum: its own, else the mean of the others."""
        spread = self._cache()["spread"]
        if stratum not in spread:
            condition, row_stratum = self.array("row_condition"), self.array("row_stratum")
            n_conditions, n_rows = self._n_conditions(), len(condition)
            here = row_stratum == stratum
            has_own = np.bincount(condition[here], minlength=n_conditions) > 0
            used = here | ~has_own[condition]
            share = 1.0 / np.bincount(condition[used], minlength=n_conditions)[condition[used]]
            spread[stratum] = csr_matrix((share, (np.flatnonzero(used), condition[used])), shape=(n_rows, n_conditions))
        return spread[stratum]

    def effect_of(self, targets: list[Target], strata: np.ndarray, seed: int | None = None) -> Tensor:
        """(n, n_genes) effect of each target in a stratum, or a draw from its sampling distribution.

        Parameters
        ----------
        targets
            What is asked for; a target without tokens is control and has no effect.
        strata
            (n,) row of the controls of each.
        seed
            Seed of the draw: targets with the same weights get the same error, whatever batch they are in.
        """
        effect = torch.zeros((len(targets), self.effect.shape[1]), device=self.device)
        for i, (target, stratum) in enumerate(zip(targets, strata, strict=True)):
            if not len(target.index):
                continue
            found = self.weights(target)
            effect[i] = self._weigh(found.direct, int(stratum), seed, 0)
            if found.projected is not None and found.projected.any():
                effect[i] += self._project(self._weigh(found.projected, int(stratum), seed, 1))
        return effect

    def _project(self, effect: Tensor) -> Tensor:
        return effect

    def _weigh(self, weights: np.ndarray, stratum: int, seed: int | None, part: int) -> Tensor:
        rows = self._rows_of(stratum) @ weights
        used = np.flatnonzero(rows)
        at = torch.from_numpy(used).to(self.device)
        w = torch.from_numpy(rows[used].astype(np.float32)).to(self.device)
        effect = w @ self.effect[at]
        if seed is None:
            return effect
        # the controls of a stratum are shared by all its effects
        of_control = np.bincount(self.array("row_stratum")[used], rows[used], minlength=len(self.control_variance))
        c = torch.from_numpy(of_control.astype(np.float32)).to(self.device)
        variance = w.square() @ self.perturbed_variance[at] + c.square() @ self.control_variance
        rng = np.random.default_rng([seed, part, stratum, zlib.crc32(rows.astype(np.float32).tobytes())])
        noise = torch.from_numpy(rng.standard_normal(effect.shape[0], dtype=np.float32)).to(self.device)
        return effect + variance.sqrt() * noise

    # ------------------------------------------------------------------ counterfactual

    def strata_of(self, tensors: dict[str, Tensor]) -> np.ndarray:
        """(n_cells,) row of the controls that stand for the stratum of each cell; the last for one never trained on."""
        n_cells = len(tensors[REGISTRY_KEYS.X_KEY])
        code = np.zeros(n_cells, dtype=np.int64)
        if REGISTRY_KEYS.CAT_COVS_KEY in tensors:
            table = tensors[REGISTRY_KEYS.CAT_COVS_KEY].long().cpu().numpy()
            for column, n in zip(*self._columns, strict=True):
                code = code * n + table[:, column]
        strata = self.array("strata")
        place = np.minimum(np.searchsorted(strata, code), len(strata) - 1)
        return np.where(strata[place] == code, place, len(strata))

    def expression(self, tensors: dict[str, Tensor]) -> Tensor:
        """(n_cells, n_genes) expression of the cells on the scale of the module."""
        x = tensors[REGISTRY_KEYS.X_KEY]
        if self.scale == "continuous":
            return x
        if REGISTRY_KEYS.SIZE_FACTOR_KEY in tensors:
            library = tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY].reshape(-1, 1)
        else:
            library = x.sum(1, keepdim=True).clamp_min(1e-12)
        return torch.log1p(x * (NORMALIZED_TOTAL / library))

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
        """Shift control cells by the effect of their target. See :meth:`CausalModule.counterfactual`.

        There is nothing latent; ``sample_parameters`` draws the effects from their sampling distribution, one draw for all
        cells of a target.
        """
        x = self.expression(tensors)
        strata = self.strata_of(tensors)
        doses = dosage.cpu().numpy()
        key = np.column_stack([doses, strata])
        _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
        inputs = {name: value.cpu().numpy() for name, value in token_inputs.items()}
        targets = [_target(doses[i], inputs) for i in first]
        seed = None
        if sample_parameters:
            seed = 0 if generator is None else generator.initial_seed()
        effect = self.effect_of(targets, strata[first], seed)[torch.from_numpy(inverse.reshape(-1)).to(self.device)]
        if self.scale == "continuous":
            return CounterfactualOutput(x + effect)
        control = self.control_mean[torch.from_numpy(strata).to(self.device)]
        share = (1 + effect / torch.where(control > 0, control, torch.ones_like(control))).clamp_min(0.0)
        return CounterfactualOutput(torch.where(effect >= 0, x + effect, x * share))

    # ------------------------------------------------------------------ what scvi-tools asks of a module

    def _get_inference_input(self, tensors, **kwargs):
        raise NotImplementedError(_NO_STEPS)

    def _get_generative_input(self, tensors, inference_outputs, **kwargs):
        raise NotImplementedError(_NO_STEPS)

    def inference(self, *args, **kwargs):
        """Not there: a baseline is fitted in closed form."""
        raise NotImplementedError(_NO_STEPS)

    def generative(self, *args, **kwargs):
        """Not there: a baseline is fitted in closed form."""
        raise NotImplementedError(_NO_STEPS)

    def loss(self, *args, **kwargs):
        """Not there: a baseline is fitted in closed form."""
        raise NotImplementedError(_NO_STEPS)

    def sample(self, *args, **kwargs):
        """Not there: use ``predict_counterfactual(..., sample=True)``."""
        raise NotImplementedError(_NO_STEPS)


_NO_STEPS = "A baseline is fitted in closed form and has no inference, generative or loss step."


def _stratum_columns(n_categories: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Columns of the covariate tensor that tell strata apart, and their numbers of categories, as get_strata counts."""
    used = [(i, n) for i, n in enumerate(n_categories) if n > 1]
    return [i for i, _ in used], [n for _, n in used]


def _target(dosage: np.ndarray, inputs: dict[str, np.ndarray]) -> Target:
    used = np.flatnonzero(dosage)
    others = {name: value[used] for name, value in inputs.items() if name != "index"}
    return Target(inputs["index"][used], dosage[used].astype(np.float64), others)
