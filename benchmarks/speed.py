"""How fast SCCVAE is: a step, an epoch, the loader, memory, predictions, the import.

    python benchmarks/speed.py                     # all, writes benchmarks/results/speed.md
    python benchmarks/speed.py --part step epoch   # some, prints only

Each part runs in a process of its own with one thread. Competitors alternate within a round, and the figure of each is the minimum
of its CPU-seconds: with more threads, or by the wall clock, a busy neighbour would decide.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from _speed_tools import ROUNDS, SEED, alternate, intervals, peak, quiet, screen, timed

HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------------- the parts


def bench_step() -> list[dict]:
    """A step of the published model at full size."""
    import _published_plain as plain
    import torch

    import scvi_causal

    n_genes, n_tokens = 8563, 279
    adata = screen(640, n_genes, n_tokens, mean=2.0)
    adata.obs["perturbation"] = [f"gene_{i // 32}" if i >= 128 else "control" for i in range(adata.n_obs)]
    scvi_causal.SCCVAE.setup_anndata(adata)
    model = scvi_causal.SCCVAE(adata, preset="paper")
    generator = torch.Generator().manual_seed(SEED)
    reference = plain.PlainSCCVAE(n_genes, n_tokens)
    optimizer = plain.make_optimizer(reference)
    x, y = torch.rand(2, 32, n_genes, generator=generator, dtype=torch.float64)
    features = torch.randn(1, 50, generator=generator, dtype=torch.float64).repeat(32, 1)
    token = torch.full((32,), 3)
    products = large_products(n_genes)

    def is_perturbed(batch) -> bool:
        return bool(batch["perturbation"].any())

    best = alternate(
        {
            "plain": lambda: [timed(lambda: plain.step(reference, optimizer, x, y, token, features)) for _ in range(3)],
            "bare": lambda: [timed(products) for _ in range(10)],
            "ours": lambda: intervals(model, "step", 1, is_perturbed),
        }
    )
    ours, slow, bare = best["ours"], best["plain"], best["bare"]
    return [
        row("published formulation written plainly, step", f"{slow * 1e3:.0f} ms"),
        row("bare large matrix products of a step, forward and backward", f"{bare * 1e3:.0f} ms"),
        row('`preset="paper"`, step with loader, plan and Lightning', f"{ours * 1e3:.0f} ms"),
        row("… faster than written plainly", f"{slow / ours:.1f}x", "≥ 10x"),
        row("… against the bare products", f"{ours / bare:.2f}x", "≤ 1.5x"),
    ]


def large_products(n_genes: int):
    """The products of the layers of encoder and decoder that a step cannot do without."""
    import torch

    # cells, inputs, outputs, whether the gradient goes on to the inputs
    layers = [(32, n_genes, 1024, False), (32, 1024, 1024, True), (32, 1024, 512, True), (32, 1024, 512, True)]
    layers += [(64, 512, 1024, True), (64, 1024, 1024, True), (64, 1024, n_genes, True)]
    operands = [(torch.randn(n, i), torch.randn(o, i), torch.randn(n, o), back) for n, i, o, back in layers]

    def run() -> None:
        for x, weight, gradient, back in operands:
            x @ weight.T
            gradient.T @ x
            if back:
                gradient @ weight

    return run


def bench_epoch() -> list[dict]:
    """An epoch of 5,000 cells x 1,000 genes."""
    import scvi

    import scvi_causal

    adata, theirs = screen(5000, 1000, 50, 0.5, network=True), screen(5000, 1000, 50, 0.5)
    scvi_causal.SCCVAE.setup_anndata(adata)
    scvi.model.SCVI.setup_anndata(theirs)
    models = {
        "default": scvi_causal.SCCVAE(adata, graph="none"),
        "network": scvi_causal.SCCVAE(adata, graph="prior"),
        "scvi": scvi.model.SCVI(theirs),
    }
    before = timed(lambda: intervals(models["default"], "epoch", 1))
    best = alternate({name: lambda m=m: intervals(m, "epoch", 4, batch_size=512) for name, m in models.items()})
    once = before - best["default"]
    density = adata.X.nnz / adata.n_obs / adata.n_vars
    return [
        row(f"SCCVAE, epoch ({density:.0%} of the entries not zero)", f"{best['default']:.2f} s", "≤ 0.7 s"),
        row("SCCVAE with a prior network of 3,000 edges, epoch", f"{best['network']:.2f} s", "≤ 0.7 s"),
        row("SCCVAE, once, around the epochs (set-up, population means, calibration)", f"{once:.2f} s"),
        row("`scvi.model.SCVI` on the same data, epoch", f"{best['scvi']:.2f} s"),
    ]


def bench_loader() -> list[dict]:
    """The loader on 40,002 cells."""
    import anndata as ad
    from scvi.dataloaders import DataSplitter

    import scvi_causal

    path = data_folder() / "gasperini19_k562_highmoi.h5ad"
    if not path.exists():
        return [row(f"not run: {path.name} is not in SCVI_CAUSAL_DATA", "")]
    adata = ad.read_h5ad(path)
    scvi_causal.SCCVAE.setup_anndata(adata, batch_key="batch", size_factor_key="library_size_full")
    model = scvi_causal.SCCVAE(adata)
    manager, options = model.adata_manager, {"batch_size": 512, "train_size": 1.0}
    splitters = {
        "paired": model._data_splitter_cls(manager, pair_controls=True, seed=SEED, **options),
        "grouped": model._data_splitter_cls(manager, pair_controls=True, grouped=True, seed=SEED, **options),
        "scvi": DataSplitter(manager, **options),
    }
    splitters["scvi"].setup()
    loaders = {name: splitter.train_dataloader() for name, splitter in splitters.items()}
    jobs = {name: lambda loader=loader: [timed(lambda: list_away(loader))] for name, loader in loaders.items()}
    best = alternate(jobs | {"epoch": lambda: intervals(model, "epoch", 2, batch_size=512)})
    return [
        row("SCCVAE, epoch", f"{best['epoch']:.2f} s"),
        row("its loader alone (a cell and its paired control)", f"{best['paired']:.2f} s"),
        row("… share of the epoch", f"{best['paired'] / best['epoch']:.0%}"),
        row("the same in blocks of one condition", f"{best['grouped']:.2f} s"),
        row("scvi-tools' own loader (cells only)", f"{best['scvi']:.2f} s"),
    ]


def list_away(loader) -> None:
    for _ in loader:
        pass


def bench_memory() -> list[dict]:
    """Peak memory above that of the loaded data, for few and for many cells, each in a fresh process."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for n_cells in (10_000, 40_000):
        with context.Pool(1) as pool:
            found = pool.apply(measure_memory, (n_cells,))
        name = f"{n_cells:,} cells"
        rows += [
            row(
                f"{name} x 4,000 genes: CSR (what it would be dense)",
                f"{found['csr']:.0f} MB ({found['dense']:.0f} MB)",
            ),
            row(f"{name}: `setup_anndata`, rise", f"{found['setup']:.0f} MB"),
            row(f"{name}: `train`, rise", f"{found['train']:.0f} MB ({found['train'] / found['csr']:.1f}x the CSR)"),
            row(f"{name}: `predict_counterfactual`, rise beyond the layer it writes", f"{found['predict']:.0f} MB"),
        ]
    return rows


