"""A foreign model as a predictor of the benchmark: it runs in its own environment and is spoken to through files.

``fit`` writes the training cells as h5ad and starts the peer's Python on ``scripts/run_<peer>.py``; the process stays, and
``predict`` asks it. What is written and answered is in ``scripts/_exchange.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scvi_causal import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE / "scripts"
LOG_LINES = 30


@dataclass(frozen=True)
class Peer:
    """What a peer can be asked for.

    Parameters
    ----------
    grounds
        What a token without training cells needs: ``"features"``, ``"gene2go"`` or, where it cannot be predicted, ``""``.
    combinations
        Whether combinations that have no training cells can be predicted.
    """

    grounds: str = ""
    combinations: bool = True


PEERS = {
    "scouter": Peer(grounds="features"),
    "scgen": Peer(combinations=False),
    "gears": Peer(grounds="gene2go"),
    "cpa": Peer(),
}


class ForeignPredictor:
    """A peer behind ``fit`` and ``predict``; predictions are log1p of counts per 10,000 of the library.

    Parameters
    ----------
    peer
        A name of ``PEERS``.
    tokens
        Names of the perturbations that may be asked for and have no training cells. GEARS needs their names for its graph.
    features_key
        Table of features of the tokens in ``uns``.
    gene2go
        GO terms per gene, in the folder of prior knowledge of the benchmarks.
    options
        For the peer's script, e.g. ``{"epochs": 2}``.
    threads
        Of the peer.
    python, script
        Another interpreter and script than those of the peer.
    script_version
        Used for nothing: it tells stored results of one script from those of another.

    Attributes
    ----------
    cpu_seconds
        CPU-seconds of the peer's process: ``"import"``, ``"fit"``, ``"predict"`` (all predictions so far).
    """

    scale = "log1p"

    def __init__(
        self,
        peer: str,
        *,
        perturbation_key: str = "perturbation",
        control_category: str = "control",
        perturbation_separator: str = "+",
        size_factor_key: str = "library_size_full",
        layer: str | None = None,
        context_key: str | None = None,
        tokens: Sequence[str] = (),
        features_key: str | None = None,
        gene2go: bool = False,
        seed: int = 0,
        threads: int = 1,
        options: dict | None = None,
        python: str | Path | None = None,
        script: str | Path | None = None,
        script_version: str = "",
    ):
        if peer not in PEERS:
            raise ValueError(f"There is no peer {peer!r}; there are {', '.join(PEERS)}.")
        self.peer, self._can = peer, PEERS[peer]
        self._keys = {"perturbation": perturbation_key, "library": size_factor_key, "context": context_key}
        self._control, self._separator, self._layer = control_category, perturbation_separator, layer
        self._tokens, self._features_key, self._gene2go = tuple(tokens), features_key, gene2go
        self._seed, self._threads, self._options = seed, threads, dict(options or {})
        self._python, self._script = python, Path(script or SCRIPTS / f"run_{peer}.py")
        self.cpu_seconds: dict[str, float] = {}

    # ------------------------------------------------------------------ the protocol

    def fit(self, adata: ad.AnnData) -> None:
        """Train the peer on all cells given, in its own process."""
        command = [str(self._python or interpreter(self.peer)), str(self._script)]
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self.peer}-"))
        cells = self._exchanged(adata)
        labels = set(cells.obs["perturbation"])
        self._seen = {token for label in labels - {"ctrl"} for token in label.split("+")}
        self._seen_labels, self._predictions = labels, 0
        self._grounds = self._write_prior(adata)
        job = {"seed": self._seed, "tokens": sorted(self._seen | set(self._tokens)), "options": self._options}
        (self._folder / "job.json").write_text(json.dumps(job))
        cells.write_h5ad(self._folder / "train.h5ad")
        self._start([*command, str(self._folder)])
        answer = self._answer()
        self.cpu_seconds = {"import": answer["import_cpu_seconds"], "fit": answer["cpu_seconds"], "predict": 0.0}

    def predict(self, adata: ad.AnnData, targets: Sequence[str]) -> ad.AnnData:
        """Every control cell given, under every target."""
        if not hasattr(self, "_process"):
            raise ValueError(f"{self.peer} has not been trained; call fit first.")
        where = self._folder / f"predict_{self._predictions}"
        where.mkdir()
        self._predictions += 1
        names = {self._canonical(target): target for target in targets}
        self._exchanged(adata).write_h5ad(where / "source.h5ad")
        (where / "targets.json").write_text(json.dumps(list(names)))
        self._process.stdin.write(f"{where}\n")
        self._process.stdin.flush()
        self.cpu_seconds["predict"] += self._answer()["cpu_seconds"]
        predicted = ad.read_h5ad(where / "predicted.h5ad")
        labels = predicted.obs["perturbation"].astype(str).map(names)
        predicted.obs = pd.DataFrame({self._keys["perturbation"]: labels}, index=predicted.obs_names)
        return predicted

    def can_predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Which targets the peer has grounds for, and why not."""
        reasons = [self._why_not(self._canonical(target)) for target in targets]
        return pd.DataFrame({"predictable": [not r for r in reasons], "reason": reasons}, index=list(targets))

    def close(self) -> None:
        """End the peer's process and remove its files."""
        if hasattr(self, "_end"):
            self._end()
            del self._end, self._process

    # ------------------------------------------------------------------ files

    def _canonical(self, label: str) -> str:
        if label == self._control:
            return "ctrl"
        tokens = label.split(self._separator) if self._separator else [label]
        if wrong := [token for token in tokens if token == "ctrl" or "+" in token]:
            raise ValueError(f"Peers reserve 'ctrl' and '+': {wrong[0]!r} of {label!r} cannot be passed on; rename it.")
        return "+".join(sorted(tokens))

    def _exchanged(self, adata: ad.AnnData) -> ad.AnnData:
        """What peers read: only this, with plain strings, since old versions of anndata know no others."""
        counts = csr_matrix(adata.X if self._layer is None else adata.layers[self._layer], dtype=np.float32)
        key, library_key = self._keys["context"], self._keys["library"]
        library = np.asarray(adata.obs[library_key] if library_key else counts.sum(1), dtype=np.float64).ravel()
        names = {label: self._canonical(label) for label in adata.obs[self._keys["perturbation"]].astype(str).unique()}
        obs = {
            "perturbation": adata.obs[self._keys["perturbation"]].astype(str).map(names).to_numpy(dtype=object),
            "context": adata.obs[key].astype(str).to_numpy(dtype=object) if key else "all",
            "split": adata.obs["split"].astype(str).to_numpy(dtype=object) if "split" in adata.obs else "train",
            "library": library,
        }
        index = pd.Index([f"cell{i}" for i in range(adata.n_obs)], dtype=object)
        out = ad.AnnData(
            csr_matrix(metrics.log1p_normalize(counts, library), dtype=np.float32),
            obs=pd.DataFrame(obs, index=index).astype(dict.fromkeys(("perturbation", "context", "split"), object)),
            var=pd.DataFrame(index=pd.Index(adata.var_names, dtype=object)),
        )
        out.layers["counts"] = counts
        return out

    def _write_prior(self, adata: ad.AnnData) -> set[str]:
        """Write what the peer knows of perturbations without cells; returns the tokens it knows something of."""
        if self._features_key is not None:
            table = pd.DataFrame(adata.uns[self._features_key])
            table = table[(table != 0).any(axis=1)]  # nothing but zeros: a gene without annotation
            table.to_csv(self._folder / "features.csv")
        if self._gene2go:
            pairs = _go_terms({*adata.var_names, *self._seen, *self._tokens})
            pairs.to_csv(self._folder / "gene2go.csv", index=False)
        if not self._can.grounds:
            return self._seen
        return set(pairs["gene"] if self._can.grounds == "gene2go" else table.index.astype(str))

    def _why_not(self, label: str) -> str:
        tokens = label.split("+")
        if len(tokens) > 2:
            return f"{self.peer} takes at most two tokens"
        if len(tokens) > 1 and not self._can.combinations and label not in self._seen_labels:
            return f"{self.peer} predicts no combination without cells"
        if unknown := [token for token in tokens if token not in self._grounds]:
            what = {"": "training cells", "features": "features", "gene2go": "GO terms"}[self._can.grounds]
            return f"{', '.join(unknown)}: no {what}"
        return ""

    # ------------------------------------------------------------------ the process

    def _start(self, command: list[str]) -> None:
        with (self._folder / "log.txt").open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(self._threads),
            )
        self._end = weakref.finalize(self, _end, self._process, self._folder)

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"its process ended with code {self._process.wait()}"}
        if "error" in answer:
            log = (self._folder / "log.txt").read_text(errors="replace").splitlines()[-LOG_LINES:]
            error = RuntimeError(f"{self.peer}: {answer['error'].replace(str(self._folder), 'FOLDER')}")
            error.add_note("The end of its log:\n" + "\n".join(log))
            self.close()
            raise error
        return answer


