"""What tables say about their columns."""

from __future__ import annotations

import pytest

from scvi_causal.metrics import METRICS


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_says_what_it_is(metric):
    assert METRICS[metric.name] is metric
    assert metric.better in ("higher", "lower", "closer")
    assert metric.family in ("mean", "effect", "distribution", "DE", "specificity", "calibration")
    assert metric.ceiling in ("spearman-brown", "split-half", "none")
    assert metric.needs in ("means", "cells", "panel")
    # a table names library or "own", and the estimator
    assert metric.how.startswith(("own, ", "own; ", "scikit-learn ", "scipy ")), metric.how
    assert len(metric.how) > 12
    assert all("|" not in text for text in (metric.title, metric.meaning, metric.how)), "breaks a Markdown table"
    assert (metric.ceiling == "none") == (metric.better == "closer")


def test_headline_is_short_and_covers_all_families():
    headline = [metric for metric in METRICS.values() if metric.headline]
    assert len(headline) <= 10
    assert {"mean", "effect", "distribution", "DE", "specificity"} <= {metric.family for metric in headline}
