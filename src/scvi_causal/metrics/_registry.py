"""The numbers of a table, and what a reader needs to know about each of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a reader of a table needs to know about one of its columns."""

    name: str
    """Column in a table, key in a score."""
    title: str
    """Heading for people."""
    best: float
    """Value of a perfect prediction."""
    better: str
    """"higher", "lower", or "closer" (to ``best``)."""
    meaning: str
    """One clause."""
    family: str
    """"mean", "effect", "distribution", "DE", "specificity" or "calibration"."""
    ceiling: str
    """How the noise ceiling of a replicate of full size comes from two halves: "spearman-brown" for correlations;
    "split-half" for what is scaled by the power of n with which its noise falls, or left as it is (see
    :func:`noise_ceiling`); "none" where ``best`` is known and no replicate is needed."""
    headline: bool
    """Whether a table that shows few columns shows this one."""
    how: str
    """Library and estimator: one name means different numbers in different libraries."""
    needs: str = "means"
    """What it is computed from: "means" of both sides, "cells" of both sides (a mean profile gets NaN), or "panel" (the
    predictions of all perturbations of a context; not in a score of one population)."""


def _effect(name: str, title: str, meaning: str, how: str, *, headline: bool = False, family: str = "effect") -> Metric:
    """A correlation of effects."""
    return Metric(name, title, 1.0, "higher", meaning, family, "spearman-brown", headline, how)


def _error(name: str, title: str, meaning: str, how: str, *, headline: bool = False, needs: str = "means") -> Metric:
    """An error of the mean profile."""
    return Metric(name, title, 0.0, "lower", meaning, "mean", "split-half", headline, how, needs)


def _r2(name: str, title: str, meaning: str, how: str, *, headline: bool = False) -> Metric:
    return Metric(name, title, 1.0, "higher", meaning, "mean", "split-half", headline, how)


def _distance(name: str, title: str, meaning: str, how: str, *, headline: bool = False) -> Metric:
    """A distance of two populations of cells."""
    return Metric(name, title, 0.0, "lower", meaning, "distribution", "split-half", headline, how, "cells")


def _calls(name: str, title: str, meaning: str, how: str, *, headline: bool = False, needs: str = "cells") -> Metric:
    """An agreement of calls of differential expression."""
    return Metric(name, title, 1.0, "higher", meaning, "DE", "split-half", headline, how, needs)


def _dispersion(name: str, title: str, best: float, meaning: str, family: str, how: str, *, headline: bool) -> Metric:
    """A number that is best at a value in between."""
    return Metric(name, title, best, "closer", meaning, family, "none", headline, how, "cells")


