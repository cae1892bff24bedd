"""A recommended module with responses that are not zero, in all its forms, and what to feed it with."""

from __future__ import annotations

import torch

from scvi_causal.model.sccvae import SCCVAEModule

N_GENES, N_TOKENS, N_PROGRAMMES = 10, 4, 3
EDGES = torch.tensor([[0, 1, 3], [1, 2, 2]])
NODE_OF_GENE = [0, 1, 2, -1, -1, -1, -1, -1, 4, -1]  # node 3 is no measured gene
NODE_OF_TOKEN = [0, 3, -1, 4]
CONFIGS = {
    "network": {"edge_index": EDGES, "node_of_gene": NODE_OF_GENE, "n_nodes": 5, "node_of_token": NODE_OF_TOKEN},
    "state": {"n_state": 2},
    "normal": {"gene_likelihood": "normal"},
    "continuous": {"gene_likelihood": "normal", "log_normalize": False},
}
CONFIGS["all"] = CONFIGS["network"] | CONFIGS["state"]
CONFIGS["all continuous"] = CONFIGS["all"] | CONFIGS["continuous"]


def make_module(config="all", seed=0, **kwargs) -> SCCVAEModule:
    """With responses that are not zero."""
    torch.manual_seed(seed)
    module = SCCVAEModule(
        N_GENES,
        N_TOKENS,
        2,
        n_latent=3,
        n_hidden=6,
        n_programmes=N_PROGRAMMES,
        n_features=5,
        **CONFIGS[config],
        **kwargs,
    ).eval()
    with torch.no_grad():
        for name in ("programme_shift", "programme_state", "loadings", "state_axes", "feature_map"):
            value = getattr(module, name)
            value.copy_(0.4 * torch.randn(value.shape))
        module.target_shift.copy_(torch.tensor([-1.5, 0.8, 2.0, -0.4]))
        module.unseen_response.copy_(torch.randn(module.unseen_response.shape))
        module.unseen_target_shift.fill_(-0.8)
        module.unseen_network.copy_(torch.randn(N_GENES))
        module.state_center.fill_(2.0)
        if module.sem is not None:
            module.sem.weight.copy_(torch.tensor([0.7, -0.5, 0.9]))
        if module.log_normalize:
            module.decoder_output.bias.fill_(6.0)  # about 400 of 10,000 counts
    return module


def make_tensors(module, n=6, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.poisson(8 * torch.rand(n, N_GENES, generator=generator), generator=generator) + 1
    if not module.log_normalize:
        x = torch.randn(n, N_GENES, generator=generator)
    return {"X": x, "batch": torch.randint(0, 2, (n, 1), generator=generator)}


def inputs_of(*tokens, seen=True, strength=1.0) -> dict[str, torch.Tensor]:
    """What the model says about tokens of the vocabulary."""
    index = torch.tensor(tokens, dtype=torch.int64)
    return {
        "index": index,
        "seen": torch.full((len(tokens),), seen),
        "node": torch.tensor(NODE_OF_TOKEN)[index],
        "strength": torch.full((len(tokens),), strength),
        "features": torch.arange(5 * len(tokens)).view(-1, 5) / 10.0,
        "has_features": torch.ones(len(tokens)),
        "key": 1000 + index,
    }


def ask(module, tensors, dosage, inputs, **kwargs):
    dosage = torch.as_tensor(dosage, dtype=torch.float32).expand(len(tensors["X"]), -1)
    with torch.no_grad():
        return module.counterfactual(tensors, dosage, inputs, **kwargs)


def eta_and_state(module, n=6):
    """Expression well above zero, so that nothing is cut off."""
    generator = torch.Generator().manual_seed(2)
    return 4 + torch.rand(n, N_GENES, generator=generator), torch.randn(n, module.n_state, generator=generator)
