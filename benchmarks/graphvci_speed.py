"""What the graph costs: a step of GraphVCI against one of VCI, factorised against direct attention, sparse against dense refinement.

    python benchmarks/graphvci_speed.py

CPU-seconds of one thread, the smallest over alternated rounds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from _common import say, write_page
from _speed_tools import ROUNDS, SEED, alternate, intervals, peak, quiet, screen, timed

import scvi_causal
from scvi_causal.nn._grn_encoder import GRNEncoder, factorised_attention
from scvi_causal.nn._refinement import AttentionRefinement, Candidates, LinearRefinement

N_CELLS, BATCH, EDGES_PER_GENE = 2048, 512, 20
SIZES = (1_000, 2_000, 5_000, 10_000)
TEXT = {
    "step": f"""A training step on {BATCH} cells, everything included (batch, both encodings and decodings, gradients, Adam); 2,000 genes, 40,000
edges, counts. `ratio` is to VCI.""",
    "attention": """Key-dependent attention of 192 cells (64, three draws) over 2,013 genes with 128 features, one output: forward and
backward. Direct: the softmax over a tensor of cells x genes x features, as published.""",
    "refinement": """A step of refinement on 2,000 genes with 40,000 prior edges at the published keep rates (sampling the edges, forward,
backward; without Adam, which costs the same): `attention` is the published network of seven layers on 16 cells, `linear` the default
form on 256 cells and 300 regulators with its own keep rates. Dense: the same step with masked dense matrices.""",
    "size": f"""From 1,000 to 10,000 genes with {EDGES_PER_GENE} edges per gene: the graph convolution alone (forward and backward), a step of GraphVCI
