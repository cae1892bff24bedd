"""The documentation is true: its code runs, its pages build without a warning, and no public name is missing."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from inspect import ismodule
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import scvi_causal
from scvi_causal.model.base import CausalModel

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
API = ROOT / "docs" / "api"
# fenced blocks of Python; `{code-cell}` and other directives are not among them
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_blocks(page: Path) -> list[tuple[int, str]]:
    """First line and text of each Python block of a page."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in BLOCK.finditer(text)]


@pytest.fixture
def small_and_quick(monkeypatch, tmp_path):
    """The pages show what a user types; here the data are few, training is short, and files go to a folder of their own."""
    train, kang18 = CausalModel.train, scvi_causal.datasets.kang18

    def train_briefly(self, max_epochs=None, *args, **kwargs):
        return train(self, 2 if max_epochs is None else min(2, max_epochs), *args, **kwargs)

    # the baselines have a closed form and a `train` of their own
    monkeypatch.setattr(CausalModel, "train", train_briefly)
    monkeypatch.setattr(scvi_causal.datasets, "kang18", lambda: kang18(n_cells=400))
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


@pytest.mark.parametrize("page", [p for p in PAGES if code_blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
@pytest.mark.usefixtures("small_and_quick")
def test_code_of_page_runs(page):
    namespace = {"__name__": "__main__"}
    for line, code in code_blocks(page):
        # the padding makes a traceback point at the line of the page
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def test_pages_with_code_are_found():
    found = {p.name for p in PAGES if code_blocks(p)}
    assert {"README.md", "data_format.md", "counterfactuals.md"} <= found


def documented_names() -> set[str]:
    """Names on the API pages, in autosummary tables or described on the spot, from ``scvi_causal`` on."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
    tables = re.findall(r"\.\. autosummary::.*?```", text, re.DOTALL)
    listed = {name for table in tables for name in re.findall(r"^   (\w[\w.]*)$", table, re.MULTILINE)}
    return listed | set(re.findall(r"\.\. py:\w+:: ([\w.]+)", text))


@pytest.mark.parametrize(
    "namespace",
    [
        "",
        "benchmark",
        "data",
        "data.fields",
        "dataloaders",
        "datasets",
        "effects",
        "metrics",
        "model.base",
        "pl",
        "train",
    ],  # fmt: skip
)
def test_every_public_name_has_a_page(namespace):
    module = importlib.import_module(f"scvi_causal.{namespace}".rstrip("."))
    public = {f"{namespace}.{name}".lstrip(".") for name in module.__all__ if not ismodule(getattr(module, name))}
    assert public <= documented_names()


def test_listed_names_exist():
    for name in documented_names():
        owner, _, last = f"scvi_causal.{name}".rpartition(".")
        assert hasattr(importlib.import_module(owner), last), name


@pytest.mark.slow
def test_documentation_builds_without_warnings(tmp_path):
    pytest.importorskip("sphinx", reason="the documentation needs the dependency group 'docs'")
    # a copy, because autosummary writes its pages beside the sources
    shutil.copytree(
        ROOT / "docs", tmp_path / "docs", symlinks=True, ignore=shutil.ignore_patterns("_build", "generated")
    )
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    if (ROOT / "tutorials").exists():
        shutil.copytree(ROOT / "tutorials", tmp_path / "tutorials")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "html"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "html" / "api" / "generated" / "scvi_causal.SCCVAE.html").exists()
