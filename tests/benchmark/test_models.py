from __future__ import annotations

import functools
import pickle

import pytest

import scvi_causal
from scvi_causal.benchmark import ModelSpec
from scvi_causal.benchmark._models import default_models, resolve_models
from scvi_causal.model import baselines as baseline_classes

from .predictors import MeanShift, Misbehaving


def test_every_way_to_name_a_model():
    specs = resolve_models(
        {
            "class": scvi_causal.PerturbedMean,
            "name": "PerturbedMean",
            "pair": ("NearestPerturbation", {"n_neighbors": 1}),
            "spec": ModelSpec(MeanShift, {"factor": 2.0}),
            "function": functools.partial(MeanShift, 2.0),
            "path": "scvi_causal.model:Additive",
        }
    )
    assert list(specs) == ["class", "name", "pair", "spec", "function", "path"]
    assert specs["class"].factory is specs["name"].factory is scvi_causal.PerturbedMean
    assert specs["pair"].kwargs == {"n_neighbors": 1}
    assert specs["path"].factory is scvi_causal.Additive
    assert [name for name, spec in specs.items() if spec.is_baseline] == ["class", "name", "pair", "path"]
    assert [name for name, spec in specs.items() if spec.is_causal_model] == ["class", "name", "pair", "path"]


def test_lists_take_their_names_from_what_they_hold():
    assert list(resolve_models("SCCVAE")) == ["SCCVAE"]
    assert list(resolve_models(["SCCVAE", MeanShift, ("Additive", {})])) == ["SCCVAE", "MeanShift", "Additive"]


def test_by_default_all_models_that_the_data_allow():
    assert [spec.is_baseline for spec in default_models(True).values()].count(False) == 1
    with_features, without = set(resolve_models(None)), set(resolve_models(None, has_features=False))
    assert with_features - without == {"LinearEffect", "NearestPerturbation"}
    baselines = {getattr(baseline_classes, name) for name in baseline_classes.__all__}
    assert {spec.factory for spec in default_models(True).values()} == {scvi_causal.SCCVAE, *baselines}


def test_a_model_may_be_declared_a_baseline():
    assert ModelSpec(MeanShift, baseline=True).is_baseline
    assert not ModelSpec("ControlMean", baseline=False).is_baseline


def test_grid_is_the_product_in_order():
    spec = ModelSpec(MeanShift, grid={"a": [1, 2], "b": ["x", "y"]})
    assert spec.choices() == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert ModelSpec(MeanShift).choices() == [{}]


def test_digest_is_that_of_everything_that_changes_a_result():
    specs = [
        ModelSpec(MeanShift),
        ModelSpec(Misbehaving),
        ModelSpec(MeanShift, {"factor": 2}),
        ModelSpec(MeanShift, setup={"grn_key": "a"}),
        ModelSpec(MeanShift, train={"max_epochs": 1}),
        ModelSpec(MeanShift, grid={"factor": [1]}),
        ModelSpec(MeanShift, valid_size=0.1),
        ModelSpec(functools.partial(MeanShift, 1.0)),
        ModelSpec(functools.partial(MeanShift, 2.0)),
    ]
    assert len({spec.digest() for spec in specs}) == len(specs)
    assert ModelSpec(MeanShift).digest() == specs[0].digest() == pickle.loads(pickle.dumps(specs[0])).digest()


def test_digest_knows_the_source_of_a_foreign_model():
    made = {}
    for version in ("return 1", "return 2"):
        namespace = {"__name__": "somewhere"}
        exec(f"class Model:\n    def fit(self, adata):\n        {version}\n", namespace)
        made[version] = namespace["Model"]
    # without a file there is no source to tell them apart, and that is no error
    assert ModelSpec(made["return 1"]).digest() == ModelSpec(made["return 2"]).digest()
    assert "class MeanShift" not in str(ModelSpec(MeanShift).describe())


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("SCVAE", "no model of this package. Did you mean 'SCCVAE'"),
        (["Additive", "Additive"], "'Additive' more than once"),
        ([], "models is empty"),
        ({"a": 3}, "3 is a int"),
        ({"a": ("Additive", "B", 3)}, r"no \(class, kwargs\) pair"),
        ({"a": "nowhere:Model"}, "'nowhere:Model' cannot be imported: No module"),
        ({"a": "scvi_causal.model:Nothing"}, "cannot be imported"),
    ],
)
def test_what_is_no_model_is_refused(models, message):
    with pytest.raises(ValueError, match=message):
        resolve_models(models)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"a": "bc"}}, "list of values"),
        ({"grid": {"a": []}}, "list of values"),
        ({"valid_size": 1.0}, "no share"),
        ({"train": {"early_stopping": True}}, "valid_size"),
    ],
)
def test_what_no_specification_can_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec("SCCVAE", **options)


def test_digest_has_no_address_in_it():
    def make():
        return MeanShift()

    class Option:
        pass

    specs = [ModelSpec(functools.partial(make, Option())), ModelSpec(MeanShift, {"factor": Option()})]
    again = [ModelSpec(functools.partial(make, Option())), ModelSpec(MeanShift, {"factor": Option()})]
    assert [s.digest() for s in specs] == [s.digest() for s in again]
    assert "0x" not in str([s.describe() for s in specs])
