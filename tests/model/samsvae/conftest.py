"""The fixture of the family: four cells, three genes, two tokens, and a module whose parameters are all zero."""

from __future__ import annotations

import pytest
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.model.samsvae._module import SAMSVAEModule
from scvi_causal.model.samsvae._options import module_options

COUNTS = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0], [0.0, 5.0, 1.0], [4.0, 1.0, 1.0]])
DOSAGE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {
        REGISTRY_KEYS.X_KEY: COUNTS.clone(),
        CAUSAL_KEYS.PERTURBATION: DOSAGE.clone(),
        REGISTRY_KEYS.BATCH_KEY: torch.zeros(4, 1, dtype=torch.int64),
    }


def make_module(preset="paper", n_genes=3, n_tokens=2, n_latent=2, n_hidden=4, n_layers=1, **options) -> SAMSVAEModule:
    options = module_options(preset, **{"n_guide_hidden": 4, "n_guide_layers": 2, **options})
    module = SAMSVAEModule(n_genes, n_tokens, n_latent, n_hidden, n_layers, options=options)
    module.cells_per_token.fill_(2.0)
    return module


@pytest.fixture
def zero_module() -> SAMSVAEModule:
    """The published model with every parameter 0 but the log odds of the masks, which are 20."""
    module = make_module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.mechanisms.mask_logits.fill_(20.0)
    return module
