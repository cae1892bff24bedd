"""CPU-seconds and memory of a training step of GPO-VAE as the network grows, default against the published form.

    python benchmarks/gpovae_nodes.py

512 cells x 1,500 genes, 40 % of the nodes perturbed (about as on K562), 100 basal dimensions; one thread.
"""

from __future__ import annotations

import time

import pandas as pd
import torch
from _common import say, write_page
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS, CONTROL_PREFIX
from scvi_causal.model.gpovae._module import GPOVAEModule
from scvi_causal.model.gpovae._options import network_options

N_CELLS, N_GENES, N_LATENT, N_HIDDEN, SHARE = 512, 1500, 100, 400, 0.4
NODES = (100, 300, 700, 1500)
PLAIN = "published, plain formulas"
FORMS = {
    PLAIN: {"preset": "paper"},
    "published, ours": {"preset": "paper"},
    "default": {"preset": "recommended"},
}
TEXT = """Forward, backward and Adam; the faster of two steps after one. `MB`: tensors of a forward pass that autograd keeps, beside parameters.
Plain formulas: masks and embeddings of all nodes are drawn for each of the five particles, as the published equations are written; ours, with the
same objective, draws the rows of the tokens of the batch and sums powers of the network for these only. The default draws once, without a network
of masks, and has a row for each perturbed node. Decoder and encoder have the published sizes in all forms."""


class PlainModule(GPOVAEModule):
    """Every row of every particle is drawn, whatever the batch."""

    def draw_condition(self, dosage, n_particles):
        draw = self.mechanisms.draw(torch.arange(self.n_nodes), n_particles)
        weight = (dosage != 0).to(dosage) * self._inverse_counts()
        n = self.n_tokens
        return dosage @ draw.shift[:, :n], draw.kl[:, :n] @ weight.T


def one(form: str, n_nodes: int) -> dict:
    """CPU-seconds and memory of a step."""
    torch.manual_seed(0)
    n_tokens = int(SHARE * n_nodes)
    cls = PlainModule if form == PLAIN else GPOVAEModule
    options = network_options(FORMS[form]["preset"], False, n_encoder_hidden=200)
    module = cls(
        N_GENES, n_tokens, N_LATENT, N_HIDDEN, 1, n_kinds=0, n_nodes=n_nodes, n_measured=n_nodes, options=options
    )
    module.set_nodes(torch.arange(n_nodes))
    module.cells_per_token.fill_(150.0)
    module.cells_per_quality.fill_(1e5)
    counts = [torch.poisson(torch.rand(N_CELLS, N_GENES).square() * 0.3) for _ in range(2)]
    batch = {
        REGISTRY_KEYS.X_KEY: counts[0],
        CONTROL_PREFIX + REGISTRY_KEYS.X_KEY: counts[1],
        CAUSAL_KEYS.PERTURBATION: torch.eye(n_tokens)[torch.randint(n_tokens, (N_CELLS,))],
        CAUSAL_KEYS.QUALITY: torch.zeros(N_CELLS, 1),
        CAUSAL_KEYS.INDICES: torch.arange(N_CELLS)[:, None],
        REGISTRY_KEYS.BATCH_KEY: torch.zeros(N_CELLS, 1, dtype=torch.int64),
    }
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    seconds, kept = [], {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for _ in range(3):
        kept.clear()
        started = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = module(batch)[2].loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - started)
    own = {p.data_ptr() for p in module.parameters()}
    n_bytes = sum(n for pointer, n in kept.items() if pointer not in own)
    return {
        "nodes": n_nodes,
        "form": form,
        "CPU-seconds": min(seconds[1:]),
        "MB": n_bytes / 2**20,
        "million parameters": sum(p.numel() for p in module.parameters()) / 1e6,
    }


def main() -> None:
    """All sizes and forms."""
    torch.set_num_threads(1)
    rows = []
    for n_nodes in NODES:
        for form in FORMS:
            rows.append(one(form, n_nodes))
            say(str(rows[-1]))
    table = pd.DataFrame(rows)
    plain = table[table["form"] == PLAIN].set_index("nodes")
    for column, name in (("CPU-seconds", "times faster"), ("MB", "times less memory")):
        table[name] = plain[column].reindex(table["nodes"]).to_numpy() / table[column]
    write_page("gpovae_nodes", "GPO-VAE: a training step by the number of nodes", [(TEXT, table.set_index("nodes"))], 0)


if __name__ == "__main__":
    main()
