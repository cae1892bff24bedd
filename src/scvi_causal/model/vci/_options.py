"""The options of VCI, and what they are in each of its two faces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from scvi_causal.model.base._data_type import check_choice

Preset = Literal["recommended", "paper"]
DistributionLoss = Literal["moments", "match", "kernel", "energy", "discriminator"]
Divergence = Literal["kl", "published"]
Treatments = Literal["any", "observed", "published"]
Outcome = Literal["abducted", "mean", "sample"]
SecondEncoder = Literal["live", "frozen"]
Normalization = Literal["layer", "batch", "none"]

IN_BATCH: tuple[str, ...] = ("kernel", "energy")
"""Distribution losses that hold predictions against cells of the same batch."""


@dataclass(frozen=True)
class VCIOptions:
    """What :class:`VCIModule` is built from, apart from the sizes of the data; see :class:`~scvi_causal.VCI`."""

    n_latent: int = 32
    n_hidden: int = 128
    n_layers: int = 1
    n_outcome: int = 256
    n_covariate: int = 16
    dropout_rate: float = 0.0
    normalization: Normalization = "none"
    relu_heads: bool = False
    cell_dispersion: bool = False
    encode_covariates: bool = False
    distribution_loss: DistributionLoss = "moments"
    divergence: Divergence = "kl"
    treatments: Treatments = "any"
    include_control: bool = True
    cells_per_target: int = 16
    shrink_effects: bool = True
    outcome: Outcome = "abducted"
    second_encoder: SecondEncoder = "live"
    n_draws: int = 1
    keep_noise: bool = True


RECOMMENDED = VCIOptions()
PAPER = VCIOptions(
    n_latent=128,
    n_layers=2,
    normalization="batch",
    relu_heads=True,
    cell_dispersion=True,
    encode_covariates=True,
    distribution_loss="match",
    divergence="published",
    treatments="published",
    include_control=False,
    cells_per_target=1,
    shrink_effects=False,
    outcome="sample",
    n_draws=30,
    keep_noise=False,
)

_CHOICES = {
    "normalization": Normalization,
    "distribution_loss": DistributionLoss,
    "divergence": Divergence,
    "treatments": Treatments,
    "outcome": Outcome,
    "second_encoder": SecondEncoder,
}


def resolve_options(preset: str, given: dict[str, Any]) -> VCIOptions:
    """Options of a preset, with what the user named (everything but ``None``) in its place."""
    check_choice("preset", preset, get_args(Preset))
    named = {name: value for name, value in given.items() if value is not None}
    for name, choices in _CHOICES.items():
        if name in named:
            check_choice(name, named[name], get_args(choices))
    options = replace(PAPER if preset == "paper" else RECOMMENDED, **named)
    for name in ("n_latent", "n_hidden", "n_layers", "n_outcome", "n_covariate", "n_draws", "cells_per_target"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: pass at least 1.")
    return options
