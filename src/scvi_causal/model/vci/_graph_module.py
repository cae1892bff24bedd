"""The networks of GraphVCI: those of VCI with codes of genes in encoder and decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scvi_causal.model.vci._blocks import mlp
from scvi_causal.model.vci._module import VCIModule
from scvi_causal.nn import AttentionHead, DotHead, GRNEncoder

if TYPE_CHECKING:
    from scvi_causal.model.vci._graph_model import GraphVCI

_FEATURE_SCALE = 1.0


class GraphVCIModule(VCIModule):
    r"""VCI whose decoder reads every gene off its code :math:`g_i = Z_\mathcal{G}(i)`, and whose encoder knows their mean.

    Parameters
    ----------
    n_genes
        Number of genes, the nodes of the graph.
    edge_index
        (2, n_edges) regulators above targets.
    **kwargs
        Of :class:`VCIModule`, with :class:`GraphVCIOptions` as ``options``.
    """

    def __init__(self, n_genes: int, *args: Any, edge_index: Tensor, **kwargs: Any):
        super().__init__(n_genes, *args, **kwargs)
        o = self.options
        scale = None if o.shared_heads else _FEATURE_SCALE
        self.graph = GRNEncoder(edge_index, n_genes, o.n_node_features, o.n_graph, feature_scale=scale)
        self.gene_bias = nn.Parameter(torch.zeros(self.n_parameters, n_genes)) if o.gene_bias else None
        self._kept: tuple | None = None

    # ------------------------------------------------------------------ hooks of VCIModule

    def _build_encoder(self, n_input: int) -> None:
        o = self.options
        width = o.n_latent if o.shared_heads else 2 * o.n_latent
        parts = {
            "body": mlp([n_input] + [o.n_hidden] * o.n_layers, o.normalization, o.dropout_rate, activate_last=True)
        }
        if o.aggregator == "sum":
            parts |= {"head": nn.Linear(o.n_hidden, width), "readout": nn.Linear(o.n_graph, 2 * o.n_latent)}
        else:
            parts |= {
                "head": nn.Linear(o.n_hidden, o.n_hidden),
                "readout": nn.Linear(o.n_hidden + o.n_graph, 2 * o.n_latent),
            }
        self.encoder = nn.ModuleDict(parts)

    def _posterior(self, encoder: nn.Module, hidden_input: Tensor, step: dict) -> tuple[Tensor, Tensor]:
        r"""Eq. 7 and 8. ``"sum"``: :math:`\mu = h_u + g_1`, raw :math:`= h_u + g_2`, with a head each unless as published."""
        o, pooled = self.options, step["pooled"]
        hidden = encoder["head"](encoder["body"](hidden_input))
        if o.aggregator == "mlp":
            both = encoder["readout"](torch.cat([hidden, pooled.expand(len(hidden), -1)], 1))
            mean, raw = both.chunk(2, dim=1)
            return mean, raw
        shift_mean, shift_raw = torch.relu(encoder["readout"](pooled)).chunk(2)
        mean, raw = (hidden, hidden) if o.shared_heads else hidden.chunk(2, dim=1)
        return mean + shift_mean, raw + shift_raw

    def _build_decoder(self, n_input: int) -> None:
        super()._build_decoder(n_input)
        o = self.options
        head = AttentionHead if o.gene_decoder == "att" else DotHead
        # the last layer has no activation: what genes read off may be negative
        self.decoder_last = nn.Linear(o.n_hidden, o.n_hidden)
        self.decoder_head = head(o.n_hidden, o.n_graph, self.n_parameters)

    def _outcome_head(self, hidden: Tensor, step: dict) -> list[Tensor]:
        outputs = self.decoder_head(self.decoder_last(hidden), step["basis"])
        if self.gene_bias is None:
            return outputs
        return [output + bias for output, bias in zip(outputs, self.gene_bias, strict=True)]

    def _per_step(self) -> dict:
        """Codes of genes: once per step, whatever the number of cells, draws and decodings."""
        codes = self.graph()
        return {"pooled": codes.mean(0), "basis": self.decoder_head.basis(codes)}

    # ------------------------------------------------------------------ predictions

    def inference_step(self) -> dict:
        """As :meth:`_per_step`, kept as long as no parameter changes."""
        state = tuple((p.data_ptr(), p._version) for part in (self.graph, self.decoder_head) for p in part.parameters())
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, self._per_step())
        return self._kept[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}

    def on_load(self, model: GraphVCI, **kwargs: Any) -> None:
        """Take the edges that the saved model had, before its parameters."""
        model._restore_edges()
