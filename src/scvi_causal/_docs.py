"""Docstring snippets that every ``setup_anndata`` and every prediction shares, written once."""

from __future__ import annotations

from docrep import DocstringProcessor
from scvi.utils import setup_anndata_dsp

from ._compat import devices_dsp

_SETUP = {
    "param_perturbation_key": """\
perturbation_key
    Column of ``adata.obs`` with the perturbation of each cell: one token (``"KLF1"``), or tokens joined by
    ``perturbation_separator`` (``"KLF1+BAK1"``, in any order).""",
    "param_control_category": """\
control_category
    Value of that column that means "no perturbation"; a list if there are several.""",
    "param_dosage_key": """\
dosage_key
    Column of ``adata.obs`` with the dosage: a number for all tokens of a cell, or one per token joined like the tokens
    (``"0.5+2"``). May be negative (activation +, interference −). ``None`` is 1 for all tokens.""",
    "param_perturbation_separator": """\
perturbation_separator
    What joins the tokens of a combination; ``None`` never splits a label.""",
    "param_grn_key": """\
grn_key
    Key of ``adata.uns`` with the prior gene regulatory network: a DataFrame ``source, target[, weight]`` (regulator to
    target). ``None`` takes ``adata.uns["grn"]`` if it is there.""",
    "param_perturbation_features_key": """\
perturbation_features_key
    Key of ``adata.uns`` with a DataFrame of features per token (index: tokens, columns: strings), or of ``adata.varm``
    with features per gene.""",
    "param_extra_tokens": """\
extra_tokens
    Tokens that no cell carries and that will be asked for: perturbations whose cells are held out, or that are planned.
    A graph keeps those that are no genes as nodes, and models that can predict any known token know them.""",
    "param_batch_key": """\
batch_key
    Column of ``adata.obs`` with the batch. Effects are taken within batches, and decoders may correct for it.""",
    "param_cat_cov_keys": """\
categorical_covariate_keys
    Columns of ``adata.obs`` that are held fixed: cell type, donor, stimulation ... Together with the batch they are the
    strata within which perturbed cells are compared with controls.""",
    "param_cont_cov_keys": """\
continuous_covariate_keys
    Numeric columns of ``adata.obs`` that are registered for models that use them.""",
    "param_size_factor": """\
size_factor_key
    Column of ``adata.obs`` with the library of each cell, in counts. Give it when the genes in ``adata`` are a panel cut
    from a larger transcriptome; otherwise the library is the sum of the counts of a cell.""",
}

_PREDICT = {
    "param_perturbation": """\
perturbation
    The target. ``None``: every cell under its own label, from a control cell of its stratum. A string, or an array or
    Series with one label per cell: this very cell under that target. A list: every source cell under every target, as
    a new AnnData.""",
    "param_query_adata": """\
adata
    Data to predict on; the same genes in the same order as the training data. ``None`` is the training data.""",
    "param_indices": """\
indices
    Cells to predict (positions or a boolean mask). ``None`` is all cells, or for a list of targets up to 1,000 controls.""",
    "param_dosage": """\
dosage
    Dosage of the target: a number, a string such as ``"0.5+2"`` in the order of its tokens, or one of these per target
    or cell. ``None`` is 1; for ``perturbation=None`` it is the cell's own.""",
    "param_covariates": """\
covariates
    Registered covariates to set, ``{column: value}``; the rest stays that of the source cell.""",
    "param_features": """\
features
    Features of tokens that have none yet: DataFrame (index: tokens) with the columns of the registered features.""",
    "param_batch_size": """\
batch_size
    Cells per step; ``None`` is up to 512, fewer where several draws of many genes would not fit in 256 MB.""",
    "param_seed": """\
seed
    Seed of this call; ``None`` is ``scvi.settings.seed``, or 0 where that is not set. Nothing global is seeded.""",
}

docs = DocstringProcessor(**{**setup_anndata_dsp.params, **devices_dsp.params, **_SETUP, **_PREDICT})
