"""What artifacts do to expression, and cells that are generated with or without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from scvi_causal._constants import CAUSAL_KEYS, NORMALIZED_TOTAL
from scvi_causal._docs import docs
from scvi_causal.model.base._request import resolve_seed
from scvi_causal.model.base._seeded import seeded
from scvi_causal.model.samsvae._generation import generate
from scvi_causal.model.samsvae._measures import expected_expression
from scvi_causal.model.samsvae._options import check_choice

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from anndata import AnnData


class ArtifactMeasuresMixin:
    """``get_artifact_effects`` and ``sample_cells``."""

    @docs.dedent
    def sample_cells(
        self,
        perturbations: str | Sequence[str] | None = None,
        n_cells: int = 100,
        *,
        quality: str | None = None,
        library: float | None = None,
        covariates: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Generate cells of a quality, by default cells that pass.

        Parameters
        ----------
        perturbations
            Labels; by default all conditions of the training cells.
        n_cells
            Number of cells of each.
        quality
            Quality class; ``None`` is that of cells that pass. Libraries and covariates come from training cells of this class.
        library
            Library of every cell, instead of those of training cells: its counts, or the size factor where one is registered.
        %(param_covariates)s
        %(param_seed)s

        Returns
        -------
        As of :meth:`SAMSVAE.sample_cells`, with the quality in ``obs``.

        Raises
        ------
        ValueError
            If a perturbation or a quality cannot be predicted, or the model was loaded without its training data.
        """
        adata = self._generation_data()
        quality = self._quality_classes[0] if quality is None else str(quality)
        code = self._quality_code(quality)
        rows = self._generation_rows(adata)
        of_cells = np.asarray(self.get_from_registry(adata, CAUSAL_KEYS.QUALITY)).ravel()[rows]
        rows = rows[of_cells == code] if (of_cells == code).any() else rows
        covariates = {**(covariates or {}), self._quality_key: quality}
        return generate(self, adata, rows, perturbations, n_cells, library, covariates, seed)

    @docs.dedent
    @torch.inference_mode()
    def get_artifact_effects(
        self,
        perturbations: str | Sequence[str] | None = None,
        *,
        transform: Literal["log2", "mean"] = "log2",
        basal: Literal["controls", "prior"] = "controls",
        n_samples: int = 250,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Difference between the expected expression with each kind of artifact and without, of the same cells.

        Parameters
        ----------
        perturbations
            Conditions under which the difference is taken; by default control.
        transform, basal, n_samples
            As for :meth:`get_average_treatment_effects`.
        %(param_seed)s

        Returns
        -------
        DataFrame (kinds of failure x genes); with ``perturbations`` the index is (perturbation, kind).

        Raises
        ------
        ValueError
            If a perturbation cannot be predicted, or no training cell failed.
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        check_choice("transform", transform, ("log2", "mean"))
        check_choice("basal", basal, ("controls", "prior"))
        given = (
            [self._vocabulary.control_categories[0]] if perturbations is None else self._effect_labels(perturbations)
        )
        labels, dosage = self._label_dosages(given)
        module = self.module.eval()
        codes = [code for code in range(1, module.n_kinds + 1) if float(module.cells_per_quality[code])]
        if not codes:
            raise ValueError("No training cell failed: there is no artifact.")
        rows = []
        with seeded(resolve_seed(seed), module.device):
            z, covariates = self._basal_states(n_samples, basal)
            drawn = module.draw_all(len(z))
            library = torch.full((len(z), 1), NORMALIZED_TOTAL, device=z.device)
            for row in dosage:
                remainder = module.remainder_of(row[None])
                means = []
                for code in [0, *codes]:
                    quality = {CAUSAL_KEYS.QUALITY: torch.full((len(z), 1), code, device=z.device)}
                    condition = module.condition_from(row.expand(len(z), -1), drawn, quality)
                    at = module.at_quality(covariates, quality[CAUSAL_KEYS.QUALITY].squeeze(1))
                    mean = module.decode(z, condition, at, library, remainder)
                    means.append(expected_expression(mean, module.dispersion, transform))
                rows += [mean - means[0] for mean in means[1:]]
        names = [self._quality_classes[code] for code in codes]
        index = pd.Index(names, name="quality")
        if perturbations is not None:
            index = pd.MultiIndex.from_product([labels, names], names=["perturbation", "quality"])
        return pd.DataFrame(torch.stack(rows).cpu().numpy(), index=index, columns=self._var_names())
