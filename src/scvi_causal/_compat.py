"""The only file that imports private names of scvi-tools, so that a new release can break one file at most."""

from __future__ import annotations

from scvi.data import _constants as scvi_data_constants
from scvi.model._utils import get_max_epochs_heuristic, parse_device_args, use_distributed_sampler
from scvi.utils._docstrings import devices_dsp

FIELD_REGISTRIES_KEY = scvi_data_constants._FIELD_REGISTRIES_KEY
SETUP_ARGS_KEY = scvi_data_constants._SETUP_ARGS_KEY
STATE_REGISTRY_KEY = scvi_data_constants._STATE_REGISTRY_KEY
UUID_KEY = scvi_data_constants._SCVI_UUID_KEY

__all__ = [
    "FIELD_REGISTRIES_KEY",
    "SETUP_ARGS_KEY",
    "STATE_REGISTRY_KEY",
    "UUID_KEY",
    "devices_dsp",
    "get_max_epochs_heuristic",
    "parse_device_args",
    "use_distributed_sampler",
]