_WELCH = "scipy ttest_ind_from_stats (Welch) on log1p, Benjamini-Hochberg 0.05"

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        _r2(
            "r2_de",
            "R2 (DE genes)",
            "R2 of the mean profile on the genes that change most",
            "own, 1 - SSE/SST over genes; genes by absolute observed effect",
            headline=True,
        ),
        _effect(
            "pearson_effect",
            "Pearson of effects",
            "over genes, against control cells no model saw",
            "own, numpy; independent control halves",
            headline=True,
        ),
        _error(
            "mse_ratio",
            "MSE / control",
            "squared error of the mean, relative to predicting no change",
            "own; biased by sampling noise above and below the line",
        ),
        _distance(
            "energy",
            "energy distance",
            "between predicted and observed cells, unbiased, over all genes",
            "own, U-statistic, Euclidean, not squared, no square root",
        ),
        _dispersion(
            "variance_ratio",
            "variance ratio",
            1.0,
            "predicted over observed variance, median over genes",
            "distribution",
            "own, sample variances (ddof 1)",
            headline=True,
        ),
        _r2(
            "r2", "R2 (all genes)", "R2 of the mean profile; mostly baseline expression", "own, 1 - SSE/SST over genes"
        ),
        _effect(
            "pearson_effect_de",
            "Pearson of effects (DE)",
            "the same on the genes that change most",
            "own, numpy; independent control halves",
        ),
        _error("mse", "MSE", "squared error of the mean profile over all genes", "own; biased by sampling noise"),
        _distance(
            "energy_pca",
            "energy distance (PCA)",
            "the same in a PCA of training cells",
            "own, U-statistic, Euclidean, not squared; scikit-learn PCA of training cells",
            headline=True,
        ),
        _distance(
            "mmd2",
            "MMD^2",
            "unbiased, Gaussian kernel, bandwidth from the observed cells",
            "own, U-statistic, one bandwidth: median squared distance of observed cells",
        ),
        # the numbers above are those of score_counterfactual, in the order in which its tables show them
        _error("mae", "MAE", "absolute error of the mean profile over all genes", "own; biased by sampling noise"),
        _effect(
            "cosine_effect",
            "cosine of effects",
            "direction of the effect over genes, its common shift included",
            "own, numpy; independent control halves",
        ),
        _effect(
            "pearson_centred",
            "Pearson, centred",
            "of what differs from the average training perturbation, on both sides",
            "own, numpy; reference: unweighted mean of the training perturbations (Systema)",
            headline=True,
        ),
        _r2(
            "r2_weighted",
            "R2 (weighted)",
            "R2 of the effects, genes weighted by how sure their observed change is",
            "own; weights: absolute Welch t of observed against reference controls (Miller et al.)",
        ),
        _error(
            "mse_unbiased_ratio",
            "MSE / control, unbiased",
            "squared error relative to no change, sampling noise taken out of both",
            "own; variance / n of the observed mean subtracted above and below the line, none for the prediction",
            headline=True,
        ),
        _effect(
            "pearson_others",
            "Pearson of effects (others)",
            "the perturbed genes themselves left out",
            "own, numpy; independent control halves; target genes of the perturbation excluded",
        ),
        _distance(
            "wasserstein",
            "Wasserstein per gene",
            "1-Wasserstein distance of every gene, mean over genes",
            "own, exact in one dimension (as scipy wasserstein_distance), not squared; biased by sampling noise",
        ),
        _calls(
            "de_direction",
            "DE direction",
            "share of the significant genes that move the right way",
            f"{_WELCH}, observed against reference controls; sign of the predicted effect",
            headline=True,
            needs="means",
        ),
        _calls(
            "de_overlap",
            "DE overlap",
            "Jaccard index of predicted and observed significant genes",
            f"{_WELCH}, each side against its own control half, at most as many predicted cells as observed",
            headline=True,
        ),
        _calls(
            "de_auprc",
            "DE AUPRC",
            "precision-recall of observed significant genes, ranked by predicted cells; chance is their share",
            f"scikit-learn average_precision_score; {_WELCH}; ranked by absolute t of the predicted cells",
        ),
        _dispersion(
            "coverage90",
            "90 % coverage",
            0.9,
            "share of observed values inside the central 90 % of the predicted cells, over genes",
            "calibration",
            "own, rank-based, ties split",
            headline=False,
        ),
        Metric(
            "pair_correlation",
            "gene-gene correlation",
            1.0,
            "higher",
            "agreement of the correlations between genes, on the most variable ones",
            "distribution",
            "spearman-brown",
            False,
            "own, Pearson over pairs of numpy corrcoef entries",
            "cells",
        ),
        Metric(
            "discrimination",
            "discrimination",
            1.0,
            "higher",
            "rank of the own observed effect among those of all perturbations; 0.5 is chance",
            "specificity",
            "split-half",
            True,
            "own, cosine, mid-ranks (as pds_cosine of cell-eval2, on log1p effects); genes of all targets left out",
            "panel",
        ),
    )
}
"""All numbers by name, in the order in which tables show them."""

PLAIN = tuple(METRICS)[:10]
"""The numbers of :func:`score_counterfactual` and :func:`noise_ceiling`."""
