"""The published CRADLE-VAE written plainly from its equations, as the yardstick for speed.

Everything is done as the formulas read: masks and embeddings of all tokens are drawn for every particle, both branches of the decoder are
evaluated and sampled from for all cells, KL divergences are differences of log densities at the draw. It shares no code with the package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """Blocks of one width; what enters a block is added to what leaves it, from the second on."""

    def __init__(self, n_in: int, n_hidden: int, n_blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(n_in if i == 0 else n_hidden, n_hidden) for i in range(n_blocks)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.blocks[0](x), 0.01)
        for block in self.blocks[1:]:
            y = F.leaky_relu(block(y), 0.01) + y
        return y


class Gaussian(nn.Module):
    """Mean and standard deviation from a network."""

    def __init__(self, n_in: int, n_out: int, n_hidden: int, n_blocks: int):
        super().__init__()
        self.hidden = ResidualMLP(n_in, n_hidden, n_blocks)
        self.mean, self.log_variance = nn.Linear(n_hidden, n_out), nn.Linear(n_hidden, n_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.hidden(x)
        variance = (self.log_variance(y).exp() + 1e-4).abs()
        mean = torch.nan_to_num(self.mean(y), 1e-6, 1e6, 1e-6)
        return mean, torch.nan_to_num(variance, 1e-6, 1e6, 1e-6).sqrt()


def log_normal(x: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
    """Log density of a normal distribution."""
    return torch.distributions.Normal(
        torch.as_tensor(mean, dtype=x.dtype), torch.as_tensor(scale, dtype=x.dtype)
    ).log_prob(x)


class PlainCRADLEVAE(nn.Module):
    """Masks, embeddings, an artifact, encoder and decoder."""

    def __init__(
        self,
        n_genes: int,
        n_tokens: int,
        n_latent: int = 100,
        n_hidden: int = 400,
        n_guide_hidden: int = 400,
        n_guide_blocks: int = 4,
        n_particles: int = 5,
        mask_prior: float = 0.001,
        beta: float = 0.1,
    ):
        super().__init__()
        self.n_particles, self.mask_prior, self.beta = n_particles, mask_prior, beta
        self.n_tokens, self.n_latent = n_tokens, n_latent
        self.mask_logits = nn.Parameter(torch.zeros(n_tokens, n_latent))
        self.embedding = Gaussian(n_latent + n_tokens, n_latent, n_guide_hidden, n_guide_blocks)
        self.artifact = Gaussian(n_latent, n_latent, n_guide_hidden, n_guide_blocks)
        self.encoder = Gaussian(n_genes + 2 * n_latent, n_latent, n_hidden, 1)
        self.decoder = ResidualMLP(3 * n_latent, n_hidden, 2)
        self.output = nn.Linear(n_hidden, n_genes)
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes))

    def draw(self) -> dict[str, Tensor]:
        """Masks, embeddings and artifact of every particle, with log q - log p of each."""
        p, t, n = self.n_particles, self.n_tokens, self.n_latent
        logits = torch.nan_to_num(self.mask_logits, 0.0, 0.0, 0.0).expand(p, t, n)
        soft = torch.sigmoid(logits + torch.logit(torch.rand(p, t, n).clamp(1e-6, 1 - 1e-6)))
        mask = soft.round().detach() + soft - soft.detach()
        codes = torch.eye(t).expand(p, t, t)
        mean, scale = self.embedding(torch.cat([mask, codes], -1))
        embedding = mean + scale * torch.randn_like(mean)
        a_mean, a_scale = self.artifact(torch.ones(p, 1, n))
        artifact = a_mean + a_scale * torch.randn_like(a_mean)
        prior = torch.logit(torch.tensor(self.mask_prior))
        log_q = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(mask)
        log_p = torch.distributions.Bernoulli(logits=prior, validate_args=False).log_prob(mask)
        return {
            "shift": embedding * mask,
            "artifact": artifact,
            "kl": (log_q - log_p + log_normal(embedding, mean, scale) - log_normal(embedding, 0.0, 1.0)).sum(-1),
            "kl_artifact": (log_normal(artifact, a_mean, a_scale) - log_normal(artifact, 0.0, 1.0)).sum(-1),
        }

    def basal(self, x: Tensor, offset: Tensor, artifact: Tensor) -> tuple[Tensor, Tensor]:
        """q(z): mean and standard deviation."""
        return self.encoder(torch.cat([x.expand(len(offset), *x.shape), offset, artifact], -1))

    def counts(self, z: Tensor, offset: Tensor, artifact: Tensor, library: Tensor) -> tuple[Tensor, Tensor]:
        """Concentration and rate of the gamma-Poisson counts."""
        share = torch.softmax(self.output(self.decoder(torch.cat([z, offset, artifact], -1))), -1)
        concentration = self.log_dispersion.exp()
        return concentration, (concentration / (library * share + 1e-4)).clamp_min(1e-6)

    def loss(self, x, standard, dosage, failed, reference, has_reference, n_token, n_failed) -> Tensor:
        """One number for a batch.

        Parameters
        ----------
        x, standard
            (cells, genes) counts, and as the encoder sees them.
        dosage, failed
            (cells, tokens) and (cells, 1).
        reference, has_reference
            (cells, genes) reference profiles as the encoder sees them, and (cells,) which have one.
        n_token, n_failed
            Numbers of cells of the split.
        """
        first, library = self.draw(), x.sum(1, keepdim=True)
        offset = dosage @ first["shift"]
        on = failed * first["artifact"]
        mean, scale = self.basal(standard, offset, on)
        z = mean + scale * torch.randn_like(mean)
        likelihood = []
        for branch in (torch.zeros_like(on), first["artifact"].expand_as(on)):
            concentration, rate = self.counts(z, offset, branch, library)
            with torch.no_grad():
                torch.poisson(torch._standard_gamma(concentration.expand_as(rate)) / rate)
            likelihood.append(
                torch.lgamma(x + concentration)
                - torch.lgamma(concentration)
                - torch.lgamma(x + 1)
                + concentration * torch.log(rate / (1 + rate))
                - x * torch.log1p(rate)
            )
        good, bad = (value.sum(-1) for value in likelihood)
        alpha, q = failed.mean(), failed[:, 0]
        weighted = alpha * (1 - q) * good + (1 - alpha) * q * bad
        share = torch.where(n_token > 0, (dosage != 0) / n_token.clamp_min(1), 0.0)
        kl = (log_normal(z, mean, scale) - log_normal(z, 0.0, 1.0)).sum(-1)
        kl = kl + first["kl"] @ share.T + first["kl_artifact"] * q / max(n_failed, 1)
        again = self.draw()
        mean_1, scale_1 = self.basal(reference, dosage @ again["shift"], (1 - failed) * again["artifact"])
        mean_2, scale_2 = self.basal(standard, offset, (1 - failed) * first["artifact"])
        ratio = (scale_1 / scale_2) ** 2
        apart = 0.5 * (ratio - 1 - ratio.log() + (mean_1 - mean_2) ** 2)
        return -(weighted - kl).mean() + self.beta * (apart * has_reference[:, None]).sum((1, 2)).mean()


def make_optimizer(model: nn.Module) -> torch.optim.Adam:
    """Adam as published."""
    return torch.optim.Adam(model.parameters(), lr=3e-4, weight_decay=1e-6)


def step(model: PlainCRADLEVAE, optimizer: torch.optim.Adam, batch: dict[str, Tensor]) -> Tensor:
    """Loss, backward, clipping, Adam."""
    optimizer.zero_grad()
    loss = model.loss(**batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
    optimizer.step()
    return loss
