"""A model on a fold: make, tune, fit, ask, score. Every step may go wrong, and what goes wrong is kept in the rows."""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_causal import metrics
from scvi_causal.data._messages import listed, plural
from scvi_causal.metrics import METRICS

from ._isolation import isolated
from ._job import Scoring
from ._leaks import COPIES, TOO_NEAR, is_too_near
from ._prepared import PreparedFold, prepare
from ._protocol import ModelPredictor, PredictionError, check_prediction, to_scored_scale
from ._tuning import tune

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from ._folds import Fold
    from ._job import Job
    from ._models import ModelSpec
    from ._resources import Meter
    from ._screen import Screen

MAX_VALUES = 100_000_000
"""Values that are predicted at a time: targets beyond are asked for in another call."""
# what a model may raise; KeyboardInterrupt is for the person at the keyboard
_ANY = (Exception, SystemExit)


@dataclass
class Failure:
    """The first thing that went wrong in a job."""

    error: str = ""
    trace: str = ""

    def note(self, error: BaseException) -> str:
        """Keep it if it is the first; returns it in one line.

        Raises
        ------
        KeyboardInterrupt
            For what lightning makes of a SIGTERM: somebody stopped the run (a cluster at its time limit), the model did not fail.
        """
        if type(error).__name__ == "SIGTERMException":
            raise KeyboardInterrupt from error
        text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        if not self.error:
            self.error, self.trace = text, "".join(traceback.format_exception(error))
        return text


@dataclass
class Scores:
    """Rows and effects of a job, filled as predictions come."""

    prepared: PreparedFold
    rows: list[dict[str, Any]]
    effects: np.ndarray
    squared_errors: dict[int, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, prepared: PreparedFold, rows: list[dict[str, Any]]) -> Scores:
        """Nothing predicted yet."""
        return cls(prepared, rows, np.full((len(rows), prepared.screen.x.shape[1]), np.nan, dtype=np.float32))

    def add(self, i: int, predicted: Any) -> None:
        """Score the (cells, genes) prediction of population ``i``."""
        prepared, population = self.prepared, self.prepared.fold.populations[i]
        observed = prepared.population(i)
        mean = metrics.mean_profile(predicted, "predicted")
        score = observed.score(
            predicted,
            average=prepared.averages.get(population.context),
            exclude=prepared.own_genes(population.perturbation),
        )
        self.effects[i] = mean - observed.control_means[0]
        self.squared_errors[i] = float(np.square(mean - observed.moments.mean).sum())
        leaks = [COPIES] if prepared.hidden.n_copies(predicted) else []
        if is_too_near([self.squared_errors[i]], [prepared.floor(i)]):
            leaks.append(TOO_NEAR)
        self.rows[i] |= {**score, "status": "ok", "leak": "; ".join(leaks)}

    def finish(self) -> None:
        """What takes all predictions of a job together: discrimination, and errors that are too small on the whole."""
        done = sorted(self.squared_errors)
        for context in self.prepared.fold.contexts:
            places = [i for i in done if self.prepared.fold.populations[i].context == context]
            if places:
                labels, observed = self.prepared.candidates[context]
                own = [labels.index(self.prepared.fold.populations[i].perturbation) for i in places]
                found = metrics.discrimination(
                    self.effects[places], observed, np.array(own), exclude=self.prepared.target_genes
                )
                for i, value in zip(places, found, strict=True):
                    self.rows[i]["discrimination"] = float(value)
        if is_too_near([self.squared_errors[i] for i in done], [self.prepared.floor(i) for i in done]):
            for i in done:
                if TOO_NEAR not in self.rows[i]["leak"]:
                    self.rows[i]["leak"] = "; ".join(filter(None, [self.rows[i]["leak"], TOO_NEAR]))


