"""What was predicted, by what, from what: a small dictionary beside every prediction."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from scvi_causal._constants import UNS_KEY


def package_version(name: str) -> str:
    """Version of an installed package, ``"unknown"`` where it is run from its sources."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def storable(value: Any) -> Any:
    """``value`` as something that both h5ad and zarr can hold and give back: str, bool, int, float or an array of these.

    ``None`` becomes ``"none"``, because neither format has a word for it that all supported versions of anndata read.
    """
    if value is None:
        return "none"
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(k).replace("/", "|"): storable(v) for k, v in value.items()}
    array = np.asarray(value)
    return array.astype(str).astype(object) if array.dtype.kind in "OUS" else array


def provenance(**entries: Any) -> dict[str, Any]:
    """Entries as a storable dictionary, with the versions of this package and of scvi-tools."""
    versions = {"version": package_version("scvi-causal"), "scvi_version": package_version("scvi-tools")}
    return {key: storable(value) for key, value in {**entries, **versions}.items()}


def record(uns: Any, key: str, entries: dict[str, Any]) -> None:
    """Put ``entries`` in ``uns["scvi_causal"][key]``, leaving what other predictions wrote there."""
    uns[UNS_KEY] = {**dict(uns.get(UNS_KEY, {})), key: entries}
