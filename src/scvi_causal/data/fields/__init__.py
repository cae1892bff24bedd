"""Fields that tell scvi-tools where perturbations, the prior GRN and the features of tokens are in an AnnData."""

from __future__ import annotations

import rich.pretty  # noqa: F401  scvi-tools prints registries with it and leaves the import to others

from ._features_field import FeaturesField
from ._grn_field import GRNField, check_genes
from ._perturbation_field import PerturbationField

__all__ = ["FeaturesField", "GRNField", "PerturbationField", "check_genes"]