def run_model(
    screen: Screen, job: Job, meter: Meter
) -> tuple[list[dict[str, Any]], np.ndarray, tuple[str, str], list[str]]:
    """Rows, effects, (error, traceback) and warnings of a job with a model."""
    fold, failure = job.fold, Failure()
    rows = [_blank_row(job, i) for i in range(len(fold.populations))]
    prepared = prepare(screen, fold, job.scoring)
    scores = Scores.empty(prepared, rows)
    with isolated(fold.model_seed) as warned:
        try:
            predictor, tuned = _fit(prepared, job.spec, meter)
            for row in rows:
                row["tuned"] = tuned
            with meter.phase("predict"):
                refused = _refused(predictor, sorted({p.perturbation for p in fold.populations}))
        except _ANY as error:
            _fail(rows, range(len(rows)), failure.note(error))
        else:
            wanted = []
            for i, population in enumerate(fold.populations):
                if population.perturbation in refused:
                    rows[i] |= {"status": "refused", "error": refused[population.perturbation]}
                else:
                    wanted.append(i)
            _predict_and_score(predictor, prepared, wanted, scores, failure, meter)
            with meter.phase("score"):
                try:
                    scores.finish()
                except _ANY as error:  # the scores of the populations stand
                    failure.note(error)
    return rows, scores.effects, (failure.error, failure.trace), warned


def _blank_row(job: Job, i: int) -> dict[str, Any]:
    fold, population = job.fold, job.fold.populations[i]
    return {
        "model": job.model,
        "is_baseline": job.spec.is_baseline,
        "task": fold.task,
        "fold": fold.index,
        "seed": fold.seed,
        "perturbation": population.perturbation,
        "context": population.context,
        "kind": population.kind,
        "n_observed": len(population.observed),
        "n_predicted": 0,
        "status": "failed",
        "error": "",
        "leak": "",
        "tuned": "",
        **dict.fromkeys(METRICS, np.nan),
    }


def _fail(rows: list[dict[str, Any]], places, error: str) -> None:
    for i in places:
        rows[i] |= {"status": "failed", "error": error}


# ---------------------------------------------------------------------- fitting


def _fit(prepared: PreparedFold, spec: ModelSpec, meter: Meter) -> tuple[Any, str]:
    """A fitted predictor, and what was chosen for it."""
    tuned = ""
    if spec.grid:
        with meter.phase("fit"):
            spec, tuned = tune(prepared.screen, prepared.fold, spec, _errors)
    data = prepared.training_data(spec)
    with meter.phase("fit"):
        predictor = make_predictor(spec, prepared.screen, prepared.fold.model_seed)
        predictor.fit(data)
    return predictor, tuned


def make_predictor(spec: ModelSpec, screen: Screen, seed: int) -> Any:
    """A fresh predictor; raises ``ValueError`` if the factory makes none."""
    if spec.is_causal_model:
        return ModelPredictor(
            spec.factory,
            setup={**screen.setup, **spec.setup},
            kwargs=spec.kwargs,
            train=spec.train,
            targets=screen.targets,
            output="log1p" if screen.is_counts else "normalized",
            seed=seed,
        )
    kwargs = dict(spec.kwargs)
    if "seed" not in kwargs and _accepts_seed(spec.factory):
        kwargs["seed"] = seed
    predictor = spec.factory(**kwargs)
    missing = [name for name in ("fit", "predict") if not callable(getattr(predictor, name, None))]
    if missing:
        raise ValueError(
            f"The factory made a {type(predictor).__name__} without {listed(missing)}: a predictor has fit(adata) and "
            "predict(adata, targets)."
        )
    return predictor


def _accepts_seed(factory: Any) -> bool:
    try:
        return "seed" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables of other languages have no signature
        return False


