"""Cells of a perturbation screen, drawn from a known causal graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_causal._constants import NORMALIZED_TOTAL

from ._design import Condition, make_design
from ._truth import CountScale
from ._world import World, compute_truth, make_graph, make_world

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CHUNK = 4096
_N_REDRAWS = 100


@dataclass(frozen=True, eq=False)
class Simulation:
    """A simulated screen and the truth behind it; made by :func:`simulate_screen`.

    Rows of the effect tables are the perturbations without control; with dosages, pairs (perturbation, dosage) as
    they stand in ``adata.obs``. Effects are population averages over cell types and batches, cells on which a
    perturbation had no effect included; they are integrals, exact to about 0.001, not estimates from the cells.
    """

    adata: AnnData
    """Counts (CSR, float32); ``obs``: perturbation, dosage (if any), cell_type, batch, library, hit."""
    grn: pd.DataFrame
    """True edges: source, target, weight (log change of the target per unit of log change of the source)."""
    targets: pd.DataFrame
    """What each token does at dosage 1: token, gene, shift (of the gene's log expression)."""
    effects: pd.DataFrame
    """Perturbed minus control, of the expected log1p of counts per 10,000."""
    log_fold_changes: pd.DataFrame
    """Perturbed minus control, of the natural log of the expected expression."""
    total_effects: pd.DataFrame
    """Change of log expression in a cell on which every token took effect, propagated through the graph (no
    interaction with the cell type)."""
    effects_by_cell_type: pd.DataFrame
    """As ``effects``, with the cell type as the last level of the index."""
    control_mean: pd.DataFrame
    """cell types x genes, expected log1p of counts per 10,000 of control cells."""
    hits: sparse.csr_matrix
    """(cells, tokens) bool: which tokens took effect in which cell; tokens are in the order of ``tokens``."""
    tokens: tuple[str, ...]
    """Tokens in sorted order."""
    parameters: dict[str, Any]
    """The arguments of the simulation."""
    _world: World = field(repr=False)
    _log_rate: np.ndarray = field(repr=False)  # (cells, genes) without perturbation
    _type_code: np.ndarray = field(repr=False)  # (cells,)

    def counterfactual(
        self, perturbation: str, indices: np.ndarray | Sequence[int] | None = None, dosage: float = 1.0
    ) -> np.ndarray:
        """True expected expression of *these very cells* under another perturbation, each token taking effect.

        The cell keeps its noise, cell type and batch; only its own perturbation is replaced.

        Parameters
        ----------
        perturbation
            A label; ``"control"`` (or the control category that was chosen) removes the perturbation.
        indices
            Cells; all of them by default.
        dosage
            Of every token of the label.

        Returns
        -------
        (cells, genes) expected counts per 10,000 of the library.
        """
        world, design = self._world, self._world.design
        indices = np.arange(self.adata.n_obs) if indices is None else np.asarray(indices)
        tokens = [] if perturbation == design.control.label else perturbation.split(design.separator)
        unknown = [token for token in tokens if token not in self.tokens]
        if unknown:
            raise ValueError(f"{unknown} are no tokens of this simulation, which has {list(self.tokens)}.")
        rows = [self.tokens.index(token) for token in tokens]
        effect = dosage * world.token_effects[:, rows].sum(1)
        return NORMALIZED_TOTAL * np.exp(self._log_rate[indices] + effect[self._type_code[indices]])


def simulate_screen(
    n_genes: int | None = None,
    n_cells_per_perturbation: int = 100,
    n_control: int = 500,
    n_perturbations: int = 20,
    n_combinations: int | Sequence[str] = 0,
    *,
    graph: pd.DataFrame | None = None,
    edges_per_gene: float = 2.0,
    perturbations: Sequence[str] | pd.DataFrame | None = None,
    shift: float | tuple[float, float] | Mapping[str, float] = -2.0,
    n_untargeted: int = 0,
    penetrance: float | Mapping[str, float] = 1.0,
    dosages: Sequence[float] | None = None,
    combination_size: int = 2,
    n_cell_types: int = 1,
    cell_type_sd: float = 0.5,
    interaction_sd: float = 0.0,
    confounding: float = 0.0,
    n_batches: int = 1,
    batch_sd: float = 0.1,
    noise_sd: float = 0.4,
    n_factors: int = 0,
    factor_sd: float = 0.4,
    library_size: float = 10_000.0,
    library_sd: float = 0.45,
    mean_expression: float = 2.0,
    expression_sd: float = 1.0,
    dispersion: float = 10.0,
    control_category: str = "control",
    separator: str = "+",
    seed: int = 0,
) -> Simulation:
    r"""Simulate a screen whose causal graph and effects are known.

    The log expression of a cell follows a linear structural equation model. With weights :math:`W` (source, target),
    cell type :math:`t`, batch :math:`b` and the tokens :math:`p` that took effect,

    .. math::
        x = (u_t + \Lambda f + \varepsilon + \textstyle\sum_p d_p s_p)(I - W)^{-1}, \qquad
        y_g \sim \mathrm{NB}(\ell\, e^{\beta_g + x_g + v_{bg}}, \theta)

    so a shift :math:`s_p` of the target's own expression (a soft intervention) spreads along the graph, the shifts of a
    combination add up, and :math:`\ell`, the library over the whole transcriptome, is log-normal. The genes are a panel
    cut out of that transcriptome: give ``size_factor_key="library"`` to a model.

    Parameters
    ----------
    n_genes
        Genes of the panel; 50, or the genes of ``graph``, by default. A larger number adds unconnected genes.
    n_cells_per_perturbation
        Cells of each perturbation, combinations included, over all dosages.
    n_control
        Control cells.
    n_perturbations
        Single genes to perturb, drawn with a preference for regulators.
    n_combinations
        Number of random combinations of single perturbations, or their labels.
    graph
        True edges ``source, target[, weight]``; random by default (:func:`random_grn`). Without weights they are drawn.
        Cycles are allowed as long as the feedback dies out.
    edges_per_gene
        Mean number of regulators of a gene in the random graph.
    perturbations
        Instead of ``n_perturbations``: genes to perturb, or a table ``token, gene, shift`` where a token may act on
        several genes and need not be a gene itself.
    shift
        Change of the target's log expression at dosage 1: negative for a knock-down, positive for activation. One
        number, a range to draw from, or one number per token.
    n_untargeted
        Further perturbations that are no gene (``compound_0`` ...); each acts on three genes, up or down.
    penetrance
        Chance that a token takes effect in a cell that carries it; one number or one per token (1 for those not named).
    dosages
        Levels among which each token of each cell draws its dosage. ``obs["dosage"]`` is numeric, or ``"d1+d2"`` if
        there are combinations.
    combination_size
        Number of tokens of a random combination.
    n_cell_types, cell_type_sd
        Cell types, and the standard deviation of their offset in those 30 % of the genes that mark a type.
    interaction_sd
        Standard deviation of the factor by which a cell type strengthens or weakens a token (around 1, never below 0).
    confounding
        Standard deviation of the log odds by which perturbed cells prefer a cell type: above 0, cell types are spread
        unevenly over the perturbations and a plain difference of means is biased.
    n_batches, batch_sd
        Batches (spread evenly over conditions), and the standard deviation of their offset per gene.
    noise_sd
        Standard deviation of a gene's own log expression, which spreads along the graph.
    n_factors, factor_sd
        Unmeasured cell states that move many genes at once, and the standard deviation they add to a gene: they
        correlate genes that no edge connects.
    library_size, library_sd
        Median of the library over the whole transcriptome, and the standard deviation of its log.
    mean_expression, expression_sd
        Mean over genes of the expression of control cells in counts per 10,000, and the standard deviation over genes
        of its log.
    dispersion
        Inverse dispersion of the counts; infinity is Poisson.
    control_category, separator
        Naming of the labels.
    seed
        Seed of all that is random.

    Returns
    -------
    :class:`Simulation`. ``adata.uns["grn"]`` holds the true edges. No cell is without counts: those that would be are
    drawn again, as quality control would have removed them.

    Raises
    ------
    ValueError
        If arguments contradict each other or the graph, or feedback in the graph does not die out.

    Examples
    --------
    >>> from scvi_causal.data import simulate_screen
    >>> screen = simulate_screen(n_genes=20, n_perturbations=5, n_cells_per_perturbation=20, n_control=50, seed=1)
    >>> screen.adata.shape, screen.effects.shape
    ((150, 20), (5, 20))
    """
    parameters = {name: value for name, value in locals().items() if name != "graph"}
    rng = np.random.default_rng(seed)
    genes, grn = make_graph(graph, n_genes, edges_per_gene, rng)
    design = make_design(
        genes,
        grn,
        rng,
        perturbations=n_perturbations if perturbations is None else perturbations,
        combinations=n_combinations,
        combination_size=combination_size,
        n_untargeted=n_untargeted,
        shift=shift,
        penetrance=penetrance,
        dosages=dosages,
        control=control_category,
        separator=separator,
    )
    world = make_world(
        genes,
        grn,
        design,
        CountScale(library_size, library_sd, dispersion),
        rng,
        noise_sd=noise_sd,
        n_factors=n_factors,
        factor_sd=factor_sd,
        n_cell_types=n_cell_types,
        cell_type_sd=cell_type_sd,
        interaction_sd=interaction_sd,
        n_batches=n_batches,
        batch_sd=batch_sd,
        mean_expression=mean_expression,
        expression_sd=expression_sd,
    )
    cells = design.draw_cells(n_control, n_cells_per_perturbation, rng)
    type_code, batch_code = _draw_strata(cells, world, confounding, rng)
    hits = design.draw_hits(cells, rng)
    library = world.scale.draw_library(len(cells), rng)
    counts, log_rate = _draw_counts(
        world, hits.multiply(design.dosages(cells)).tocsr(), type_code, batch_code, library, rng
    )

    cell_types = [f"type_{i}" for i in range(n_cell_types)]
    obs = _make_obs(cells, hits, library)
    obs["cell_type"] = pd.Categorical.from_codes(type_code, cell_types)
    obs["batch"] = pd.Categorical.from_codes(batch_code, [f"batch_{i}" for i in range(n_batches)])
    truth = compute_truth(world, cell_types)
    return Simulation(
        adata=AnnData(counts, obs, pd.DataFrame(index=list(genes)), uns={"grn": grn.copy()}),
        grn=grn,
        targets=design.targets,
        **vars(truth),
        hits=hits,
        tokens=design.tokens,
        parameters=parameters,
        _world=world,
        _log_rate=log_rate,
        _type_code=type_code,
    )


def _draw_strata(
    cells: Sequence[Condition], world: World, confounding: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cell type and batch of each cell; control cells follow the population."""
    labels = np.array([cell.label for cell in cells], dtype=object)
    cell_type = np.empty(len(cells), dtype=int)
    for label in [world.design.control.label, *world.design.labels]:
        preference = confounding * rng.standard_normal(len(world.type_share)) * (label != world.design.control.label)
        share = world.type_share * np.exp(preference)
        chosen = labels == label
        cell_type[chosen] = rng.choice(len(share), int(chosen.sum()), p=share / share.sum())
    return cell_type, rng.integers(len(world.batch_offset), size=len(cells))


def _draw_counts(
    world: World,
    doses: sparse.csr_matrix,
    type_code: np.ndarray,
    batch_code: np.ndarray,
    library: np.ndarray,
    rng: np.random.Generator,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts (CSR, float32) and the log rates that the cells would have without perturbation."""
    blocks, log_rate = [], np.empty((len(library), len(world.genes)), dtype=np.float32)
    for start in range(0, len(library), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        rate = world.draw_log_rate(type_code[chunk], batch_code[chunk], rng)
        log_rate[chunk] = rate
        for code in np.unique(type_code[chunk]):
            in_type = np.flatnonzero(type_code[chunk] == code)
            rate[in_type] += doses[start + in_type] @ world.token_effects[code]
        counts = world.scale.draw_counts(rate, library[chunk], rng)
        for _ in range(_N_REDRAWS):
            empty = np.flatnonzero(counts.sum(1) == 0)
            if not len(empty):
                break
            counts[empty] = world.scale.draw_counts(rate[empty], library[chunk][empty], rng)
        else:
            raise ValueError(
                f"{len(empty)} cells remain without a single count. Raise library_size, mean_expression or n_genes."
            )
        blocks.append(sparse.csr_matrix(counts.astype(np.float32)))
    return sparse.vstack(blocks, format="csr"), log_rate


def _make_obs(cells: Sequence[Condition], hits: sparse.csr_matrix, library: np.ndarray) -> pd.DataFrame:
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(len(cells))])
    obs["perturbation"] = pd.Categorical([cell.label for cell in cells])
    if cells[0].dosage_label is not None:
        obs["dosage"] = [cell.dosage_label for cell in cells]
    obs["library"] = library
    n_tokens = np.array([len(cell.rows) for cell in cells])
    obs["hit"] = (n_tokens > 0) & (np.diff(hits.indptr) == n_tokens)
    return obs
