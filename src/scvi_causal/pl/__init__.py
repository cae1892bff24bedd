"""Pictures: thin over scanpy and matplotlib, with colours that the colour-blind can tell apart. All return Axes."""

from ._effects import effects
from ._genes import genes
from ._latent import latent
from ._populations import populations
from ._scores import scores
from ._skill import skill

__all__ = ["effects", "genes", "latent", "populations", "scores", "skill"]
