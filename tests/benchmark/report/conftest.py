"""Rows of a benchmark as a run leaves them, made up with known quality."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_causal.benchmark._report import _sections
from scvi_causal.benchmark._report._blocks import Picture

# value of a prediction without skill, of the ceiling, and the noise of one population
VALUES = {
    "r2_de": (0.1, 0.95, 0.05),
    "pearson_effect": (0.25, 0.80, 0.05),
    "mse_ratio": (1.0, 0.10, 0.05),
    "energy": (3.0, 0.05, 0.2),
    "variance_ratio": (0.7, 0.98, 0.03),
    "pearson_centred": (0.0, 0.75, 0.05),
    "discrimination": (0.5, 0.97, 0.04),
}
# skill on the way from no prediction (0) to the ceiling (1)
MODELS = {"SCCVAE": (False, 0.6), "ControlMean": (True, 0.0), "PerturbedMean": (True, 0.3)}


def make_frames(
    n_perturbations=20,
    contexts=("",),
    seeds=(0, 1),
    n_null=5,
    models=MODELS,
    n_folds=5,
    metrics=VALUES,
    kinds=("",),
    seed=0,
):
    """``results`` and ``ceiling``; the last ``n_null`` perturbations are indistinguishable from control."""
    rng = np.random.default_rng(seed)
    results, ceiling = [], []
    width = len(str(n_perturbations))
    for number in range(n_perturbations):
        null = number >= n_perturbations - n_null
        for context in contexts:
            strength = 0.0 if null else rng.uniform(0.5, 1.0)
            for run in seeds:
                keys = {
                    "task": "unseen",
                    "fold": number % n_folds,
                    "seed": run,
                    "perturbation": f"GENE{number:0{width}d}",
                    "context": context,
                    "kind": kinds[number % len(kinds)],
                    "n_observed": 100 + number,
                }
                row = {}
                for metric, (zero, one, sd) in metrics.items():
                    row[metric] = zero + strength * (one - zero)
                    row[f"{metric}_low"], row[f"{metric}_high"] = row[metric] - sd, row[metric] + sd
                p_effect = rng.uniform(0.2, 1.0) if null else 0.002
                ceiling.append(keys | row | {"p_effect": p_effect})
                for model, (is_baseline, skill) in models.items():
                    scores = {
                        metric: zero + skill * strength * (one - zero) + (rng.normal(0, sd) if skill else 0.0)
                        for metric, (zero, one, sd) in metrics.items()
                    }
                    cost = {"fit_cpu_s": 10 * (1 + number % n_folds), "predict_cpu_s": 1.0, "score_cpu_s": 0.5}
                    results.append(
                        {"model": model, "is_baseline": is_baseline}
                        | keys
                        | {"n_predicted": 100, "status": "ok", "error": "", "leak": "", "tuned": "{}"}
                        | scores
                        | cost
                        | {"wall_s": 12.0, "peak_memory_mb": 500.0 + number % n_folds}
                    )
    return pd.DataFrame(results), pd.DataFrame(ceiling)


@pytest.fixture
def words_only(monkeypatch):
    """No pictures: they take the longest, and tests of words do not need them."""
    monkeypatch.setattr(_sections, "skill_picture", lambda found: None)
    monkeypatch.setattr(_sections, "score_pictures", lambda found: [])
    monkeypatch.setattr(_sections, "effect_picture", lambda *args: Picture("effects.png", b"", "", ""))


@pytest.fixture
def frames():
    """The function that makes them."""
    return make_frames