def interpreter(peer: str) -> Path:
    """The Python of a peer's environment."""
    root = Path(os.environ.get("SCVI_CAUSAL_PEERS", HERE.parent / "runs" / "peers"))
    if not (root / peer / ".installed").exists():
        raise FileNotFoundError(
            f"The environment of {peer} is not installed. Run benchmarks/peers/install.sh {peer}, or set "
            "SCVI_CAUSAL_PEERS to the folder that holds it."
        )
    return root / peer / "bin" / "python"


def _end(process: subprocess.Popen, folder: Path) -> None:
    process.stdin.close()  # the peer ends with its input
    process.stdout.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _environment(threads: int) -> dict[str, str]:
    """The caller's environment, with the peer's own packages, the CPU and a fixed number of threads."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    out = {name: value for name, value in os.environ.items() if name not in ours}
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")
    out |= {f"{pool}_NUM_THREADS": str(threads) for pool in pools}
    if threads == 1:
        out["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return out | {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg", "PYTHONPATH": str(SCRIPTS), "JAX_PLATFORMS": "cpu"}


def _go_terms(genes: set[str]) -> pd.DataFrame:
    """Pairs of gene and term; a gene under an older symbol gets the terms of the one in use."""
    if str(HERE.parent) not in sys.path:
        sys.path.append(str(HERE.parent))
    from _common import prior_file

    terms = pd.read_csv(prior_file("gene2go_direct_human.csv.gz"), usecols=["symbol", "go_id"]).drop_duplicates()
    alias = pd.read_csv(prior_file("symbol_alias_human.csv.gz"), keep_default_na=False)
    renamed = alias[alias["alias_symbol"].isin(genes - set(terms["symbol"]))].drop_duplicates("alias_symbol")
    names = pd.concat(
        [
            pd.DataFrame({"gene": sorted(genes & set(terms["symbol"]))}).assign(symbol=lambda t: t["gene"]),
            renamed.rename(columns={"alias_symbol": "gene"}),
        ]
    )
    return names.merge(terms, on="symbol").rename(columns={"go_id": "term"})[["gene", "term"]]
