"""The report where names are hostile, runs degenerate and pictures large."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest

from scvi_causal.benchmark._report import _format as fmt
from scvi_causal.benchmark._report._blocks import Picture, Table, code, plain
from scvi_causal.benchmark._report._findings import Findings
from scvi_causal.benchmark._report._words import scope
from scvi_causal.benchmark._report._write import build
from scvi_causal.benchmark._report.html import inline, to_html
from scvi_causal.benchmark._report.markdown import to_markdown

from .reading import effects_of, read_html, rows_of, run

HOSTILE = r"a<b>|`c`*d*_e_[f](g)$\frac$"
METRICS = ["r2_de", "pearson_effect", "variance_ratio", "pearson_centred", "discrimination"]


# ---------------------------------------------------------------------- hostile and degenerate input


def test_names_from_outside_are_text_and_nothing_else(frames):
    results, ceiling = frames(n_perturbations=8, n_null=2, models={HOSTILE: (False, 0.6), "base": (True, 0.3)})
    for table in (results, ceiling):
        table["perturbation"] = table["perturbation"].replace({"GENE0": HOSTILE, "GENE7": HOSTILE + "2"})
    results.loc[results["perturbation"] == "GENE1", ["status", "error"]] = ["refused", HOSTILE]
    blocks = build(run(results, ceiling, effects_of(results), title=HOSTILE, command=HOSTILE, commit=HOSTILE))
    reader = read_html(to_html(blocks))
    assert "b" not in reader.tags
    assert "".join(reader.text).count(HOSTILE) >= 10
    markdown = pytest.importorskip("markdown_it", reason="comes with the dependency group 'docs'")
    parsed = read_html(markdown.MarkdownIt("commonmark").enable("table").render(to_markdown(blocks)))
    assert "b" not in parsed.tags
    assert HOSTILE in "".join(parsed.text)
    for block in blocks:
        if isinstance(block, Table):
            assert {len(row) for row in block.rows} == {len(block.header)}
            text = to_markdown([block])
            assert {len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines()} == {len(block.header) + 2}


def test_inline_markup_and_escapes():
    assert inline("**a** *b* `c<d` e<f") == "<strong>a</strong> <em>b</em> <code>c&lt;d</code> e&lt;f"
    assert inline(plain(HOSTILE)) == r"a&lt;b&gt;|`c`*d*_e_[f](g)$\frac$"
    assert inline(f"**{plain('2*3')}**") == "<strong>2*3</strong>"
    assert inline(code("a`b\n c")) == "<code>a&#x27;b c</code>"


@pytest.mark.usefixtures("words_only")
def test_degenerate_runs_have_a_report_too(frames):
    def report(results, ceiling, **options):
        blocks = build(run(results, ceiling, **options))
        read_html(to_html(blocks))
        return to_markdown(blocks)

    results, ceiling = frames(n_perturbations=1, n_null=0, seeds=(0,), models={"SCCVAE": (False, 0.6)})
    assert "Only" not in report(results, ceiling)
    results, ceiling = frames(n_perturbations=3, n_null=0)
    assert "there is no noise ceiling" in report(results, pd.DataFrame())
    assert "was not tested" in report(results, ceiling.assign(p_effect=np.nan))
    everything = results.assign(status="failed", error="ValueError: no", **dict.fromkeys(METRICS, np.nan))
    assert "No model could be compared" in report(everything, ceiling)
    results, ceiling = frames(n_perturbations=4, n_null=4)
    text = report(results, ceiling)
    assert "None of the 4 perturbations has an effect that can be told from control" in text
    assert rows_of(text, "model | populations")[0][1] == "4"
    with pytest.raises(ValueError, match="no results to report"):
        build(run(results.iloc[:0], ceiling))
    with pytest.raises(ValueError, match="'pearson'"):
        build(run(results, ceiling), metrics=["pearson"])


def test_degenerate_runs_have_pictures_as_far_as_there_is_something_to_draw(frames):
    def pictures(results, ceiling):
        return [block.name for block in build(run(results, ceiling), ["r2_de"]) if isinstance(block, Picture)]

    results, ceiling = frames(n_perturbations=1, n_null=0, seeds=(0,), models={"SCCVAE": (False, 0.6)})
    assert pictures(results, ceiling) == ["scores_1.png"]  # no baseline, no skill
    assert pictures(results, pd.DataFrame()) == ["scores_1.png"]
    assert pictures(results.assign(status="failed", r2_de=np.nan), ceiling) == []


def test_scope_counts_what_could_not_be_tested(frames):
    results, ceiling = frames(n_perturbations=6, n_null=2)
    ceiling.loc[ceiling["perturbation"] == "GENE0", "p_effect"] = np.nan
    text = scope(Findings(results, ceiling, {}))
    assert text.startswith("4 of 6 perturbations; the 2 whose effect")
    assert "1 population for which that could not be tested" in text


# ---------------------------------------------------------------------- pictures and numbers


def test_pictures_show_models_baselines_and_ceiling(frames, monkeypatch):
    from scvi_causal import pl

    drawn = []
    monkeypatch.setattr(
        pl, "scores", lambda values, **options: drawn.append((values, options)) or pl_scores(values, **options)
    )
    models = {
        "SCCVAE": (False, 0.6),
        "ControlMean": (True, 0.0),
        "PerturbedMean": (True, 0.3),
        "LinearEffect": (True, 0.2),
    }
    results, ceiling = frames(n_perturbations=20, n_null=5, models=models)
    blocks = build(run(results, ceiling))
    values, options = drawn[1]
    assert len(values) == 15  # the indistinguishable ones are not there
    assert values.columns.tolist() == ["SCCVAE", "ControlMean", "best simple baseline", "LinearEffect"]
    assert (options["baseline"], options["muted"]) == ("best simple baseline", ["LinearEffect"])
    expected = results[(results["model"] == "SCCVAE") & (results["perturbation"] == "GENE03")]["pearson_effect"].mean()
    assert values.loc["GENE03", "SCCVAE"] == pytest.approx(expected)
    top = ceiling[ceiling["perturbation"] == "GENE03"]
    np.testing.assert_allclose(
        options["ceiling"].loc["GENE03", ["value", "low"]], top[["pearson_effect", "pearson_effect_low"]].mean()
    )
    # all panels have the same rows in the same order
    assert all(table.index.tolist() == values.index.tolist() for table, _ in drawn)
    assert [b.name for b in blocks if isinstance(b, Picture)] == ["skill.png", "scores_1.png", "scores_2.png"]


def pl_scores(values, **options):
    from scvi_causal.pl._scores import scores

    return scores(values, **options)


@pytest.mark.parametrize("columns", [2, 3, 7])
def test_lines_of_pixels_are_as_long_as_the_picture_is_wide(columns):
    """A vertical bar stays vertical, whatever inches times resolution come to in floating point."""
    from PIL import Image

    from scvi_causal.benchmark._report.figures import new_figure, to_png

    figure = new_figure(2.8 + 0.95 * columns, 2.0, layout=None)
    axes = figure.add_axes((0.5, 0.0, 0.5, 1.0))
    axes.set(facecolor="black", xticks=[], yticks=[])
    dark = np.asarray(Image.open(io.BytesIO(to_png(figure))).convert("L")) < 128
    edges = {int(np.flatnonzero(line)[0]) for line in dark}
    assert max(edges) - min(edges) <= 1


def test_large_pictures_give_up_resolution(frames):
    from PIL import Image

    from scvi_causal.benchmark._report.figures import new_figure, to_png

    figure = new_figure(3, 3, layout=None)
    figure.subplots().imshow(np.random.default_rng(0).random((100, 100)))
    small, large = to_png(figure, 15_000), to_png(figure, 10**7)
    assert len(small) < len(large)
    assert Image.open(io.BytesIO(small)).size[0] < Image.open(io.BytesIO(large)).size[0] == 330


def test_numbers_have_the_same_decimals_in_a_column():
    assert fmt.column([0.123456, 0.5, np.nan]) == ["0.123", "0.500", "–"]
    assert fmt.column([1234.5, 88.0]) == ["1234", "88"]
    assert fmt.column([12.34, 5.0]) == ["12.3", "5.0"]
    assert fmt.column([0.00123, 0.00045]) == ["0.00123", "0.00045"]
    assert fmt.column([0.0, 0.0]) == ["0.000", "0.000"]
    assert fmt.number(-0.0001, 2) == "0.00"
    assert fmt.number(-0.25, 2) == "-0.25"
    assert [fmt.p_value(p) for p in (0.5, 0.034, 0.0021, 1e-7, np.nan)] == ["0.50", "0.034", "0.0021", "< 0.0001", "–"]
    assert fmt.with_interval(0.1, -0.2, np.nan) == "0.100"
    assert fmt.with_interval(0.1, -0.2, 0.3, 1) == "0.1 [-0.2, 0.3]"
    assert [fmt.share(x, 8) for x in (1.0, 0.9375)] == ["8 of 8", "7.5 of 8"]
    assert [fmt.seconds(x) for x in (0.123, 12.34, 1234.5)] == ["0.12", "12.3", "1,234"]
    assert [fmt.joined("abc"[:n]) for n in (0, 1, 2, 3)] == ["", "a", "a and b", "a, b and c"]
