"""What takes part in a benchmark: anything with ``fit`` and ``predict``; and what is wrong with a prediction, if something is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scvi_causal import metrics
from scvi_causal.data import canonical_labels
from scvi_causal.data._messages import did_you_mean, listed, plural

from ._isolation import quiet_logs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._screen import Screen

Scale = Literal["log1p", "counts"]


@runtime_checkable
class Predictor(Protocol):
    """Anything that learns from training cells and predicts perturbed cells.

    One object serves one job: it is made by ``factory(**kwargs)`` (with ``seed=`` if the factory accepts that), fitted once, and
    asked for predictions, once or more often for each context. Seeds of numpy, torch and Python are set before.

    Attributes
    ----------
    scale : {"log1p", "counts"}
        Optional. Scale of the predictions: ``"log1p"`` (default) is log(1 + counts per 10,000 of the library) (or the data
        themselves, where these are no counts). ``"counts"`` are turned into that, on the library of the cell named in
        ``obs["source_cell"]``; else on the size factor column of the prediction, else on its row sums.

    Notes
    -----
    ``can_predict(targets) -> DataFrame`` is optional: indexed by target, with the columns ``predictable`` (bool) and ``reason``. What
    is not predictable is not asked for, and its rows say "refused". It is called after ``fit``.

    Examples
    --------
    A foreign model: scikit-learn's ridge regression from features of the perturbations to mean profiles. Cells are control cells,
    moved by the difference of the means.

    >>> import anndata as ad
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sklearn.linear_model import Ridge
    >>> from scvi_causal.metrics import log1p_normalize
    >>> class RidgeOnFeatures:
    ...     def __init__(self, alpha=1.0):
    ...         self.ridge = Ridge(alpha)
    ...
    ...     def fit(self, adata):
    ...         self.features = adata.uns["features"]
    ...         x, labels = log1p_normalize(adata.X), adata.obs["perturbation"].to_numpy(dtype=str)
    ...         known = [label for label in np.unique(labels) if label in self.features.index]
    ...         self.control = np.asarray(x[labels == "control"].mean(0)).ravel()
    ...         effects = [np.asarray(x[labels == label].mean(0)).ravel() - self.control for label in known]
    ...         self.ridge.fit(self.features.loc[known], effects)
    ...
    ...     def predict(self, adata, targets):
    ...         x = log1p_normalize(adata.X).toarray()
    ...         cells = [x + effect for effect in self.ridge.predict(self.features.loc[list(targets)])]
    ...         obs = pd.DataFrame({"perturbation": np.repeat(targets, len(x))})
    ...         return ad.AnnData(np.concatenate(cells), obs=obs.set_index(obs.index.astype(str)), var=adata.var[[]])

    It is held against the models of this package in the same table; ``setup`` says what it needs of ``adata.uns``.

    >>> import tempfile
    >>> from scvi_causal import benchmark, data
    >>> adata = data.simulate_screen(n_genes=20, n_perturbations=6, n_cells_per_perturbation=40, seed=0).adata
    >>> tokens = sorted(set(adata.obs["perturbation"]) - {"control"})
    >>> adata.uns["features"] = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 3)), tokens, ["f1", "f2", "f3"])
    >>> ridge = benchmark.ModelSpec(RidgeOnFeatures, {"alpha": 0.1}, setup={"features": "features"})
    >>> models = {"PerturbedMean": "PerturbedMean", "ridge": ridge}
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = benchmark.run(adata, "unseen", models, n_folds=2, out=out, report=False, progress=False)
    >>> result.results.groupby("model")["status"].unique().map(list).to_dict()
    {'PerturbedMean': ['ok'], 'ridge': ['ok']}
    """

    def fit(self, adata: AnnData) -> None:
        """Learn from the training cells.

        Parameters
        ----------
        adata
            The training cells and no others; a copy, which may be changed. ``X`` (and the layer of the run) as in the file,
            ``obs`` with canonical labels in the perturbation column (tokens sorted, one name for control), covariates, size factor,
            and ``"split"`` (``"train"`` or ``"valid"``); of ``uns``, ``varm`` and ``varp`` what the set-up names.
        """

    def predict(self, adata: AnnData, targets: Sequence[str]) -> AnnData:
        """Predict cells under every target.

        Parameters
        ----------
        adata
            Control cells of one context to start from, at most 1,000 of those that were trained on; a copy, with the columns
            that ``fit`` got.
        targets
            Canonical labels of perturbations.

        Returns
        -------
        Any number of cells for every target: ``obs[perturbation_key]`` the target, ``X`` on ``scale``, the genes of ``adata`` in their
        order. Draws of cells rather than expected values, or the metrics of distributions find them too alike.
        """


class ModelPredictor:
    """A model of this package, or one with the same API, as a :class:`Predictor`.

    Parameters
    ----------
    model_class
        Subclass of :class:`~scvi_causal.model.CausalModel`.
    setup, kwargs, train
        Arguments of ``setup_anndata``, of the class, and of ``train``.
    targets
        Tokens that will be asked for: their names are announced, since their cells are absent.
    output
        Scale of the predictions: ``"log1p"``, or ``"normalized"`` for data that are no counts.
    seed
        Of the predictions.

    Examples
    --------
    >>> from scvi_causal import data, model
    >>> from scvi_causal.benchmark import ModelPredictor
    >>> adata = data.simulate_screen(n_genes=20, n_perturbations=4, seed=0).adata
    >>> adata.obs["split"] = "train"
    >>> predictor = ModelPredictor(model.PerturbedMean, targets=["a drug"])
    >>> predictor.fit(adata.copy())
    >>> controls = adata[adata.obs["perturbation"] == "control"][:10].copy()
    >>> predictor.predict(controls, ["a drug"]).shape
    (10, 20)
    """

    scale: Scale = "log1p"

    def __init__(
        self,
        model_class: type,
        setup: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        targets: Sequence[str] = (),
        output: str = "log1p",
        seed: int = 0,
    ):
        self.model_class, self.setup, self.kwargs = model_class, dict(setup or {}), dict(kwargs or {})
        self.train = {"enable_progress_bar": False, **(train or {})}
        self.targets, self.output, self.seed = tuple(targets), output, seed
        self.model: Any = None

    def fit(self, adata: AnnData) -> None:
        """Set up, build and train the model on all cells, ``obs["split"]`` telling which are for validation."""
        announced = {"extra_tokens": list(self.targets)} if self.targets else {}
        self.model_class.setup_anndata(adata, **{**announced, **self.setup})
        self.model = self.model_class(adata, **self.kwargs)
        self.model.train(**{"split_key": "split", **self.train})

    def can_predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """What the model says of the targets."""
        return self.model.can_predict(list(targets))

    def predict(self, adata: AnnData, targets: Sequence[str]) -> AnnData:
        """Draw a cell for every source cell and target."""
        options = {"output": self.output, "sample": True, "seed": self.seed}
        with quiet_logs():  # scvi-tools says of every new AnnData that it is new
            return self.model.predict_counterfactual(list(targets), adata, indices=np.arange(adata.n_obs), **options)


class PredictionError(ValueError):
    """A prediction that cannot be scored.

    Attributes
    ----------
    kind
        ``"nothing"``, ``"type"``, ``"shape"``, ``"genes"``, ``"order"``, ``"labels"``, ``"missing target"``, ``"NaN"``, ``"scale"`` or
        ``"library"``.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def check_prediction(predicted: object, targets: Sequence[str], screen: Screen) -> dict[str, np.ndarray]:
    """Rows of every target in a prediction; a target without a row is left out.

    Parameters
    ----------
    predicted
        What ``predict`` returned.
    targets
        What it was asked for.
    screen
        The data, for genes and labels.

    Raises
    ------
    PredictionError
        If nothing of it can be scored: not an AnnData, other genes, no labels.
    """
    if predicted is None:
        raise PredictionError("nothing", "predict returned None: it has to return an AnnData with the predicted cells.")
    if not isinstance(predicted, AnnData):
        shape = f" of shape {predicted.shape}" if hasattr(predicted, "shape") else ""
        raise PredictionError(
            "type",
            f"predict returned a {type(predicted).__name__}{shape}: it has to return an AnnData whose "
            f"obs[{screen.perturbation_key!r}] says which cell is of which target.",
        )
    if predicted.X is None or not predicted.n_obs:
        raise PredictionError(
            "nothing", f"predict returned an AnnData of shape {predicted.shape} without predicted cells in X."
        )
    _check_genes(predicted.var_names, screen.adata.var_names)
    key = screen.perturbation_key
    if key not in predicted.obs:
        raise PredictionError(
            "labels",
            f"The prediction has no column obs[{key!r}] with the target of every cell; it has {listed(predicted.obs.columns) or 'none'}."
            f"{did_you_mean(key, predicted.obs.columns)}",
        )
    setup = screen.setup
    try:
        labels = canonical_labels(predicted.obs[key], setup["perturbation_separator"], setup["control_category"])
    except ValueError as error:
        raise PredictionError("labels", f"obs[{key!r}] of the prediction: {error}") from error
    codes, names = pd.factorize(labels)
    rows = {str(name): np.flatnonzero(codes == i) for i, name in enumerate(names)}
    return {target: rows[target] for target in targets if target in rows}


