"""A job leaves the process as it found it: random states, seeds, warnings and logs."""

from __future__ import annotations

import logging
import os
import random
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import scvi
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# what scvi-tools and lightning set when they are seeded
_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "XLA_FLAGS")
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "scvi", "scvi_causal")
_MAX_WARNINGS = 20


@contextmanager
def isolated(seed: int) -> Iterator[list[str]]:
    """Seed everything, and put every random state, seed and filter back at the end.

    Yields
    ------
    A list that holds the distinct warnings of the block when it has ended.
    """
    messages: list[str] = []
    with _random_states(), quiet_logs(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        scvi.settings.seed = seed
        try:
            yield messages
        finally:
            found = dict.fromkeys(f"{w.category.__name__}: {str(w.message).strip()}" for w in caught)
            messages.extend(list(found)[:_MAX_WARNINGS])


@contextmanager
def _random_states() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = random.getstate(), np.random.get_state(), cudnn.deterministic, cudnn.benchmark  # noqa: NPY002  # kept, not used
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    seed = scvi.settings.seed
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            cudnn.deterministic, cudnn.benchmark = before[2:]
            # by the attribute: the setter seeds everything anew
            scvi.settings._seed = seed
            for name, value in variables.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Which devices there are, or how much of a network is used, need not be said for every job; errors are."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
