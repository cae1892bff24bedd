"""What the options and presets of SAMS-VAE mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from scvi_causal.model.samsvae._mechanisms import Guide
from scvi_causal.nn import MaskGradient

Preset = Literal["recommended", "paper"]
Mechanism = Literal["sparse", "dense", "one-hot"]
Posterior = Literal["product", "network", "mean-field"]

SIZES = {"recommended": {"n_latent": 50, "n_hidden": 128}, "paper": {"n_latent": 200, "n_hidden": 400}}


@dataclass(frozen=True)
class ModuleOptions:
    """Everything by which modules of the same sizes may differ; the defaults are the recommended ones.

    Those that are arguments of :class:`~scvi_causal.SAMSVAE` are described there.
    """

    mechanism: Mechanism = "sparse"
    guide: Guide = "spike-and-slab"
    posterior: Posterior = "product"
    mask_prior: float = 0.1
    embedding_prior_scale: float = 1.0
    mask_start: float = -2.0
    """First log odds of the masks."""
    scale_start: float = 1.0
    """First standard deviation of the embeddings."""
    n_guide_hidden: int = 400
    n_guide_layers: int = 4
    extra_decoder_layers: int = 0
    """Blocks of the decoder beyond ``n_layers``."""
    n_encoder_hidden: int | None = None
    """Width of the encoder, where it is not that of the decoder."""
    n_particles: int = 1
    shared_draws: bool = False
    analytic_kl: bool = True
    mask_gradient: MaskGradient = "mean"
    normalize_library: bool = True
    linear_decoder: bool = True
    rest_of_library: bool = True
    """Whether genes outside of a panel have a share of the library, where a size factor is registered."""
    start_at_moments: bool = True
    """Whether gene means and dispersions start at those of the training cells."""
    start_at_effects: bool = True
    start_size: float = 2.0
    """Root mean square of the embeddings that start at an effect, in standard deviations of the basal state."""
    start_odds: float = 4.0
    """Log odds of the masks that start on."""
    abduct_counts: bool = True
    calibrate: bool = True
    remainder: bool = True

    def mechanism_arguments(self) -> dict[str, Any]:
        """Arguments of :class:`Mechanisms`."""
        return {
            "guide": self.guide,
            "mask_prior": self.mask_prior,
            "embedding_prior_scale": self.embedding_prior_scale,
            "mask_start": self.mask_start,
            "scale_start": self.scale_start,
            "analytic_kl": self.analytic_kl,
            "gradient": self.mask_gradient,
            "n_hidden": self.n_guide_hidden,
            "n_layers": self.n_guide_layers,
        }


PAPER: dict[str, Any] = {
    "guide": "correlated",
    "posterior": "network",
    "mask_prior": 0.01,
    "n_particles": 5,
    "shared_draws": True,
    "analytic_kl": False,
    "mask_gradient": "relaxed",
    "normalize_library": False,
    "linear_decoder": False,
    "rest_of_library": False,
    "start_at_moments": False,
    "start_at_effects": False,
    "mask_start": 0.0,
    "abduct_counts": False,
    "calibrate": False,
    "remainder": False,
}
_CHOICES = {"mechanism": Mechanism, "guide": Guide, "posterior": Posterior, "mask_gradient": MaskGradient}


def module_options(
    preset: Preset,
    kind: type[ModuleOptions] = ModuleOptions,
    paper: dict[str, Any] | None = None,
    choices: dict[str, Any] | None = None,
    **given: Any,
) -> ModuleOptions:
    """Options of a preset, with those that are given (not ``None``) in their place.

    Parameters
    ----------
    preset
        The preset.
    kind, paper, choices
        Class of the options, and what a model that extends this one adds to those of ``"paper"`` and to those that are choices.
    **given
        Options.

    Raises
    ------
    ValueError
        For a value that is no choice, or options that contradict each other.
    """
    check_choice("preset", preset, get_args(Preset))
    chosen = {**PAPER, **(paper or {})} if preset == "paper" else {}
    chosen |= {name: value for name, value in given.items() if value is not None}
    for name, values in {**_CHOICES, **(choices or {})}.items():
        if name in chosen:
            check_choice(name, chosen[name], get_args(values))
    options = kind(**chosen)
    if not 0.0 < options.mask_prior < 1.0:
        raise ValueError(
            f"mask_prior={options.mask_prior} is a probability: pass a number above 0 and below 1, e.g. 0.1."
        )
    if not options.embedding_prior_scale > 0.0:
        raise ValueError(
            f"embedding_prior_scale={options.embedding_prior_scale} is a standard deviation: it is positive."
        )
    if options.start_at_effects and (not options.linear_decoder or options.guide == "correlated"):
        if given.get("start_at_effects"):
            raise ValueError(
                "start_at_effects=True sets the loadings of the linear path of the decoder and the embeddings themselves: it needs "
                "linear_decoder=True and a guide other than 'correlated', whose embeddings come from a network."
            )
        chosen["start_at_effects"] = False
    if options.n_particles < 1:
        raise ValueError(f"n_particles={options.n_particles}: pass at least 1.")
    return kind(**chosen)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` if ``value`` is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}.")