def _check_genes(found: pd.Index, expected: pd.Index) -> None:
    if len(found) == len(expected) and (found == expected).all():
        return
    missing, extra = expected.difference(found, sort=False), found.difference(expected, sort=False)
    if len(missing) or len(extra):
        kind = "shape" if len(found) != len(expected) else "genes"
        what = f"lacks {plural(len(missing), 'gene')} ({listed(missing, 3)})" if len(missing) else ""
        more = f"has {plural(len(extra), 'gene')} that the data do not have ({listed(extra, 3)})" if len(extra) else ""
        raise PredictionError(
            kind,
            f"The prediction has {plural(len(found), 'gene')}, the data {len(expected):,}: it {' and '.join(w for w in (what, more) if w)}. "
            "Return the genes of the data in their order (var=adata.var[[]]).",
        )
    if len(found) != len(expected):
        raise PredictionError(
            "shape", f"The prediction has {len(found):,} columns for {len(expected):,} genes: some are doubled."
        )
    place = int(np.flatnonzero(found != expected)[0])
    raise PredictionError(
        "order",
        f"The prediction has the genes of the data in another order, from position {place} on ({found[place]!r} instead of "
        f"{expected[place]!r}). Reorder it: predicted[:, adata.var_names].",
    )


def to_scored_scale(predicted: AnnData, rows: np.ndarray, scale: str, screen: Screen) -> Any:
    """(cells, genes) predicted cells of one target on the scale of the scores, dense or CSR.

    Raises
    ------
    PredictionError
        If values are not finite, or cannot be on the scale that was declared.
    """
    # targets mostly come one after the other: a slice of a dense matrix is no copy
    is_block = rows[-1] - rows[0] + 1 == len(rows)
    x = predicted.X[rows[0] : rows[-1] + 1] if is_block else predicted.X[rows]
    x = x.tocsr() if sp.issparse(x) else np.asarray(x)
    values = x.data if sp.issparse(x) else x
    if values.dtype.kind not in "fiub":
        raise PredictionError("type", f"X of the prediction holds {values.dtype}: it has to hold numbers.")
    n_bad = int(values.size - np.isfinite(values).sum())
    if n_bad:
        raise PredictionError("NaN", f"{n_bad:,} of {x.shape[0] * x.shape[1]:,} predicted values are NaN or infinite.")
    if scale == "counts":
        return _normalize(predicted, rows, x, values, screen)
    if scale != "log1p":
        raise PredictionError("scale", f"scale={scale!r} of the predictor is neither 'log1p' nor 'counts'.")
    if screen.is_counts:
        highest = float(np.asarray(x.mean(axis=0)).max())
        # a library smaller than the counts of its cell allows more; only the data tell
        if highest > 1.0 + np.log1p(1e4) and highest > 1.0 + _largest(screen.x):
            raise PredictionError(
                "scale",
                f"The mean of a gene is {highest:.3g}, more than log(1 + counts per 10,000) can be: these look like counts. "
                "Return the logarithm, or declare scale = 'counts'.",
            )
    return x


