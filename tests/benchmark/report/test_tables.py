"""Tables: the order of averaging, what is left out, where 0 and 1 of the skill scale lie."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_causal.benchmark import _tables as tables
from scvi_causal.benchmark._scale import best_baseline, oriented, unit_name


def rows(values: dict, **columns) -> pd.DataFrame:
    """Results with one metric: ``{(model, perturbation): value}``."""
    frame = pd.DataFrame(
        [{"model": m, "perturbation": p, "pearson_effect": v} for (m, p), v in values.items()],
    )
    frame["is_baseline"] = frame["model"].str.startswith("base")
    defaults = {"context": "", "fold": 0, "seed": 0, "status": "ok", "error": "", "leak": "", "kind": ""}
    return frame.assign(**(defaults | columns))


def ceilings(values: dict, **columns) -> pd.DataFrame:
    frame = pd.DataFrame([{"perturbation": p, "pearson_effect": v} for p, v in values.items()])
    frame["pearson_effect_low"] = frame["pearson_effect"] - 0.05
    return frame.assign(**({"context": "", "fold": 0, "seed": 0, "p_effect": 0.001} | columns))


def test_seeds_are_averaged_within_a_population_first():
    # A was scored with three seeds, B with one: each population has half of the weight
    results = pd.concat([rows({("m", "A"): v}, seed=s) for s, v in enumerate([0.0, 0.0, 0.0])])
    results = pd.concat([results, rows({("m", "B"): 1.0})])
    table = tables.summary(results, ceilings({"A": 1.0, "B": 1.0}))
    assert table.loc["m", "pearson_effect"] == 0.5
    assert table.loc["m", ["scored", "asked"]].tolist() == [2, 2]


def test_skill_by_hand():
    names = [f"P{i}" for i in range(8)]
    results = rows(
        {("mine", p): 0.5 for p in names} | {("base1", p): 0.3 for p in names} | {("base2", p): 0.1 for p in names}
    )
    table = tables.summary(results, ceilings(dict.fromkeys(names, 0.7)))
    np.testing.assert_allclose(table["skill_pearson_effect"], [0.5, 0.0, -0.5, 1.0])
    assert table.index.tolist() == ["mine", "base1", "base2", "noise ceiling"]
    scale = tables.scales(results, ceilings(dict.fromkeys(names, 0.7)), ["pearson_effect"]).loc["pearson_effect"]
    assert (scale["baseline"], scale["shown"], scale["why"]) == ("base1", True, "")
    np.testing.assert_allclose([scale["zero"], scale["one"]], [0.3, 0.7])


def test_skill_of_a_model_that_refuses_is_measured_on_what_it_predicts():
    names = [f"P{i}" for i in range(8)]
    easy = {p: 0.6 if i < 4 else 0.2 for i, p in enumerate(names)}  # the baseline finds the first four easy
    results = rows({("base", p): easy[p] for p in names} | {("mine", p): 0.6 for p in names[:4]})
    refused = rows({("mine", p): np.nan for p in names[4:]}, status="refused", error="unseen")
    table = tables.summary(pd.concat([results, refused]), ceilings(dict.fromkeys(names, 0.8)))
    assert table.loc["mine", "pearson_effect"] > table.loc["base", "pearson_effect"]  # raw: no fair comparison
    assert table.loc["mine", "skill_pearson_effect"] == pytest.approx(0.0)  # skill: the same as the baseline there
    assert table.loc["mine", ["scored", "asked", "refused"]].tolist() == [4, 8, 4]


def test_skill_is_not_shown_where_ceiling_and_baseline_cannot_be_told_apart():
    rng = np.random.default_rng(0)
    names = [f"P{i}" for i in range(10)]
    results = rows({("mine", p): 0.9 for p in names} | {("base", p): 0.5 for p in names})
    noisy = ceilings({p: 0.5 + rng.normal(0, 0.3) for p in names})
    assert np.isnan(tables.summary(results, noisy)["skill_pearson_effect"]).all()
    assert "cannot be told apart" in tables.scales(results, noisy, ["pearson_effect"]).loc["pearson_effect", "why"]
    # for a single perturbation the ceiling's own interval decides
    one, scale = rows({("mine", "A"): 0.6, ("base", "A"): 0.5}), ["pearson_effect"]
    assert tables.scales(one, ceilings({"A": 0.56}), scale)["shown"].tolist() == [True]
    assert tables.scales(one, ceilings({"A": 0.54}), scale)["shown"].tolist() == [False]
    none = ceilings({"A": 0.9}).drop(columns=["pearson_effect", "pearson_effect_low"])
    assert tables.scales(one, none, scale)["why"].tolist() == ["there is no noise ceiling"]


def test_a_baseline_that_skips_the_difficult_is_not_the_best():
    names = ["A", "B"]
    results = rows({("base1", p): 0.4 for p in names} | {("base2", "A"): 0.9})
    assert (
        best_baseline(tables.population_scores(results, ["pearson_effect"]), ["base1", "base2"], "pearson_effect")
        == "base1"
    )
    leak = results.assign(leak=np.where(results["model"] == "base1", "copies test cells", ""))
    assert tables.scales(leak, ceilings({"A": 1.0, "B": 1.0}), ["pearson_effect"])["baseline"].tolist() == ["base2"]


def test_orientation_is_taken_before_averages():
    frame = pd.DataFrame(
        {
            "variance_ratio": [0.5, 1.5],
            "variance_ratio_low": [0.4, 0.9],
            "variance_ratio_high": [0.7, 1.6],
            "mse_ratio": [2.0, 0.5],
            "mse_ratio_low": [1.0, 0.4],
            "mse_ratio_high": [3.0, 0.6],
        }
    )
    turned = oriented(frame, ["variance_ratio", "mse_ratio"])
    np.testing.assert_allclose(turned["variance_ratio"], [-0.5, -0.5])  # wrong twice, though the mean is 1
    np.testing.assert_allclose(turned["variance_ratio_low"], [-0.6, -0.6])
    np.testing.assert_allclose(turned["variance_ratio_high"], [-0.3, 0.0])  # the second interval holds 1
    np.testing.assert_allclose(
        turned[["mse_ratio_low", "mse_ratio", "mse_ratio_high"]], [[-3, -2, -1], [-0.6, -0.5, -0.4]]
    )
    assert frame["mse_ratio"].tolist() == [2.0, 0.5]  # a copy


def test_detectable_corrects_within_a_seed_and_takes_the_majority():
    # 0.04 alone is below 0.05; beside three others that are not it is not
    p = pd.DataFrame({"perturbation": list("ABCD"), "context": "", "seed": 0, "p_effect": [0.04, 0.5, 0.6, 0.7]})
    assert not tables.detectable(p)["detectable"].any()
    alone = p[p["perturbation"] == "A"].assign(seed=1)
    assert tables.detectable(alone)["detectable"].tolist() == [True]
    both = tables.detectable(pd.concat([p, alone]))
    assert both.loc[("A", ""), ["share", "detectable"]].tolist() == [0.5, False]  # half of the seeds are no majority
    three = tables.detectable(pd.concat([p, alone, alone.assign(seed=2)]))
    assert three.loc[("A", ""), "detectable"]
    untested = tables.detectable(p.assign(p_effect=np.nan))
    assert untested["detectable"].all()
    assert not untested["tested"].any()


def test_indistinguishable_perturbations_are_never_averaged_in(frames):
    results, ceiling = frames(n_perturbations=20, n_null=5)
    shown = tables.summary(results, ceiling)
    apart = tables.summary(results, ceiling, populations="indistinguishable")
    everything = tables.summary(results, ceiling, populations="all")
    assert (shown["asked"].iloc[0], apart["asked"].iloc[0], everything["asked"].iloc[0]) == (15, 5, 20)
    mean = (15 * shown["pearson_effect"] + 5 * apart["pearson_effect"]) / 20
    np.testing.assert_allclose(everything["pearson_effect"], mean)
    assert np.isnan(apart["skill_pearson_effect"]).all()  # nothing to be predicted, no scale
    with pytest.raises(ValueError, match="'detectible'.*Did you mean 'detectable'"):
        tables.summary(results, ceiling, populations="detectible")


def test_metrics_are_checked_and_headline_by_default(frames):
    results, ceiling = frames()
    found = tables.metric_names(results)
    assert "mse_ratio" not in found  # not a headline metric
    assert {"r2_de", "pearson_effect"} <= set(found)
    assert tables.metric_names(results.assign(r2_de=np.nan))[0] == "pearson_effect"  # nothing but NaN is no column
    with pytest.raises(ValueError, match="'pearson_effects'.* Did you mean 'pearson_effect'"):
        tables.summary(results, ceiling, metrics=["pearson_effects"])


def test_failed_models_keep_their_row(frames):
    results, ceiling = frames(models={"SCCVAE": (False, 0.6), "broken": (False, 0.6), "PerturbedMean": (True, 0.3)})
    broken = results["model"] == "broken"
    metrics = ["r2_de", "pearson_effect", "pearson_centred", "discrimination", "variance_ratio"]
    results.loc[broken, metrics] = np.nan
    results.loc[broken, "status"], results.loc[broken, "error"] = "failed", "ValueError: no"
    table = tables.summary(results, ceiling)
    assert table.loc["broken", ["scored", "asked", "failed"]].tolist() == [0, 15, 30]
    assert table.loc["broken", metrics].isna().all()
    found = tables.failures(results)
    assert found[["model", "status", "error", "populations", "jobs"]].values.tolist() == [
        ["broken", "failed", "ValueError: no", 20, 10]
    ]
    assert tables.failures(results[~broken]).empty
    other = tables.summary(results[~broken], ceiling)
    pd.testing.assert_frame_equal(table.drop(index="broken"), other)  # the others stand


def test_leaks_are_listed(frames):
    results, _ = frames()
    assert tables.leaks(results).empty
    assert tables.leaking(results) == []
    copied = (results["model"] == "SCCVAE") & (results["perturbation"] == "GENE03")
    results.loc[copied, "leak"] = "12 predicted cells are test cells"
    assert tables.leaks(results).values.tolist() == [["SCCVAE", "12 predicted cells are test cells", 2, "GENE03"]]
    assert tables.leaking(results) == ["SCCVAE"]


def test_a_job_is_counted_once(frames):
    results, _ = frames(n_perturbations=20, seeds=(0, 1), n_folds=5)
    table = tables.resources(results)
    assert table["jobs"].tolist() == [10, 10, 10]
    assert table.loc["SCCVAE", "fit_cpu_s"] == 30  # 10, 20, ... 50 by fold
    assert table.loc["SCCVAE", "model_cpu_s_total"] == 10 * 31
    assert table.loc["SCCVAE", "peak_memory_mb"] == 504


def test_breakdown_has_the_ceiling_of_the_same_populations(frames):
    results, ceiling = frames(n_perturbations=20, kinds=("0 of 2 tokens seen", "2 of 2 tokens seen"))
    table = tables.breakdown(results, ceiling, "kind", metrics=["pearson_effect"])
    assert table.index.unique("kind").tolist() == ["0 of 2 tokens seen", "2 of 2 tokens seen"]
    part = results[results["kind"] == "0 of 2 tokens seen"]
    expected = tables.summary(part, ceiling[ceiling["kind"] == "0 of 2 tokens seen"], metrics=["pearson_effect"])
    found = table.loc["0 of 2 tokens seen"]
    np.testing.assert_allclose(found["pearson_effect"], expected["pearson_effect"])
    assert found["asked"].iloc[-1] == expected["asked"].iloc[-1]


def test_spread_over_seeds():
    results = pd.concat([rows({("m", "A"): v, ("m", "B"): v + 1}, seed=s) for s, v in enumerate([0.0, 0.2])])
    spread = tables.seed_spread(results, ceilings({"A": 1.0, "B": 1.0}), metrics=["pearson_effect"])
    assert spread.loc["m", "pearson_effect"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert tables.seed_spread(results[results["seed"] == 0], ceilings({"A": 1.0})).empty


def test_unit_is_the_context_where_there_is_one_perturbation():
    index = pd.MultiIndex.from_product([["IFNB"], ["B", "NK"]], names=["perturbation", "context"])
    assert unit_name(index) == "context"
    index = pd.MultiIndex.from_product([["A", "B"], ["x", "y"]], names=["perturbation", "context"])
    assert unit_name(index) == "perturbation"
    assert unit_name(index[:1]) == "perturbation"
