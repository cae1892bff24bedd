"""Variational causal inference, with and without a regulatory network, and the refinement of one."""

from __future__ import annotations

from ._graph_model import GraphVCI
from ._model import VCI
from ._refine import refine_grn

__all__ = ["VCI", "GraphVCI", "refine_grn"]
