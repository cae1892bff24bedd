"""The options of GraphVCI, and what they are in each of its two faces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from scvi_causal.model.base._data_type import check_choice
from scvi_causal.model.vci._options import VCIOptions, resolve_options

Graph = Literal["auto", "prior", "refined", "none"]
GeneDecoder = Literal["att", "dot"]
Aggregator = Literal["sum", "mlp"]


@dataclass(frozen=True)
class GraphVCIOptions(VCIOptions):
    """What :class:`GraphVCIModule` is built from; see :class:`~scvi_causal.GraphVCI`."""

    gene_decoder: GeneDecoder = "dot"
    aggregator: Aggregator = "sum"
    n_graph: int = 64
    n_node_features: int = 64
    gene_bias: bool = True
    shared_heads: bool = False


_PUBLISHED = {
    "gene_decoder": "att",
    "aggregator": "sum",
    "n_graph": 128,
    "n_node_features": 128,
    "gene_bias": False,
    "shared_heads": True,
    "n_draws": 3,
}


def resolve_graph_options(preset: str, given: dict[str, Any], graph_given: dict[str, Any]) -> GraphVCIOptions:
    """Options of a preset, with what the user named (everything but ``None``) in its place; ``given`` are those of VCI."""
    own = {name: value for name, value in graph_given.items() if value is not None}
    for name, choices in (("gene_decoder", GeneDecoder), ("aggregator", Aggregator)):
        if name in own:
            check_choice(name, own[name], get_args(choices))
    options = GraphVCIOptions(**vars(resolve_options(preset, given)))
    if preset == "paper":
        draws = {} if given.get("n_draws") is None else {"n_draws": given["n_draws"]}
        options = replace(options, **{**_PUBLISHED, **draws})
    options = replace(options, **own)
    for name in ("n_graph", "n_node_features"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: pass at least 1.")
    return options
