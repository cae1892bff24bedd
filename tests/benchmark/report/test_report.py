"""Both reports: complete, honest about what failed and what leaks, and the same in both forms."""

from __future__ import annotations

import re

import numpy as np
import pytest

from scvi_causal.benchmark._report import write_report
from scvi_causal.benchmark._report._findings import Findings
from scvi_causal.benchmark._report._words import verdict, verdict_of_model
from scvi_causal.benchmark._report._write import build
from scvi_causal.benchmark._report.markdown import to_markdown
from scvi_causal.benchmark._tables import summary

from .reading import effects_of, read_html, rows_of, run

METRICS = ["r2_de", "pearson_effect", "variance_ratio", "pearson_centred", "discrimination"]


# ---------------------------------------------------------------------- the files


def test_both_files_and_their_pictures(frames, tmp_path):
    results, ceiling = frames(contexts=("T", "B"), kinds=("1 of 2 tokens seen", "2 of 2 tokens seen"))
    files = write_report(run(results, ceiling, effects_of(results)), tmp_path / "new" / "folder")
    text, page = files.markdown.read_text(), files.html.read_text()
    named = re.findall(r"!\[[^]]*\]\(figures/([^)]+)\)", text)
    assert named == ["skill.png", "scores_1.png", "scores_2.png", "effects.png"]
    assert sorted(named) == sorted(p.name for p in files.figures.iterdir())
    for picture in files.figures.iterdir():
        png = picture.read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) < 100_000
    reader = read_html(page)
    # one file, no network: pictures are inside, and nothing else is asked for
    assert len(reader.addresses) == len(named)
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)
    assert all('alt="' in image for image in re.findall(r"<img [^>]+>", page))


@pytest.mark.usefixtures("words_only")
def test_sections_come_in_order_of_importance(frames):
    results, ceiling = frames()
    results.loc[results["perturbation"] == "GENE01", ["status", "error"]] = ["refused", "unknown"]
    text = to_markdown(build(run(results, ceiling, effects_of(results))))
    found = [line.lstrip("# ") for line in text.splitlines() if re.match("##? ", line)]
    assert found == [
        "Benchmark: unseen",
        "Summary",
        "Paired comparisons",
        "Every perturbation",
        "Effects",
        "Perturbations indistinguishable from control",
        "What did not run",
        "Spread over seeds",
        "Run time and memory",
        "How each number is computed",
        "How it was made",
    ]


def test_same_input_same_bytes(frames, tmp_path):
    results, ceiling = frames(n_perturbations=6, n_null=0, seeds=(0,))
    first, second = (write_report(run(results, ceiling), tmp_path / name) for name in "ab")
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.markdown.read_bytes() == second.markdown.read_bytes()


def test_reports_share_a_folder_and_stale_pictures_go(frames, tmp_path):
    results, ceiling = frames(n_perturbations=6, n_null=0, seeds=(0,))
    write_report(run(results, ceiling, effects_of(results, 10)), tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"not ours")
    write_report(run(results, ceiling), tmp_path, name="kang")
    write_report(run(results, ceiling), tmp_path, metrics=["r2_de"])
    kang = {"kang_skill.png", "kang_scores_1.png", "kang_scores_2.png"}
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"skill.png", "scores_1.png", "mine.png"} | kang
    assert "figures/kang_skill.png" in (tmp_path / "kang.md").read_text()


# ---------------------------------------------------------------------- what it says


@pytest.mark.usefixtures("words_only")
def test_summary_table_is_the_summary(frames):
    results, ceiling = frames()
    text = to_markdown(build(run(results, ceiling)))
    table = summary(results, ceiling)
    rows = rows_of(text, "model | populations")
    names = ["SCCVAE", "*simple baselines*", "ControlMean", "PerturbedMean", "*noise ceiling*"]
    assert [row[0] for row in rows] == names
    for row in rows:
        model = row[0].strip("*")
        if model in table.index:
            shown = [float(cell.strip("*")) for cell in row[2:]]
            np.testing.assert_allclose(shown, table.loc[model, METRICS].astype(float), atol=0.006)
    assert all(cell.startswith("**") for cell in rows[0][2:])  # the best, on every metric
    assert not any("**" in cell for row in rows[1:] for cell in row)  # the ceiling is no competitor
    skill = rows_of(text, "model | R2 (DE genes) |")
    np.testing.assert_allclose(
        [float(c) for c in skill[0][1:]], table.loc["SCCVAE", [f"skill_{m}" for m in METRICS]].astype(float), atol=0.006
    )
    assert skill[-1][0] == "*0: best simple baseline*"
    assert set(skill[-1][1:]) == {"*PerturbedMean*"}


