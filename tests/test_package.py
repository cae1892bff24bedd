"""What a user installs: versions that agree, pins within the ranges, an import that is light and leaves the process alone."""

from __future__ import annotations

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
import scvi

def state():
    return {
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "seeds": [hash(random.getstate()), hash(np.random.get_state()[1].tobytes()), torch.initial_seed(), repr(scvi.settings.seed)],
        "filters": [str(f) for f in warnings.filters],
        "handlers": [repr(h) for h in logging.getLogger().handlers],
    }

before = state()
import scvi_causal
after = state()
print(json.dumps([before, after, scvi_causal.__file__]))
"""


@pytest.mark.slow
def test_import_leaves_the_process_alone():
    run = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=True)
    before, after, _ = json.loads(run.stdout.splitlines()[-1])
    assert before == after
    assert "scvi_causal" not in run.stderr


LIGHT = """
import json, sys
import scvi
before = set(sys.modules)
import scvi_causal
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""


@pytest.mark.slow
def test_import_brings_nothing_that_scvi_does_not_bring():
    run = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    brought = set(json.loads(run.stdout.splitlines()[-1])) - set(sys.stdlib_module_names)
    assert brought <= {"scvi_causal"}, "import these where they are used, not with the package"
