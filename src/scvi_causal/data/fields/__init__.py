"""Fields that tell scvi-tools where perturbations, the prior GRN and the features of tokens are in an AnnData."""

from __future__ import annotations

from ._features_field import FeaturesField
from ._grn_field import GRNField, check_genes
from ._perturbation_field import PerturbationField

__all__ = ["FeaturesField", "GRNField", "PerturbationField", "check_genes"]
