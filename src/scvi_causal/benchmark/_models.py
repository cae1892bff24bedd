"""Which models take part, and how each is made: names, classes and factories to specifications."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

from scvi_causal.data._messages import did_you_mean, listed

_BASELINES = "scvi_causal.model.baselines"
Models = str | Sequence | Mapping[str, Any] | None


@dataclass(frozen=True)
class ModelSpec:
    """How a model is made, set up and trained.

    Parameters
    ----------
    factory
        A model of this package (class or name), or any callable that returns a
        :class:`~scvi_causal.benchmark.Predictor`: the class itself, or a function. ``"package.module:name"`` is imported.
        For more than one process it has to be importable, not a lambda.
    kwargs
        Arguments of the factory. ``seed`` is added where the factory accepts it.
    setup
        Arguments of ``setup_anndata`` beyond those of the run. Its values also name the entries of ``adata.uns``, ``varm``
        and ``varp`` that the training data keep; for a foreign model that is all it does.
    train
        Arguments of ``train``; models of this package only.
    grid
        Values to try for some of ``kwargs``, ``{"n_neighbors": [1, 5]}``. Chosen on an inner split of the training cells, where
        the same question is asked again; if they cannot be split that way, the first of each is taken.
    valid_size
        Share of each training population that is marked ``"valid"`` in ``obs["split"]``, for models that stop early.
    baseline
        Whether the model is a simple baseline that others are held against. ``None``: those of this package are.

    Examples
    --------
    >>> from scvi_causal.benchmark import ModelSpec
    >>> ModelSpec("NearestPerturbation", grid={"n_neighbors": [1, 5]}).choices()
    [{'n_neighbors': 1}, {'n_neighbors': 5}]
    """

    factory: Callable[..., Any] | str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    setup: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    valid_size: float = 0.0
    baseline: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.factory, str):
            object.__setattr__(self, "factory", _import_factory(self.factory))
        if not callable(self.factory):
            raise ValueError(
                f"factory={self.factory!r} is a {type(self.factory).__name__}: pass a class or function, or a name."
            )
        if not 0 <= self.valid_size < 1:
            raise ValueError(f"valid_size={self.valid_size} is no share: pass a number from 0 to below 1.")
        if self.train.get("early_stopping") and not self.valid_size:
            raise ValueError(
                "train asks for early_stopping, and no cell is for validation: pass valid_size=0.1 as well."
            )
        flat = [
            name for name, values in self.grid.items() if isinstance(values, str) or not isinstance(values, Sequence)
        ]
        if flat or any(not len(values) for values in self.grid.values()):
            raise ValueError(f"grid={dict(self.grid)!r}: pass a list of values to try for each argument.")

    @property
    def is_baseline(self) -> bool:
        """Whether others are held against it."""
        if self.baseline is not None:
            return self.baseline
        return str(getattr(self.factory, "__module__", "")).startswith(_BASELINES)

    @property
    def is_causal_model(self) -> bool:
        """Whether the factory is a model class of this package's API, which :class:`ModelPredictor` wraps."""
        from scvi_causal.model import CausalModel

        return isinstance(self.factory, type) and issubclass(self.factory, CausalModel)

    def choices(self) -> list[dict[str, Any]]:
        """All combinations of the grid, in its order; one empty choice without a grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]

    def describe(self) -> dict[str, Any]:
        """What it is, as strings and numbers, for ``run.json`` and reports."""
        parts = {key: _plain(dict(getattr(self, key))) for key in ("kwargs", "setup", "train", "grid")}
        return {
            "factory": _factory_name(self.factory),
            **parts,
            "valid_size": self.valid_size,
            "is_baseline": self.is_baseline,
        }

    def digest(self) -> str:
        """Hash of the specification; the source of a factory outside this package belongs to it."""
        text = json.dumps(self.describe(), sort_keys=True)
        if not str(getattr(self.factory, "__module__", "")).startswith("scvi_causal."):
            with suppress(OSError, TypeError):  # built in a console, or of another language
                text += inspect.getsource(getattr(self.factory, "func", self.factory))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def default_models(has_features: bool) -> dict[str, ModelSpec]:
    """SCCVAE and the baselines that the data allow: without features of perturbations none is fitted on them."""
    specs = {name: ModelSpec(name) for name in ("SCCVAE", "ControlMean", "PerturbedMean", "Additive")}
    if has_features:
        specs |= {name: ModelSpec(name) for name in ("LinearEffect", "NearestPerturbation")}
    specs["LinearEffect, bilinear"] = ModelSpec("LinearEffect", {"form": "bilinear"})
    return specs


def resolve_models(models: Models = None, *, has_features: bool = True) -> dict[str, ModelSpec]:
    """Specifications by name, in the order given.

    Parameters
    ----------
    models
        ``None`` (SCCVAE and the baselines), a name, a list of names, classes or specifications, or
        ``{name: class | name | (class, kwargs) | ModelSpec | callable}``.
    has_features
        Whether features of the perturbations are registered; decides which baselines ``None`` has.

    Raises
    ------
    ValueError
        For what is no model, with look-alikes.

    Examples
    --------
    >>> from scvi_causal.benchmark._models import resolve_models
    >>> list(resolve_models({"nearest": ("NearestPerturbation", {"n_neighbors": 1}), "none": "ControlMean"}))
    ['nearest', 'none']
    """
    if models is None:
        return default_models(has_features)
    if isinstance(models, Mapping):
        named = [(str(name), value) for name, value in models.items()]
    else:
        given = [models] if isinstance(models, str | ModelSpec) or callable(models) else list(models)
        named = [(_name_of(value), value) for value in given]
    if not named:
        raise ValueError("models is empty: name at least one, or pass None for SCCVAE and the baselines.")
    names = [name for name, _ in named]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"models names {listed(doubled)} more than once: pass a dictionary with a name for each.")
    return {name: _as_spec(value) for name, value in named}


def _as_spec(value: Any) -> ModelSpec:
    if isinstance(value, ModelSpec):
        return value
    if isinstance(value, tuple | list):
        if len(value) != 2 or not isinstance(value[1], Mapping):
            raise ValueError(f"{value!r} is no (class, kwargs) pair.")
        return ModelSpec(value[0], dict(value[1]))
    return ModelSpec(value)


def _name_of(value: Any) -> str:
    factory = value.factory if isinstance(value, ModelSpec) else value[0] if isinstance(value, tuple) else value
    return (
        factory.rpartition(":")[2] if isinstance(factory, str) else getattr(factory, "__name__", type(factory).__name__)
    )


def _import_factory(name: str) -> Callable[..., Any]:
    """A model of this package by its name, or anything as ``"package.module:name"``."""
    import scvi_causal

    if ":" not in name:
        known = [n for n in scvi_causal.__all__ if isinstance(getattr(scvi_causal, n), type)]
        if name not in known:
            raise ValueError(
                f"{name!r} is no model of this package.{did_you_mean(name, known)} It has {listed(known, 12)}. A model of your "
                "own goes by its class, or as 'package.module:name'."
            )
        return getattr(scvi_causal, name)
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"factory={name!r} cannot be imported: {error}") from error


def _factory_name(factory: Callable[..., Any]) -> str:
    """``package.module:name``, with the arguments of a :func:`functools.partial`."""
    if isinstance(factory, partial):
        given = [*map(_plain, factory.args), *(f"{k}={_plain(v)!r}" for k, v in factory.keywords.items())]
        return f"{_factory_name(factory.func)}({', '.join(map(str, given))})"
    place = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{place.__module__}:{place.__qualname__}"


def _plain(value: Any) -> Any:
    """``value`` as something JSON holds; what is neither number nor string goes by its representation, without addresses."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _factory_name(value) if isinstance(value, type) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))