@pytest.mark.usefixtures("words_only")
def test_indistinguishable_perturbations_have_a_table_of_their_own(frames):
    results, ceiling = frames(n_perturbations=20, n_null=5)
    text = to_markdown(build(run(results, ceiling)))
    assert "15 of 20 perturbations; the 5 whose effect cannot be told from control" in text
    rows = rows_of(text, "perturbation | cells")
    assert sorted(row[0] for row in rows) == [f"GENE{i}" for i in range(15, 20)]
    section = text[text.index("Scores on these populations alone") :]
    assert rows_of(section, "model | populations")[0][:2] == ["SCCVAE", "5"]
    results, ceiling = frames(n_null=0)
    assert "None: the effect of every perturbation" in to_markdown(build(run(results, ceiling)))


@pytest.mark.usefixtures("words_only")
def test_leaks_are_loud_and_never_the_best(frames):
    models = {"SCCVAE": (False, 0.6), "cheat": (False, 1.0), "PerturbedMean": (True, 0.3)}
    results, ceiling = frames(models=models)
    results.loc[results["model"] == "cheat", "leak"] = "predicted cells are test cells"
    text = to_markdown(build(run(results, ceiling)))
    assert text.index("LEAK in cheat") < text.index("## Summary")
    rows = {row[0]: row for row in rows_of(text, "model | populations")}
    assert not any("**" in cell for cell in rows["cheat **LEAK**"][1:])
    assert all("**" in cell for cell in rows["SCCVAE"][2:])
    assert {row[0] for row in rows_of(text, "model | metric")} == {"SCCVAE"}
    assert "**cheat**: **LEAK**" in text
    assert "Shown to be better than the best simple baseline: SCCVAE" in text


@pytest.mark.usefixtures("words_only")
def test_what_failed_or_was_refused_is_shown_with_its_reason(frames):
    models = {"SCCVAE": (False, 0.6), "broken": (False, 0.5), "picky": (False, 0.5), "PerturbedMean": (True, 0.3)}
    results, ceiling = frames(models=models)
    metrics = list(ceiling.columns.intersection(results.columns).difference(["fold", "seed", "n_observed"]))
    metrics = [m for m in metrics if results[m].dtype == float]
    broken = results["model"] == "broken"
    picky = (results["model"] == "picky") & results["perturbation"].isin(["GENE00", "GENE01", "GENE02"])
    results.loc[broken | picky, metrics] = np.nan
    results.loc[broken, ["status", "error"]] = ["failed", "ValueError: a | b"]
    results.loc[picky, ["status", "error"]] = ["refused", "not in the network"]
    text = to_markdown(build(run(results, ceiling)))
    rows = {row[0]: row for row in rows_of(text, "model | populations")}
    assert rows["broken"][1] == "0 of 15 (failed)"
    assert set(rows["broken"][2:]) == {"–"}
    assert rows["picky"][1] == "12 of 15 (refused)"
    failed = rows_of(text, "model | status")
    assert failed == [
        ["broken", "failed", "20", "10", "GENE00", "`ValueError: a \\| b`"],
        ["picky", "refused", "3", "6", "GENE00", "`not in the network`"],
    ]
    assert "**broken**: not scored (failed" in text
    assert "The run is not finished**: 2 jobs missing (SCCVAE)" in to_markdown(
        build(run(results, ceiling, missing=[("SCCVAE", 0, 1), ("SCCVAE", 0, 2)]))
    )


