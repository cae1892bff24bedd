"""SCCVAE: a linear causal model inside a variational autoencoder."""

from scvi_causal.model.sccvae._model import SCCVAE
from scvi_causal.model.sccvae._module import SCCVAEModule
from scvi_causal.model.sccvae._published import PublishedSCCVAEModule

__all__ = ["SCCVAE", "PublishedSCCVAEModule", "SCCVAEModule"]
