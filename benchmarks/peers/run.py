"""Peers in the same tables as the models of this package.

    python benchmarks/peers/run.py papalexi          # unseen knock-outs: Scouter, GEARS
    python benchmarks/peers/run.py kang              # a cell type left out: scGen
    python benchmarks/peers/run.py norman            # unseen combinations: GEARS, CPA, Scouter
    python benchmarks/peers/run.py timing            # CPU-seconds, one thread, alternated, minimum of three rounds

The environments are those of ``install.sh``. A run that was stopped goes on where it was; a peer whose environment is not
installed fails in its rows, the others stand.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).resolve().parent.parent))

from _common import ROOT, data_file, prior_file, say
from predictor import SCRIPTS, ForeignPredictor

from scvi_causal import benchmark
from scvi_causal.benchmark import ModelSpec
from scvi_causal.data import parse_label

GO = "go"
ALIAS = {"MARCH8": "MARCHF8"}
SETTINGS = {
    "papalexi": {"task": "unseen", "perturbation_features_key": GO},
    "kang": {"task": "context", "covariate_key": "cell_type"},
    "norman": {"task": "combination", "perturbation_features_key": GO},
}
FILES = {
    "papalexi": "papalexi21_thp1_eccite.h5ad",
    "kang": "kang18_pbmc_ifnb.h5ad",
    "norman": "norman19_k562.h5ad",
}
SIMPLE = ["SCCVAE", "ControlMean", "PerturbedMean", "Additive"]
WITH_FEATURES = [*SIMPLE, "LinearEffect", "NearestPerturbation"]
OURS = {"papalexi": WITH_FEATURES, "kang": SIMPLE, "norman": WITH_FEATURES}
PEERS = {"papalexi": ["scouter", "gears"], "kang": ["scgen"], "norman": ["scouter", "gears", "cpa"]}
TITLES = {"scouter": "Scouter", "gears": "GEARS", "scgen": "scGen (pertpy)", "cpa": "CPA"}
SIZE_FACTOR = "library_size_full"


def load_screen(name: str) -> ad.AnnData:
    """A screen with the GO features of its perturbations in ``uns``, where they are genes."""
    adata = ad.read_h5ad(data_file(FILES[name]))
    if "perturbation_features_key" in SETTINGS[name]:
        archive = np.load(prior_file("gene_embedding_go_svd128.npz"), allow_pickle=True)
        table = pd.DataFrame(archive["embedding"], archive["genes"].astype(str)).add_prefix("go_")
        tokens = tokens_of(adata)
        # a gene without annotation is nothing but zeros in this embedding
        adata.uns[GO] = table.reindex([ALIAS.get(token, token) for token in tokens]).fillna(0.0).set_axis(tokens)
    return adata


def tokens_of(adata: ad.AnnData) -> list[str]:
    """Names of all perturbations, in alphabetical order."""
    return sorted({token for label in adata.obs["perturbation"].unique() for token in parse_label(label)})


def peer_spec(peer: str, name: str, adata: ad.AnnData, epochs: int | None = None) -> tuple[str, ModelSpec]:
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


def models_of(name: str, adata: ad.AnnData, peers: list[str], epochs: dict[str, int]) -> dict[str, ModelSpec]:
    """Our models and the peers of a screen."""
    specs = {model: ModelSpec(model) for model in OURS[name]}
    return specs | dict(peer_spec(peer, name, adata, epochs.get(peer)) for peer in peers)


def main() -> None:
    """Run one screen, or the timing of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*SETTINGS, "timing"])
    parser.add_argument("--peers", nargs="+", choices=list(TITLES), help="by default all that fit the question")
    parser.add_argument(
        "--epochs", nargs="+", default=[], metavar="PEER=N", help="fewer epochs than a peer's own, named in the table"
    )
    parser.add_argument(
        "--peers-only", action="store_true", help="add the peers to a run of our models that is in --out"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--engine", default="inprocess")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--screens", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="of the timing")
    parser.add_argument("--rounds", type=int, default=3, help="of the timing")
    parser.add_argument("--out", type=Path, help="folder of the run; by default benchmarks/runs/peers_<screen>")
    options = parser.parse_args()
    epochs = {peer: int(n) for peer, n in (item.split("=") for item in options.epochs)}
    if options.what == "timing":
        from timing import measure

        measure(options.screens, options.peers, epochs, options.rounds)
        return
    run_screen(options.what, options, epochs)


def run_screen(name: str, options: argparse.Namespace, epochs: dict[str, int]) -> None:
    """The benchmark of one screen."""
    adata = load_screen(name)
    models = models_of(name, adata, options.peers or PEERS[name], epochs)
    result = benchmark.run(
        adata,
        models={model: spec for model, spec in models.items() if not (options.peers_only and model in OURS[name])},
        out=options.out or ROOT / "benchmarks" / "runs" / f"peers_{name}",
        size_factor_key=SIZE_FACTOR,
        n_folds=options.folds,
        seeds=tuple(options.seeds),
        engine=options.engine,
        n_workers=options.workers,
        command=" ".join(["python", "benchmarks/peers/run.py", *sys.argv[1:]]),
        **SETTINGS[name],
    )
    say(f"{name}: {len(result.results):,} rows")


if __name__ == "__main__":
    main()
