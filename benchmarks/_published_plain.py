"""The published SCCVAE written plainly from its equations, as the yardstick for speed.

Everything is done as the formulas read: float64, the inverse of the causal system, the MMD by expanding all pairs of cells, two
decoder calls, plain Adam, clipping and a NaN scan tensor by tensor. It shares no code with the package.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(n_in: int, n_hidden: int, n_out: int | None) -> nn.Sequential:
    """Two hidden layers; without ``n_out`` the second is the output."""
    layers = [nn.Linear(n_in, n_hidden), nn.LeakyReLU(0.2), nn.Linear(n_hidden, n_hidden), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, *([] if n_out is None else [nn.Linear(n_hidden, n_out)]))


class PlainSCCVAE(nn.Module):
    """Encoder, shift encoder, linear SEM, decoder."""

    def __init__(self, n_genes: int, n_tokens: int, n_nodes: int = 512, n_hidden: int = 1024, n_features: int = 50):
        super().__init__()
        self.encoder = mlp(n_genes, n_hidden, None)
        self.mean, self.log_variance = nn.Linear(n_hidden, n_nodes), nn.Linear(n_hidden, n_nodes)
        self.shift_encoder = mlp(n_features, n_hidden, n_nodes)
        self.decoder = mlp(n_nodes, n_hidden, n_genes)
        self.graph = nn.Parameter(0.1 * torch.randn(n_nodes, n_nodes))
        self.mask = torch.ones(n_nodes, n_nodes, dtype=torch.float64).triu(1)
        self.strength = nn.Parameter(torch.ones(n_tokens))
        self.double()

    def forward(self, x: Tensor, token: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstruction, prediction, mean and variance, for control cells and the token and features of their partners."""
        hidden = self.encoder(x)
        mean, variance = self.mean(hidden), self.log_variance(hidden).exp() + 1e-4
        z = mean + variance.sqrt() * torch.randn_like(mean)
        shift = self.strength[token].unsqueeze(1) * torch.softmax(self.shift_encoder(features), dim=1)
        inverse = torch.linalg.inv(torch.eye(len(self.mask), dtype=x.dtype) - self.graph * self.mask)
        return self.decoder(z @ inverse), self.decoder((z + shift) @ inverse), mean, variance

    def loss(self, x: Tensor, y: Tensor, token: Tensor, features: Tensor, beta: float) -> Tensor:
        """A quarter of the error of the controls, that of the perturbed, the KL and ten times the MMD."""
        reconstruction, prediction, mean, variance = self(x, token, features)
        kl = 0.5 * (variance + mean**2 - 1.0) - 0.5 * variance.log()
        error = 0.25 * ((reconstruction - x) ** 2).mean() + ((prediction - y) ** 2).mean()
        return error + beta * kl.mean() + 10.0 * mmd(prediction, y)


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared MMD under ten Gaussian kernels, from the differences of all pairs of cells."""
    cells = torch.cat([x, y])
    distance = ((cells.unsqueeze(0) - cells.unsqueeze(1)) ** 2).sum(2)
    kernel = sum(torch.exp(-distance / (1000.0 / 2**5 * 2**i)) for i in range(10))
    n = len(x)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()


def make_optimizer(model: PlainSCCVAE) -> torch.optim.Adam:
    """Adam as published."""
    return torch.optim.Adam(model.parameters(), lr=5e-4, eps=0.01, weight_decay=1e-6)


def step(model: PlainSCCVAE, optimizer: torch.optim.Adam, *batch: Tensor, beta: float = 0.5) -> float:
    """One step: loss, backward, clipping of each tensor, Adam, and a look at every parameter for NaN."""
    optimizer.zero_grad()
    loss = model.loss(*batch, beta=beta)
    loss.backward()
    for parameter in model.parameters():
        torch.nn.utils.clip_grad_norm_(parameter, 1.0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if torch.isnan(parameter).any():
            raise ValueError(f"{name} has NaN.")
    return loss.item()