and of VCI on {BATCH} cells, and a step of refinement with 150 regulators per 1,000 genes, 256 cells.""",
}


def edges_of(n_genes: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    n = EDGES_PER_GENE * n_genes
    return torch.from_numpy(rng.integers(0, n_genes, n)), torch.from_numpy(rng.integers(0, n_genes, n))


def screen_with_network(n_genes: int):
    adata = screen(N_CELLS, n_genes, 50, 0.3)
    source, target = (nodes.numpy() for nodes in edges_of(n_genes, np.random.default_rng(SEED)))
    edges = pd.DataFrame({"source": adata.var_names[source], "target": adata.var_names[target]}).drop_duplicates()
    adata.uns["grn"] = edges[edges["source"] != edges["target"]]
    return adata


def training(adata, name: str, **options):
    """CPU-seconds of each step."""

    def run() -> list[float]:
        model_class = getattr(scvi_causal, name)
        model_class.setup_anndata(adata)
        return intervals(
            model_class(adata, **options), "step", 2, keep=lambda batch: len(batch["X"]) == BATCH, batch_size=BATCH
        )

    return run


def repeated(function, n: int = 3):
    """CPU-seconds of each of some calls."""
    return lambda: [timed(function) for _ in range(n)]


def direct_attention(h, u, v):
    return (h[:, None] * torch.softmax(u[:, None] + v[None], 2)).sum(2)


def attention() -> pd.DataFrame:
    generator = torch.Generator().manual_seed(SEED)
    shapes = ((192, 128), (192, 128), (2013, 128))
    tensors = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    forms = {"factorised": factorised_attention, "direct": direct_attention}
    steps = {name: (lambda f=f: f(*tensors).sum().backward()) for name, f in forms.items()}
    for step in steps.values():
        step()
    gap = float((factorised_attention(*tensors) - direct_attention(*tensors)).detach().abs().max())
    seconds = alternate({name: repeated(step) for name, step in steps.items()})
    table = pd.DataFrame({"ms": {k: 1e3 * v for k, v in seconds.items()}, "MB": {k: peak(s) for k, s in steps.items()}})
    say(f"attention: largest difference {gap:.1e}")
    return table.rename_axis("attention")


# ---------------------------------------------------------------------- refinement


def candidates_of(n_genes: int, n_sources: int, keep: tuple[float, float], loops: bool) -> Candidates:
    rng = np.random.default_rng(SEED)
    prior = np.unique(rng.integers(0, n_genes * n_sources, EDGES_PER_GENE * n_genes))
    own = np.arange(n_sources) * (n_sources + 1)
    empty = torch.zeros(0, dtype=torch.int64)
    if loops:
        return Candidates(n_sources, n_genes, torch.from_numpy(np.union1d(prior, own)), empty, *keep)
    return Candidates(n_sources, n_genes, torch.from_numpy(np.setdiff1d(prior, own)), torch.from_numpy(own), *keep)


def linear_step(n_genes: int, n_sources: int):
    """Sparse and dense step of the linear form."""
    candidates = candidates_of(n_genes, n_sources, (0.98, 0.25), loops=False)
    network, generator = LinearRefinement(candidates), torch.Generator().manual_seed(SEED)
    genes = torch.randn(256, n_genes, generator=generator)
    batch = {"genes": genes, "sources": genes[:, :n_sources].contiguous(), "observed": torch.ones_like(genes)}
    everything = torch.arange(candidates.n_positions)
    keep = candidates.keep_probability(everything) * (candidates.is_prior | candidates.is_other)

    def sparse() -> None:
        network.loss(batch, candidates.sample(generator)).backward()

    def dense() -> None:
        mask = torch.bernoulli(keep, generator=generator)
        values = network.edge * mask / keep.clamp_min(1e-6)
        expected = batch["sources"] @ values.view(n_genes, n_sources).T
        (0.5 * ((genes - expected) * torch.exp(-network.log_sd)).square() + network.log_sd).mean().backward()

    return sparse, dense


def attention_step(n_genes: int, n_cells: int = 16):
    """Sparse and dense step of the published network."""
    candidates = candidates_of(n_genes, n_genes, (0.98201379, 0.01798621), loops=True)
    generator = torch.Generator().manual_seed(SEED)
    network = AttentionRefinement(candidates, generator=generator)
    genes = torch.randn(n_cells, n_genes, generator=generator)
    batch = {"genes": genes, "observed": torch.ones_like(genes), "covariates": torch.zeros(n_cells, 0)}
    keep = candidates.keep_probability(torch.arange(candidates.n_positions)).view(n_genes, n_genes)

    def sparse() -> None:
        network.loss(batch, candidates.sample(generator)).backward()

    def dense() -> None:
        mask = torch.bernoulli(keep, generator=generator).bool()
        s = network.edge.view(n_genes, n_genes).masked_fill(~mask, -torch.inf).softmax(1).nan_to_num()
        features = network.features[:, None].expand(-1, n_cells, -1)
        h = torch.cat([genes.T[:, :, None], features], 2)
        for weight, bias, relu in zip(network.weights, network.biases, network.relu, strict=True):
            first = weight.shape[1] < weight.shape[0]
            h = h @ weight if first else h
            h = (s @ h.reshape(n_genes, -1)).view(n_genes, n_cells, -1)
            h = (h if first else h @ weight) + bias
            h = torch.relu(h) if relu else h
        location, raw = h.unbind(2)
        sd = torch.nn.functional.softplus(raw.T) + 1e-3
        (0.5 * ((genes - location.T) / sd).square() + sd.log()).mean().backward()

    return sparse, dense


def refinement() -> pd.DataFrame:
    rows = {}
    for form, steps in {"linear": linear_step(2_000, 300), "attention": attention_step(2_000)}.items():
        jobs = dict(zip(("sparse", "dense"), steps, strict=True))
        for job in jobs.values():
            job()
        seconds = alternate({name: repeated(job, 2) for name, job in jobs.items()})
        for name, job in jobs.items():
            rows[f"{form}, {name}"] = {"ms": 1e3 * seconds[name], "MB": peak(job)}
        say(f"refinement, {form}: " + ", ".join(f"{k} {v:.3f}s" for k, v in seconds.items()))
    return pd.DataFrame(rows).T.rename_axis("refinement")


# ---------------------------------------------------------------------- models


def step() -> pd.DataFrame:
    adata = screen_with_network(2_000)
    jobs = {
        "VCI": training(adata, "VCI"),
        "GraphVCI, dot": training(adata, "GraphVCI", gene_decoder="dot"),
        "GraphVCI, att": training(adata, "GraphVCI", gene_decoder="att"),
        "GraphVCI, no graph": training(adata, "GraphVCI", graph="none"),
    }
    table = pd.DataFrame({"ms": {name: 1e3 * value for name, value in alternate(jobs).items()}}).rename_axis("model")
    table["ratio"] = table["ms"] / table.loc["VCI", "ms"]
    say("step: " + ", ".join(f"{name} {row.ratio:.2f}" for name, row in table.iterrows()))
    return table


def graph_alone(n_genes: int):
    encoder = GRNEncoder(torch.stack(edges_of(n_genes, np.random.default_rng(SEED))), n_genes, 64, 64, 1.0)
    return lambda: encoder().sum().backward()


def size() -> pd.DataFrame:
    rows = {}
    for n_genes in SIZES:
        adata = screen_with_network(n_genes)
        alone, refine = graph_alone(n_genes), linear_step(n_genes, 15 * n_genes // 100)[0]
        alone(), refine()
        rows[n_genes] = alternate(
            {
                "graph convolution": repeated(alone),
                "VCI step": training(adata, "VCI"),
                "GraphVCI step": training(adata, "GraphVCI"),
                "refinement step": repeated(refine),
            },
            rounds=ROUNDS if n_genes < 5_000 else 2,
        )
        say(f"{n_genes} genes: " + ", ".join(f"{k} {v:.3f}s" for k, v in rows[n_genes].items()))
    table = pd.DataFrame(rows).T * 1e3
    return table.add_suffix(", ms").rename_axis("genes")


def main() -> None:
    """Measure and write the page."""
    quiet()
    parts = [
        ("## A training step\n\n" + TEXT["step"], step()),
        ("## Attention\n\n" + TEXT["attention"], attention()),
        ("## Refinement\n\n" + TEXT["refinement"], refinement()),
        ("## Number of genes\n\n" + TEXT["size"], size()),
    ]
    write_page(
        "graphvci_speed",
        "What the graph costs",
        [("CPU-time of one thread; MB: rise of the resident memory.", None), *parts],
        [SEED],
    )


if __name__ == "__main__":
    main()