def measure_memory(n_cells: int) -> dict[str, float]:
    import scvi_causal

    quiet()
    small = screen(500, 50, 5, 2.0)  # imports and pools are no matter of the data
    scvi_causal.SCCVAE.setup_anndata(small)
    warm = scvi_causal.SCCVAE(small)
    intervals(warm, "epoch", 1)
    warm.predict_counterfactual()
    adata = screen(n_cells, 4000, 50, 0.12)
    found = {
        "csr": (adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes) / 2**20,
        "dense": adata.n_obs * adata.n_vars * 4 / 2**20,
        "setup": peak(lambda: scvi_causal.SCCVAE.setup_anndata(adata)),
    }
    model = scvi_causal.SCCVAE(adata)
    found["train"] = peak(lambda: intervals(model, "epoch", 2))
    found["predict"] = peak(lambda: model.predict_counterfactual("gene_3")) - found["dense"]
    return found


def bench_predict() -> list[dict]:
    """Counterfactuals per second."""
    import scvi_causal

    sizes = {"default": (5000, 1000, {}), "paper": (1000, 8563, {"preset": "paper"})}
    jobs = {}
    for name, (n_cells, n_genes, kwargs) in sizes.items():
        adata = screen(n_cells, n_genes, 25, 0.5)
        scvi_causal.SCCVAE.setup_anndata(adata)
        model = scvi_causal.SCCVAE(adata, **kwargs)
        intervals(model, "step", 1)
        for sample in (False, True):
            jobs[name, sample, n_cells] = lambda model=model, sample=sample: [
                timed(lambda: model.predict_counterfactual("gene_3", sample=sample, seed=SEED))
            ]
    best = alternate(jobs)
    label = {"default": "SCCVAE, 1,000 genes", "paper": '`preset="paper"`, 8,563 genes'}
    return [
        row(f"{label[name]}, {'draws' if sample else 'means'}", f"{n_cells / seconds:,.0f} cells/s")
        for (name, sample, n_cells), seconds in best.items()
    ]


