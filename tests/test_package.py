"""What a user installs: versions that agree, pins within the ranges, an import that is light and leaves the process alone."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import scvi_causal

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): pin for name, pin in found}


def test_versions_agree():
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert PYPROJECT["project"]["version"] == scvi_causal.__version__ == version("scvi-causal") == citation[1]


@pytest.mark.parametrize("line", PYPROJECT["project"]["dependencies"])
def test_dependencies_are_open_ranges_and_pinned_within_them(line):
    requirement = Requirement(line)
    assert not any(spec.operator in ("==", "~=") for spec in requirement.specifier)
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_package_is_typed():
    assert (Path(scvi_causal.__file__).parent / "py.typed").exists()


STATE = """
import json, logging, random, warnings
import numpy as np, torch
import scanpy, scvi

def state():
    return {
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "seeds": [hash(random.getstate()), hash(np.random.get_state()[1].tobytes()), torch.initial_seed(), repr(scvi.settings.seed)],
        "filters": [str(f) for f in warnings.filters],
        "handlers": [repr(h) for h in logging.getLogger().handlers],
        "docstrings": scvi.model.SCVI.setup_anndata.__doc__,
    }

before = state()
import scvi_causal
names = [getattr(scvi_causal, name) for name in scvi_causal.__all__]
after = state()
print(json.dumps([before, after]))
"""


@pytest.mark.slow
def test_import_leaves_the_process_alone():
    run = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=True)
    before, after = json.loads(run.stdout.splitlines()[-1])
    assert before == after
    assert "scvi_causal" not in run.stderr


def test_import_loads_nothing_until_it_is_used():
    code = "import sys, scvi_causal; print({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "scvi", "anndata", "numpy"}.isdisjoint(ast.literal_eval(run.stdout))


def test_every_name_of_the_top_level_is_there():
    for name in scvi_causal.__all__:
        assert getattr(scvi_causal, name) is not None
        assert name in dir(scvi_causal)
