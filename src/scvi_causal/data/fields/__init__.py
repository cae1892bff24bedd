"""Fields that tell scvi-tools where perturbations, the prior GRN, the features of tokens and the quality of cells are in an AnnData."""

from __future__ import annotations

import rich.pretty  # noqa: F401  scvi-tools prints registries with it and leaves the import to others

from ._features_field import FeaturesField
from ._grn_field import GRNField, check_genes
from ._perturbation_field import PerturbationField
from ._quality_field import QualityField

__all__ = ["FeaturesField", "GRNField", "PerturbationField", "QualityField", "check_genes"]
