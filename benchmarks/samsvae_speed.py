"""CPU-seconds and memory of a training step of SAMS-VAE at the published size.

    python benchmarks/samsvae_speed.py

512 cells x 1,187 genes, 722 perturbations, 100 latent dimensions, encoder and decoder of one block of 400; one thread.
"""

from __future__ import annotations

import time

import pandas as pd
import torch
from _common import write_page
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.model.samsvae._module import SAMSVAEModule
from scvi_causal.model.samsvae._options import module_options

N_CELLS, N_GENES, N_TOKENS, N_LATENT, N_HIDDEN, N_STEPS = 512, 1187, 722, 100, 400, 5
FORMS = {
    "paper (5 shared draws, network guide and posterior)": {
        "preset": "paper",
        "n_guide_layers": 2,
        "n_guide_hidden": 200,
    },
    "paper, own draws of each cell": {
        "preset": "paper",
        "n_guide_layers": 2,
        "n_guide_hidden": 200,
        "shared_draws": False,
    },
    "paper, spike-and-slab guide": {"preset": "paper", "guide": "spike-and-slab"},
    "default with 5 draws": {"preset": "recommended", "n_particles": 5},
    "default (1 draw)": {"preset": "recommended"},
}
TEXT = """Forward, backward and Adam; median of 5 steps after one. `MB`: tensors of a forward pass that autograd keeps. Counts are sparse (90 %
zeros). The published form of the plain formulas draws masks and embeddings of all 722 tokens; ours draws those of the tokens of the batch, and
evaluates gamma functions where there are counts only, in all forms alike."""


def one(preset: str, **options) -> dict:
    """CPU-seconds and memory of a step."""
    torch.manual_seed(0)
    module = SAMSVAEModule(
        N_GENES, N_TOKENS, N_LATENT, N_HIDDEN, 1, options=module_options(preset, mask_prior=0.01, **options)
    )
    module.cells_per_token.fill_(160.0)
    batch = {
        REGISTRY_KEYS.X_KEY: torch.poisson(torch.rand(N_CELLS, N_GENES).square() * 0.3),
        CAUSAL_KEYS.PERTURBATION: torch.eye(N_TOKENS)[torch.randint(N_TOKENS, (N_CELLS,))],
        REGISTRY_KEYS.BATCH_KEY: torch.zeros(N_CELLS, 1, dtype=torch.int64),
    }
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    seconds, kept = [], 0

    def keep(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    for step in range(N_STEPS + 1):
        kept, started = 0, time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = module(batch)[2].loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step:
            seconds.append(time.process_time() - started)
    n = sum(p.numel() for p in module.parameters())
    return {"CPU-seconds": sorted(seconds)[N_STEPS // 2], "MB": kept / 2**20, "parameters": n}


def main() -> None:
    """All forms."""
    torch.set_num_threads(1)
    table = pd.DataFrame({name: one(**options) for name, options in FORMS.items()}).T
    table.insert(1, "of paper", table["CPU-seconds"] / table["CPU-seconds"].iloc[0])
    table["parameters"] = table["parameters"].astype(int)
    write_page("samsvae_speed", "SAMS-VAE: a training step", [(TEXT, table.rename_axis("form"))], 0)


if __name__ == "__main__":
    main()