def bench_import() -> list[dict]:
    """Importing the package beside importing scvi."""
    statements = ["import scvi", "import scvi_causal", "from scvi_causal import SCCVAE"]
    clock = "import time; start = time.process_time(); {}; print(time.process_time() - start)"

    def run(statement: str) -> list[float]:
        command = [sys.executable, "-W", "ignore", "-c", clock.format(statement)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return [float(done.stdout)]

    best = alternate({statement: lambda statement=statement: run(statement) for statement in statements}, rounds=5)
    return [row(f"`{statement}`", f"{seconds:.2f} s") for statement, seconds in best.items()]


# ---------------------------------------------------------------------- the run


PARTS = {
    "step": (
        bench_step,
        "One training step of the published model: 8,563 genes, 512 nodes, width 1,024, 32 + 32 cells",
    ),
    "epoch": (
        bench_epoch,
        "One epoch through `model.train`: 5,000 cells x 1,000 genes, batches of 512, nothing subtracted",
    ),
    "loader": (
        bench_loader,
        "The loader's share of an epoch: Gasperini 2019, 40,002 cells x 366 genes, batches of 512",
    ),
    "memory": (
        bench_memory,
        "Peak memory: rise of resident memory above the loaded data; most of it is the work on one batch of 512 cells",
    ),
    "predict": (
        bench_predict,
        "`predict_counterfactual` of one target, reading, predicting and writing the layer included",
    ),
    "import": (bench_import, "Import, CPU-seconds inside a fresh process"),
}


def row(what: str, value: str, target: str = "") -> dict:
    return {"what": what, "value": value, "target": target}


def data_folder() -> Path:
    return Path(os.environ.get("SCVI_CAUSAL_DATA", HERE.parent.parent / "shared" / "data"))


def run_part(name: str) -> None:
    """Run one part in this process and print its rows as JSON on the last line."""
    quiet()
    print(json.dumps(PARTS[name][0]()))


def collect(name: str) -> list[dict]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--in-process", "--part", name]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(results: dict[str, list[dict]]) -> str:
    lines = []
    for name, rows in results.items():
        lines += [f"## {PARTS[name][1]}", "", "| | measured | target |", "|---|---|---|"]
        lines += [f"| {r['what']} | {r['value']} | {r['target']} |" for r in rows] + [""]
    return "\n".join(lines)


def commit() -> str:
    """Commit that is measured, and whether the package differs from it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", HERE.parent, *args], capture_output=True, text=True).stdout.strip()

    changed = " with uncommitted changes" if git("status", "--porcelain", "src") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def header(measured: str) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "scvi-tools", "lightning", "anndata", "numpy"))
    return (
        "# Speed\n\n"
        f"`python benchmarks/speed.py`, seed {SEED}, commit {measured}, Python {platform.python_version()}, "
        f"{packages}; {platform.machine()}, CPU only.\n\n"
        f"One thread, competitors alternated over at least {ROUNDS} rounds, minimum of CPU-seconds.\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=None)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        run_part(args.part[0])
        return
    measured = commit()
    results = {name: collect(name) for name in args.part or PARTS}
    print(report(results))
    if args.part is None:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "speed.md").write_text(header(measured) + report(results))


if __name__ == "__main__":
    main()
