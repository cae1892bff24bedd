"""Strength of a perturbation: learned, simulated, and, loudly labelled, calibrated on observed cells."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_causal.data import canonical_labels, parse_label
from scvi_causal.data._messages import listed, plural
from scvi_causal.model.base._group_moments import group_moments, iterate_expression
from scvi_causal.model.base._request import check_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

logger = logging.getLogger(__name__)

_PUBLISHED_GRID = np.arange(-10, 31) / 10


def _check_strengths(strengths: Sequence[float]) -> np.ndarray:
    """Distinct strengths as numbers; raises ``ValueError`` for what is none."""
    found = pd.to_numeric(pd.Series(list(strengths), dtype=object), errors="coerce").to_numpy(dtype=float)
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"strengths has to be a list of finite numbers, got {list(strengths)!r}.")
    return pd.unique(found)


class StrengthMixin:
    """``get_strengths``, ``simulate_penetrance`` and ``calibrate_strength``.

    A shift is the strength c times its direction. The recommended preset keeps the size in the direction, so that 1 is what was
    learned; ``preset="paper"`` learns c for each token.
    """

    _override: float | None = None
    calibrated_tokens_: np.ndarray = np.array([], dtype=str)
    calibrated_strengths_: np.ndarray = np.array([], dtype=float)
    unseen_strength_: float = 1.0

    def _strength_of(self, tokens: Sequence[str]) -> np.ndarray:
        """(n_tokens,) float32 strength with which each token acts."""
        learned = self.module.strength.detach().cpu().numpy()
        seen, calibrated = set(self.seen_tokens_.tolist()), self._calibrated()
        found = [
            self._override
            if self._override is not None
            else calibrated.get(
                token, learned[self._vocabulary.index(token)] if token in seen else self.unseen_strength_
            )
            for token in tokens
        ]
        return np.asarray(found, dtype=np.float32).reshape(len(tokens))

    def _calibrated(self) -> dict[str, float]:
        return dict(zip(self.calibrated_tokens_.tolist(), self.calibrated_strengths_.tolist(), strict=True))

    def _set_unseen_strength(self) -> None:
        """An unseen token gets the median of what was learned: nothing about its own cells is known."""
        index = [self._vocabulary.index(token) for token in self.seen_tokens_]
        self.unseen_strength_ = float(np.median(self.module.strength.detach().cpu().numpy()[index]))

    def _provenance_extras(self, tokens: Sequence[str]) -> dict[str, Any]:
        calibrated = [token for token in tokens if token in self._calibrated()]
        return {"strength_calibrated_on_observed_cells": np.asarray(calibrated, dtype=str)} if calibrated else {}

    def _check_own_cells(self, adata: AnnData, rows: np.ndarray, token: str) -> None:
        """Raise ``ValueError`` unless all cells carry the token and nothing else."""
        labels, _ = self._own_conditions(adata, rows)
        names = canonical_labels(labels, self._vocabulary.separator, self._vocabulary.control_categories)
        others = pd.unique(names[names != token])
        if len(others):
            raise ValueError(
                f"{int((names != token).sum())} of the {len(rows)} cells are labelled {listed(others)}, not {token!r}: the strength "
                "of a perturbation is calibrated on cells that received it."
            )

    @contextmanager
    def _with_strength(self, strength: float) -> Iterator[None]:
        self._override = float(strength)
        try:
            yield
        finally:
            self._override = None

    def get_strengths(self, perturbations: Sequence[str] | None = None) -> pd.DataFrame:
        """Strength with which each token acts.

        Parameters
        ----------
        perturbations
            Tokens; by default those of the training cells and those that were calibrated.

        Returns
        -------
        DataFrame, one row per token: ``strength``, ``seen``, ``calibrated`` (see :meth:`calibrate_strength`).

        Examples
        --------
        >>> import scvi_causal
        >>> adata = scvi_causal.data.simulate_screen(
        ...     n_genes=20, n_cells_per_perturbation=20, n_control=60, seed=0
        ... ).adata
        >>> scvi_causal.SCCVAE.setup_anndata(adata)
        >>> model = scvi_causal.SCCVAE(adata)
        >>> model.train(max_epochs=1, progress_bar_refresh_rate=0)
        >>> model.get_strengths()["strength"].unique().tolist()
        [1.0]
        """
        self._check_if_trained(warn=False, message="Train the SCCVAE first: model.train().")
        known = [*self.seen_tokens_, *(t for t in self.calibrated_tokens_ if t not in set(self.seen_tokens_.tolist()))]
        tokens = list(known if perturbations is None else perturbations)
        table = pd.DataFrame(
            {"strength": self._strength_of(tokens)}, index=pd.Index(tokens, name="token", dtype=object)
        )
        table["seen"] = np.isin(np.asarray(tokens, dtype=str), self.seen_tokens_)
        table["calibrated"] = [token in self._calibrated() for token in tokens]
        return table

    def simulate_penetrance(
        self,
        perturbation: str,
        strengths: Sequence[float] = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
        *,
        indices: Sequence[int] | None = None,
        max_cells: int = 200,
        output: str = "log1p",
        sample: bool = False,
        seed: int | None = 0,
    ) -> AnnData:
        """Predict the same cells under a perturbation of varied strength: 0 is control, below 0 the opposite direction.

        Parameters
        ----------
        perturbation
            Label of a target.
        strengths
            Strengths of its tokens.
        indices
            Source cells; by default training controls, at most ``max_cells``.
        max_cells
            See ``indices``.
        output, sample, seed
            As in :meth:`predict_counterfactual`. All strengths share their random numbers.

        Returns
        -------
        AnnData of cells x strengths, strength by strength, with ``obs["strength"]``.

        Examples
        --------
        >>> import scvi_causal
        >>> adata = scvi_causal.data.simulate_screen(
        ...     n_genes=20, n_cells_per_perturbation=20, n_control=60, seed=0
        ... ).adata
        >>> scvi_causal.SCCVAE.setup_anndata(adata)
        >>> model = scvi_causal.SCCVAE(adata)
        >>> model.train(max_epochs=1, progress_bar_refresh_rate=0)
        >>> curve = model.simulate_penetrance(model.seen_tokens_[0], [0, 1, 2], max_cells=10)
        >>> curve.obs["strength"].value_counts().tolist()
        [10, 10, 10]
        """
        import anndata

        parts = []
        for strength in _check_strengths(strengths):
            with self._with_strength(strength):
                part = self.predict_counterfactual(
                    [perturbation], indices=indices, output=output, sample=sample, seed=seed
                )
            part = part[:max_cells].copy() if indices is None else part
            part.obs["strength"] = float(strength)
            part.obs_names = [f"{name}|{strength:g}" for name in part.obs_names]
            parts.append(part)
        return anndata.concat(parts, merge="same", uns_merge="first")

    def calibrate_strength(
        self,
        perturbation: str,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        strengths: Sequence[float] | None = None,
        seed: int | None = 0,
    ) -> pd.DataFrame:
        """Fit the strength of one token to observed cells, and use it from then on.

        **This looks at cells of the perturbation itself.** A prediction made with it is no longer one of an unseen
        perturbation, and must not be scored on these cells; its provenance names the token. The paper calls this step
        shift selection and takes the test cells for it; use cells that you set aside, a pilot experiment for instance.

        Parameters
        ----------
        perturbation
            A single token.
        adata
            Data with the cells to calibrate on.
        indices
            Rows of these cells. Required, so that it is you who says which cells may be looked at.
        strengths
            Grid of strengths; by default the published one, -1 to 3 in steps of 0.1.
        seed
            Of the source cells, the same for all strengths.

        Returns
        -------
        DataFrame ``strength``, ``mse`` (between the means of log1p expression), ``chosen``.

        Raises
        ------
        ValueError
            If ``indices`` is missing, the label is a combination, or the cells carry another label.
        """
        tokens = parse_label(perturbation, self._vocabulary.separator, self._vocabulary.control_categories)
        if len(tokens) != 1:
            raise ValueError(f"calibrate_strength takes one token, and {perturbation!r} has {len(tokens)}.")
        if indices is None:
            raise ValueError(
                "calibrate_strength needs indices: the rows of the cells that may be looked at. Cells that are used here can "
                "no longer be used to judge the prediction."
            )
        adata = self._check_query(adata)
        rows = check_rows(indices, adata.n_obs)
        self._check_own_cells(adata, rows, tokens[0])
        strengths = _check_strengths(_PUBLISHED_GRID if strengths is None else strengths)
        scale = "log1p" if self._log_normalize else "continuous"
        manager = self.get_anndata_manager(adata, required=True)
        observed = group_moments(
            iterate_expression(manager, rows, scale), np.zeros(len(rows), dtype=np.int64), 1, adata.n_vars
        ).mean[0]
        output = "log1p" if self._log_normalize else "normalized"
        errors = []
        for strength in strengths:
            with self._with_strength(strength):
                predicted = self.predict_counterfactual([perturbation], output=output, sample=True, seed=seed)
            errors.append(float(((np.asarray(predicted.X).mean(0) - observed) ** 2).mean()))
        table = pd.DataFrame({"strength": np.asarray(strengths, dtype=float), "mse": errors})
        table["chosen"] = table["mse"].to_numpy() == table["mse"].min()
        best = float(table["strength"][table["mse"].idxmin()])
        if len(table) > 1 and best in (table["strength"].min(), table["strength"].max()):
            logger.warning(
                "The best strength of %r, %.3g, is at the end of the grid: widen `strengths`.", tokens[0], best
            )
        known = {**self._calibrated(), tokens[0]: best}
        self.calibrated_tokens_ = np.asarray(list(known), dtype=str)
        self.calibrated_strengths_ = np.asarray(list(known.values()), dtype=float)
        logger.warning(
            "The strength of %r is now %.3g, calibrated on %s: predictions of it have seen these cells.",
            tokens[0],
            best,
            plural(len(rows), "cell"),
        )
        return table
