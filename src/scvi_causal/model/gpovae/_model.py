"""GPOVAE: the public class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_causal._compat import FIELD_REGISTRIES_KEY, STATE_REGISTRY_KEY
from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal._docs import docs
from scvi_causal.data.fields import QualityField
from scvi_causal.model.cradlevae import CRADLEVAE
from scvi_causal.model.gpovae._fit import fit_network
from scvi_causal.model.gpovae._matching import NetworkSplitter, import_transport
from scvi_causal.model.gpovae._module import GPOVAEModule
from scvi_causal.model.gpovae._network_report import NetworkReportMixin
from scvi_causal.model.gpovae._nodes import plan_nodes
from scvi_causal.model.gpovae._options import SIZES, network_options
from scvi_causal.model.gpovae._quality import NoQualityField
from scvi_causal.model.samsvae import SAMSVAE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scvi_causal.model.gpovae._nodes import ExtraGenes
    from scvi_causal.model.gpovae._options import Alignment, Indirect, Matching, NetworkOptions
    from scvi_causal.model.samsvae._options import Preset

_MOST_GENES = 1_000
"""Nodes beside the tokens, unless others are asked for."""


class GPOVAE(NetworkReportMixin, CRADLEVAE):
    """VAE whose perturbations act along a gene regulatory network :cite:p:`Baek2025GPOVAE`.

    SAMS-VAE with one latent coordinate per node of a network: the tokens, and further genes. The mask of a token then says which genes
    it acts on, and the masks of all tokens are the network, of which :meth:`get_grn` gives the edges.

    Parameters
    ----------
    adata
        AnnData with counts that was set up with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of ``adata``.
    preset
        ``"recommended"``, or ``"paper"`` for the published objective, networks and schedule; see the user guide for what differs and
        why. Options that are not given are those of the preset.
    extra_genes
        Nodes beside the tokens: ``"all"`` measured genes, a list of them, the number of those that respond the most in the training
        cells, or ``None``. By default up to 1,000, as published none.
    alignment
        What ties masks to effects of perturbations. ``"effects"``: masks and embeddings start at the posterior that log ratios of population
        means imply, signed and weighted by their standard errors. ``"cells"``: log odds follow the absolute difference of each cell from a
        control cell (as published).
    alignment_weight
        Weight of a term of the objective that keeps them there; 0, or 100 as published. The likelihood is that of the same cells, so that
        any other weight counts their evidence more than once.
    indirect
        Whether what a perturbation does through other perturbed genes is taken off before edges are judged (``"mediated"``), so that these are
        direct, or every effect is an edge (``"none"``, as published).
    matching
        For ``alignment="cells"``: a control of the same batch and covariates, or one found by optimal transport (``"ot"``, as published; needs
        POT).
    n_hops, change_threshold, density_weight
        For ``alignment="cells"``: length of paths, log difference from which there is an edge, and the weight of the penalty on the
        number of edges. 0.8 and 5 were published for K562, 0.5 and 10 for RPE1.
    prior_of_unperturbed
        For ``alignment="cells"``: whether the edges of nodes that nobody perturbed are held at their prior. As published nothing does, and
        they grow.
    **options
        Options of :class:`CRADLEVAE` and :class:`SAMSVAE`. ``mask_prior`` and ``embedding_prior_scale``, the probability and size of edges,
        are learned from the effects by default, and in a given network apart from the rest.

    Examples
    --------
    >>> import scvi_causal
    >>> screen = scvi_causal.data.simulate_screen(n_genes=20, n_cells_per_perturbation=30, n_control=100, seed=0)
    >>> scvi_causal.GPOVAE.setup_anndata(screen.adata, size_factor_key="library")
    >>> model = scvi_causal.GPOVAE(screen.adata)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.get_grn().columns.tolist()
    ['source', 'target', 'weight', 'sign', 'probability', 'prior']

    Notes
    -----
    A token that was not in the training cells is a node, and other perturbations may act on it, but nothing says what *it* does: its row of
    the network is at its prior. It is refused, unless features of perturbations are registered.
    """

    _module_cls = GPOVAEModule
    _data_splitter_cls = NetworkSplitter

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        preset: Preset = "recommended",
        extra_genes: ExtraGenes | str = "default",
        alignment: Alignment | None = None,
        alignment_weight: float | None = None,
        indirect: Indirect | None = None,
        matching: Matching | None = None,
        n_hops: int | None = None,
        change_threshold: float | None = None,
        density_weight: float | None = None,
        prior_of_unperturbed: bool | None = None,
        n_latent: int | None = None,
        n_hidden: int | None = None,
        **options,
    ):
        self._own_options = {
            "alignment": alignment,
            "alignment_weight": alignment_weight,
            "indirect": indirect,
            "matching": matching,
            "n_hops": n_hops,
            "change_threshold": change_threshold,
            "density_weight": density_weight,
            "prior_of_unperturbed": prior_of_unperturbed,
        }
        if isinstance(extra_genes, str) and extra_genes == "default":
            extra_genes = None if preset == "paper" else _MOST_GENES
        self._extra_genes = extra_genes
        self.node_names_: np.ndarray = np.array([], dtype=str)
        sizes = SIZES.get(preset, SIZES["recommended"])
        super().__init__(
            adata,
            registry,
            preset,
            n_latent=n_latent or sizes["n_latent"],
            n_hidden=n_hidden or sizes["n_hidden"],
            **options,
        )
        if self.module.options.alignment == "cells":
            self._datasplitter_defaults = {"pair_controls": True}
            if self.module.options.matching == "ot":
                import_transport()
                measured = np.isin(self._var_names(), self._vocabulary.tokens)
                self._datasplitter_defaults["match_genes"] = np.flatnonzero(measured)
        if self.module.options.learn_probability:  # what the options name is where it starts
            self._model_summary_string = self._model_summary_string.replace(
                f"mask_prior: {self.module.options.mask_prior}", "mask_prior: learned"
            )
        self._model_summary_string += (
            f" nodes: {self.module.n_nodes}, alignment: {self.module.options.alignment}, "
            f"indirect: {self.module.options.indirect}."
        )
        self.init_params_ = self._get_init_params(locals())

    # ------------------------------------------------------------------ set-up

    @classmethod
    @docs.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        perturbation_key: str = "perturbation",
        control_category: str | list[str] = "control",
        layer: str | None = None,
        dosage_key: str | None = None,
        perturbation_separator: str | None = "+",
        batch_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        size_factor_key: str | None = None,
        grn_key: str | None = None,
        perturbation_features_key: str | None = None,
        extra_tokens: list[str] | None = None,
        quality_key: str | None = None,
        quality_pass_category: str | bool = "pass",
        **kwargs,
    ) -> None:
        """%(summary)s

        Parameters
        ----------
        %(param_adata)s
        %(param_perturbation_key)s
        %(param_control_category)s
        %(param_layer)s
        %(param_dosage_key)s
        %(param_perturbation_separator)s
        %(param_batch_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s
        %(param_size_factor)s
        %(param_grn_key)s
        %(param_perturbation_features_key)s
        %(param_extra_tokens)s
        quality_key
            Column of ``adata.obs`` with the quality of each cell, as for :class:`CRADLEVAE`; without it all cells pass, and there is no
            artifact.
        quality_pass_category
            Its value for cells that pass.

        Raises
        ------
        ValueError
            If something does not fit. The message names the values and says what to do; ``adata`` stays as it was.
        """
        arguments = cls._get_setup_method_args(**locals())
        source = kwargs.get("source_registry")
        if quality_key is None:
            field = NoQualityField()
        else:
            field = QualityField(quality_key, quality_pass_category)
            if source is None:
                field.check(adata)
            else:
                QualityField.check_query(adata, source[FIELD_REGISTRIES_KEY][CAUSAL_KEYS.QUALITY][STATE_REGISTRY_KEY])
        cls._register(adata, arguments, extra_fields=[field], **kwargs)

    @property
    def _has_quality(self) -> bool:
        return bool(self._field_state(CAUSAL_KEYS.QUALITY)["original_key"])

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        if self._has_quality:
            return super()._validate_anndata(adata, copy_if_view)
        return SAMSVAE._validate_anndata(self, adata, copy_if_view)

    def _settable_covariates(self) -> dict[str, tuple]:
        return super()._settable_covariates() if self._has_quality else {}

    def _quality_code(self, quality: object) -> int:
        if not self._has_quality:
            raise ValueError(
                f"quality={quality!r}: this GPOVAE knows no quality of cells. Name their column with setup_anndata(adata, quality_key=...)."
            )
        return super()._quality_code(quality)

    def sample_cells(self, perturbations: str | Sequence[str] | None = None, n_cells: int = 100, **kwargs) -> AnnData:
        """Generate cells, as :meth:`CRADLEVAE.sample_cells` does; without a ``quality_key`` they have no quality.

        Parameters
        ----------
        perturbations, n_cells, **kwargs
            As there.
        """
        if self._has_quality:
            return super().sample_cells(perturbations, n_cells, **kwargs)
        if kwargs.pop("quality", None) is not None:
            self._quality_code("pass")
        return SAMSVAE.sample_cells(self, perturbations, n_cells, **kwargs)

    def _resolve_options(self, preset: Preset, **given: Any) -> NetworkOptions:
        return network_options(preset, self._has_quality, **{**given, **self._own_options})

    def _data_sizes(self) -> dict[str, Any]:
        self._plan = plan_nodes(self._vocabulary.tokens, self._var_names(), self._extra_genes)
        return {**super()._data_sizes(), "n_nodes": self._plan.n_nodes, "n_measured": self._plan.n_measured}

    # ------------------------------------------------------------------ training

    def _set_training_defaults(self) -> None:
        super()._set_training_defaults()
        if self._preset != "paper":
            # edges start where the effects are: there is no long way to go
            self._plan_defaults["mechanism_lr_factor"] = 1.0

    def _before_training(self, train_idx: np.ndarray | None) -> None:
        super()._before_training(train_idx)
        if self.is_trained_:
            return
        device = self.module.device
        self.module.to("cpu")
        rows = np.sort(np.asarray(train_idx))
        nodes = fit_network(self.module, self.adata_manager, rows, self._plan, self._prior_grn())
        self.node_names_ = nodes.names
        self.module.to(device)

    def _check_training_quality(self, counts: np.ndarray) -> None:
        if self._has_quality:
            super()._check_training_quality(counts)

    def _predictable_token(self, token: str, seen: bool, described: bool, in_graph: bool) -> tuple[bool, str]:
        answer, reason = super()._predictable_token(token, seen, described, in_graph)
        announced = token in self._vocabulary or token in self._extra_tokens()
        if not answer and announced and token in self.node_names_.tolist():
            reason += "; others act on its node, but no cell says which edges leave it"
        return answer, reason

    def _perturbation_vectors(
        self, labels: np.ndarray, features: pd.DataFrame | None
    ) -> tuple[np.ndarray, Sequence[str]]:
        vectors, _ = super()._perturbation_vectors(labels, features)
        return vectors, self.node_names_.tolist()