def test_verdicts_claim_no_more_than_was_shown(frames):
    def words(**options):
        found = Findings(*frames(**options), {})
        return verdict(found), " ".join(verdict_of_model(found, m) for m in found.models)

    short, long = words()
    assert short == "Shown to be better than the best simple baseline: SCCVAE (on 5 of 5 metrics)."
    assert "better on 5 (R2 (DE genes); Pearson of effects" in long
    assert "Skill: median 0." in long
    same = {"SCCVAE": (False, 0.3), "PerturbedMean": (True, 0.3)}
    short, long = words(models=same)
    assert short.startswith("No model was shown to be better")
    assert "no difference shown on 5" in long
    short, long = words(n_perturbations=5, n_null=0, seeds=(0,))
    assert short.startswith("Too few perturbations to tell")
    assert "With 5 perturbations no p below 0.05 is possible; 6 would be needed." in long
    assert "wins 5 of 5, p = 0.062.)" in long
    short, long = words(n_perturbations=1, n_null=0, contexts=tuple("abcdefghi"), seeds=(0,))
    assert short.startswith("Shown to be better")  # nine contexts of one perturbation, which are the pairs then
    assert words(models={"PerturbedMean": (True, 0.3)}) == (
        "Only simple baselines were run: there is no model to judge.",
        "",
    )


@pytest.mark.usefixtures("words_only")
def test_pairs_that_are_contexts_are_called_so(frames):
    results, ceiling = frames(n_perturbations=1, n_null=0, contexts=tuple("abcdefgh"), seeds=(0,))
    text = to_markdown(build(run(results, ceiling)))
    assert "Pairs are contexts" in text
    assert "8 of 8" in rows_of(text, "model | metric")[0]
    assert [row[0] for row in rows_of(text, "context | SCCVAE")] == list("abcdefgh")
    results, ceiling = frames(contexts=("T", "B"))
    assert "the contexts of one are averaged" in to_markdown(build(run(results, ceiling)))


@pytest.mark.usefixtures("words_only")
def test_breakdown_by_what_was_seen(frames):
    results, ceiling = frames(kinds=("1 of 2 tokens seen", "2 of 2 tokens seen"))
    text = to_markdown(build(run(results, ceiling)))
    part = results["kind"] == "1 of 2 tokens seen"
    expected = summary(results[part], ceiling[ceiling["kind"] == "1 of 2 tokens seen"]).loc["SCCVAE", "r2_de"]
    section = text[text.index("**1 of 2 tokens seen**") :]
    assert float(rows_of(section, "model | populations")[0][2]) == pytest.approx(expected, abs=0.006)


@pytest.mark.usefixtures("words_only")
def test_origin_is_complete(frames):
    results, ceiling = frames()
    config = {
        "title": "Papalexi: unseen perturbations",
        "versions": {"Python": "3.11", "scvi-causal": "0.1.0"},
        "models": {"SCCVAE": "SCCVAE(n_latent=5)"},
        "data": {"name": "screen.h5ad", "cells": 20729, "fingerprint": None},
        "folds": {"seed 0, fold 0": {"held_out": "every cell that carries 'A'", "populations": 4, "note": ""}},
        "time": {"wall_s": 100.0, "outside_models": 0.031},
        "warnings": {"SCCVAE": ["UserWarning: " + "x" * 1000]},
        "threads": 1,
        "max_cells": 500,
        "size_factor_key": "library_size_full",
        "out": "/somewhere/private",
    }
    text = to_markdown(build(run(results, ceiling, **config)))
    assert text.startswith("# Papalexi: unseen perturbations\n")
    for expected in (
        "scvi-causal benchmark screen.h5ad",
        "- Commit: abc1234",
        "- Seeds: 0 and 1",
        "Python 3.11, scvi-causal 0.1.0",
        "| SCCVAE | `SCCVAE(n_latent=5)` |",
        "- Data: screen.h5ad, cells 20729\n",
        "| seed 0, fold 0 | every cell that carries 'A' | 4 |",
        "100 s on the clock, 3.1 % of the workers' time outside models",
        "at most 500 cells",
        "`library_size_full`",
        ", 1 thread",
    ):
        assert expected in text
    assert "/somewhere/private" not in text
    assert "x" * 400 not in text
    assert "inflated" not in text
    assert "inflated by the noise of these cells" in to_markdown(build(run(results, ceiling, controls="shared")))
