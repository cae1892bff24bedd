"""refine_grn: a prior network and a screen in, the network that the screen supports out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings

from scvi_causal._compat import parse_device_args
from scvi_causal._docs import docs
from scvi_causal.data._messages import listed
from scvi_causal.dataloaders import CausalDataSplitter
from scvi_causal.model.base import CausalModel
from scvi_causal.model.base._data_type import check_choice, resolve_data_type
from scvi_causal.model.base._provenance import provenance, record
from scvi_causal.model.vci._refine_data import Nodes, RefinementData, make_nodes, positions_of, self_positions
from scvi_causal.model.vci._refine_fit import fit_refinement, keep_rate, resolve_refine_options
from scvi_causal.model.vci._refine_table import edge_table
from scvi_causal.nn import Candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_causal.model.vci._refine_fit import Form, RefineOptions

logger = logging.getLogger(__name__)


class _Screen(CausalModel):
    """The registered data; never trained."""

    requires_grn = True


@docs.dedent
def refine_grn(
    adata: AnnData,
    grn_key: str | None = None,
    *,
    key_added: str = "refined_grn",
    split_key: str | None = None,
    perturbation_key: str = "perturbation",
    control_category: str | list[str] = "control",
    perturbation_separator: str | None = "+",
    dosage_key: str | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    categorical_covariate_keys: list[str] | None = None,
    size_factor_key: str | None = None,
    data_type: Literal["auto", "counts", "continuous"] = "auto",
    preset: Literal["recommended", "paper"] = "recommended",
    form: Form | None = None,
    regulators: Literal["prior", "all"] | Sequence[str] | None = None,
    keep_prior: float | None = None,
    keep_other: float | None = None,
    edge_penalty: float | None = None,
    interventions: bool | None = None,
    n_edges: int | None = None,
    threshold: float | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    patience: int | None = None,
    n_listed: int = 100_000,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Refine a prior network by the expression of a screen :cite:p:`Wu2023GraphVCI`.

    Every gene is predicted from its regulators, for which each step draws anew: prior edges take part with a high
    probability, all others with a low one (eq. 11). An edge that the prior lacks has to explain what prior edges leave;
    a prior edge that explains nothing loses its weight.

    Parameters
    ----------
    %(param_adata)s
    %(param_grn_key)s
    key_added
        Key of ``adata.uns`` for the result.
    split_key
        Column of ``adata.obs`` with ``"train"``, ``"valid"`` or ``"test"``: only the training cells are learned from, and the
        validation cells say when to stop. Without it 90%% of the cells of each condition train.
    %(param_perturbation_key)s
    %(param_control_category)s
    %(param_perturbation_separator)s
    %(param_dosage_key)s
    %(param_layer)s
    %(param_batch_key)s
    %(param_cat_cov_keys)s
    %(param_size_factor)s
    data_type
        ``"counts"`` are normalised to 10,000 per cell and log-transformed; ``"continuous"`` data are taken as they are; ``"auto"``
        looks at the data.
    preset
        ``"paper"`` is the published network: attention over seven layers, self-loops, all genes as regulators,
        :math:`\lambda / G^2` at its value for 2,013 genes, 230 epochs, edges kept above the background + 0.04.
    form
        ``"linear"``: signed weights on standardised expression, one layer. ``"attention"``: as published. Attention averages,
        so that it knows no repression; it lets every gene see itself; and over seven layers an edge is no direct relation.
    regulators
        What may regulate: ``"prior"`` (the sources of prior edges), ``"all"`` genes, or names, beside the sources of prior edges. A
        perturbation that is no measured gene can be one of them, with its dosage as its value; what the others of this kind
        move is taken out beforehand, so that the targets of one drug are not taken for regulators of each other.
    keep_prior, keep_other
        Probability with which an edge takes part in a step, :math:`1 - r_l` and :math:`1 - r_h`. In the linear form, an edge is
        shrunk as by a ridge of :math:`(1 - q) / q`. By default 0.98 and 0.25, the latter less where there are more than two million
        candidates, so that a step stays below 500,000 edges.
    edge_penalty
        :math:`\rho`, the price of an edge: of its absolute weight, or of :math:`\sigma(L)` with attention (:math:`\lambda / G^2` of
        eq. 13; it does not change with the number of genes).
    interventions
        Whether a gene is left out of the loss in cells in which it is perturbed itself: there it does not follow its
        regulators. This is what gives edges a direction.
    n_edges
        Number of edges to keep, the strongest ones.
    threshold
        Keep what exceeds the background by this much. Linear: in standard deviations of the weights of edges that are not
        there, 1 by default for edges of the prior, and five times that for others. Attention: by default 0.04 above the
        rescaled weight at which edges rest that the data say nothing about.
    max_epochs, batch_size, lr, patience
        Of the training: epochs (``None``: about 1,000 steps), cells per step, learning rate of the edges, and evaluations
        without improvement on the validation cells before it stops.
    n_listed
        Largest number of edges beyond the prior in the table that is returned.
    %(param_accelerator)s
    %(param_devices)s
    %(param_seed)s

    Returns
    -------
    DataFrame ``source, target, weight, prior, kept``, strongest first: regulator to target; the weight (standard deviations of the
    target per standard deviation of the regulator, with a sign; or :math:`\tilde W` in (0, 1)); whether the prior has the
    edge; whether it is kept. Prior and kept edges are also stored in ``adata.uns[key_added]``, whose ``kept`` edges any model
    takes with ``grn_key=key_added``, and what was done in ``adata.uns["scvi_causal"][key_added]``, the background included.

    Raises
    ------
    ValueError
        As ``setup_anndata``; if there is no prior network; if options contradict each other.

    Examples
    --------
    >>> import scvi_causal
    >>> from scvi_causal.data import corrupt_grn, simulate_screen
    >>> simulation = simulate_screen(n_genes=20, n_perturbations=5, n_control=200, seed=0)
    >>> adata = simulation.adata
    >>> adata.uns["grn"] = corrupt_grn(simulation.grn, drop=0.2, add=0.5, seed=0)
    >>> table = scvi_causal.refine_grn(adata, size_factor_key="library", max_epochs=60)
    >>> list(table.columns)
    ['source', 'target', 'weight', 'prior', 'kept']
    >>> scvi_causal.SCCVAE.setup_anndata(adata, grn_key="refined_grn")

    Notes
    -----
    ``adata`` itself is not set up, and nothing but ``uns`` is written.
    """
    check_choice("data_type", data_type, ("auto", "counts", "continuous"))
    options = {
        "form": form,
        "regulators": regulators,
        "keep_prior": keep_prior,
        "keep_other": keep_other,
        "edge_penalty": edge_penalty,
        "interventions": interventions,
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "lr": lr,
        "patience": patience,
    }
    which = {"preset": preset, "n_edges": n_edges, "threshold": threshold, "n_listed": n_listed}
    check_refine_kwargs(**which, **options)
    seed = int(settings.seed or 0) if seed is None else int(seed)
    screen = _register(
        adata,
        perturbation_key=perturbation_key,
        control_category=control_category,
        perturbation_separator=perturbation_separator,
        dosage_key=dosage_key,
        layer=layer,
        batch_key=batch_key,
        categorical_covariate_keys=categorical_covariate_keys,
        size_factor_key=size_factor_key,
        grn_key=grn_key,
    )
    *_, device = parse_device_args(accelerator, devices, return_device="torch")
    try:
        scale = "log1p" if resolve_data_type(screen, data_type) == "counts" else "continuous"
        split = CausalDataSplitter(screen.adata_manager, split_key=split_key, seed=seed)
        cells = split.train_idx, split.val_idx
        table, facts = refine_within(screen, *cells, scale, seed, device, **which, **options)
    finally:
        screen.deregister_manager(screen.adata)  # the class would hold on to the data
    adata.uns[key_added] = table[table["prior"] | table["kept"]].reset_index(drop=True)
    record(adata.uns, key_added, provenance(method="refine_grn", **facts))
    return table


