"""Work for engines that needs no model. In a module of its own, so that other processes can import it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch


def describe(screen, job):
    """What a job sees of its process, and a sum whose last bits depend on the number of threads."""
    rng = np.random.default_rng(job)
    product = torch.as_tensor(rng.normal(size=(300, 300)), dtype=torch.float32) @ torch.as_tensor(screen["x"]).float()
    return {"job": job, "pid": os.getpid(), "threads": torch.get_num_threads(), "sum": product.sum().item()}


def misbehave(screen, job):
    """Jobs are what happens in them."""
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
