"""The peer's side of the exchange of files. Runs in the peer's environment: nothing of ours is installed there.

    python run_<peer>.py FOLDER

FOLDER holds ``job.json`` (seed, tokens, options), ``train.h5ad`` and, for peers that use them, ``features.csv`` (a row per
token) and ``gene2go.csv`` (gene, term). In every h5ad X is log1p of counts per 10,000 of the library, ``layers["counts"]``
the counts, and ``obs`` has ``perturbation`` ("ctrl", "A", "A+B"), ``context``, ``split`` ("train", "valid") and ``library``.

The process trains, says so, and stays: every further line on its standard input names a folder with ``source.h5ad``, the
control cells to start from, and ``targets.json``; it writes ``predicted.h5ad`` there. So a peer is trained once, whatever
is asked of it afterwards. Answers are lines of JSON on standard output. The process ends when its input is closed.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd


@dataclass
class Job:
    """What was asked: ``tokens`` are the names of all perturbations that may be asked for, with training cells or without."""

    seed: int
    tokens: list[str]
    options: dict
    features: pd.DataFrame | None
    gene2go: dict[str, set[str]] | None


def serve(fit, predict) -> None:
    """Train, then answer until the input ends.

    Parameters
    ----------
    fit
        ``fit(train, job) -> model``.
    predict
        ``predict(model, source, targets, job) -> {target: (cells, genes)}``, on the scale of X.
    """
    # peers print to standard output as they like: all of it goes to the log, the answers keep the pipe
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder = Path(sys.argv[1]).resolve()
    requests = _requests()
    os.chdir(folder)  # what a peer leaves behind stays in the folder
    imported = cpu_seconds()  # before this line a peer is imported, and nothing else
    model = job = None

    def train():
        nonlocal model, job
        job = _read_job(folder)
        model = fit(ad.read_h5ad(folder / "train.h5ad"), job)

    _answer(answers, train, import_cpu_seconds=imported)
    while True:
        where = Path(requests.get())
        _answer(answers, lambda where=where: _predict(where, predict, model, job))


def _read_job(folder: Path) -> Job:
    features, gene2go = folder / "features.csv", folder / "gene2go.csv"
    pairs = pd.read_csv(gene2go) if gene2go.exists() else None
    return Job(
        **json.loads((folder / "job.json").read_text()),
        features=pd.read_csv(features, index_col=0, keep_default_na=False) if features.exists() else None,
        gene2go=None if pairs is None else {gene: set(terms) for gene, terms in pairs.groupby("gene")["term"]},
    )


def _requests() -> queue.Queue:
    """Folders as they are named on standard input; the process ends with its input, also in the middle of training."""
    lines = queue.Queue()
    # a process that a peer forks closes its standard input, and would wait forever for the thread that reads it
    pipe = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def read() -> None:
        for line in pipe:
            lines.put(line.rstrip("\n"))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _predict(where: Path, predict, model, job: Job) -> None:
    source, targets = ad.read_h5ad(where / "source.h5ad"), json.loads((where / "targets.json").read_text())
    populations = predict(model, source, targets, job)
    labels = np.repeat(np.array(targets, dtype=object), [len(populations[target]) for target in targets])
    x = np.concatenate([np.asarray(populations[target], dtype=np.float32) for target in targets])
    names = pd.Index([f"{label}-{i}" for i, label in enumerate(labels)], dtype=object)
    obs = pd.DataFrame({"perturbation": labels}, index=names)
    ad.AnnData(x, obs=obs, var=pd.DataFrame(index=source.var_names)).write_h5ad(where / "predicted.h5ad")


def _answer(answers, work, **more: float) -> None:
    """Do the work, and tell what it cost or why it failed."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is told to whoever asked
        traceback.print_exc()
        more["error"] = traceback.format_exception_only(type(error), error)[-1].strip()
    more |= {"cpu_seconds": cpu_seconds() - cpu, "seconds": time.perf_counter() - wall}
    answers.write(json.dumps(more) + "\n")
    answers.flush()


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def pairs_with_ctrl(labels) -> list[str]:
    """ "ctrl" as it is, "A" as "A+ctrl", "A+B" as it is: what GEARS and Scouter call a condition."""
    return [label if label == "ctrl" or "+" in label else f"{label}+ctrl" for label in labels]


def one_in_ten(conditions, seed: int) -> list[str]:
    """A tenth of the perturbations, at least one, by which a peer chooses its epoch."""
    names = sorted(set(conditions) - {"ctrl"})
    return sorted(np.random.default_rng(seed).permutation(names)[: max(1, round(0.1 * len(names)))])
