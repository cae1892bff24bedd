"""The trainer of refinement, and its two faces."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from scvi_causal.data._messages import did_you_mean, listed
from scvi_causal.model.base._data_type import check_choice
from scvi_causal.nn import AttentionRefinement, Candidates, LinearRefinement

if TYPE_CHECKING:
    from scvi_causal.model.vci._refine_data import RefinementData

logger = logging.getLogger(__name__)

Form = Literal["linear", "attention"]
_N_EVALUATIONS = 20
_N_VALIDATION = 4_096
_LAST_LR = 0.02  # of the edges, relative to the first
_KEEP_OTHER = 0.25
_MOST_ACTIVE = 500_000  # edges of a step, beyond those of the prior
_PAPER_PENALTY = 20 / 2013**2


@dataclass(frozen=True)
class RefineOptions:
    """How a network is refined; see :func:`~scvi_causal.refine_grn`."""

    form: Form = "linear"
    regulators: Any = "prior"
    keep_prior: float = 0.98
    keep_other: float | None = None
    edge_penalty: float = 0.0
    interventions: bool = True
    batch_size: int = 256
    n_steps: int = 1000
    max_epochs: int | None = None
    lr: float = 5e-3
    network_lr: float = 1e-2
    weight_decay: float = 0.0
    decay_lr: bool = True
    patience: int = 5


RECOMMENDED = RefineOptions()
PAPER = RefineOptions(
    form="attention",
    regulators="all",
    keep_prior=1 / (1 + math.exp(-4)),
    keep_other=1 / (1 + math.exp(4)),
    edge_penalty=_PAPER_PENALTY,
    interventions=False,
    batch_size=64,
    max_epochs=230,
    lr=5e-3,
    network_lr=3e-4,
    weight_decay=4e-7,
    decay_lr=False,
    patience=20,
)


def resolve_refine_options(preset: str, given: dict[str, Any]) -> RefineOptions:
    """Options of a preset, with what the user named (everything but ``None``) in its place."""
    check_choice("preset", preset, ("recommended", "paper"))
    names = [field.name for field in fields(RefineOptions)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(
            f"{listed(unknown)} is no option of a refinement.{did_you_mean(unknown[0], names)} They are {listed(names, 20)}."
        )
    named = {name: value for name, value in given.items() if value is not None}
    if "form" in named:
        check_choice("form", named["form"], get_args(Form))
    options = replace(PAPER if preset == "paper" else RECOMMENDED, **named)
    if options.form == "attention" and (preset != "paper" and "edge_penalty" not in named):
        options = replace(options, edge_penalty=_PAPER_PENALTY, weight_decay=4e-7)
    for name in ("batch_size", "n_steps", "patience"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: pass at least 1.")
    if not 0 < options.keep_prior <= 1 or not 0 <= (options.keep_other or 0.0) <= 1:
        raise ValueError(
            f"keep_prior={options.keep_prior} and keep_other={options.keep_other} have to be probabilities, keep_prior above 0."
        )
    if options.edge_penalty < 0:
        raise ValueError(f"edge_penalty={options.edge_penalty} is below 0, which would reward edges.")
    return options


def keep_rate(options: RefineOptions, n_candidates: int) -> float:
    """Probability with which an edge beyond the prior takes part: 0.25, less where candidates are so many that steps would be slow."""
    if options.keep_other is not None:
        return options.keep_other
    return min(_KEEP_OTHER, _MOST_ACTIVE / max(n_candidates, 1))


@dataclass
class Fit:
    """A trained refinement and how it went."""

    module: LinearRefinement | AttentionRefinement
    n_epochs: int
    validation_loss: list[float]


def fit_refinement(data: RefinementData, candidates: Candidates, options: RefineOptions, seed: int) -> Fit:
    """Train on the training cells; the last state that is not worse on the validation cells than another is kept.

    Masks and batches come from generators of their own, so that nothing global is seeded.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    module = _make_module(data, candidates, options, generator).to(data.device)
    n_batches = max(1, math.ceil(data.n_train / options.batch_size))
    n_epochs = options.max_epochs or max(2, math.ceil(options.n_steps / n_batches))
    others = [p for name, p in module.named_parameters() if name != "edge"]
    groups = [{"params": [module.edge], "lr": options.lr}, {"params": others, "lr": options.network_lr}]
    optimizer = torch.optim.Adam(groups, weight_decay=options.weight_decay)
    schedule = None
    if options.decay_lr:
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, _LAST_LR, n_epochs * n_batches)
    stopper = _Stopper(data, candidates, options.patience, rng, seed)
    every = max(1, math.ceil(n_epochs / _N_EVALUATIONS)) if options.decay_lr else min(10, n_epochs)
    epoch = 0
    for epoch in range(1, n_epochs + 1):
        for rows in np.array_split(rng.permutation(data.train), n_batches):
            loss = module.loss(data.batch(np.sort(rows)), candidates.sample(generator))
            if options.edge_penalty:
                loss = loss + options.edge_penalty * module.penalty()
            if not torch.isfinite(loss):
                raise ValueError(
                    f"The loss of the refinement is {loss.item()} in epoch {epoch}. Look for values in the data that are no "
                    "expression, or lower lr and network_lr."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        if (epoch % every == 0 or epoch == n_epochs) and stopper.stop(module):
            break
    stopper.restore(module)
    logger.info("Refinement: %d epochs of %d steps.", epoch, n_batches)
    return Fit(module, epoch, stopper.losses)


def _make_module(data, candidates, options, generator) -> LinearRefinement | AttentionRefinement:
    if options.form == "linear":
        return LinearRefinement(candidates)
    n_covariates = data.n_strata if data.n_strata > 1 else 0
    return AttentionRefinement(candidates, n_covariates, generator=generator)


class _Stopper:
    """Loss on validation cells, with masks that are the same each time; the state to keep, and patience.

    Masks make the loss noisy, and edges that are still growing look alike. So a state counts as worse only if the cells agree: by the
    paired differences to the best state, beyond their standard error. Of states that are not worse the latest is kept.
    """

    def __init__(
        self, data: RefinementData, candidates: Candidates, patience: int, rng: np.random.Generator, seed: int
    ):
        cells = data.val if len(data.val) <= _N_VALIDATION else np.sort(rng.choice(data.val, _N_VALIDATION, False))
        self.data, self.candidates, self.patience, self.seed = data, candidates, patience, seed
        self.batches = np.array_split(cells, max(1, math.ceil(len(cells) / 512))) if len(cells) > 1 else []
        self.losses: list[float] = []
        self.state: dict | None = None
        self.best: torch.Tensor | None = None
        self.misses = 0

    def stop(self, module: torch.nn.Module) -> bool:
        """Note the loss; whether it has been worse than the best for too long."""
        if not self.batches:
            return False
        generator = torch.Generator().manual_seed(self.seed + 1)
        with torch.no_grad():
            parts = [
                module.loss_of_cells(self.data.batch(rows), self.candidates.sample(generator)) for rows in self.batches
            ]
        loss = torch.cat(parts).double().cpu()
        self.losses.append(float(loss.mean()))
        gap = loss - (loss if self.best is None else self.best)
        if float(gap.mean()) > float(gap.std()) / len(gap) ** 0.5:
            self.misses += 1
            return self.misses >= self.patience
        self.state, self.misses = copy.deepcopy(module.state_dict()), 0
        if self.best is None or float(gap.mean()) < 0:
            self.best = loss
        return False

    def restore(self, module: torch.nn.Module) -> None:
        """Put the state that is kept back."""
        if self.state is not None:
            module.load_state_dict(self.state)
