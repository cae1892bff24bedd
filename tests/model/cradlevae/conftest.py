"""The fixture of the family with quality labels: the second of four cells failed."""

from __future__ import annotations

import pytest
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.model.cradlevae._module import CRADLEVAEModule
from scvi_causal.model.cradlevae._options import artifact_options

COUNTS = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0], [0.0, 5.0, 1.0], [4.0, 1.0, 1.0]])
DOSAGE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
QUALITY = torch.tensor([0, 1, 0, 0])


def make_batch(copies: int = 1) -> dict[str, torch.Tensor]:
    return {
        REGISTRY_KEYS.X_KEY: COUNTS.repeat(copies, 1),
        CAUSAL_KEYS.PERTURBATION: DOSAGE.repeat(copies, 1),
        CAUSAL_KEYS.QUALITY: QUALITY[:, None].repeat(copies, 1),
        CAUSAL_KEYS.INDICES: torch.arange(4)[:, None].repeat(copies, 1),
        REGISTRY_KEYS.BATCH_KEY: torch.zeros(4 * copies, 1, dtype=torch.int64),
    }


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return make_batch()


def make_module(preset="paper", n_genes=3, n_tokens=2, n_latent=2, n_hidden=4, n_layers=1, n_kinds=1, **options):
    options = artifact_options(preset, **{"n_guide_hidden": 4, "n_guide_layers": 2, **options})
    module = CRADLEVAEModule(n_genes, n_tokens, n_latent, n_hidden, n_layers, n_kinds=n_kinds, options=options)
    module.cells_per_token.fill_(2.0)
    module.cells_per_quality.copy_(torch.tensor([3.0] + [1.0] * n_kinds))
    return module


def set_profile(module, profile: torch.Tensor, reference=(0, 0, 0, -1), other=(1, 0, 1, 1)) -> None:
    """The counts (n_pools, n_genes) that cells are referred to."""
    total = profile.sum(1, keepdim=True).clamp_min(1.0)
    module.reference_expression = module.standardize(module.expression(profile, total))
    module.reference_of_cell, module.other_quality_of_cell = torch.tensor(reference), torch.tensor(other)


def zero(module) -> None:
    """Every parameter 0 but the log odds of the masks, which are 20."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.mechanisms.mask_logits.fill_(20.0)
