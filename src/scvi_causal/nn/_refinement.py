"""Refinement of a network: which edges may be, which of them take part in a step, and the two models that weigh them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scvi_causal.nn._edges import Edges, edge_softmax, propagate

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOWEST_SD = 0.05
_LOG_2PI = math.log(2 * math.pi)


class Candidates:
    r"""Edges that may be, and the random share of them that takes part in a step.

    An edge is a position ``target * n_sources + source``. Prior edges take part with probability ``keep_prior``, all others with
    ``keep_other``; nothing of the size of all positions is drawn where few are kept.

    Parameters
    ----------
    n_sources, n_targets
        Number of nodes on either side.
    prior
        Positions of the prior edges.
    forbidden
        Positions of what can be no edge, such as those of a gene to itself.
    keep_prior, keep_other
        Probabilities; :math:`1 - r_l` and :math:`1 - r_h` of the paper.

    Examples
    --------
    >>> import torch
    >>> candidates = Candidates(2, 2, torch.tensor([1]), torch.tensor([0, 3]), keep_prior=1.0, keep_other=0.0)
    >>> candidates.sample(torch.Generator().manual_seed(0)).tolist()
    [1]
    """

    def __init__(
        self, n_sources: int, n_targets: int, prior: Tensor, forbidden: Tensor, keep_prior: float, keep_other: float
    ):
        for name, value in (("keep_prior", keep_prior), ("keep_other", keep_other)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} is no probability: pass a number from 0 to 1.")
        self.n_sources, self.n_targets = n_sources, n_targets
        self.keep_prior, self.keep_other = float(keep_prior), float(keep_other)
        self.n_positions = n_sources * n_targets
        self.is_prior = torch.zeros(self.n_positions, dtype=torch.bool)
        self.is_prior[prior] = True
        self.is_prior[forbidden] = False
        self.prior = self.is_prior.nonzero().squeeze(1)
        self.is_other = ~self.is_prior
        self.is_other[forbidden] = False
        self.n_other = int(self.is_other.sum())

    @property
    def expected_active(self) -> float:
        """Number of edges that take part in a step, on average."""
        return self.keep_prior * len(self.prior) + self.keep_other * self.n_other

    def sample(self, generator: torch.Generator) -> Tensor:
        """Positions that take part, in ascending order: every candidate on its own, with its probability."""
        kept = self.prior[torch.rand(len(self.prior), generator=generator) < self.keep_prior]
        others = sample_positions(self.n_positions, self.keep_other, generator)
        others = others[self.is_other[others]]
        return torch.cat([kept, others]).sort().values

    def edges(self, positions: Tensor, device: torch.device | str = "cpu") -> Edges:
        """Positions in ascending order as edges."""
        positions = positions.to(device)
        target = torch.div(positions, self.n_sources, rounding_mode="floor")
        return Edges(positions - target * self.n_sources, target, self.n_sources, self.n_targets)

    def keep_probability(self, positions: Tensor) -> Tensor:
        """Probability with which each position takes part."""
        return torch.where(self.is_prior[positions], self.keep_prior, self.keep_other)


def sample_positions(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """Every one of ``n`` positions with the same probability, independently, in ascending order.

    Distances from one success to the next are geometric, so that the work is that of the positions drawn.

    Examples
    --------
    >>> import torch
    >>> sample_positions(5, 1.0, torch.Generator()).tolist()
    [0, 1, 2, 3, 4]
    """
    if probability <= 0 or not n:
        return torch.zeros(0, dtype=torch.int64)
    if probability >= 1:
        return torch.arange(n)
    expected = n * probability
    n_draws = int(expected + 6 * math.sqrt(expected) + 16)
    parts, last = [], -1
    while last < n:
        uniform = torch.rand(n_draws, generator=generator, dtype=torch.float64).clamp_min(1e-300)
        gaps = torch.floor(uniform.log() / math.log1p(-probability)) + 1
        places = last + gaps.clamp_max(float(n + 1)).cumsum(0).long()
        parts.append(places)
        last = int(places[-1])
    places = torch.cat(parts)
    return places[places < n]


def background(penalty: float, weight_decay: float) -> float:
    r"""Rescaled weight at which an edge rests that the data say nothing about.

    Its logit is driven by the penalty and by Adam's L2 term alone, and stops where
    :math:`L + c\,\sigma(L)(1-\sigma(L)) = 0` with :math:`c = \rho / \mathrm{wd}`.

    Parameters
    ----------
    penalty
        :math:`\rho`, of one edge; :math:`\lambda / G^2` in the paper.
    weight_decay
        Of the logits.

    Returns
    -------
    :math:`\tilde W^* = \sigma(L^*)`; 0 with a penalty and without decay, since nothing holds the logit then.

    Examples
    --------
    >>> round(background(20 / 2013**2, 4e-7), 5)
    0.15999
    """
    if penalty <= 0:
        return 0.5
    if weight_decay <= 0:
        return 0.0
    c = penalty / weight_decay
    low, high = -c / 4 - 1, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        sigma = 1 / (1 + math.exp(-middle)) if middle > -700 else 0.0
        if middle + c * sigma * (1 - sigma) > 0:
            high = middle
        else:
            low = middle
    return 1 / (1 + math.exp(-high))


class Refinement(nn.Module):
    """What both models of refinement share: a loss over the genes that are observed."""

    def negative_log_likelihood(self, batch: dict[str, Tensor], positions: Tensor) -> Tensor:
        """(cells, genes) of every gene given its regulators.

        Parameters
        ----------
        batch
            ``"genes"`` (cells, n_targets) expression, ``"observed"`` (cells, n_targets) 1 where a gene follows its regulators;
            ``"sources"`` (cells, n_sources) or ``"covariates"`` as the model takes them.
        positions
            Edges of this step, ascending.
        """
        raise NotImplementedError

    def loss(self, batch: dict[str, Tensor], positions: Tensor) -> Tensor:
        """Mean negative log likelihood per cell and gene; see :meth:`negative_log_likelihood`."""
        observed = batch["observed"]
        return (self.negative_log_likelihood(batch, positions) * observed).sum() / observed.sum().clamp_min(1)

    def loss_of_cells(self, batch: dict[str, Tensor], positions: Tensor) -> Tensor:
        """(cells,) mean over the genes of each cell."""
        observed = batch["observed"]
        return (self.negative_log_likelihood(batch, positions) * observed).sum(1) / observed.sum(1).clamp_min(1)


class LinearRefinement(Refinement):
    r"""Every gene as a signed sum of its regulators, :math:`\hat x_i = \sum_j \frac{M_{ij}}{q_{ij}} w_{ij} x_j`.

    :math:`M_{ij} \sim \mathrm{Bernoulli}(q_{ij})` keeps an edge in this step. Over masks, the expected squared error is that of
    ridge regression with the penalty :math:`\frac{1 - q_{ij}}{q_{ij}} w_{ij}^2` on standardised expression: two keep rates are a
    prior on edges. Prior edges are hardly shrunk, all others have to explain what the prior edges leave.

    Parameters
    ----------
    candidates
        The edges that may be.
    """

    def __init__(self, candidates: Candidates):
        super().__init__()
        self.candidates = candidates
        self.edge = nn.Parameter(torch.zeros(candidates.n_positions))
        self.log_sd = nn.Parameter(torch.zeros(candidates.n_targets))

    def negative_log_likelihood(self, batch: dict[str, Tensor], positions: Tensor) -> Tensor:
        """(cells, genes); expression is standardised."""
        edges = self.candidates.edges(positions, self.edge.device)
        keep = self.candidates.keep_probability(positions).to(self.edge.device)
        values = self.edge[positions.to(self.edge.device)] / keep
        expected = propagate(values, edges, batch["sources"].T.contiguous()).T
        log_sd = self.log_sd.clamp_min(math.log(_LOWEST_SD))
        return 0.5 * ((batch["genes"] - expected) * torch.exp(-log_sd)).square() + log_sd + 0.5 * _LOG_2PI

    def penalty(self) -> Tensor:
        """Sum over edges of what the lasso shrinks."""
        return self.edge.abs().sum()

    def strength(self) -> Tensor:
        """(n_positions,) weights, with their sign."""
        return self.edge.detach()


class AttentionRefinement(Refinement):
    r"""The adjacency-updating graph convolutional network of graphVCI, eq. 11.

    Every layer is :math:`H^{(k+1)} = \mathrm{act}(\mathrm{softmax}(L \mid M) H^{(k)} \Theta_k + b_k)` with the same masked softmax over
    the edges into each gene. A gene is reconstructed from itself and its regulators, over seven layers.

    Parameters
    ----------
    candidates
        The edges that may be; self-loops among them, as prior edges.
    n_covariates
        Width of the covariates of a cell.
    n_features
        Width of the fixed random features of genes.
    encoder_sizes, decoder_sizes
        Widths of the layers after the input; the last is 2, location and raw scale.
    generator
        Source of randomness of the start.
    """

    def __init__(
        self,
        candidates: Candidates,
        n_covariates: int = 0,
        n_features: int = 8,
        encoder_sizes: Sequence[int] = (16, 16),
        decoder_sizes: Sequence[int] = (64, 64, 64, 64, 2),
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.candidates = candidates
        self.edge = nn.Parameter(torch.ones(candidates.n_positions))
        span = 1 / (2 * n_features)
        features = (torch.rand(candidates.n_targets, n_features, generator=generator) * 2 - 1) * span
        self.register_buffer("features", features)
        sizes = [1 + n_features + n_covariates, *encoder_sizes, *decoder_sizes]
        self.relu = [True] * (len(sizes) - 2) + [False]
        self.weights = nn.ParameterList()
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
            limit = math.sqrt(6 / (n_in + n_out))
            self.weights.append(nn.Parameter((torch.rand(n_in, n_out, generator=generator) * 2 - 1) * limit))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in sizes[1:])

    def forward(self, genes: Tensor, covariates: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cells, n_genes) location and standard deviation of every gene."""
        edges = self.candidates.edges(positions, self.edge.device)
        attention = edge_softmax(self.edge[positions.to(self.edge.device)], edges)
        n_cells, n_genes = genes.shape
        h = torch.cat(
            [
                genes.T[:, :, None],
                self.features[:, None].expand(-1, n_cells, -1),
                covariates[None].expand(n_genes, -1, -1),
            ],
            2,
        )
        for weight, bias, relu in zip(self.weights, self.biases, self.relu, strict=True):
            # what is narrower goes along the edges
            first = weight.shape[1] < weight.shape[0]
            h = h @ weight if first else h
            h = propagate(attention, edges, h.reshape(n_genes, -1)).reshape(n_genes, n_cells, -1)
            h = (h if first else h @ weight) + bias
            h = torch.relu(h) if relu else h
        location, raw = h.unbind(2)
        return location.T, torch.nn.functional.softplus(raw.T) + 1e-3

    def negative_log_likelihood(self, batch: dict[str, Tensor], positions: Tensor) -> Tensor:
        """(cells, genes)."""
        location, sd = self(batch["genes"], batch["covariates"], positions)
        return 0.5 * ((batch["genes"] - location) / sd).square() + sd.log() + 0.5 * _LOG_2PI

    def penalty(self) -> Tensor:
        """Sum over edges of the rescaled weights."""
        return torch.sigmoid(self.edge).sum()

    def strength(self) -> Tensor:
        r"""(n_positions,) rescaled weights :math:`\tilde W = (1 + W^{-1})^{-1} = \sigma(L)`, eq. 12."""
        return torch.sigmoid(self.edge.detach())
