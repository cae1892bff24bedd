"""Average effects with intervals, from observed cells and the predictions of any model. Arrays in, tables out."""

from ._balance import balance_test
from ._collect import StratumPredictions
from ._influence import MarginalMean, marginal_mean, standard_error
from ._multiple import adjust_pvalues
from ._table import estimate_effects

__all__ = [
    "MarginalMean",
    "StratumPredictions",
    "adjust_pvalues",
    "balance_test",
    "estimate_effects",
    "marginal_mean",
    "standard_error",
]
