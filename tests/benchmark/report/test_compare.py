"""Comparisons: pairs, intervals, corrections, and verdicts that say no more than was shown."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scvi_causal.benchmark import _compare
from scvi_causal.benchmark._sign_flips import flip_test

# fewer resamples than by default: these tests are about what is compared
compare = partial(_compare.compare, n_boot=2000)
METRIC = ["pearson_effect"]


def frame(scores: dict[str, list[float]], contexts=None, metric="pearson_effect", **columns) -> pd.DataFrame:
    """Results of one metric: a list of values per model, one per perturbation (or per pair of ``contexts``)."""
    parts = []
    for model, values in scores.items():
        keys = contexts or [(f"P{i:03d}", "") for i in range(len(values))]
        part = pd.DataFrame(keys, columns=["perturbation", "context"])
        parts.append(part.assign(model=model, is_baseline=model.startswith(("base", "Control")), **{metric: values}))
    defaults = {"fold": 0, "seed": 0, "status": "ok", "error": "", "leak": "", "kind": ""}
    return pd.concat(parts, ignore_index=True).assign(**(defaults | columns))


def ceiling_of(results: pd.DataFrame, value=0.9, metric="pearson_effect") -> pd.DataFrame:
    rows = results.drop_duplicates(["perturbation", "context"])[["perturbation", "context", "fold", "seed"]]
    return rows.assign(**{metric: value, f"{metric}_low": value - 0.05, f"{metric}_high": 1.0, "p_effect": 0.001})


def only(table: pd.DataFrame, model="mine", reference="best baseline") -> pd.Series:
    rows = table[(table["model"] == model) & (table["reference"] == reference)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_difference_interval_and_test_of_pairs():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.5, 20)
    mine = base + rng.normal(0.1, 0.05, 20)
    results = frame({"mine": mine, "base": base, "ControlMean": np.zeros(20)})
    row = only(compare(results, ceiling_of(results), metrics=METRIC))
    d = mine - base
    assert row["difference"] == pytest.approx(d.mean())
    assert row["p"] == row["p_adjusted"] == flip_test(d[:, None])[0][0]
    assert row["p"] == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=1e-3)
    half = stats.t.ppf(0.975, 19) * d.std(ddof=1) / np.sqrt(20)
    np.testing.assert_allclose([row["low"], row["high"]], [d.mean() - half, d.mean() + half], atol=0.1 * half)
    assert (row["won"], row["n"], row["unit"], row["n_needed"]) == (np.mean(d > 0), 20, "perturbation", 6)
    assert (row["reference_model"], row["verdict"]) == ("base", "better")
    assert row["skill"] == pytest.approx(d.mean() / (0.9 - base).mean())
    assert row["skill_low"] < row["skill"] < row["skill_high"]
    assert (
        only(compare(results, ceiling_of(results), metrics=METRIC), reference="no change")["difference"] == mine.mean()
    )


@pytest.mark.parametrize(("metric", "sign"), [("pearson_effect", 1), ("mse_unbiased_ratio", -1)])
def test_better_and_worse_follow_the_direction_of_the_metric(metric, sign):
    base = np.linspace(0.3, 0.5, 12)
    results = frame({"up": base + 0.1, "down": base - 0.1, "base": base}, metric=metric)
    table = compare(results, ceiling_of(results, 0.95 if sign > 0 else 0.01, metric), metrics=[metric])
    verdicts = table.set_index("model")["verdict"].to_dict()
    assert verdicts == ({"up": "better", "down": "worse"} if sign > 0 else {"up": "worse", "down": "better"})
    assert table.set_index("model").loc["up", "difference"] == pytest.approx(sign * 0.1)


def test_metrics_that_are_best_in_between_compare_distances():
    # the mean ratio of the model is 1, yet it is wrong by half everywhere
    results = frame({"mine": [0.5, 1.5] * 6, "base": [0.9] * 12}, metric="variance_ratio")
    row = only(compare(results, ceiling_of(results, 0.99, "variance_ratio"), metrics=["variance_ratio"]))
    assert row["difference"] == pytest.approx(-0.4)
    assert row["verdict"] == "worse"


def test_no_difference_is_not_claimed_to_be_equality():
    rng = np.random.default_rng(3)
    base = rng.uniform(0.2, 0.5, 30)
    results = frame({"mine": base + rng.normal(0, 0.1, 30), "base": base})
    assert only(compare(results, ceiling_of(results), metrics=METRIC))["verdict"] == "no difference shown"


def test_too_few_perturbations_say_how_many_are_needed():
    results = frame({"mine": [0.5] * 5, "base": [0.1, 0.2, 0.3, 0.2, 0.1]})
    row = only(compare(results, ceiling_of(results), metrics=METRIC))
    assert row["verdict"] == "too few perturbations to tell"
    assert (row["p"], row["n_needed"], row["won"]) == (2 / 32, 6, 1.0)
    six = frame({"mine": [0.5] * 6, "base": [0.1, 0.2, 0.3, 0.2, 0.1, 0.15]})
    assert only(compare(six, ceiling_of(six), metrics=METRIC))["verdict"] == "better"


@pytest.mark.parametrize(("p", "low", "high", "expected"), [
    (0.03, 0.1, 0.4, "better"), (0.03, -0.4, -0.1, "worse"), (0.03, -0.1, 0.9, "mixed"),
    (0.06, 0.1, 0.4, "no difference shown"),
])  # fmt: skip
def test_a_verdict_needs_the_test_and_the_interval(p, low, high, expected):
    row = {"n": 8, "n_needed": 6, "unit": "context", "p_adjusted": p, "low": low, "high": high}
    assert _compare.verdict_of(pd.Series(row)) == expected
    assert _compare.verdict_of(pd.Series(row | {"n": 5, "p_adjusted": 0.0625})) == "too few contexts to tell"


def test_the_correction_runs_over_models_and_metrics_but_not_over_baselines():
    rng = np.random.default_rng(0)
    names = ["m1", "m2", "base1", "base2", "ControlMean"]
    results = frame({name: rng.uniform(0.2, 0.5, 12) for name in names})
    results["r2_de"] = rng.uniform(0.2, 0.5, len(results))
    results["is_baseline"] = ~results["model"].isin(["m1", "m2"])
    ceiling = ceiling_of(results).assign(r2_de=0.9, r2_de_low=0.85)
    table = compare(results, ceiling, metrics=["pearson_effect", "r2_de"])
    values = results.set_index(["model", "perturbation"])
    best = table[table["reference"] == "best baseline"]
    assert sorted(best["model"].unique()) == ["m1", "m2"]
    baselines = table[table["model"].isin(["base1", "base2"])]
    assert set(baselines["reference"]) == {"no change"}
    models = table[table["model"].isin(["m1", "m2"]) & (table["reference"] == "no change")]
    for rows in (best, baselines, models):  # families, in each of which the same signs are used for all
        pairs = [values.loc[r.model, r.metric] - values.loc[r.reference_model, r.metric] for r in rows.itertuples()]
        p, corrected = flip_test(np.column_stack(pairs))
        np.testing.assert_allclose(rows["p"], p)
        np.testing.assert_allclose(rows["p_adjusted"], corrected)
    assert not (table["model"] == "ControlMean").any()


def test_units_are_aligned_where_models_were_scored_on_others():
    """A sign is the sign of a perturbation, whatever the order and number of those that a model has."""
    rng = np.random.default_rng(4)
    base = rng.uniform(0.2, 0.5, 10)
    shift = rng.normal(0.1, 0.1, 10)
    results = frame({"one": base + shift, "copy": base + shift, "part": base + shift, "base": base})
    results.loc[(results["model"] == "part") & results["perturbation"].isin(["P000", "P001"]), "pearson_effect"] = (
        np.nan
    )
    results = results.sample(frac=1, random_state=1)
    table = compare(results, ceiling_of(results), metrics=METRIC).set_index("model")
    assert table.loc["part", "n"] == 8
    alone = compare(results[results["model"] != "copy"], ceiling_of(results), metrics=METRIC).set_index("model")
    assert table.loc["one", "p_adjusted"] == alone.loc["one", "p_adjusted"]
    assert table.loc["part", "p"] == pytest.approx(flip_test(shift[2:, None])[0][0])


def test_contexts_of_a_perturbation_are_one_unit():
    rng = np.random.default_rng(0)
    effect = rng.normal(0.05, 0.2, 8)  # the difference belongs to the perturbation, its contexts repeat it
    pairs = [(f"P{i}", c) for i in range(8) for c in "wxyz"]
    base = np.full(32, 0.4)
    mine = base + np.repeat(effect, 4)
    results = frame({"mine": mine, "base": base}, contexts=pairs)
    row = only(compare(results, ceiling_of(results), metrics=METRIC))
    assert (row["n"], row["unit"]) == (8, "perturbation")
    assert row["p"] == pytest.approx(flip_test(effect[:, None])[0][0])
    alone = frame({"mine": 0.4 + effect, "base": np.full(8, 0.4)})
    apart = only(compare(alone, ceiling_of(alone), metrics=METRIC))
    np.testing.assert_allclose([row["low"], row["high"]], [apart["low"], apart["high"]])


def test_contexts_are_the_pairs_of_a_single_perturbation():
    contexts = [("IFNB", f"type{i}") for i in range(8)]
    results = frame({"mine": np.linspace(0.8, 0.9, 8), "base": np.linspace(0.5, 0.7, 8)}, contexts=contexts)
    row = only(compare(results, ceiling_of(results), metrics=METRIC))
    assert (row["n"], row["unit"], row["p"], row["verdict"]) == (8, "context", 2 / 256, "better")
    few = results[results["context"].isin(["type0", "type1", "type2"])]
    assert only(compare(few, ceiling_of(few), metrics=METRIC))["verdict"] == "too few contexts to tell"


def test_leaks_and_failures_are_not_judged():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.5, 12)
    results = frame({"mine": base + 0.1, "cheat": base + 0.5, "broken": base * np.nan, "base": base})
    results.loc[results["model"] == "broken", ["status", "error"]] = ["failed", "ValueError: no"]
    results.loc[results["model"] == "cheat", "leak"] = "copies test cells"
    table = compare(results, ceiling_of(results), metrics=METRIC)
    assert only(table, "cheat")["verdict"] == "leak, not judged"
    assert only(table, "broken")["verdict"] == "not scored"
    assert only(table)["p_adjusted"] == only(table)["p"]  # neither of the two is a test to correct for
    clean = compare(results[results["model"].isin(["mine", "base"])], ceiling_of(results), metrics=METRIC)
    pd.testing.assert_series_equal(only(table), only(clean), check_names=False)


def test_only_populations_that_both_predict_are_pairs():
    results = frame({"mine": [0.9, 0.9, np.nan, np.nan] * 3, "base": [0.5, 0.5, 0.1, 0.1] * 3})
    row = only(compare(results, ceiling_of(results), metrics=METRIC))
    assert (row["n"], row["difference"]) == (6, pytest.approx(0.4))


def test_identical_predictions_and_a_run_without_baselines():
    same = frame({"mine": np.full(10, 0.5), "base": np.full(10, 0.5)})
    row = only(compare(same, ceiling_of(same), metrics=METRIC))
    assert (row["difference"], row["p"], row["won"], row["verdict"]) == (0.0, 1.0, 0.5, "no difference shown")
    alone = frame({"mine": np.full(10, 0.5)})
    assert compare(alone, ceiling_of(alone), metrics=METRIC).empty


def test_same_seed_same_table(frames):
    results, ceiling = frames()
    pd.testing.assert_frame_equal(compare(results, ceiling), compare(results, ceiling))
    # the order of the rows is no information
    shuffled = results.sample(frac=1, random_state=0)
    keys = ["model", "metric", "reference"]
    first, second = (compare(r, ceiling).set_index(keys).sort_index() for r in (results, shuffled))
    np.testing.assert_allclose(first["p_adjusted"], second["p_adjusted"])
    np.testing.assert_allclose(first["difference"], second["difference"])
