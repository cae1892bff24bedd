"""Work for engines that needs no model, and a model that goes wrong. In a module of its own, so that other processes can import it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

from scvi_causal.metrics import log1p_normalize, mean_profile


def describe(screen, job):
    """What a job sees of its process, and a sum whose last bits depend on the number of threads."""
    rng = np.random.default_rng(job)
    product = torch.as_tensor(rng.normal(size=(300, 300)), dtype=torch.float32) @ torch.as_tensor(screen["x"]).float()
    return {"job": job, "pid": os.getpid(), "threads": torch.get_num_threads(), "sum": product.sum().item()}


def misbehave(screen, job):
    """Jobs are what happens in them; numbers are those of :func:`describe`."""
    if isinstance(job, int):
        return describe(screen, job)
    if job == "raise":
        raise ValueError("this model\ncannot")
    if job == "exit":
        sys.exit(3)
    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "write":
        screen["x"][0, 0] = 1.0
    return job


def slow(screen, job):
    """Say that the job has begun, in a file, and take so long that somebody can interrupt it."""
    (Path(screen) / f"{job}-{os.getpid()}").touch()
    if job == "last":
        with subprocess.Popen(["sleep", "600"]) as child:
            (Path(screen) / f"child-{child.pid}").touch()
            time.sleep(600)
    return job


def not_importable():
    """Something that pickles by a name that is not there."""

    def inner(screen, job):
        return job

    return inner


class Shift:
    """A foreign model: control cells moved by the mean effect of all training perturbations; keeps a diary of its fits.

    ``trouble`` is what happens in ``fit``: ``"raise"``, ``"kill"`` (of its process), or a path: it waits until that is there.
    """

    def __init__(self, diary, trouble="", factor=1.0):
        self.diary, self.trouble, self.factor = Path(diary), trouble, factor

    def fit(self, adata):
        (self.diary / f"fit-{uuid.uuid4().hex}").touch()
        if self.trouble == "raise":
            raise ValueError("this model cannot")
        if self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.trouble and not Path(self.trouble).exists():
            time.sleep(0.02)
        x = log1p_normalize(adata.X)
        is_control = (adata.obs["perturbation"] == "control").to_numpy()
        self.shift = self.factor * (mean_profile(x[~is_control]) - mean_profile(x[is_control]))

    def predict(self, adata, targets):
        x = log1p_normalize(adata.X).toarray() + self.shift
        obs = pd.DataFrame({"perturbation": np.repeat(list(targets), len(x))}, dtype=str)
        obs.index = obs.index.astype(str)
        return ad.AnnData(np.tile(x, (len(targets), 1)).astype(np.float32), obs=obs, var=adata.var[[]])
