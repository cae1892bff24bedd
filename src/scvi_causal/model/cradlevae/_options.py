"""What the options and presets of CRADLE-VAE mean, beside those of SAMS-VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from scvi_causal.model.samsvae._options import ModuleOptions, Preset, check_choice, module_options

Artifact = Literal["add", "concat"]
QualityWeights = Literal["balanced", "published", "none"]
ArtifactLoss = Literal["intended", "published", "matched", "none"]


@dataclass(frozen=True)
class ArtifactOptions(ModuleOptions):
    """Those that are arguments of :class:`~scvi_causal.CRADLEVAE` are described there."""

    artifact: Artifact = "add"
    quality_covariate: bool = True
    quality_weights: QualityWeights = "none"
    # "intended" pulls cells of a condition together, real cells more than simulated ones: see the user guide
    artifact_loss: ArtifactLoss = "matched"
    artifact_loss_weight: float = 0.1


PAPER: dict[str, Any] = {
    "artifact": "concat",
    "quality_covariate": False,
    "quality_weights": "published",
    "artifact_loss": "published",
    "artifact_loss_weight": 0.1,
    "extra_decoder_layers": 1,
}
CHOICES = {"artifact": Artifact, "quality_weights": QualityWeights, "artifact_loss": ArtifactLoss}


def artifact_options(
    preset: Preset,
    kind: type[ArtifactOptions] = ArtifactOptions,
    paper: dict[str, Any] | None = None,
    choices: dict[str, Any] | None = None,
    **given: Any,
) -> ArtifactOptions:
    """Options of a preset, with those that are given (not ``None``) in their place; see :func:`module_options`.

    Raises
    ------
    ValueError
        For a value that is no choice, or options that contradict each other.
    """
    paper = {**PAPER, **(paper or {})}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("mechanism") == "one-hot" and given.get("artifact") == "add":
        raise ValueError(
            "artifact='add' moves latent variables, and mechanism='one-hot' has no shifts: use artifact='concat'."
        )
    if given.get("mechanism") == "one-hot":
        given["artifact"] = "concat"
    if given.get("artifact") == "concat" and preset != "paper":
        if given.get("posterior") == "product":
            raise ValueError(
                "posterior='product' is Bayes' rule for variables that are added up: with artifact='concat' use 'network'."
            )
        if given.get("start_at_effects"):
            raise ValueError(
                "start_at_effects=True needs artifact='add': embeddings have no latent dimensions of their own."
            )
        given = {"posterior": "network", "start_at_effects": False, **given}
    options = module_options(preset, kind, paper, {**CHOICES, **(choices or {})}, **given)
    if not options.artifact_loss_weight >= 0.0:
        raise ValueError(f"artifact_loss_weight={options.artifact_loss_weight}: pass 0 or a positive number.")
    if preset == "paper" and options.artifact == "concat":
        check_choice("posterior (with artifact='concat')", options.posterior, ("network", "mean-field"))
    return options
