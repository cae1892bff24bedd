"""What a step of GIM's graph search costs, from 10 to 1,000 nodes.

    python benchmarks/gim_speed.py

A step of the search (gradient of the marginal likelihood of 200 populations with the determinant of the cyclic model, and Adam),
beside the same with the matrix exponential of NOTEARS as a penalty through automatic differentiation, and beside nothing but
the matrix products and the inverse that a step cannot do without. CPU-seconds of one thread; the methods take turns, and the
smallest of several rounds counts.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psutil
import torch
from _common import say, write_page

from scvi_causal.model.gim._graph import find_graph
from scvi_causal.model.gim._objective import ShiftObjective, Statistics
from scvi_causal.model.gim._search import SearchOptions
from scvi_causal.nn import trace_exponential

if TYPE_CHECKING:
    from collections.abc import Callable

SETS = 200
TEXT = """CPU-seconds per 1,000 steps, one thread, 200 populations, float32, one restart. *GIM*: gradient and update as they are.
*NOTEARS penalty*: the same likelihood, its gradient and that of the matrix exponential by automatic differentiation, and the update.
*bare*: the three products and the inverse of a step, nothing else. *ratio*: GIM over bare. *tensors*: what a step holds at once, in MB: weights, gradient
and the two moments of Adam, second moments of the nodes, means of the populations, and the three matrices of a step."""
MASKED = """A sparse prior network instead of a search: hill climbing from no edge among 3 candidate parents per node
(`grn="mask"`), on 200 populations, the whole fit of the graph once. Peak is the growth of the process in MB."""


def problem(d: int, seed: int = 0) -> Statistics:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * d, d)).astype(np.float32)
    covariance = np.cov(x, rowvar=False)
    mean = rng.normal(size=(SETS, d)) * (rng.random((SETS, d)) < 0.1)
    as_tensor = lambda a: torch.tensor(a, dtype=torch.float32)
    return Statistics(2_000.0, torch.zeros(d), torch.full((SETS,), 50.0), as_tensor(mean), as_tensor(covariance))


def ours(data: Statistics) -> Callable[[], None]:
    objective = ShiftObjective(data)
    p = objective.start(1)
    optimizer = torch.optim.Adam(p.values(), lr=1e-2)

    def step() -> None:
        with torch.no_grad():
            objective.set_gradient(p, 3.0)
            p["weight"].grad += 0.06 * p["weight"].sign()
            optimizer.step()

    return step


def notears(data: Statistics) -> Callable[[], None]:
    objective = ShiftObjective(data)
    p = {name: value.requires_grad_() for name, value in objective.start(1).items()}
    optimizer = torch.optim.Adam(p.values(), lr=1e-2)

    def step() -> None:
        value = objective.value(p, 3.0, cyclic=False).sum() + 0.06 * p["weight"].abs().sum()
        value = value + trace_exponential(p["weight"].square()).sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def bare(data: Statistics) -> Callable[[], None]:
    d = data.n_nodes
    system = torch.eye(d) - 0.01 * torch.randn(d, d) / d
    pull = torch.randn(SETS, d)

    def step() -> None:
        with torch.no_grad():
            data.covariance @ system
            data.mean @ system
            data.mean.T @ pull
            torch.linalg.inv(system)

    return step


METHODS = {"GIM": ours, "NOTEARS penalty": notears, "bare": bare}


def measure(d: int, rounds: int, seconds: float) -> dict[str, float]:
    """Smallest CPU-seconds per 1,000 steps of each method."""
    data = problem(d)
    steps = {name: make(data) for name, make in METHODS.items()}
    best = dict.fromkeys(METHODS, np.inf)
    counts = {}
    for name, step in steps.items():
        step()  # the first one allocates
        started = time.process_time()
        step()
        counts[name] = int(np.clip(seconds / max(time.process_time() - started, 1e-5), 1, 500))
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            for _ in range(counts[name]):
                step()
            best[name] = min(best[name], 1_000 * (time.process_time() - started) / counts[name])
    held = 4 * (4 * d * d + d * d + SETS * d + 3 * d * d + 3 * SETS * d) / 2**20
    return {"nodes": d, **best, "ratio": best["GIM"] / best["bare"], "tensors": held}


def masked(d: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    data = problem(d)
    mask = np.zeros((d, d), dtype=bool)
    mask[rng.integers(0, d, 3 * d), np.repeat(np.arange(d), 3)] = True
    np.fill_diagonal(mask, False)
    process = psutil.Process()
    before, started = process.memory_info().rss, time.process_time()
    tracemalloc.start()
    found = find_graph(data, SearchOptions(n_kicks=0), hard=False, mask=mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    grown = max(peak, process.memory_info().rss - before) / 2**20
    return {
        "nodes": d,
        "candidates": int(mask.sum()),
        "edges": int(found.graph.sum()),
        "CPU-seconds": time.process_time() - started,
        "peak": grown,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 20, 50, 100, 200, 500, 1000])
    parser.add_argument("--masked", type=int, nargs="*", default=[200, 500, 1000, 2000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU-seconds of one method in one round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for d in options.nodes:
        rows.append(measure(d, options.rounds, options.seconds))
        say(" ".join(f"{k}={v:.3g}" for k, v in rows[-1].items()))
    sparse = []
    for d in options.masked:
        sparse.append(masked(d))
        say(" ".join(f"{k}={v:.3g}" for k, v in sparse[-1].items()))
    parts = [
        (TEXT, pd.DataFrame(rows).set_index("nodes")),
        ("## With a mask\n\n" + MASKED, pd.DataFrame(sparse).set_index("nodes")),
    ]
    write_page("gim_speed", "GIM: what a step costs", parts, "none")


if __name__ == "__main__":
    main()
