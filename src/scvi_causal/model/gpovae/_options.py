"""What the options and presets of GPO-VAE mean, beside those of CRADLE-VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scvi_causal.model.cradlevae._options import ArtifactOptions, artifact_options

if TYPE_CHECKING:
    from scvi_causal.model.samsvae._options import Preset

Alignment = Literal["effects", "cells"]
Indirect = Literal["mediated", "none"]
Matching = Literal["random", "ot"]

SIZES = {"recommended": {"n_latent": 20, "n_hidden": 128}, "paper": {"n_latent": 200, "n_hidden": 400}}


@dataclass(frozen=True)
class NetworkOptions(ArtifactOptions):
    """Those that are arguments of :class:`~scvi_causal.GPOVAE` are described there."""

    alignment: Alignment = "effects"
    alignment_weight: float = 0.0
    indirect: Indirect = "mediated"
    matching: Matching = "random"
    n_hops: int = 5
    change_threshold: float = 0.8
    density_weight: float = 5.0
    prior_of_unperturbed: bool = True
    learn_probability: bool = True
    """Whether the prior probability of edges is learned from the effects."""
    learn_scale: bool = True
    """Whether their prior standard deviation is."""


PAPER: dict[str, Any] = {
    "mask_prior": 0.3,
    "alignment": "cells",
    "alignment_weight": 100.0,
    "indirect": "none",
    "matching": "ot",
    "prior_of_unperturbed": False,
    "n_encoder_hidden": 200,
}
CHOICES = {"alignment": Alignment, "indirect": Indirect, "matching": Matching}
_OF_CELLS = ("matching", "n_hops", "change_threshold", "density_weight", "prior_of_unperturbed")
_NOT_NEGATIVE = ("alignment_weight", "n_hops", "density_weight", "change_threshold")


def network_options(preset: Preset, has_quality: bool, **given: Any) -> NetworkOptions:
    """Options of a preset, with those that are given (not ``None``) in their place; see :func:`artifact_options`.

    Raises
    ------
    ValueError
        For a value that is no choice, or options that contradict each other.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("mechanism", "sparse") != "sparse":
        raise ValueError(
            f"mechanism={given['mechanism']!r}: the masks of GPOVAE are its network. Use SAMSVAE or CRADLEVAE without masks."
        )
    if given.pop("start_at_effects", False):
        raise ValueError(
            "start_at_effects factorises effects, and the dimensions of GPOVAE are genes: its network starts at the effects "
            "themselves wherever alignment='effects'."
        )
    if given.get("alignment") == "cells" and given.setdefault("indirect", "none") == "mediated":
        raise ValueError(
            "indirect='mediated' takes from the training effects what goes through other perturbed genes: it needs alignment='effects'."
        )
    if not has_quality:
        given |= {"quality_weights": "none", "artifact_loss": "none"}
    given |= {"learn_probability": "mask_prior" not in given, "learn_scale": "embedding_prior_scale" not in given}
    options = artifact_options(preset, NetworkOptions, PAPER, CHOICES, start_at_effects=False, **given)
    idle = [name for name in _OF_CELLS if name in given]
    if idle and options.alignment != "cells":
        raise ValueError(
            f"{', '.join(idle)} {'belongs' if len(idle) == 1 else 'belong'} to alignment='cells', and with alignment={options.alignment!r} "
            "no cells are matched: pass alignment='cells', or leave out what belongs to it."
        )
    for name in _NOT_NEGATIVE:
        if not getattr(options, name) >= 0:
            raise ValueError(f"{name}={getattr(options, name)}: pass 0 or a positive number.")
    if options.alignment == "effects" and options.guide == "correlated":
        raise ValueError(
            "alignment='effects' starts edges at what the effects say, and the embeddings of guide='correlated' come from a network: "
            "use guide='spike-and-slab', or alignment='cells'."
        )
    return options
