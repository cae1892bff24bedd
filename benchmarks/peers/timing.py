"""What peers cost beside our models: same cells, one thread, alternated; the minimum of the rounds, since other jobs only add."""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd
import scvi
import torch
from _common import say, write_page
from predictor import ForeignPredictor
from run import OURS, PEERS, SETTINGS, SIZE_FACTOR, load_screen, models_of

import scvi_causal
from scvi_causal import metrics
from scvi_causal.benchmark import ModelPredictor
from scvi_causal.data import parse_label

# what is predicted: of the unseen and of the combinations as many as a fold has; the cell type has most cells
HELD_OUT = {
    "papalexi": ["CMTM6", "IRF7", "JAK2", "STAT1", "UBE2L6"],
    "kang": ["IFNB"],
    "norman": ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAPK1+TGFBR2"],
}
CELL_TYPE = "CD4 T"
TIMED = ["SCCVAE", "PerturbedMean"]
TEXT = """CPU-seconds of one training and one prediction (user and system time, all threads of the process and of what it
starts), one thread each, the models one after the other in {rounds} rounds, of which the minimum stands here. Peers run in their
own process; `import` is what its start costs, before any data are read, and is not part of `fit`. Our models are imported
already. All settings are the models' own, except for epochs that a name states."""


def measure(screens, peers, epochs: dict[str, int], rounds: int) -> None:
    """Time our models and the peers, and write the page."""
    torch.set_num_threads(1)
    rows = []
    for name in screens:
        adata = load_screen(name)
        train, source = split(name, adata)
        specs = models_of(name, adata, peers or PEERS[name], epochs)
        specs = {model: spec for model, spec in specs.items() if model in TIMED or model not in OURS[name]}
        for number in range(rounds):
            for model, spec in specs.items():
                data = train.copy()
                if spec.valid_size:
                    data.obs["split"] = np.where(np.arange(data.n_obs) % 10 == 0, "valid", "train")
                cost = cost_of(model, spec, name, data, source.copy())
                rows.append({"screen": name, "model": model, "round": number, **cost})
                say(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
        report(rows, rounds)


def split(name: str, adata):
    """Training cells without what is held out and without the reference half of the controls; control cells to start from."""
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    test = np.isin(labels, HELD_OUT[name])
    of_context = np.ones(adata.n_obs, dtype=bool)
    if key := SETTINGS[name].get("covariate_key"):
        of_context = (adata.obs[key] == CELL_TYPE).to_numpy()
        test &= of_context
    if SETTINGS[name]["task"] == "unseen":  # no combination of a held-out token either
        test = np.array([bool(set(label.split("+")) & set(HELD_OUT[name])) for label in labels])
    seen, reference = metrics.split_controls((labels == "control") & of_context, seed=0)
    test[reference] = True
    train = adata[~test].copy()
    train.obs["split"] = "train"
    return train, adata[seen[:1000]].copy()


def cost_of(model: str, spec, name: str, train, source) -> dict[str, float]:
    """CPU-seconds of one fit and one prediction."""
    targets, context = HELD_OUT[name], SETTINGS[name].get("covariate_key")
    if spec.factory is ForeignPredictor:
        predictor = ForeignPredictor(**spec.kwargs)
        predictor.fit(train)
        predictor.predict(source, targets)
        predictor.close()
        return dict(predictor.cpu_seconds)
    keys = {
        "perturbation_features_key": SETTINGS[name].get("perturbation_features_key"),
        "size_factor_key": SIZE_FACTOR,
    }
    tokens = sorted({token for target in targets for token in parse_label(target)})
    covariates = {"categorical_covariate_keys": [context] if context else None}
    scvi.settings.seed = 0
    predictor = ModelPredictor(getattr(scvi_causal, model), setup={**keys, **covariates}, targets=tokens)
    started = time.process_time()
    predictor.fit(train)
    fitted = time.process_time()
    predictor.predict(source, targets)
    return {"import": float("nan"), "fit": fitted - started, "predict": time.process_time() - fitted}


def report(rows: list[dict], rounds: int) -> None:
    """Write what there is so far."""
    table = pd.DataFrame(rows)
    least = table.groupby(["screen", "model"], sort=False)[["fit", "predict", "import"]].min()
    parts = [(TEXT.format(rounds=rounds), least)]
    write_page("peers_speed", "CPU-seconds of peers", parts, [0], table)


if __name__ == "__main__":
    sys.exit("Run benchmarks/peers/run.py timing.")
