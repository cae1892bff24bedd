"""Shared by the benchmarks: where the data lie, quiet training, and tables that say how they were made."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import scvi

from scvi_causal import metrics

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared"
QUIET = {"enable_progress_bar": False}
# the models score by these; what each means is in scvi_causal.metrics.METRICS
COLUMNS = ["r2_de", "pearson_effect", "mse_ratio", "energy", "variance_ratio"]

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def data_file(name: str) -> Path:
    """A file of the data folder, which the repository does not contain."""
    return _find(Path(os.environ.get("SCVI_CAUSAL_DATA", SHARED / "data")) / name, "SCVI_CAUSAL_DATA")


def prior_file(name: str) -> Path:
    """A file of the folder of prior knowledge."""
    return _find(Path(os.environ.get("SCVI_CAUSAL_PRIOR", SHARED / "prior")) / name, "SCVI_CAUSAL_PRIOR")


def _find(path: Path, variable: str) -> Path:
    if not path.exists():
        raise SystemExit(f"{path.name} is not in {path.parent}. Set {variable} to the folder that holds it.")
    return path


def load(name: str) -> tuple[ad.AnnData, np.ndarray, np.ndarray]:
    """The AnnData, its (cells, genes) log1p of counts per 10,000 of the full library, and its labels."""
    adata = ad.read_h5ad(data_file(name))
    x = metrics.log1p_normalize(adata.X, adata.obs["library_size_full"].to_numpy())
    return adata, np.asarray(x.todense()), adata.obs["perturbation"].astype(str).to_numpy()


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def fit(model_class, adata, setup: dict, seed: int, train: dict | None = None, **kwargs):
    """Set up, seed, train on ``obs["split"]``; returns the model and its CPU-seconds."""
    started = time.process_time()
    scvi.settings.seed = seed
    model_class.setup_anndata(adata, **setup)
    model = model_class(adata, **kwargs)
    options = {} if model.__class__.__name__ not in ("SCCVAE", "VCI") else {**QUIET, **(train or {})}
    model.train(split_key="split", **options)
    return model, time.process_time() - started


def draw(model, perturbation: str, sources: np.ndarray, seed: int = 0, **options) -> np.ndarray:
    """(sources, genes) drawn cells under a perturbation, log1p of counts per 10,000."""
    options = {"output": "log1p", "sample": True, "seed": seed, **options}
    return np.asarray(model.predict_counterfactual([perturbation], indices=sources, **options).X)


# ---------------------------------------------------------------------- what is written


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _commit() -> str:
    """The commit of the library that was imported; the tables themselves do not count as changes."""
    dirty = _git("status", "--porcelain", "--untracked-files=no", "--", "src")
    return _git("log", "-1", "--format=%h", "--", "src") + (" with uncommitted changes in src" if dirty else "")


STAMP = {
    "command": " ".join(["python", *(os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:])]),
    "commit of src": _commit(),  # at the start: others may commit while a benchmark runs
    "versions": ", ".join(
        [f"Python {platform.python_version()}"]
        + [f"{name} {version(name)}" for name in ("scvi-causal", "scvi-tools", "torch", "anndata", "numpy", "scipy")]
    ),
}


def to_markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table for a page; the index is the first column."""
    table = table.reset_index()
    rows = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    for values in table.itertuples(index=False):
        rows.append(
            [f"{v:.{digits}f}" if isinstance(v, float | np.floating) else str(v) for v in values],
        )
    rows = [["–" if cell == "nan" else cell for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_page(name: str, title: str, parts: list[tuple[str, pd.DataFrame | None]], seeds, long=None) -> None:
    """Write ``results/<name>.md``, text and tables in turn, and every single number to ``results/<name>.csv``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", ""]
    for text, table in parts:
        lines += [text, ""] + ([] if table is None else [to_markdown(table), ""])
    lines += ["Made by:", ""] + [f"- {key}: `{value}`" for key, value in {**STAMP, "seeds": seeds}.items()]
    if long is not None:
        long.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.5g")
        lines.append(f"- every single number: [{name}.csv]({name}.csv)")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    say(f"wrote results/{name}.md")
