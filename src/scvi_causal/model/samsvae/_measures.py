"""What is read from a trained SAMS-VAE beside predictions: masks, average treatment effects, a bound on the likelihood."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS, NORMALIZED_TOTAL
from scvi_causal._docs import docs
from scvi_causal.data import canonical_labels
from scvi_causal.model.base._request import check_rows, resolve_seed
from scvi_causal.model.base._seeded import seeded
from scvi_causal.model.base._sources import SourceReader, control_pool
from scvi_causal.model.base._walk import step_size
from scvi_causal.model.samsvae._options import check_choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor

_NODES = torch.linspace(math.log(1e-10), math.log(40.0), 96, dtype=torch.float64)
_CHUNK = 2**22  # expected counts at once


def expected_log1p(mean: Tensor, inverse_dispersion: Tensor) -> Tensor:
    r"""Expectation of log(1 + x) for negative binomial counts, by quadrature.

    With the generating function :math:`G(w) = (1 + \mu(1 - w)/\theta)^{-\theta}`,

    .. math::
        E \ln(1 + x) = \int_0^\infty \frac{e^{-s}}{s} \left(1 - G(e^{-s})\right) ds

    by the trapezoidal rule in :math:`\ln s`, where it converges exponentially.

    Parameters
    ----------
    mean
        (..., genes)
    inverse_dispersion
        (genes,)

    Returns
    -------
    (..., genes), off by less than 1e-5 for means up to 10,000.
    """
    nodes = _NODES.to(mean.device).exp().to(mean)
    width = float(_NODES[1] - _NODES[0])
    total = torch.zeros_like(mean)
    for s in nodes:
        gone = torch.expm1(-inverse_dispersion * torch.log1p(mean * (-torch.expm1(-s)) / inverse_dispersion))
        total -= torch.exp(-s) * gone
    return total * width


class MeasuresMixin:
    """Masks, average treatment effects and the importance-weighted bound."""

    @torch.inference_mode()
    def get_perturbation_masks(self, tokens: Sequence[str] | None = None) -> pd.DataFrame:
        """Probability that each token acts on each latent dimension.

        Parameters
        ----------
        tokens
            Tokens of the training cells; all of them by default.

        Returns
        -------
        DataFrame (tokens x latent dimensions). Latent dimensions have no order; those on which no token acts belong to the cell.

        Raises
        ------
        ValueError
            For a token that was not in the training cells.
        NotImplementedError
            If the model has no masks.
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        mechanisms = self.module.mechanisms
        if mechanisms is None or not mechanisms.masked:
            raise NotImplementedError(f"This {type(self).__name__} has no masks: they come with mechanism='sparse'.")
        seen = self.seen_tokens_.tolist()
        tokens = seen if tokens is None else [str(token) for token in tokens]
        if unseen := [token for token in tokens if token not in seen]:
            raise ValueError(f"{unseen} were not in the training cells, and so have no masks. Seen were {seen[:20]}.")
        index = torch.tensor([self._vocabulary.index(token) for token in tokens], device=self.module.device)
        names = [f"latent_{i}" for i in range(mechanisms.n_latent)]
        return pd.DataFrame(mechanisms.probability(index).cpu().numpy(), index=tokens, columns=names)

    @docs.dedent
    @torch.inference_mode()
    def get_average_treatment_effects(
        self,
        perturbations: str | Sequence[str] | None = None,
        *,
        transform: Literal["log2", "mean"] = "log2",
        basal: Literal["controls", "prior"] = "controls",
        analytic: bool = True,
        n_samples: int = 250,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Difference between the expected expression under each perturbation and under control.

        Parameters
        ----------
        perturbations
            Labels; by default all conditions of the training cells but control.
        transform
            ``"log2"``: of log2(1 + counts per 10,000) of cells; ``"mean"``: of counts per 10,000.
        basal
            Whether basal states are those of training controls or of the prior.
        analytic
            Expectations over counts in closed form, and the same basal states under every perturbation and control. ``False``
            draws both anew each time, as published; far more samples are needed then.
        n_samples
            Number of draws of basal state, masks and embeddings.
        %(param_seed)s

        Returns
        -------
        DataFrame (perturbations x genes).

        Raises
        ------
        ValueError
            If a perturbation cannot be predicted.
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        check_choice("transform", transform, ("log2", "mean"))
        check_choice("basal", basal, ("controls", "prior"))
        labels = self._effect_labels(perturbations)
        labels, dosage = self._label_dosages(labels)
        self.module.eval()
        with seeded(resolve_seed(seed), self.module.device):
            basal_states = self._basal_states(n_samples, basal)
            effects = _average_effects(self.module, dosage, *basal_states, transform, analytic)
        return pd.DataFrame(
            effects.cpu().numpy(), index=pd.Index(labels, name="perturbation"), columns=self._var_names()
        )

    def _label_dosages(self, labels: Sequence[str]) -> tuple[np.ndarray, Tensor]:
        """Canonical labels, and their dosages (n_labels, n_tokens); raises ``ValueError`` for what cannot be predicted."""
        self._refuse_unpredictable(np.asarray(labels, dtype=object), None)
        labels = canonical_labels(labels, self._vocabulary.separator, self._vocabulary.control_categories)
        dosage = torch.from_numpy(self._vocabulary.encode(labels).toarray())
        return labels, dosage.float().to(self.module.device)

    def _average_at(self) -> dict[str, str]:
        """Covariates at which average effects are taken; the others are those of the cells."""
        return {}

    def _basal_states(self, n: int, basal: str) -> tuple[Tensor, Tensor]:
        """(n, n_latent) basal states, and the covariates (n, n_covariates) of the training controls that they come with."""
        module = self.module
        if basal == "prior" and not module.n_covariates:
            return torch.randn(n, module.n_latent, device=module.device), torch.zeros(n, 0, device=module.device)
        adata, pool = control_pool(self, self._attached_data())
        rows = pool[torch.randint(len(pool), (n,)).numpy()]
        tensors = SourceReader(self, adata, self._average_at()).read(rows)
        covariates = module.covariates(tensors)
        if basal == "prior":
            return torch.randn(n, module.n_latent, device=module.device), covariates
        mean, variance = module.abduct(tensors, module.own_condition(tensors))
        return mean + variance.sqrt() * torch.randn_like(mean), covariates

    @docs.dedent
    @torch.inference_mode()
    def get_iwelbo(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_particles: int = 100,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        r"""Importance-weighted lower bound of the log likelihood of cells given what was learned about perturbations.

        .. math::
            \ln \frac{1}{K} \sum_k \frac{p(x \mid z_k, E_k, M_k)\, p(z_k)}{q(z_k \mid x, E_k, M_k)}

        Masks and embeddings are drawn once for all cells, and are not held against their priors.

        Parameters
        ----------
        %(param_query_adata)s
        indices
            Cells; all by default. Compare models on cells that neither was trained on.
        n_particles
            K. The bound rises with it, in expectation.
        %(param_batch_size)s
        %(param_seed)s

        Returns
        -------
        (n_cells,) nats.

        Raises
        ------
        ValueError
            If a cell carries a perturbation that cannot be predicted.
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        if n_particles < 1:
            raise ValueError(f"n_particles={n_particles}: pass at least 1.")
        adata = self._check_query(adata)
        rows = np.arange(adata.n_obs) if indices is None else check_rows(indices, adata.n_obs)
        self._refuse_unpredictable(self._own_conditions(adata, rows)[0], None)
        module, reader = self.module.eval(), SourceReader(self, adata)
        step = batch_size or step_size(n_particles, len(self._var_names()))
        with seeded(resolve_seed(seed), module.device):
            parts, drawn = [], module.draw_all(n_particles)
            for start in range(0, len(rows), step):
                parts.append(_bound(module, reader.read(rows[start : start + step]), drawn, n_particles).cpu().numpy())
        return np.concatenate(parts)


def expected_expression(mean: Tensor, inverse_dispersion: Tensor, transform: str) -> Tensor:
    """(genes,) mean over cells of log2(1 + counts), in expectation, or of counts, given expected counts (cells, genes)."""
    if transform == "mean":
        return mean.mean(0)
    step = max(1, _CHUNK // mean.shape[1])
    total = sum(expected_log1p(part, inverse_dispersion).sum(0) for part in mean.split(step))
    return total / (len(mean) * math.log(2))


def _average_effects(module, dosage, z, covariates, transform: str, analytic: bool) -> Tensor:
    """(n_labels, genes) differences from control."""
    library = torch.full((len(z), 1), NORMALIZED_TOTAL, device=z.device)
    drawn = module.draw_all(len(z))

    def average(row: Tensor) -> Tensor:
        condition = module.condition_from(row.expand(len(z), -1), drawn)
        basal = z if analytic else z[torch.randperm(len(z), device=z.device)]
        mean = module.decode(basal, condition, covariates, library, module.remainder_of(row[None]))
        if not analytic:
            counts = torch.poisson(torch._standard_gamma(module.dispersion.expand_as(mean)) * mean / module.dispersion)
            return (torch.log2(1 + counts) if transform == "log2" else counts).mean(0)
        return expected_expression(mean, module.dispersion, transform)

    control = average(torch.zeros_like(dosage[0]))
    return torch.stack([average(row) - control for row in dosage])


def _bound(module, tensors, drawn, n_particles: int) -> Tensor:
    """(cells,) importance-weighted bounds; conditions (particles, cells, n) use the globals that were drawn."""
    x = tensors[REGISTRY_KEYS.X_KEY]
    dosage = tensors[CAUSAL_KEYS.PERTURBATION]
    condition = module.condition_from(dosage.expand(n_particles, *dosage.shape), drawn, tensors)
    mean, variance = module.abduct(tensors, condition)
    mean, variance = mean.expand(n_particles, -1, -1), variance.expand(n_particles, -1, -1)
    z = mean + variance.sqrt() * torch.randn_like(mean)
    remainder = module.remainder_of(dosage)
    expected = module.decode(z, condition, module.covariates(tensors), module.library(tensors), remainder)
    ratio = 0.5 * ((z - mean).square() / variance + variance.log() - z.square()).sum(-1)
    return torch.logsumexp(module.log_likelihood(x, expected) + ratio, 0) - math.log(n_particles)
