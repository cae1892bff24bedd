"""SAMS-VAE on two real screens, through the benchmark of the package.

    python benchmarks/samsvae_screens.py papalexi     # seen perturbations, unseen cells
    python benchmarks/samsvae_screens.py norman       # unseen combinations

The tables have the simple baselines and ablations. What is done stays in ``benchmarks/runs``.
"""

from __future__ import annotations

import argparse

import pandas as pd
from _common import ROOT, say, write_page
from _screens import GO, SIZE_FACTOR, load_screen

from scvi_causal import benchmark
from scvi_causal.benchmark import ModelSpec

SETTINGS = {
    "papalexi": {"task": "seen"},
    "norman": {"task": "combination", "perturbation_features_key": GO, "n_folds": 3},
}
TITLES = {"papalexi": "Papalexi, seen perturbations and unseen cells", "norman": "Norman, unseen combinations"}
TEXT = {
    "papalexi": """Means over the 25 knock-outs; every number through `scvi_causal.benchmark.run`. The defaults of SAMS-VAE were chosen on halves of halves of
these cells.""",
    "norman": """Means over the 15 combinations, each unseen in one of three folds; every number through `scvi_causal.benchmark.run`. While the defaults of
SAMS-VAE were chosen, five of these combinations were looked at.""",
}
STEPS = 600
CELLS = {"papalexi": 10_000, "norman": 2_700}
METRICS = {
    "r2_de": "R2 (DE genes)",
    "pearson_effect": "Pearson of effects",
    "mse_unbiased_ratio": "MSE / control, unbiased",
    "mse_ratio": "MSE / control",
    "energy_pca": "energy distance (PCA)",
    "energy": "energy distance",
    "variance_ratio": "variance ratio",
}


def models(name: str) -> dict:
    """SAMS-VAE, its ablations, and what it has to beat."""
    epochs = max(1, round(STEPS / (CELLS[name] // 512)))
    spec = {
        "SAMSVAE": "SAMSVAE",
        "SAMSVAE, no remainder": ModelSpec("SAMSVAE", {"remainder": False}),
        "SAMSVAE, dense": ModelSpec("SAMSVAE", {"mechanism": "dense"}),
        "SAMSVAE, no start": ModelSpec("SAMSVAE", {"start_at_effects": False}),
        "SAMSVAE, no calibration": ModelSpec("SAMSVAE", {"calibrate": False}),
        f"SAMSVAE, paper ({STEPS} steps)": ModelSpec("SAMSVAE", {"preset": "paper"}, train={"max_epochs": epochs}),
        "SCCVAE": "SCCVAE",
        "ControlMean": "ControlMean",
        "PerturbedMean": "PerturbedMean",
        "Additive": "Additive",
    }
    return spec


def main() -> None:
    """Run what is not done, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("screen", choices=list(SETTINGS))
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    chosen = models(options.screen)
    result = benchmark.run(
        load_screen(options.screen),
        models={name: spec for name, spec in chosen.items() if not options.models or name in options.models},
        out=ROOT / "benchmarks" / "runs" / f"samsvae_{options.screen}",
        size_factor_key=SIZE_FACTOR,
        seeds=tuple(options.seeds),
        progress=say,
        report=False,
        **SETTINGS[options.screen],
    )
    table = pd.DataFrame(result.results)
    numbers = [m for m in METRICS if m in table]
    out = table.groupby("model")[numbers].mean().rename(columns=METRICS)
    order = [name for name in chosen if name in out.index]
    out = out.loc[[*order, *[name for name in out.index if name not in order]]]
    text = TEXT[options.screen]
    write_page(f"samsvae_{options.screen}", f"SAMS-VAE: {TITLES[options.screen]}", [(text, out)], options.seeds, table)


if __name__ == "__main__":
    main()
