"""The table and the report say what they were given."""

from __future__ import annotations

import base64
import re

import numpy as np
import pandas as pd
import pytest

from scvi_causal._demo import _report
from scvi_causal._demo._models import CEILING


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "r2_de": [0.9, 0.5, 0.95],
            "mse_ratio": [0.2, 0.1, 0.001],
            "variance_ratio": [1.3, 0.9, 1.0],
            "energy": [np.nan, 0.5, 0.0],
            "seconds": [12.34, 0.1, np.nan],
        },
        index=["SCCVAE", "Additive", CEILING],
    )


def test_best_is_by_direction_and_never_the_ceiling(table):
    assert _report.best_rows(table, "r2_de") == {"SCCVAE"}
    assert _report.best_rows(table, "mse_ratio") == {"Additive"}
    assert _report.best_rows(table, "variance_ratio") == {"Additive"}
    assert _report.best_rows(table, "energy") == _report.best_rows(table, "seconds") == set()


def test_text_table(table):
    lines = _report.text_table(table).split("\n")
    assert len({len(line.rstrip("*")) for line in lines if "-" * 20 not in line}) <= 2  # columns stand under each other
    assert lines[-1].startswith(CEILING)
    assert set(lines[-2]) == {"-"}
    assert re.search(r"^SCCVAE +0\.900\* +0\.200 +- +1\.300 +12\.3", lines[3])
    assert "0.0010" in lines[-1]
    assert "higher" in lines[1]


def test_html_stands_alone_and_escapes(table, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"png")
    _report.write_html(
        tmp_path / "report.html",
        title="Held out: A<B",
        facts={"Data": "a & b"},
        table=table,
        figures=[(picture, 'a "caption"')],
        left_out={"LinearEffect": "needs features"},
        command="scvi-causal demo --holdout 'A<B'",
        seed=7,
    )
    page = (tmp_path / "report.html").read_text()
    assert base64.b64encode(b"png").decode() in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere
    assert "A&lt;B" in page
    assert "A<B" not in page
    for text in (
        "Seed 7",
        "<dt>Data</dt><dd>a &amp; b</dd>",
        "scvi-tools",
        "needs features",
        "<b>0.900</b>",
        "noise ceiling",
        "&quot;caption&quot;",
    ):
        assert text in page


def test_versions_name_what_numbers_depend_on():
    assert {"python", "scvi-tools", "torch", "anndata"} <= set(_report.versions())