def _errors(screen: Screen, fold: Fold, spec: ModelSpec) -> list[tuple[float, float]]:
    """Squared error of a prediction and of no change, for each population of an inner fold."""
    prepared = prepare(screen, fold, Scoring())
    predictor = make_predictor(spec, screen, fold.model_seed)
    predictor.fit(prepared.training_data(spec))
    refused = _refused(predictor, sorted({p.perturbation for p in fold.populations}))
    wanted = [i for i, p in enumerate(fold.populations) if p.perturbation not in refused]
    found = []
    for places, predicted in _ask(predictor, prepared, wanted):
        if isinstance(predicted, BaseException):
            raise predicted
        for i, x in _taken_apart(predictor, prepared, places, predicted):
            if isinstance(x, BaseException):
                raise x
            truth, source = prepared.population(i).moments.mean, prepared.population(i).control_means[0]
            found.append(
                tuple(float(np.square(m - truth).sum()) for m in (metrics.mean_profile(x, "predicted"), source))
            )
    return found


# ---------------------------------------------------------------------- predicting


def _refused(predictor: Any, targets: list[str]) -> dict[str, str]:
    """Targets that the predictor says it cannot predict, with its reasons."""
    if not hasattr(predictor, "can_predict"):
        return {}
    answer = predictor.can_predict(targets)
    if not isinstance(answer, pd.DataFrame) or "predictable" not in answer or set(targets) - set(answer.index):
        raise ValueError(
            "can_predict has to return a DataFrame with a row for every target and the columns 'predictable' and 'reason'."
        )
    reasons = answer["reason"] if "reason" in answer else pd.Series("no reason given", index=answer.index)
    return {str(t): str(reasons[t]) for t in targets if not answer["predictable"][t]}


def _ask(predictor: Any, prepared: PreparedFold, wanted: list[int], meter: Meter | None = None) -> Iterator[tuple]:
    """Places of the populations asked for together, and the answer, or what was raised instead."""
    populations = prepared.fold.populations
    for context in prepared.fold.contexts:
        here = [i for i in wanted if populations[i].context == context]
        if not here:
            continue
        n_values = len(populations[here[0]].source) * prepared.screen.x.shape[1]
        step = max(1, MAX_VALUES // max(n_values, 1))
        for start in range(0, len(here), step):
            places = here[start : start + step]
            targets = [populations[i].perturbation for i in places]
            sources = prepared.source_data(context)
            try:
                if meter is None:
                    answer = predictor.predict(sources, targets)
                else:
                    with meter.phase("predict"):
                        answer = predictor.predict(sources, targets)
            except _ANY as error:
                answer = error
            yield places, answer


def _taken_apart(predictor: Any, prepared: PreparedFold, places: list[int], predicted: AnnData) -> Iterator[tuple]:
    """(place, cells on the scale of the scores) of each population, or (place, what is wrong with it)."""
    screen, populations = prepared.screen, prepared.fold.populations
    targets = [populations[i].perturbation for i in places]
    try:
        rows = check_prediction(predicted, targets, screen)
    except _ANY as error:
        yield from ((i, error) for i in places)
        return
    for i, target in zip(places, targets, strict=True):
        if target not in rows:
            key = screen.perturbation_key
            yield (
                i,
                PredictionError(
                    "missing target",
                    f"The prediction has no cell of the target {target!r}; obs[{key!r}] has "
                    f"{plural(len(rows), 'of the targets', 'of the targets')}: {listed(rows) or 'none'}.",
                ),
            )
            continue
        try:
            cells = to_scored_scale(predicted, rows[target], getattr(predictor, "scale", "log1p"), screen)
        except _ANY as error:
            cells = error
        yield i, cells


def _predict_and_score(
    predictor: Any, prepared: PreparedFold, wanted: list[int], scores: Scores, failure: Failure, meter: Meter
) -> None:
    for places, predicted in _ask(predictor, prepared, wanted, meter):
        if isinstance(predicted, BaseException):
            _fail(scores.rows, places, failure.note(predicted))
            continue
        with meter.phase("score"):
            for i, x in _taken_apart(predictor, prepared, places, predicted):
                if not isinstance(x, BaseException):
                    try:
                        scores.add(i, x)
                        continue
                    except _ANY as error:
                        x = error
                _fail(scores.rows, [i], failure.note(x))