def _register(adata: AnnData, **setup: Any) -> _Screen:
    """The data as a model would see them, through a second AnnData on the same arrays: the first stays as it is."""
    x = adata.X if setup["layer"] is None or setup["layer"] not in adata.layers else adata.layers[setup["layer"]]
    if adata.isbacked:
        raise ValueError("refine_grn reads the cells many times: load the data into memory, adata = adata.to_memory().")
    layers = {} if setup["layer"] is None or setup["layer"] not in adata.layers else {setup["layer"]: x}
    # all keys, so that a misspelt one gets its look-alikes; set-up adds to the top level of `uns` alone
    shared = {"uns": dict(adata.uns), "varp": dict(adata.varp), "layers": layers}
    twin = AnnData(x, obs=adata.obs.copy(), var=adata.var[[]].copy(), **shared)
    _Screen.setup_anndata(twin, **setup)
    return _Screen(twin)


def check_refine_kwargs(
    preset: str = "recommended",
    n_edges: int | None = None,
    threshold: float | None = None,
    n_listed: int = 100_000,
    **options: Any,
) -> RefineOptions:
    """Options of a refinement; raises ``ValueError`` for what makes no sense, before anything is looked at."""
    if n_edges is not None and threshold is not None:
        raise ValueError("n_edges and threshold both say which edges to keep: pass one of them.")
    if n_edges is not None and n_edges < 1:
        raise ValueError(f"n_edges={n_edges}: pass at least 1.")
    if n_listed < 0:
        raise ValueError(f"n_listed={n_listed}: pass at least 0.")
    return resolve_refine_options(preset, options)


