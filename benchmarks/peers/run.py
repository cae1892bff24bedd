"""Peers in the same tables as the models of this package.

    python benchmarks/peers/run.py papalexi          # unseen knock-outs: Scouter, GEARS
    python benchmarks/peers/run.py kang              # a cell type left out: scGen
    python benchmarks/peers/run.py norman            # unseen combinations: GEARS, CPA, Scouter
    python benchmarks/peers/run.py speed             # CPU-seconds of these runs

The rows are added to the run of ``reports.py`` in ``benchmarks/runs/<screen>``; start that script again to write the report with
them. The environments are those of ``install.sh``. A run that was stopped goes on where it was; a peer whose environment is
not installed fails in its rows, the others stand.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parent.parent))

from _common import ROOT, say, write_page
from _screens import GO, SETTINGS, SIZE_FACTOR, load_screen, tokens_of
from predictor import SCRIPTS, ForeignPredictor

from scvi_causal import benchmark
from scvi_causal.benchmark import ModelSpec

if TYPE_CHECKING:
    from anndata import AnnData

PEERS = {"papalexi": ["scouter", "gears"], "kang": ["scgen"], "norman": ["scouter", "gears", "cpa"]}
TITLES = {"scouter": "Scouter", "gears": "GEARS", "scgen": "scGen (pertpy)", "cpa": "CPA"}
SPEED = """CPU-seconds (user and system time of all threads, of child processes too) of one fit and all predictions of a fold, one
thread each; `cpu_s` is the minimum over the folds. The peers of a screen took turns fold by fold, and so did our models, in a
run of their own on the same machine. Peers start a process of their
own, whose imports (3 to 15 s) are contained. Settings are the models' own except for epochs that a name states."""


def peer_spec(peer: str, name: str, adata: AnnData, epochs: int | None = None) -> tuple[str, ModelSpec]:
    """Name in the tables, and how the peer is made."""
    kwargs = {
        "peer": peer,
        "size_factor_key": SIZE_FACTOR,
        "context_key": SETTINGS[name].get("covariate_key"),
        "tokens": tokens_of(adata),
        "script_version": version_of(peer),
    }
    setup = {}
    if peer == "scouter":
        kwargs["features_key"] = setup["features"] = GO
    if peer == "gears":
        kwargs["gene2go"] = True
    if epochs is not None:
        kwargs["options"] = {"epochs": epochs}
    title = TITLES[peer] + (f" ({epochs} epochs)" if epochs is not None else "")
    # CPA stops by cells that are held out; the others hold out perturbations, or choose cells themselves
    return title, ModelSpec(ForeignPredictor, kwargs, setup, valid_size=0.1 if peer == "cpa" else 0.0)


def version_of(peer: str) -> str:
    """Hash of what runs in the peer's environment: with another script, stored results are not those of this one."""
    text = b"".join((SCRIPTS / name).read_bytes() for name in ("_exchange.py", f"run_{peer}.py"))
    return hashlib.blake2b(text, digest_size=4).hexdigest()


def main() -> None:
    """Run the peers of one screen, or tell what all cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*PEERS, "speed"])
    parser.add_argument("--peers", nargs="+", choices=list(TITLES), help="by default all that fit the question")
    parser.add_argument(
        "--epochs", nargs="+", default=[], metavar="PEER=N", help="fewer epochs than a peer's own, named in the table"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    if options.what == "speed":
        speed()
        return
    epochs = {peer: int(n) for peer, n in (item.split("=") for item in options.epochs)}
    name, adata = options.what, load_screen(options.what)
    benchmark.run(
        adata,
        models=dict(peer_spec(peer, name, adata, epochs.get(peer)) for peer in options.peers or PEERS[name]),
        out=ROOT / "benchmarks" / "runs" / name,
        size_factor_key=SIZE_FACTOR,
        seeds=tuple(options.seeds),
        command=" ".join(["python", "benchmarks/peers/run.py", *sys.argv[1:]]),
        progress=say,
        report=False,
        **SETTINGS[name],
    )


def speed() -> None:
    """Write what one fold costs, from the stored runs: the models took turns, fold by fold, with one thread each."""
    tables = []
    for name in PEERS:
        results = benchmark.load(ROOT / "benchmarks" / "runs" / name).results
        jobs = results[results["status"] == "ok"].drop_duplicates(["model", "seed", "fold"])
        jobs = jobs.assign(cpu_s=jobs["fit_cpu_s"] + jobs["predict_cpu_s"])
        cost = jobs.groupby("model").agg(
            cpu_s=("cpu_s", "min"), median_cpu_s=("cpu_s", "median"), folds=("fold", "size")
        )
        tables.append(cost.sort_values("cpu_s").assign(screen=name).reset_index())
    table = pd.concat(tables).set_index(["screen", "model"])
    write_page("peers_speed", "CPU-seconds of peers", [(SPEED, table)], [0])


if __name__ == "__main__":
    main()
