"""Effects of perturbations as the model predicts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_causal._docs import docs
from scvi_causal.data import canonical_labels, control_mask

from ._request import PredictOptions, check_rows, resolve_seed
from ._scales import to_normalized
from ._sources import SourceReader, control_pool, match_sources
from ._targets import dosage_per_target, encode_targets
from ._walk import Tokens, evaluate, library_of, step_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class EffectsMixin:
    """``get_perturbation_effects``."""

    @docs.dedent
    @torch.inference_mode()
    def get_perturbation_effects(
        self,
        perturbations: str | Sequence[str] | None = None,
        adata: AnnData | None = None,
        *,
        indices: Sequence[int] | None = None,
        dosage: float | str | Sequence | None = None,
        features: pd.DataFrame | None = None,
        delta: float = 0.25,
        pseudocount: float = 0.01,
        n_samples: int = 100,
        n_cells: int = 100,
        fdr_target: float = 0.05,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Effect of each perturbation on each gene, as the model predicts it, with its uncertainty.

        Each sample is a population of source cells drawn with replacement and predicted under the perturbation and under
        control with the same random numbers; the effect is the log2 ratio of the two means of normalised expression. Its
        spread over samples is the uncertainty of the model about its own prediction. It does not know how wrong the model is.

        Parameters
        ----------
        perturbations
            Labels; by default all conditions of the training cells but control.
        %(param_query_adata)s
        indices
            Source cells; by default the training controls.
        %(param_dosage)s
        %(param_features)s
        delta
            A gene counts as changed when its absolute log2 fold change exceeds this.
        pseudocount
            Added to both means, in counts per 10,000.
        n_samples, n_cells
            Number of populations, and of cells in each.
        fdr_target
            Expected share of false calls among the genes called changed.
        %(param_batch_size)s
        %(param_seed)s

        Returns
        -------
        DataFrame, one row per perturbation and gene, with the columns of scvi-tools' differential expression:
        ``perturbation``, ``gene``, ``proba_de``, ``proba_not_de``, ``bayes_factor``, ``scale1`` (mean under the perturbation,
        counts per 10,000), ``scale2`` (under control), ``lfc_mean``, ``lfc_median``, ``lfc_std``, ``lfc_min``, ``lfc_max``,
        ``lfc_q05``, ``lfc_q95``, ``is_de_fdr_<fdr_target>``. On continuous data ``lfc`` is the difference of the means.

        Examples
        --------
        >>> import scvi_causal
        >>> from scvi_causal.model import Additive
        >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
        >>> Additive.setup_anndata(adata)
        >>> model = Additive(adata)
        >>> model.train()
        >>> effects = model.get_perturbation_effects(model.seen_tokens_[:2], n_samples=20)
        >>> len(effects)
        40
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        adata = self._check_query(adata)
        labels = self._effect_labels(perturbations)
        self._refuse_unpredictable(np.asarray(labels, dtype=object), features)
        seed = resolve_seed(seed)
        if indices is None:
            adata, pool = control_pool(self, adata)
        else:
            pool = check_rows(indices, adata.n_obs)
            own, _ = self._own_conditions(adata, pool)
            keep = control_mask(own, self._vocabulary.separator, self._vocabulary.control_categories) | self.can_abduct
            sources = match_sources(self, adata, pool, keep, seed)
            adata, pool = sources.adata, sources.rows
        vocabulary = self._get_vocabulary()
        control = vocabulary.control_categories[0]
        targets, reference = encode_targets(
            labels,
            dosage_per_target(dosage, labels),
            [control],
            None,
            vocabulary.separator,
            vocabulary.control_categories,
        )
        treated, untreated = _population_means(
            self,
            adata,
            pool,
            targets,
            reference,
            features,
            n_samples,
            n_cells,
            batch_size or step_size(1, len(self._var_names())),
            seed,
        )
        tables = [
            _effect_table(means, untreated, delta, pseudocount, fdr_target, self.module.scale == "continuous")
            for means in treated.transpose(1, 0, 2)
        ]
        names = canonical_labels(labels, vocabulary.separator, vocabulary.control_categories)
        genes = self._var_names()
        for name, table in zip(names, tables, strict=True):
            table.insert(0, "gene", genes)
            table.insert(0, "perturbation", name)
        return pd.concat(tables, ignore_index=True)

    def _effect_labels(self, perturbations: str | Sequence[str] | None) -> list[str]:
        if perturbations is None:
            controls = set(self._get_vocabulary().control_categories)
            return [label for label in self.seen_conditions_.tolist() if label not in controls]
        labels = [perturbations] if isinstance(perturbations, str) else [str(p) for p in perturbations]
        if not labels:
            raise ValueError("perturbations is empty: pass at least one label.")
        return labels


def _population_means(model, adata, pool, targets, reference, features, n_samples, n_cells, step, seed):
    """(n_samples, n_targets, genes) means of normalised expression under the targets, (n_samples, genes) under control."""
    model.module.eval()
    reader, tokens = SourceReader(model, adata), Tokens(model, targets.tokens, features)
    options = PredictOptions("normalized", False, max(2, n_samples), seed)
    n_targets, n_genes = len(targets.labels), len(model._var_names())
    treated = np.zeros((n_samples, n_targets, n_genes), dtype=np.float32)
    untreated = np.zeros((n_samples, n_genes), dtype=np.float32)
    rng = np.random.default_rng([seed, 3])
    for i, state in enumerate(np.random.SeedSequence([seed, 2]).generate_state(n_samples, np.uint64)):
        generator = torch.Generator(model.module.device).manual_seed(int(state >> 1))
        cells = np.sort(rng.choice(pool, n_cells))
        for start in range(0, n_cells, step):
            tensors = reader.read(cells[start : start + step])
            n, library = len(tensors["X"]), library_of(model, tensors)
            before = generator.get_state()
            for t in range(-1, n_targets):
                row = reference.dosage if t < 0 else targets.dosage[t]
                dosages, inputs = tokens.take(row)
                generator.set_state(before)  # common random numbers
                x = evaluate(model, tensors, dosages[0].expand(n, -1), inputs, options, generator)
                total = to_normalized(x, model.module.scale, library).sum(0).cpu().numpy() / n_cells
                if t < 0:
                    untreated[i] += total
                else:
                    treated[i, t] += total
    return treated, untreated


def _effect_table(treated, untreated, delta, pseudocount, fdr_target, is_difference) -> pd.DataFrame:
    """Summary of (n_samples, genes) means under a perturbation and under control."""
    if is_difference:
        change = treated - untreated
    else:
        change = np.log2(treated + pseudocount) - np.log2(untreated + pseudocount)
    probability = (np.abs(change) >= delta).mean(0)
    eps = 1e-8
    return pd.DataFrame(
        {
            "proba_de": probability,
            "proba_not_de": 1 - probability,
            "bayes_factor": np.log(probability + eps) - np.log(1 - probability + eps),
            "scale1": treated.mean(0),
            "scale2": untreated.mean(0),
            "lfc_mean": change.mean(0),
            "lfc_median": np.median(change, axis=0),
            "lfc_std": change.std(0),
            "lfc_min": change.min(0),
            "lfc_max": change.max(0),
            "lfc_q05": np.quantile(change, 0.05, axis=0),
            "lfc_q95": np.quantile(change, 0.95, axis=0),
            f"is_de_fdr_{fdr_target}": call_changed(probability, fdr_target),
        }
    )


def call_changed(probability: np.ndarray, fdr_target: float) -> np.ndarray:
    """Largest set of the most probable genes whose expected share of false calls is at most ``fdr_target``."""
    order = np.argsort(-probability, kind="stable")
    expected = np.cumsum(1 - probability[order]) / np.arange(1, len(order) + 1)
    called = np.zeros(len(order), dtype=bool)
    called[order[: int((expected <= fdr_target).sum())]] = True
    return called
