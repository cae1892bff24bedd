"""What the user asked for, and the AnnData it is about."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_causal.data._read import read_h5ad

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class DemoOptions:
    """Options of one run; the names are those of ``setup_anndata`` and of the command line.

    Parameters
    ----------
    data
        An ``.h5ad`` file; ``None`` is the example that ships with the package.
    holdout
        ``"COLUMN=VALUE"`` for a context whose perturbed cells are never trained on, or a perturbation that never is.
    out
        Folder for the results; made if it is not there.
    max_epochs
        Of SCCVAE; ``None`` is its own default.
    n_de
        Number of genes that count as changed.
    command
        How the run was started, for the report.
    """

    data: Path | None = None
    holdout: str | None = None
    out: Path = Path("scvi_causal_demo")
    perturbation_key: str = "perturbation"
    control: tuple[str, ...] = ("control",)
    separator: str | None = "+"
    layer: str | None = None
    batch_key: str | None = None
    covariate_keys: tuple[str, ...] = ()
    size_factor_key: str | None = None
    grn_key: str | None = None
    features_key: str | None = None
    max_epochs: int | None = None
    seed: int = 0
    n_de: int = 50
    command: str = "scvi-causal demo"


# what the example is: its perturbed CD4 T cells are the largest population, so that the ceiling is high
EXAMPLE_HOLDOUT = "cell_type=CD4 T"
EXAMPLE = {"covariate_keys": ("cell_type",), "size_factor_key": "library_size_full"}


def load(options: DemoOptions) -> tuple[AnnData, DemoOptions, str]:
    """Read the data; returns them, the options completed by what is known of the example, and a name for the report."""
    if options.data is None:
        from scvi_causal.datasets import kang18

        known = {key: value for key, value in EXAMPLE.items() if not getattr(options, key)}
        options = replace(options, holdout=options.holdout or EXAMPLE_HOLDOUT, **known)
        return kang18(), options, "Kang et al. 2018, blood cells with and without interferon beta (embedded)"
    adata = read_h5ad(options.data)
    missing = [key for key in _columns(options) if key not in adata.obs]
    if missing:
        known = [str(column) for column in adata.obs.columns]
        raise ValueError(f"{Path(options.data).name} has no obs column {_with_look_alikes(missing, known)}.")
    return adata, options, Path(options.data).name


def _columns(options: DemoOptions) -> list[str]:
    keys = [options.perturbation_key, options.batch_key, options.size_factor_key, *options.covariate_keys]
    return [key for key in keys if key is not None]


def _with_look_alikes(missing: list[str], known: list[str]) -> str:
    close = {name: difflib.get_close_matches(name, known, n=3, cutoff=0.5) for name in missing}
    named = "; ".join(f"'{name}'" + (f" (similar: {', '.join(near)})" if near else "") for name, near in close.items())
    return f"{named}. It has: {', '.join(known) or 'none'}"


def expression(adata: AnnData, layer: str | None):
    """The matrix that models are trained on."""
    if layer is None:
        if adata.X is None:
            raise ValueError(
                f"The file has no X; name one of its layers with --layer: {', '.join(adata.layers) or 'none'}."
            )
        return adata.X
    if layer not in adata.layers:
        raise ValueError(f"There is no layer {_with_look_alikes([layer], list(adata.layers))}.")
    return adata.layers[layer]


def holds_counts(x) -> bool:
    """Whether all values are whole and not negative; looks at 4,096 cells at a time."""
    for start in range(0, x.shape[0], 4096):
        block = x[start : start + 4096]
        values = block.data if sp.issparse(block) else np.asarray(block)
        if values.size and ((values < 0).any() or (values != np.rint(values)).any()):
            return False
    return True