def _largest(x: Any) -> float:
    return float((x.data if sp.issparse(x) else x).max(initial=0.0))


def _normalize(predicted: AnnData, rows: np.ndarray, x: Any, values: np.ndarray, screen: Screen) -> Any:
    """Predicted counts as log(1 + counts per 10,000)."""
    if not screen.is_counts:
        raise PredictionError("scale", "The predictor declares scale = 'counts', and the data are no counts.")
    if values.size and values.min() < 0:
        raise PredictionError("scale", f"Predicted counts are negative, down to {values.min():.3g}.")
    size_factor = screen.setup["size_factor_key"]
    if "source_cell" in predicted.obs:
        names = predicted.obs["source_cell"].to_numpy(dtype=str)[rows]
        place = screen.cell_place.get_indexer(names)
        if (place < 0).any():
            raise PredictionError(
                "library",
                f"obs['source_cell'] names {plural(int((place < 0).sum()), 'cell')} that are not in the data: "
                f"{listed(names[place < 0], 3)}.",
            )
        library = screen.library[place]
    elif size_factor is not None and size_factor in predicted.obs:
        library = predicted.obs[size_factor].to_numpy(dtype=np.float64)[rows]
    elif size_factor is not None:
        raise PredictionError(
            "library",
            "Predicted counts of a gene panel need the library of each cell: give its source cell in obs['source_cell'], or its "
            f"library in obs[{size_factor!r}].",
        )
    else:
        library = None
    try:
        return metrics.log1p_normalize(x, library)
    except ValueError as error:
        raise PredictionError("library", str(error)) from error