def refine_within(
    model: CausalModel,
    train_idx: np.ndarray,
    val_idx: np.ndarray,
    scale: str,
    seed: int,
    device: torch.device,
    preset: str = "recommended",
    n_edges: int | None = None,
    threshold: float | None = None,
    n_listed: int = 100_000,
    **options: Any,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Refine the registered network of a model on some of its cells.

    Parameters
    ----------
    model
        A model with data and a prior network.
    train_idx, val_idx
        Cells to learn from, and cells that say when to stop.
    scale
        ``"log1p"`` (of counts per 10,000) or ``"continuous"``.
    seed, device
        Of the training.
    preset, n_edges, threshold, n_listed, **options
        As in :func:`refine_grn`.

    Returns
    -------
    The table, and what was done in numbers.
    """
    chosen = check_refine_kwargs(preset, n_edges, threshold, n_listed, **options)
    linear = chosen.form == "linear"
    tokens, prior = list(model._vocabulary.tokens), model._prior_grn()
    nodes = _nodes(model, prior, tokens, chosen)
    how = {"scale": scale, "standardize": linear, "interventions": chosen.interventions, "device": device}
    data = RefinementData(model.adata_manager, train_idx, val_idx, nodes, tokens, **how)
    candidates = _candidates(prior, nodes, chosen)
    fit = fit_refinement(data, candidates, chosen, seed)
    table, facts = edge_table(fit.module, candidates, data, chosen, n_edges, threshold, n_listed)
    new = int((~table["prior"] & table["kept"]).sum())
    facts |= {**_described(chosen), "keep_other": candidates.keep_other, "seed": seed, "n_epochs": fit.n_epochs}
    logger.info(
        "Refined network: %d prior edges kept of %d, %d new.", table["kept"].sum() - new, table["prior"].sum(), new
    )
    return table, facts


def _nodes(model: CausalModel, prior: pd.DataFrame, tokens: list[str], options: RefineOptions) -> Nodes:
    linear, asked = options.form == "linear", options.regulators
    if not linear and not (isinstance(asked, str) and asked == "all"):
        raise ValueError(
            f"form='attention' passes values on over several layers, so that every gene is a node: regulators={asked!r} cannot be. "
            "Pass regulators='all', or form='linear'."
        )
    nodes = make_nodes(model._var_names(), tokens, prior, asked)
    if not len(nodes.regulators):
        raise ValueError("No gene may regulate: pass regulators='all', or a prior whose sources are measured genes.")
    return nodes


def _candidates(prior: pd.DataFrame, nodes: Nodes, options: RefineOptions) -> Candidates:
    known, own = positions_of(prior, nodes), self_positions(nodes)
    if not len(np.setdiff1d(known, own)):
        raise ValueError(
            f"No edge of the prior joins two different nodes; its sources are {listed(pd.unique(prior['source'])[:5])}."
        )
    linear = options.form == "linear"
    kept = np.setdiff1d(known, own) if linear else np.union1d(known, own)
    forbidden = own if linear else own[:0]
    sizes = len(nodes.regulators), len(nodes.genes)
    keep_other = keep_rate(options, sizes[0] * sizes[1] - len(kept) - len(forbidden))
    return Candidates(*sizes, torch.from_numpy(kept), torch.from_numpy(forbidden), options.keep_prior, keep_other)


def _described(options: RefineOptions) -> dict[str, Any]:
    names = ("form", "keep_prior", "edge_penalty", "interventions", "batch_size")
    regulators = options.regulators if isinstance(options.regulators, str) else "given"
    return {**{name: getattr(options, name) for name in names}, "regulators": regulators}
