"""A bar for people, lines for logs, nothing where nobody looks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scvi_causal.benchmark._progress import Progress

JOBS = [SimpleNamespace(title=f"model {i}, fold 0, seed 0") for i in range(3)]
GOOD = SimpleNamespace(status="ok", error="")
BAD = SimpleNamespace(status="failed", error="ValueError: [bold]no[/bold] " + "x" * 300)


def go(shown):
    with Progress(shown, 5, 2) as progress:
        for job, result in zip(JOBS, (GOOD, BAD, GOOD), strict=True):
            progress.advance(job, result)


def test_lines():
    lines = []
    go(lines.append)
    assert lines[0] == "5 jobs, 2 of them done before"
    assert lines[1] == "[3/5] model 0, fold 0, seed 0"
    assert lines[2].startswith("[4/5] model 1, fold 0, seed 0: failed: ValueError: [bold]no[/bold] xxx")
    assert lines[2].endswith("...")
    assert len(lines[2]) < 220


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_where_nobody_looks(shown, capsys, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    go(shown)
    assert capsys.readouterr() == ("", "")


def test_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("COLUMNS", "200")
    go(True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "5 jobs, 2 of them done before" in err
    # what went wrong stays above the bar, in its own words
    assert "model 1, fold 0, seed 0: failed: ValueError: [bold]no[/bold]" in err
    assert "[3/5]" not in err
    assert "5/5" in err
