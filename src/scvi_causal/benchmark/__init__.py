"""Is any model better than a simple baseline on these data, and how far is everything from the noise ceiling?

:func:`run` answers with a table, paired comparisons and a report; everything with ``fit`` and ``predict`` can take part.
"""

from ._models import ModelSpec
from ._protocol import ModelPredictor, PredictionError, Predictor
from ._result import BenchmarkResult, load
from ._run import run
from ._tasks import Task

__all__ = [
    "BenchmarkResult",
    "ModelPredictor",
    "ModelSpec",
    "PredictionError",
    "Predictor",
    "Task",
    "load",
    "run",
]
