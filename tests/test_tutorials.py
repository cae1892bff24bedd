"""The tutorials run, and what is committed is what a reader should see: outputs, no error, no trace of a machine."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
BRIEF = "N_CELLS = 1500\nMAX_EPOCHS = 2"
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|work|tmp|Users|usr|opt|mnt|var)/|[A-Za-z]:\\\\?Users|site-packages")

SCREEN = re.compile(r'load_screen\("(\w+)"')

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def n_pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_there_are_tutorials():
    assert "quickstart" in [path.stem for path in NOTEBOOKS]


def test_the_pattern_finds_paths():
    for text in ("/home/me/x.py", "saved in /tmp/a/model.pt", r"C:\Users\me", "lib/python3/site-packages/tqdm"):
        assert MACHINE_PATH.search(text), text
    for text in ("https://doi.org/home/x", "log1p(counts / 10,000)", "B/T cells"):
        assert not MACHINE_PATH.search(text), text


@each_notebook
def test_committed_notebook_is_fit_to_read(path):
    notebook = read(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run it from top to bottom in a fresh kernel"
    assert n_pictures(notebook) >= 3
    kinds = {output.output_type for output in outputs(notebook)}
    assert kinds <= {"display_data", "execute_result"}, "errors, warnings or printed progress"
    assert "widgets" not in notebook.metadata
    assert not MACHINE_PATH.search(path.read_text(encoding="utf-8"))
    assert path.stat().st_size <= 2 * 2**20


@pytest.mark.slow
@each_notebook
def test_notebook_runs(path, tmp_path, monkeypatch, real_data):
    from nbclient import NotebookClient

    for screen in SCREEN.findall("\n".join(cell.source for cell in code_cells(read(path)))):
        monkeypatch.setenv("SCVI_CAUSAL_DATA", str(real_data(f"{screen}.h5ad").parent))  # skips where it is absent
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # the pictures of a notebook are in it, whatever backend the tests run with
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = read(path)
    expected = n_pictures(notebook)
    (parameters,) = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = BRIEF
    for cell in code_cells(notebook):
        cell.outputs = []
    # the first cell that raises ends it, with its traceback
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert n_pictures(notebook) == expected
    assert not [output for output in outputs(notebook) if output.output_type in ("error", "stream")]
