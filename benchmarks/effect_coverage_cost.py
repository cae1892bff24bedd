"""What do average effects cost on 100,000 cells x 2,000 genes, sparse?

python benchmarks/effect_coverage_cost.py
"""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pandas as pd
from _common import say, write_page
from scipy import sparse

from scvi_causal.effects import StratumPredictions, estimate_effects

N_CELLS, N_GENES, N_PERTURBATIONS = 100_000, 2_000, 100
TEXT = f"""{N_CELLS:,} cells x {N_GENES:,} genes in a CSR matrix of float32 with 10 % of the values not zero, {N_PERTURBATIONS}
perturbations and as many rows of the table per method as perturbations times genes; one thread. `peak`: the highest memory that Python allocated
beyond what was there before, the table included; a dense copy of the cells in float64 would be {N_CELLS * N_GENES * 8 / 1e6:,.0f} MB.
`from cells`: a prediction of every cell under every target, here by a function that costs nothing, for 1 perturbation: the cost is that
of summing them up, and grows with their number."""


def make():
    """Counts, labels, batches, donors."""
    rng = np.random.default_rng(0)
    per_cell = N_GENES // 10
    steps = rng.integers(1, 2 * N_GENES // per_cell - 1, (N_CELLS, per_cell)).cumsum(
        1
    )  # increasing, so that no gene is twice
    steps %= N_GENES
    indptr = np.arange(N_CELLS + 1) * per_cell
    y = sparse.csr_matrix(
        (rng.random(N_CELLS * per_cell, dtype=np.float32), steps.ravel(), indptr), shape=(N_CELLS, N_GENES)
    )
    y.sum_duplicates()
    names = np.array(["control", *(f"P{i}" for i in range(N_PERTURBATIONS))])
    share = np.r_[0.1, np.full(N_PERTURBATIONS, 0.9 / N_PERTURBATIONS)]
    return y, rng.choice(names, N_CELLS, p=share), rng.integers(0, 8, N_CELLS), rng.integers(0, 6, N_CELLS)


def main() -> None:
    """Time and memory of each way to ask."""
    y, labels, batch, donor = make()
    rng = np.random.default_rng(1)
    means = {name: rng.random((8, N_GENES)) for name in np.unique(labels)}
    strata = StratumPredictions(batch, means)

    def from_cells(rows, names):
        return (np.broadcast_to(means[name][0], (len(rows), N_GENES)) for name in names)

    cases = {
        "group means": {"method": "group"},
        "robust from 8 strata": {"predicted": strata},
        "group, robust, tuned from 8 strata": {"predicted": strata, "method": ["group", "robust", "tuned"]},
        "robust from strata, 6 donors as clusters": {"predicted": strata, "cluster": donor},
        "robust from cells, 1 perturbation": {"predicted": from_cells, "perturbations": "P0"},
    }
    rows = []
    for name, options in cases.items():
        started = time.process_time()
        tracemalloc.start()
        table = estimate_effects(y, labels, **options)
        seconds = time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append({"what": name, "rows": len(table), "CPU seconds": seconds, "peak (MB)": peak / 1e6})
        say(f"{name}: {seconds:.1f} s, {peak / 1e6:.0f} MB")
    table = pd.DataFrame(rows).set_index("what").round({"CPU seconds": 1, "peak (MB)": 0})
    write_page("effect_coverage_cost", "What average effects cost", [(TEXT, table)], [0, 1], table.reset_index())


if __name__ == "__main__":
    main()
