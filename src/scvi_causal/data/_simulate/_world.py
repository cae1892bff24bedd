"""The population that cells of a simulated screen are drawn from, and its exact effects."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal._constants import NORMALIZED_TOTAL

from ._graphs import draw_weights, random_grn, topological_order
from ._truth import CountScale, Expectation

if TYPE_CHECKING:
    from ._design import Condition, Design

_MARKER_SHARE = 0.3
_LARGEST_SD = 5.0


@dataclass(frozen=True, eq=False)
class World:
    """Parameters of the structural model; T tokens, C cell types, B batches, F cell states, G genes."""

    genes: tuple[str, ...]
    design: Design
    scale: CountScale
    total: np.ndarray  # (G, G) change of a column's log expression per unit of shift on the row
    base: np.ndarray  # (G,) log rate
    noise_sd: float
    loadings: np.ndarray  # (F, G)
    type_offset: np.ndarray  # (C, G) on a gene's own log expression
    type_share: np.ndarray  # (C,)
    interaction: np.ndarray  # (C, T) factor on the shift
    batch_offset: np.ndarray  # (B, G) on the log rate: technical, it does not spread along the graph

    @cached_property
    def token_effects(self) -> np.ndarray:
        """(C, T, G) total effects at dosage 1."""
        return self.interaction[:, :, None] * (self.design.shifts @ self.total)

    @cached_property
    def control_mean(self) -> np.ndarray:
        """(C, B, G) mean log rate of control cells."""
        return self.base + (self.type_offset @ self.total)[:, None] + self.batch_offset

    @property
    def sd(self) -> np.ndarray:
        """(G,) standard deviation of the log rate within a cell type and batch."""
        return _sd(self.total, self.noise_sd, self.loadings)

    def draw_log_rate(self, cell_type: np.ndarray, batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(cells, G) log rates without perturbation."""
        exogenous = self.noise_sd * rng.standard_normal((len(cell_type), len(self.genes)))
        exogenous += rng.standard_normal((len(cell_type), len(self.loadings))) @ self.loadings
        return self.control_mean[cell_type, batch] + exogenous @ self.total

    def expectation(self) -> Expectation:
        """Expectations wide enough for every condition."""
        size = np.abs(self.token_effects).max(2)
        reach = [np.abs(c.dosage) @ size[:, list(c.rows)].max(0) for c in self.design.conditions]
        margin = max(reach, default=0.0)
        return Expectation(self.sd, self.scale, self.control_mean.min() - margin, self.control_mean.max() + margin)

    def moments(self, condition: Condition, expectation: Expectation) -> tuple[np.ndarray, np.ndarray]:
        """Expected log1p of counts per 10,000 and expected rate of a condition, each (C, G), batches averaged."""
        log1p, rate = 0.0, 0.0
        penetrance = self.design.penetrance[list(condition.rows)]
        for hit in itertools.product([True, False], repeat=len(condition.rows)):
            chance = np.prod(np.where(hit, penetrance, 1 - penetrance))
            if chance == 0:
                continue
            dose = np.where(hit, condition.dosage, 0.0)
            effect = np.einsum("k,ckg->cg", dose, self.token_effects[:, list(condition.rows)])
            mean = self.control_mean + effect[:, None]
            log1p = log1p + chance * expectation.log1p(mean).mean(1)
            rate = rate + chance * expectation.rate(mean).mean(1)
        return log1p, rate


@dataclass(frozen=True, eq=False)
class Truth:
    """Exact effects of all conditions."""

    effects: pd.DataFrame
    log_fold_changes: pd.DataFrame
    total_effects: pd.DataFrame
    effects_by_cell_type: pd.DataFrame
    control_mean: pd.DataFrame


def compute_truth(world: World, cell_types: list[str]) -> Truth:
    """Integrate over cells, libraries and counts, condition by condition."""
    design, genes, share = world.design, list(world.genes), world.type_share
    expectation = world.expectation()
    control_log1p, control_rate = world.moments(design.control, expectation)
    moments = [world.moments(condition, expectation) for condition in design.conditions]
    by_type = np.array([log1p - control_log1p for log1p, _ in moments]).reshape(-1, len(share), len(genes))
    rates = np.array([rate for _, rate in moments]).reshape(-1, len(share), len(genes))
    index = design.index
    keys = [(*(key if isinstance(key, tuple) else (key,)), cell_type) for key in index for cell_type in cell_types]
    shifts = [np.asarray(c.dosage) @ design.shifts[list(c.rows)] for c in design.conditions]
    return Truth(
        effects=pd.DataFrame(np.einsum("c,pcg->pg", share, by_type), index, genes),
        log_fold_changes=pd.DataFrame(
            np.log(np.einsum("c,pcg->pg", share, rates) / (share @ control_rate)), index, genes
        ),
        total_effects=pd.DataFrame(np.reshape(shifts, (-1, len(genes))) @ world.total, index, genes),
        effects_by_cell_type=pd.DataFrame(
            by_type.reshape(-1, len(genes)), pd.MultiIndex.from_tuples(keys, names=[*index.names, "cell_type"]), genes
        ),
        control_mean=pd.DataFrame(control_log1p, pd.Index(cell_types, name="cell_type"), genes),
    )


