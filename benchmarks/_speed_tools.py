"""Clocks, data and a quiet process for ``speed.py``."""

from __future__ import annotations

import ctypes
import logging
import time
import warnings
from pathlib import Path

SEED = 0
ROUNDS = 3


def quiet() -> None:
    """One thread, one seed, no advice."""
    import scvi
    import torch

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    scvi.settings.verbosity = logging.ERROR
    scvi.settings.seed = SEED


def cpu() -> float:
    return time.process_time()


def timed(function) -> float:
    start = cpu()
    function()
    return cpu() - start


def alternate(jobs: dict, rounds: int = ROUNDS) -> dict[str, float]:
    """Smallest figure of each job (a function that returns one or more CPU-seconds) over alternated rounds."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            best[name] = min(best[name], *job())
    return best


def screen(n_cells: int, n_genes: int, n_tokens: int, mean: float, network: bool = False):
    """Counts of a screen of which a fifth of the cells are controls; gamma-Poisson, without effects."""
    import anndata as ad
    import numpy as np
    import pandas as pd
    from scipy import sparse

    rng = np.random.default_rng(SEED)
    level = rng.gamma(0.3, mean / 0.3, n_genes)
    pieces = [
        sparse.csr_matrix(rng.poisson(rng.gamma(2.0, 0.5, (min(1000, n_cells - start), n_genes)) * level, None))
        for start in range(0, n_cells, 1000)
    ]
    genes = np.array([f"gene_{i}" for i in range(n_genes)])
    labels = np.where(np.arange(n_cells) % 5 == 0, "control", genes[np.arange(n_cells) % n_tokens])
    obs = pd.DataFrame({"perturbation": labels}, index=[f"cell_{i}" for i in range(n_cells)])
    adata = ad.AnnData(sparse.vstack(pieces, "csr", dtype="float32"), obs, pd.DataFrame(index=genes))
    adata.obs_names_make_unique()
    empty = np.flatnonzero(np.diff(adata.X.indptr) == 0)
    assert len(empty) == 0, f"{len(empty)} cells without a count"
    if network:
        edges = rng.choice(n_genes, (3 * n_genes, 2))
        edges = pd.DataFrame({"source": genes[edges.min(1)], "target": genes[edges.max(1)]})
        adata.uns["grn"] = edges[edges["source"] != edges["target"]].drop_duplicates()
    return adata


def intervals(model, unit: str, epochs: int, keep=lambda batch: True, **kwargs) -> list[float]:
    """CPU-seconds from the start of each step (or epoch) of ``model.train`` to that of the next, everything included."""
    from lightning.pytorch.callbacks import Callback

    class Clock(Callback):
        def __init__(self):
            self.starts, self.kept = [], []

        def on_train_batch_start(self, trainer, plan, batch, batch_idx):
            if unit == "step":
                self.starts.append(cpu())
                self.kept.append(keep(batch))

        def on_train_epoch_start(self, trainer, plan):
            if unit == "epoch":
                self.starts.append(cpu())
                self.kept.append(True)

    clock = Clock()
    model.train(
        max_epochs=epochs,
        train_size=1.0,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[clock],
        **kwargs,
    )
    spans = [after - before for before, after in zip(clock.starts, clock.starts[1:], strict=False)]
    return [span for span, kept in zip(spans, clock.kept, strict=False) if kept]


def peak(function) -> float:
    """MB by which the resident memory rises at the most (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not there to be used again
    Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
    before = memory("VmRSS")
    function()
    return memory("VmHWM") - before


def memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10
