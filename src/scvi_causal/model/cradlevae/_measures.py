"""What artifacts do to expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from scvi_causal._constants import CAUSAL_KEYS, NORMALIZED_TOTAL
from scvi_causal._docs import docs
from scvi_causal.data import canonical_labels
from scvi_causal.model.base._request import resolve_seed
from scvi_causal.model.samsvae._measures import expected_expression
from scvi_causal.model.samsvae._options import check_choice

if TYPE_CHECKING:
    from collections.abc import Sequence


class ArtifactMeasuresMixin:
    """``get_artifact_effects``."""

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
        self._refuse_unpredictable(np.asarray(given, dtype=object), None)
        labels = canonical_labels(given, self._vocabulary.separator, self._vocabulary.control_categories)
        module = self.module.eval()
        codes = [code for code in range(1, module.n_kinds + 1) if float(module.cells_per_quality[code])]
        if not codes:
            raise ValueError("No training cell failed: there is no artifact.")
        dosage = torch.from_numpy(np.asarray(self._vocabulary.encode(labels).todense())).float().to(module.device)
        devices = [module.device] if module.device.type == "cuda" else []
        rows = []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(resolve_seed(seed))
            z, covariates = self._basal_states(n_samples, basal)
            drawn = module.draw_all(len(z))
            library = torch.full((len(z), 1), NORMALIZED_TOTAL, device=z.device)
            for row in dosage:
                remainder = module.remainder_of(row[None])
                means = []
                for code in [0, *codes]:
                    quality = {CAUSAL_KEYS.QUALITY: torch.full((len(z), 1), code, device=z.device)}
                    condition = module.condition_from(row.expand(len(z), -1), drawn, quality)
                    mean = module.decode(z, condition, covariates, library, remainder)
                    means.append(expected_expression(mean, module.dispersion, transform))
                rows += [mean - means[0] for mean in means[1:]]
        names = [self._quality_classes[code] for code in codes]
        index = pd.Index(names, name="quality")
        if perturbations is not None:
            index = pd.MultiIndex.from_product([labels, names], names=["perturbation", "quality"])
        return pd.DataFrame(torch.stack(rows).cpu().numpy(), index=index, columns=self._var_names())