def make_graph(
    graph: pd.DataFrame | None, n_genes: int | None, edges_per_gene: float, rng: np.random.Generator
) -> tuple[tuple[str, ...], pd.DataFrame]:
    """Genes and true edges with weights."""
    if graph is None:
        n_genes = 50 if n_genes is None else n_genes
        genes = _gene_names(n_genes)
        return genes, random_grn(genes, edges_per_gene, seed=int(rng.integers(2**31)))
    missing = {"source", "target"} - set(graph.columns)
    if missing:
        raise ValueError(f"graph lacks the columns {sorted(missing)}; it has {list(graph.columns)}.")
    columns = [name for name in ("source", "target", "weight") if name in graph]
    grn = graph[columns].reset_index(drop=True)
    bad = grn.isna().any(axis=1) | grn.duplicated(["source", "target"]) | (grn["source"] == grn["target"])
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} edges of the graph are missing values, repeated or self-loops, for example "
            f"{grn[bad].head(3).to_dict('records')}. Remove them first."
        )
    nodes = tuple(pd.unique(grn[["source", "target"]].to_numpy(object).ravel()))
    n_genes = len(nodes) if n_genes is None else n_genes
    if n_genes < len(nodes):
        raise ValueError(f"n_genes={n_genes}, but the graph alone has {len(nodes)} genes.")
    spare = [name for name in _gene_names(n_genes + len(nodes)) if name not in set(nodes)]
    if "weight" not in grn:
        grn["weight"] = draw_weights(grn["target"], rng)
    return nodes + tuple(spare[: n_genes - len(nodes)]), grn.astype({"weight": float})


def _gene_names(n: int) -> tuple[str, ...]:
    width = max(2, len(str(n - 1)))
    return tuple(f"G{i:0{width}d}" for i in range(n))


def total_effect_matrix(genes: tuple[str, ...], grn: pd.DataFrame) -> np.ndarray:
    """(G, G) inverse of I - W, with W[source, target]; refuses feedback that does not die out."""
    weight = np.zeros((len(genes), len(genes)))
    index = pd.Index(genes)
    weight[index.get_indexer(grn["source"]), index.get_indexer(grn["target"])] = grn["weight"]
    if topological_order(grn) is None:
        radius = float(np.abs(np.linalg.eigvals(weight)).max())
        if radius >= 0.99:
            raise ValueError(
                f"the graph has feedback that does not die out (spectral radius {radius:.2f}; it must be below 1). "
                f"Scale the weights by less than {0.99 / radius:.2f}, or remove the cycles."
            )
    return np.linalg.inv(np.eye(len(genes)) - weight)


def _sd(total: np.ndarray, noise_sd: float, loadings: np.ndarray) -> np.ndarray:
    return np.sqrt(noise_sd**2 * (total**2).sum(0) + ((loadings @ total) ** 2).sum(0))


def make_world(
    genes: tuple[str, ...],
    grn: pd.DataFrame,
    design: Design,
    scale: CountScale,
    rng: np.random.Generator,
    *,
    noise_sd: float,
    n_factors: int,
    factor_sd: float,
    n_cell_types: int,
    cell_type_sd: float,
    interaction_sd: float,
    n_batches: int,
    batch_sd: float,
    mean_expression: float,
    expression_sd: float,
) -> World:
    """Draw what the graph and the design leave open."""
    n_genes = len(genes)
    if n_genes * mean_expression > NORMALIZED_TOTAL:
        raise ValueError(
            f"{n_genes} genes with a mean expression of {mean_expression} counts per 10,000 exceed the transcriptome. "
            f"Set mean_expression to at most {NORMALIZED_TOTAL / n_genes:.3g}."
        )
    total = total_effect_matrix(genes, grn)
    loadings = factor_sd / np.sqrt(max(n_factors, 1)) * rng.standard_normal((n_factors, n_genes))
    sd = _sd(total, noise_sd, loadings)
    if sd.max() > _LARGEST_SD:
        raise ValueError(
            f"the noise grows along the graph until the log expression of {genes[int(sd.argmax())]} has a standard "
            f"deviation of {sd.max():.1f} (at most {_LARGEST_SD} makes sense). Use smaller weights or noise_sd."
        )
    mean = np.exp(expression_sd * rng.standard_normal(n_genes))
    mean *= mean_expression / mean.mean() / NORMALIZED_TOTAL
    marker = rng.random((n_cell_types, n_genes)) < _MARKER_SHARE
    offset = cell_type_sd * rng.standard_normal((n_cell_types, n_genes)) * marker * (n_cell_types > 1)
    factor = 1 + interaction_sd * rng.standard_normal((n_cell_types, len(design.tokens)))
    return World(
        genes=genes,
        design=design,
        scale=scale,
        total=total,
        base=np.log(mean) - sd**2 / 2,
        noise_sd=noise_sd,
        loadings=loadings,
        type_offset=offset,
        type_share=rng.dirichlet(np.full(n_cell_types, 10.0)),
        interaction=np.maximum(0.0, factor),
        batch_offset=batch_sd * rng.standard_normal((n_batches, n_genes)) * (n_batches > 1),
    )
